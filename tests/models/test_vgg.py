"""VGG against the paper's numbers and words, and against a network written out by hand."""

import math
from functools import partial
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from cnn_research.errors import UserError
from cnn_research.layers import Conv, Pool
from cnn_research.layers.taps import record
from cnn_research.models.vgg import CONFIGURATIONS, VARIANTS, VGG, convolutions
from cnn_research.ops.response import local_response_norm

TINY = dict(num_classes=3, width=1 / 32, hidden=(320, 256))


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape, np.float32))


IMAGES = normal(4, 32, 34, 3)


def shapes(module, x=IMAGES):
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), x)


def random_variables(module, x=IMAGES):
    """Returns variables that keep a signal alive, the variances positive."""
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        spread = math.sqrt(2 / math.prod(leaf.shape[:-1])) if path.endswith("kernel") else 0.1
        values = 1 + 0.5 * rng.random(leaf.shape) if path.endswith("var") else spread * rng.standard_normal(leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    drawn = {path: draw(path, leaf) for path, leaf in flat(shapes(module, x)).items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


def build(**fields):
    module = VGG(**TINY | fields)
    return module, random_variables(module)


def trace(module, size):
    """Returns the shapes of the parameters by path, and by name, in their order, each layer and its output's shape."""
    layers = {}

    def note(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__":
            output = jax.ShapeDtypeStruct(y.shape, y.dtype)
            layers["/".join(context.module.path)] = (context.module.clone(parent=None), output)
        return y

    with nn.intercept_methods(note):
        variables = shapes(module, jnp.zeros((1, size, size, 3)))
    return flat(variables["params"]), layers


def multiply_accumulates(params, layers):
    return sum(
        math.prod(params[f"{name}/kernel"].shape) * math.prod(output.shape[1:-1])
        for name, (layer, output) in layers.items()
        if isinstance(layer, Conv | nn.Dense)
    )


def receptive_field(layers):
    field = jump = 1
    for layer, _ in layers.values():
        if isinstance(layer, Conv | Pool):
            window = layer.kernel_size if isinstance(layer, Conv) else layer.window
            field, jump = field + (window - 1) * jump, jump * layer.strides
    return field


# The paper's numbers.


@pytest.mark.parametrize(
    ("name", "gmac", "layers_with_weights"),
    [
        ("vgg11", "7.609", 11),
        ("vgg11_lrn", "7.609", 11),
        ("vgg13", "11.308", 13),
        ("vgg16_1x1", "11.771", 16),
        ("vgg16", "15.470", 16),
        ("vgg19", "19.632", 19),
    ],
)
def test_multiply_accumulates_and_depth(name, gmac, layers_with_weights):
    params, layers = trace(VGG(**VARIANTS[name]), 224)
    assert f"{multiply_accumulates(params, layers) / 1e9:.3f}" == gmac
    assert sum(path.endswith("kernel") for path in params) == layers_with_weights


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vgg11", 132_868_840), ("vgg13", 133_053_736), ("vgg16", 138_365_992), ("vgg19", 143_678_248)],
)
def test_parameters_with_batch_norm_are_torchvisions(name, parameters):
    params, _ = trace(VGG(norm="batch", **VARIANTS[name]), 224)
    assert sum(leaf.size for leaf in params.values()) == parameters
    assert {"conv1_1/bias", "conv1_1_norm/bias", "conv1_1_norm/scale"} <= params.keys()


def test_names_order_and_sizes_of_the_layers():
    _, layers = trace(VGG(configuration="D"), 224)
    expected, size = [], 224
    for stage, (count, channels) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)], start=1):
        for index in range(1, count + 1):
            layer = f"conv{stage}_{index}"
            expected += [(each, (1, size, size, channels)) for each in (layer, f"{layer}_norm", f"{layer}_activation")]
        size //= 2
        expected.append((f"pool{stage}", (1, size, size, channels)))
    for index in (6, 7):
        expected += [(f"fc{index}{suffix}", (1, 4096)) for suffix in ("", "_activation", "_dropout")]
    expected += [("head", (1, 1000)), ("", (1, 1000))]
    assert [(name, output.shape) for name, (_, output) in layers.items()] == expected
    pooled = {name: layers[name] for name in list(layers)[: list(layers).index("pool5") + 1]}
    assert receptive_field(pooled) == 212


def test_a_with_lrn_has_it_after_the_first_activation_alone():
    _, layers = trace(VGG(configuration="A-LRN"), 32)
    names = list(layers)
    assert [name for name in names if "lrn" in name] == ["lrn1"]
    assert names[names.index("conv1_1_activation") :][:3] == ["conv1_1_activation", "lrn1", "pool1"]
    _, without = trace(VGG(configuration="A"), 32)
    assert [name for name in names if name != "lrn1"] == list(without)


def test_c_has_its_1x1_convolutions_last():
    _, layers = trace(VGG(configuration="C"), 32)
    sizes = {name: layer.kernel_size for name, (layer, _) in layers.items() if isinstance(layer, Conv)}
    assert {name for name, size in sizes.items() if size == 1} == {"conv3_3", "conv4_3", "conv5_3"}
    assert set(sizes.values()) == {1, 3}


# Section 2.3: larger kernels in place of stacks of 3x3 ones.


@given(
    st.lists(st.sampled_from([8, 16, "8*", "LRN"]), max_size=9),
    st.sampled_from([5, 7]),
)
def test_larger_kernels_see_as_far_and_leave_no_stack(stage, kernel):
    small, large = convolutions(stage), convolutions(stage, kernel)
    assert sum(size - 1 for size, _ in large) == sum(size - 1 for size, _ in small)
    assert [layer for layer in large if layer[0] == 1] == [layer for layer in small if layer[0] == 1]
    depth = (kernel - 1) // 2
    for start in range(len(large)):
        run = large[start : start + depth]
        assert len(run) < depth or {size for size, _ in run} != {3} or len({channels for _, channels in run}) > 1
    # In full: each larger one gives back its stack.
    stacks = [[(3, channels)] * depth if size == kernel else [(size, channels)] for size, channels in large]
    assert list(chain(*stacks)) == small


@pytest.mark.parametrize(("configuration", "kernel"), [("B", 5), ("C", 5), ("D", 5), ("D", 7), ("E", 5), ("E", 7)])
def test_larger_kernels_keep_receptive_field_and_sizes(configuration, kernel):
    fields = dict(configuration=configuration, num_classes=3, hidden=())
    _, small = trace(VGG(**fields), 64)
    _, large = trace(VGG(kernel=kernel, **fields), 64)
    assert receptive_field(large) == receptive_field(small)
    assert len(large) < len(small)
    for name in ("pool1", "pool2", "pool3", "pool4", "pool5", "head"):
        assert large[name][1] == small[name][1]


def test_the_pixels_that_a_unit_sees_are_the_same():
    def seen(kernel):
        module = VGG(configuration="B", kernel=kernel, norm="none", activation="identity", pool="avg", **TINY)
        variables = jax.tree.map(jnp.ones_like, random_variables(module))

        def unit(x):
            return record(lambda: module.apply(variables, x, train=False))[1]["pool2"][0, 4, 4, 0]

        return np.any(jax.jit(jax.grad(unit))(IMAGES[:1])[0], axis=-1)

    pixels = seen(3)
    np.testing.assert_array_equal(pixels, seen(5))
    assert (pixels.any(0).sum(), pixels.any(1).sum()) == (16, 16)  # 4 + 2 * 4 of conv2, 4 of conv1


def test_net_b_with_5x5_is_half_as_deep():
    _, layers = trace(VGG(configuration="B", kernel=5), 32)
    sizes = {name: layer.kernel_size for name, (layer, _) in layers.items() if isinstance(layer, Conv)}
    assert sizes == {f"conv{stage}_1": 5 for stage in range(1, 6)}


def test_the_papers_arithmetic_of_weights():
    def weights(kernel):
        params, _ = trace(VGG(configuration="D", kernel=kernel, hidden=()), 32)
        return {path: leaf.size for path, leaf in params.items() if path.endswith("kernel")}

    small, large = weights(3), weights(7)
    # Stage 5 has as many channels before as in it: 3 (3² C²) = 27 C² against 49 C², 81% more.
    assert sum(small[f"conv5_{index}/kernel"] for index in (1, 2, 3)) == 27 * 512**2
    assert large["conv5_1/kernel"] == 49 * 512**2
    assert "conv5_2/kernel" not in large
    assert small["conv2_2/kernel"] == large["conv2_2/kernel"] == 9 * 128**2  # two are no stack of three


# References by hand.


def convolve(x, kernel):
    border = kernel.shape[0] // 2
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), [(border, border)] * 2, dimension_numbers=layout)


def reference(module, variables, x):
    """The network in evaluation."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    relu = jax.nn.relu
    for stage, channels in enumerate(CONFIGURATIONS[module.configuration], start=1):
        index = 0
        for entry in channels:
            if entry == "LRN":
                x = local_response_norm(x)
                continue
            index += 1
            name = f"conv{stage}_{index}"
            x = convolve(x, params[name]["kernel"]) + params[name]["bias"]
            if stats:
                norm, own = params[f"{name}_norm"], stats[f"{name}_norm"]
                x = (x - own["mean"]) / jnp.sqrt(own["var"] + 1e-5) * norm["scale"] + norm["bias"]
            x = relu(x)
        height, width = x.shape[1] // 2, x.shape[2] // 2
        blocks = x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1)
        x = blocks.mean((2, 4)) if module.pool == "avg" else blocks.max((2, 4))
    x = x.reshape(len(x), -1)  # height, width, channels
    for name in (f"fc{index}" for index in range(6, 6 + len(module.hidden))):
        x = relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    "fields",
    [
        {"configuration": "A-LRN"},
        {"configuration": "C", "norm": "batch"},
        {"configuration": "A", "hidden": (512,), "pool": "avg"},
        {"configuration": "B", "hidden": ()},
    ],
    ids=str,
)
def test_equals_the_reference(fields):
    module, variables = build(**fields)
    x = 20 * IMAGES  # so that LRN does something
    actual = jax.jit(partial(module.apply, train=False))(variables, x)
    assert np.any(actual)
    np.testing.assert_allclose(actual, jax.jit(partial(reference, module))(variables, x), rtol=1e-4, atol=1e-4)


def test_the_first_hidden_layer_takes_height_width_channels_in_this_order():
    module = VGG(configuration="A", **TINY)
    x = normal(1, 64, 96, 3)
    variables = random_variables(module, x)
    _, outputs = record(lambda: module.apply(variables, x, train=False))
    assert outputs["pool5"].shape == (1, 2, 3, 16)
    expected = np.einsum("hwc,hwcu->u", outputs["pool5"][0], variables["params"]["fc6"]["kernel"].reshape(2, 3, 16, -1))
    np.testing.assert_allclose(outputs["fc6"][0] - variables["params"]["fc6"]["bias"], expected, rtol=1e-4, atol=1e-5)


# Fields.


def test_width_multiplies_convolutions_and_hidden_layers():
    params, _ = trace(VGG(configuration="A", width=0.25, num_classes=10), 32)
    assert params["conv1_1/kernel"].shape == (3, 3, 3, 16)
    assert params["conv5_2/kernel"].shape == (3, 3, 128, 128)
    assert params["fc6/kernel"].shape == (128, 1024)
    assert params["head/kernel"].shape == (1024, 10)
    params, _ = trace(VGG(configuration="A", width=1e-9), 32)
    assert params["conv5_2/kernel"].shape == (3, 3, 1, 1)


def test_hidden_layers_are_numbered_and_may_be_none():
    params, _ = trace(VGG(configuration="A", hidden=(7, 6, 5)), 32)
    assert {path.split("/")[0] for path in params if not path.startswith("conv")} == {"fc6", "fc7", "fc8", "head"}
    params, _ = trace(VGG(configuration="D", hidden=(), num_classes=10), 32)
    assert params["head/kernel"].shape == (512, 10)
    assert sum(leaf.size for leaf in params.values()) == 14_714_688 + 5_130  # torchvision's features, and the head


def test_dropout_takes_half_of_each_hidden_layers_outputs_in_training_only():
    module, variables = build(configuration="A", hidden=(32_000, 32_000))
    rngs = {"dropout": jax.random.key(1)}
    _, outputs = record(lambda: module.apply(variables, IMAGES, train=True, rngs=rngs))
    for layer in ("fc6", "fc7"):
        before, after = (np.asarray(outputs[f"{layer}_{kind}"]) for kind in ("activation", "dropout"))
        kept = after != 0
        np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-6)
        assert kept.sum() / (before != 0).sum() == pytest.approx(0.5, abs=0.05)
    _, outputs = record(lambda: module.apply(variables, IMAGES, train=False))
    np.testing.assert_array_equal(outputs["fc7_dropout"], outputs["fc7_activation"])


def test_weights_start_as_glorot_and_bengio_recommend_and_biases_at_zero():
    _, layers = trace(VGG(configuration="A"), 32)
    weighted = [layer for layer, _ in layers.values() if isinstance(layer, Conv | nn.Dense)]
    assert len(weighted) == 11
    for layer in weighted:
        kernel = layer.kernel_init(jax.random.key(0), (3, 3, 20, 30), "float32")
        assert np.abs(kernel).max() == pytest.approx(math.sqrt(6 / (9 * (20 + 30))), rel=0.01)
        assert not np.any(layer.bias_init(jax.random.key(0), (30,), "float32"))


# What every network must do.


@pytest.mark.parametrize("fields", [{"configuration": "A-LRN"}, {"configuration": "A", "norm": "batch"}], ids=str)
def test_gradients_reach_every_parameter(fields):
    module, variables = build(**fields)
    stats = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        logits, moved = module.apply(
            {"params": params} | stats, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return jnp.square(logits).sum(), moved

    gradients, moved = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    unreached = {path for path, gradient in flat(gradients).items() if np.abs(gradient).max() < 1e-6}
    if "norm" in fields:  # batch norm takes out what such a bias adds
        unreached = {path for path in unreached if not (path.startswith("conv") and path.endswith("bias"))}
        before, after = flat(stats), flat(dict(moved))
        assert not any(np.array_equal(before[path], after[path]) for path in before)
    assert unreached == set()


def test_evaluation_does_not_depend_on_the_batch():
    module, variables = build(configuration="A", norm="batch")
    apply = jax.jit(partial(module.apply, train=False))
    logits, order = apply(variables, IMAGES), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(variables, IMAGES[order]), logits[order], rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_and_float32_answers():
    module = VGG(configuration="A-LRN", dtype="bfloat16", param_dtype="bfloat16", **TINY)
    params, layers = trace(module, 32)
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("bfloat16")}
    assert layers.pop("")[1].dtype == jnp.float32
    assert {output.dtype for _, output in layers.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"configuration": "F"}, "configuration='F' is not known"),
        ({"pool": "none"}, "pool='none' is not known"),
        ({"kernel": 4}, "kernel=4 is out of range; it must be 3, 5 or 7"),
        ({"configuration": "B", "kernel": 7}, "kernel=7 does nothing with configuration='B', which has no 3 such"),
        ({"configuration": "C", "kernel": 7}, "kernel=7 does nothing"),
        ({"hidden": (512, 0)}, "each layer must have 1 or more units"),
        ({"hidden": (), "dropout_rate": 0.2}, "dropout_rate=0.2 does nothing with hidden=()"),
        ({"bn_momentum": 0.5}, "bn_momentum=0.5 does nothing with norm='none'"),
        ({"kernel_init": "glorot"}, "kernel_init='glorot' is not known"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        VGG(**fields)


def test_small_images_are_refused():
    with pytest.raises(UserError, match="they must be at least 32x32, not 16x40"):
        shapes(VGG(**TINY), jnp.zeros((1, 16, 40, 3)))
