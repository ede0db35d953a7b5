"""LeNet-5 against the numbers and the words of its paper."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.models.lenet import C3_TABLE, LeNet, c3_inputs, rbf_codes


def images(size=32, channels=1, batch=2):
    return jax.random.normal(jax.random.key(0), (batch, size, size, channels))


def init(module, x):
    return jax.jit(partial(module.init, train=False))(jax.random.key(1), x)


def logits_of(module, variables, x):
    return jax.jit(partial(module.apply, train=False))(variables, x)


def layers(module, x):
    """Returns variables, logits and the output of each layer by its path."""
    variables = init(module, x)
    outputs = {}

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        outputs["/".join(context.module.path)] = y
        return y

    with nn.intercept_methods(record):
        logits = module.apply(variables, x, train=False)
    return variables, logits, outputs


@pytest.fixture(scope="module")
def lenet5():
    return layers(models.create("lenet5"), images())


def test_parameters_of_each_layer(lenet5):
    variables, _, _ = lenet5
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in variables["params"].items()}
    assert counts == {"C1": 156, "S2": 12, "C3": 1516, "S4": 32, "C5": 48_120, "F6": 10_164}
    assert set(variables) == {"params"}  # the codes are constants


def test_connections_of_the_whole_network(lenet5):
    variables, _, outputs = lenet5
    places = {name: np.prod(outputs[name].shape[1:3]) for name in ("C1", "S2", "C3", "S4", "C5")} | {"F6": 1}
    each = {"S2": 5 * 6, "S4": 5 * 16}  # four inputs and a bias for each unit of subsampling
    for name in ("C1", "C3", "C5", "F6"):
        each[name] = sum(leaf.size for leaf in jax.tree.leaves(variables["params"][name]))
    connections = {name: int(places[name] * each[name]) for name in each}
    assert connections["C1"] == 122_304
    assert connections["C3"] == 151_600
    assert sum(connections.values()) + 10 * 84 == 340_908


def test_sizes_and_names_of_the_layers(lenet5):
    _, logits, outputs = lenet5
    assert {name: y.shape[1:] for name, y in outputs.items() if "_" not in name} == {
        "": (10,),
        "C1": (28, 28, 6),
        "S2": (14, 14, 6),
        "C3": (10, 10, 16),
        "S4": (5, 5, 16),
        "C5": (1, 1, 120),
        "dropout": (120,),
        "F6": (84,),
        "output": (10,),
    }
    for layer in ("C1", "S2", "C3", "S4", "C5", "F6"):
        squashed = 1.7159 * np.tanh(2 / 3 * outputs[layer])
        np.testing.assert_allclose(outputs[f"{layer}_activation"], squashed, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(logits, outputs["output"])


def test_pooling_without_parameters_is_not_squashed_again():
    _, _, outputs = layers(models.create("lenet5_modern"), images())
    assert "S2" in outputs
    assert "S2_activation" not in outputs
    expected = np.asarray(outputs["C1_activation"]).reshape(2, 14, 2, 14, 2, 6).max((2, 4))
    np.testing.assert_array_equal(outputs["S2"], expected)


def test_table_one_in_the_words_of_the_paper():
    inputs = c3_inputs(6, 16)
    contiguous = [tuple(sorted((start + step) % 6 for step in range(size))) for size in (3, 4) for start in range(6)]
    assert list(inputs[:12]) == contiguous
    assert list(inputs[12:15]) == [(0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)]
    assert inputs[15] == (0, 1, 2, 3, 4, 5)
    assert sum(map(len, inputs)) == 60


def test_table_one_by_width():
    doubled = c3_inputs(12, 32)
    for feature, maps in enumerate(doubled):
        assert maps == tuple(map_ for half in c3_inputs(6, 16)[feature // 2] for map_ in (2 * half, 2 * half + 1))
    assert len(c3_inputs(3, 8)) == 8
    with pytest.raises(UserError, match="more width or c3='dense'"):
        c3_inputs(1, 2)


def test_a_map_of_s2_reaches_the_maps_of_c3_that_the_table_says(lenet5):
    variables, _, outputs = lenet5
    module = models.create("lenet5")

    def c3(changed):
        def change(call, args, kwargs, context):
            y = call(*args, **kwargs)
            return y.at[..., changed].add(1.0) if context.module.name == "S2_activation" else y

        with nn.intercept_methods(change):
            _, state = module.apply(variables, images(), train=False, capture_intermediates=True)
        return state["intermediates"]["C3"]["__call__"][0]

    for map_, row in enumerate(C3_TABLE):
        reached = np.abs(c3(map_) - outputs["C3"]).max((0, 1, 2)) > 0
        assert "".join("X" if hit else "." for hit in reached) == row


def test_codes_are_the_bitmaps_of_the_digits():
    codes = rbf_codes()
    assert codes.shape == (10, 84)
    assert set(np.unique(codes)) == {-1, 1}
    one = codes[1].reshape(12, 7)
    assert ["".join("#" if pixel > 0 else "." for pixel in row) for row in one[:3]] == ["...##..", "..###..", ".####.."]
    distances = np.square(codes[:, None] - codes[None]).sum(-1)
    assert (distances + 1000 * np.eye(10)).min() >= 4 * 10  # any two digits differ in ten pixels or more
    assert (codes[8].reshape(12, 7)[:10] == codes[8].reshape(12, 7)[:10, ::-1]).all()


def test_output_is_minus_the_squared_distance_to_the_codes(lenet5):
    _, logits, outputs = lenet5
    features = np.asarray(outputs["F6_activation"])
    expected = [[-np.sum((feature - code) ** 2) for code in rbf_codes()] for feature in features]
    np.testing.assert_allclose(logits, expected, rtol=1e-5)


def test_fewer_classes_are_the_first_digits(lenet5):
    variables, logits, _ = lenet5
    fewer = logits_of(models.create("lenet5", num_classes=3), variables, images())
    np.testing.assert_allclose(fewer, logits[:, :3], rtol=1e-5)


def test_weights_start_in_the_interval_of_the_paper(lenet5):
    params = lenet5[0]["params"]
    for layer, fan_in in {"C1": 25, "C5": 400, "F6": 120}.items():
        assert np.abs(params[layer]["kernel"]).max() == pytest.approx(2.4 / fan_in, rel=0.05)
    assert np.abs(params["C3"]["kernel"][..., :3]).max() == pytest.approx(2.4 / 75, rel=0.1)
    assert np.abs(params["C3"]["kernel"][..., -6:]).max() == pytest.approx(2.4 / 150, rel=0.1)
    assert np.abs(params["S4"]["scale"]).max() < 2.4 / 4


def test_padding_lets_images_of_28_in():
    inside, outside = images(28), jnp.pad(images(28), ((0, 0), (2, 2), (2, 2), (0, 0)))
    variables = init(LeNet(), outside)
    expected = logits_of(LeNet(), variables, outside)
    np.testing.assert_allclose(logits_of(LeNet(padding=2), variables, inside), expected, rtol=1e-5)
    outside = jnp.pad(inside, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    expected = logits_of(LeNet(), variables, outside)
    actual = logits_of(LeNet(padding=2, padding_mode="edge"), variables, inside)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_colour_images_go_in():
    shapes = jax.eval_shape(lambda: LeNet().init(jax.random.key(0), images(channels=3), train=False))
    assert shapes["params"]["C1"]["kernel"].shape == (5, 5, 3, 6)


def test_width_multiplies_the_maps():
    for output, f6 in (("rbf", 84), ("softmax", 168)):
        module = LeNet(width=2.0, output=output)
        params = jax.eval_shape(lambda module=module: module.init(jax.random.key(0), images(), train=False))["params"]
        assert params["C1"]["kernel"].shape[-1] == 12
        assert params["C3"]["kernel"].shape == (5, 5, 240)
        assert params["F6"]["kernel"].shape == (240, f6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 11}, "use output='softmax'"),
        ({"padding_mode": "edge"}, "padding_mode='edge' does nothing with padding=0"),
        ({"padding": -1}, "padding=-1 is out of range"),
        ({"pool": "trainabel"}, "did you mean 'trainable'"),
        ({"c3": "sparse"}, "c3='sparse' is not known"),
        ({"sharing": "locale", "c3": "dense"}, "did you mean 'local'"),
        ({"sharing": "local"}, "c3='partial' needs sharing='convolution', not 'local'; use c3='dense'"),
        (
            {"sharing": "dense", "c3": "dense", "padding": 2, "padding_mode": "edge"},
            "padding_mode='edge' does nothing with sharing='dense'",
        ),
        ({"output": "sotfmax"}, "did you mean 'softmax'"),
        ({"norm": "bacth"}, "did you mean 'batch'"),
        ({"bn_momentum": 0.5}, "does nothing with norm='none'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("lenet5", **fields)


def test_what_sharing_and_local_perception_save():
    """C1 sees one map of 32x32 in windows of 5x5 at 28x28 places; C3 six of 14x14, at 10x10 places; C5 16 of 5x5."""
    expected = {
        "convolution": {"C1": 156, "C3": 2_416, "C5": 48_120},
        "local": {"C1": 28 * 28 * 6 * (25 + 1), "C3": 10 * 10 * 16 * (6 * 25 + 1), "C5": 48_120},
        "dense": {"C1": 1024 * 4704 + 4704, "C3": 14 * 14 * 6 * 1600 + 1600, "C5": 48_120},
    }
    totals = {"convolution": 61_706, "local": 423_038, "dense": 6_763_934}
    for sharing, layer_counts in expected.items():
        module = models.create("lenet5_modern", sharing=sharing)
        params = jax.eval_shape(lambda module=module: module.init(jax.random.key(0), images(), train=False))["params"]
        counts = {name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in params.items()}
        assert {name: counts[name] for name in layer_counts} == layer_counts
        assert sum(counts.values()) == totals[sharing]


def toeplitz(kernel, size, padding):
    """Returns the doubly block Toeplitz matrix of a convolution: an entry depends on differences of places alone."""
    extent, _, channels, features = kernel.shape
    places = size - extent + 1 + 2 * padding
    matrix = np.zeros((size, size, channels, places, places, features), np.float32)
    for row, column, out_row, out_column in np.ndindex(size, size, places, places):
        down, right = row - out_row + padding, column - out_column + padding
        if 0 <= down < extent and 0 <= right < extent:
            matrix[row, column, :, out_row, out_column] = kernel[down, right]
    return matrix.reshape(size * size * channels, -1)


@pytest.fixture(scope="module")
def shared():
    """LeNet with convolutions on images of 28x28: its variables, with biases, and its logits."""
    module, x = models.create("lenet5_modern", padding=2), images(28)
    variables = jax.tree.map(lambda leaf: leaf + 0.01, init(module, x))
    return variables["params"], logits_of(module, variables, x)


def test_local_with_tied_weights_is_the_convolution(shared):
    params, expected = shared
    tied = dict(params)
    for layer, places in (("C1", 28), ("C3", 10), ("C5", 1)):
        tied[layer] = {name: jnp.tile(leaf, (places, places, *[1] * leaf.ndim)) for name, leaf in params[layer].items()}
    module = models.create("lenet5_modern", padding=2, sharing="local")
    np.testing.assert_allclose(logits_of(module, {"params": tied}, images(28)), expected, rtol=1e-4, atol=1e-4)


def test_dense_with_the_toeplitz_matrix_is_the_convolution(shared):
    params, expected = shared
    matrices = dict(params)
    for layer, size, padding in (("C1", 28, 2), ("C3", 14, 0), ("C5", 5, 0)):
        kernel = toeplitz(np.asarray(params[layer]["kernel"]), size, padding)
        biases = jnp.tile(params[layer]["bias"], kernel.shape[1] // len(params[layer]["bias"]))
        matrices[layer] = {"kernel": jnp.asarray(kernel), "bias": biases}
    module = models.create("lenet5_modern", padding=2, sharing="dense")
    np.testing.assert_allclose(logits_of(module, {"params": matrices}, images(28)), expected, rtol=1e-4, atol=1e-4)


def test_images_of_another_size_are_refused():
    with pytest.raises(UserError, match="takes images of 32x32 with padding=0 or of 28x28 with padding=2, not 28x28"):
        jax.eval_shape(lambda: LeNet().init(jax.random.key(0), images(28), train=False))


def step(module, variables, x, key):
    """Returns the gradients of a loss in training mode."""

    def loss(params):
        state = {**variables, "params": params}
        logits, _ = module.apply(state, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return -jax.nn.log_softmax(logits)[:, 1].mean()

    return jax.value_and_grad(loss)(variables["params"])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *(
            (name, fields)
            for name in ("lenet5", "lenet5_modern")
            for fields in ({}, {"norm": "batch", "dropout_rate": 0.2, "dtype": "bfloat16"})
        ),
        *(("lenet5_modern", {"sharing": sharing, "activation": "tanh"}) for sharing in ("local", "dense")),
    ],
)
def test_gradients_reach_every_parameter_and_are_finite(name, fields):
    module = models.create(name, **fields)
    x = images(batch=8)
    variables = init(module, x)
    loss, gradients = jax.jit(partial(step, module))(variables, x, jax.random.key(2))
    assert np.isfinite(loss)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_logits_of_bfloat16_are_float32():
    for name in ("lenet5", "lenet5_modern"):
        module = models.create(name, dtype="bfloat16", param_dtype="bfloat16")
        shape, _ = jax.eval_shape(
            lambda module=module: module.init_with_output(jax.random.key(0), images(), train=False)
        )
        assert shape.dtype == jnp.float32


@pytest.mark.parametrize("fields", [{"norm": "batch"}, {"norm": "group"}, {"dropout_rate": 0.5}])
def test_evaluation_is_independent_of_the_order_of_the_batch(fields):
    module = models.create("lenet5", **fields)
    x = images(batch=4)
    variables = init(module, x)
    logits = logits_of(module, variables, x)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(logits_of(module, variables, x[order]), logits[order], rtol=1e-5)


def test_train_is_explicit():
    with pytest.raises(TypeError, match="train"):
        LeNet().init(jax.random.key(0), images())


def test_another_activation_is_a_clone_with_the_same_parameters(lenet5):
    variables, _, _ = lenet5
    clone = models.create("lenet5").clone(activation=jnp.sin)
    _, state = clone.apply(variables, images(), train=False, capture_intermediates=True)
    taps = state["intermediates"]
    np.testing.assert_array_equal(taps["C1_activation"]["__call__"][0], jnp.sin(taps["C1"]["__call__"][0]))
