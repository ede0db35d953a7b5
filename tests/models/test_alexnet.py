"""AlexNet against the paper's numbers and words, and against a network written out by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax import lax

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.layers import Conv, Pool
from cnn_research.layers.taps import record
from cnn_research.models.alexnet import VARIANTS, AlexNet
from cnn_research.ops.response import local_response_norm

# Maps of 18x19, 8x9, 3x4 and 1x1.
TINY = dict(num_classes=3, features=(6, 8, 4, 6, 10), hidden=(12, 9), stem_kernel=5, stem_strides=2)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape, np.float32))


IMAGES = normal(4, 39, 41, 3)


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
    module = AlexNet(**TINY | fields)
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


# The paper's numbers.


@pytest.mark.parametrize(
    ("name", "size", "gmac"),
    [("alexnet", 227, "0.724"), ("alexnet_ungrouped", 227, "1.135"), ("alexnet_owt", 224, "0.714")],
)
def test_multiply_accumulates(name, size, gmac):
    params, layers = trace(AlexNet(**VARIANTS[name]), size)
    macs = sum(
        math.prod(params[f"{name}/kernel"].shape) * math.prod(output.shape[1:-1])
        for name, (layer, output) in layers.items()
        if isinstance(layer, Conv | nn.Dense)
    )
    assert f"{macs / 1e9:.3f}" == gmac


def test_parameters_of_each_layer():
    params, _ = trace(AlexNet(), 227)
    counts = {}
    for path, leaf in params.items():
        layer = path.split("/")[0]
        counts[layer] = counts.get(layer, 0) + leaf.size
    assert counts == {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "conv2": 5 * 5 * 48 * 256 + 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "conv4": 3 * 3 * 192 * 384 + 384,
        "conv5": 3 * 3 * 192 * 256 + 256,
        "fc6": 6 * 6 * 256 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "head": 4096 * 1000 + 1000,
    }


def test_names_order_and_sizes_of_the_layers():
    _, layers = trace(AlexNet(), 227)

    def conv(index, size, channels):
        return [(f"conv{index}{suffix}", (1, size, size, channels)) for suffix in ("", "_norm", "_activation")]

    assert [(name, output.shape) for name, (_, output) in layers.items()] == [
        *conv(1, 55, 96),
        ("lrn1", (1, 55, 55, 96)),
        ("pool1", (1, 27, 27, 96)),
        *conv(2, 27, 256),
        ("lrn2", (1, 27, 27, 256)),
        ("pool2", (1, 13, 13, 256)),
        *conv(3, 13, 384),
        *conv(4, 13, 384),
        *conv(5, 13, 256),
        ("pool5", (1, 6, 6, 256)),
        *((f"{layer}{suffix}", (1, 4096)) for layer in ("fc6", "fc7") for suffix in ("", "_activation", "_dropout")),
        ("head", (1, 1000)),
        ("", (1, 1000)),
    ]


def test_a_unit_of_pool5_sees_195_pixels():
    _, layers = trace(AlexNet(), 227)
    field = jump = 1
    for layer, _ in layers.values():
        if isinstance(layer, Conv | Pool):
            window = layer.kernel_size if isinstance(layer, Conv) else layer.window
            field, jump = field + (window - 1) * jump, jump * layer.strides
    assert field == 195


def test_pooling_without_overlap_gives_maps_of_the_same_size():
    _, overlapping = trace(AlexNet(), 227)
    _, apart = trace(AlexNet(pool_window=2), 227)
    for layer in ("pool1", "pool2", "pool5"):
        assert apart[layer][0].window == 2
        assert apart[layer][1].shape == overlapping[layer][1].shape


# References by hand.


def convolve(x, params, strides, border, groups):
    """A convolution of each group of channels on its own."""
    layout = ("NHWC", "HWIO", "NHWC")
    parts = [
        lax.conv_general_dilated(part, kernel, (strides,) * 2, [(border, border)] * 2, dimension_numbers=layout)
        for part, kernel in zip(jnp.split(x, groups, -1), jnp.split(params["kernel"], groups, -1), strict=True)
    ]
    return jnp.concatenate(parts, -1) + params["bias"]


def pool(x, kind, window):
    """Windows with a step of 2, by slices."""
    height, width = ((size - window) // 2 * 2 + 1 for size in x.shape[1:3])
    values = [x[:, i : i + height : 2, j : j + width : 2] for i in range(window) for j in range(window)]
    return jnp.stack(values).max(0) if kind == "max" else jnp.stack(values).mean(0)


def reference(module, variables, x):
    """The network in evaluation."""
    params, stats = variables["params"], variables.get("batch_stats", {})

    def layer(x, index, strides=1, border=1, groups=1):
        name = f"conv{index}"
        x = convolve(x, params[name], strides, border, groups)
        if stats:
            norm, own = params[f"{name}_norm"], stats[f"{name}_norm"]
            x = (x - own["mean"]) / jnp.sqrt(own["var"] + 1e-5) * norm["scale"] + norm["bias"]
        return jax.nn.relu(x)

    x = layer(x, 1, module.stem_strides, module.stem_padding)
    x = pool(local_response_norm(x) if module.lrn else x, module.pool, module.pool_window)
    x = layer(x, 2, border=2, groups=module.groups)
    x = pool(local_response_norm(x) if module.lrn else x, module.pool, module.pool_window)
    x = layer(x, 3)
    x = layer(x, 4, groups=module.groups)
    x = layer(x, 5, groups=module.groups)
    x = pool(x, module.pool, module.pool_window).reshape(len(x), -1)  # height, width, channels
    for name in (f"fc{index}" for index in range(6, 6 + len(module.hidden))):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"groups": 1, "lrn": False, "stem_padding": 2, "dropout_at": "inputs"},
        {"norm": "batch", "pool": "avg", "pool_window": 2, "hidden": ()},
    ],
    ids=str,
)
def test_equals_the_reference(fields):
    module, variables = build(**fields)
    x = 30 * IMAGES  # so that LRN does something
    actual = jax.jit(partial(module.apply, train=False))(variables, x)
    assert np.any(actual)
    np.testing.assert_allclose(actual, jax.jit(partial(reference, module))(variables, x), rtol=1e-4, atol=1e-3)


def test_torchvisions_network_takes_other_sizes_with_the_same_parameters():
    module = models.create("alexnet_owt")
    assert shapes(module, jnp.zeros((1, 224, 224, 3))) == shapes(module, jnp.zeros((1, 300, 256, 3)))
    _, layers = trace(module, 224)
    assert layers["pool5"][1] == layers["avgpool"][1]
    assert layers["pool5"][1].shape == (1, 6, 6, 256)
    assert not any("lrn" in name for name in layers)


# Fields.


@pytest.mark.parametrize(("at", "before"), [("outputs", "fc6_activation"), ("inputs", "pool5")])
def test_dropout_takes_half_in_training_only(at, before):
    module, variables = build(dropout_at=at, features=(6, 8, 4, 6, 1000), hidden=(1000, 1000))
    rngs = {"dropout": jax.random.key(1)}

    def outputs(train):
        _, taps = record(lambda: module.apply(variables, IMAGES, train=train, rngs=rngs))
        return {name: np.asarray(tap).reshape(len(tap), -1) for name, tap in taps.items()}

    trained = outputs(train=True)
    assert [name for name in trained if "dropout" in name] == ["fc6_dropout", "fc7_dropout"]
    kept = trained["fc6_dropout"] != 0
    np.testing.assert_allclose(trained["fc6_dropout"][kept], 2 * trained[before][kept], rtol=1e-6)
    assert kept.sum() / (trained[before] != 0).sum() == pytest.approx(0.5, abs=0.05)
    last, first = ("head", "fc7_dropout") if at == "outputs" else ("head", "fc7_activation")
    params = variables["params"][last]
    np.testing.assert_allclose(trained[last], trained[first] @ params["kernel"] + params["bias"], rtol=1e-3, atol=1e-3)
    evaluated = outputs(train=False)
    np.testing.assert_array_equal(evaluated["fc6_dropout"], evaluated[before])


def test_weights_and_biases_start_as_in_section_5():
    _, layers = trace(AlexNet(), 227)
    biases = {}
    for name, (layer, _) in layers.items():
        if isinstance(layer, Conv | nn.Dense):
            kernel = layer.kernel_init(jax.random.key(0), (3, 3, 20, 30), "float32")
            assert kernel.std() == pytest.approx(0.01, rel=0.05)
            assert abs(kernel.mean()) < 0.001
            biases[name] = set(layer.bias_init(jax.random.key(0), (4,), "float32").tolist())
    ones = {"conv2", "conv4", "conv5", "fc6", "fc7"}
    assert biases == {layer: {1.0} if layer in ones else {0.0} for layer in ("conv1", "conv3", "head", *ones)}


def test_width_keeps_multiples_of_the_groups():
    params, _ = trace(AlexNet(width=0.26, groups=4), 227)  # 96 * 0.26 = 24.96, 256 * 0.26 = 66.56
    assert params["conv1/kernel"].shape == (11, 11, 3, 24)
    assert params["conv2/kernel"].shape == (5, 5, 6, 68)
    assert params["fc6/kernel"].shape == (36 * 68, 1065)
    params, _ = trace(AlexNet(width=1e-9), 227)
    assert params["conv2/kernel"].shape == (5, 5, 1, 2)


def test_another_stem_takes_images_of_32x32():
    fields = dict(num_classes=10, width=0.25, hidden=(256, 256), stem_kernel=5, stem_strides=1, stem_padding=2)
    _, layers = trace(models.create("alexnet", **fields), 32)
    sizes = {name: output.shape[1:] for name, (_, output) in layers.items() if name.startswith(("pool", "fc6", "head"))}
    assert sizes["pool1"] == (15, 15, 24)
    assert sizes["pool5"] == (3, 3, 64)
    assert (sizes["fc6"], sizes["head"]) == ((64,), (10,))


def test_the_least_size_of_images():
    for fields, least in (({}, 67), ({"pool_window": 2}, 39), ({"stem_strides": 1, "stem_padding": 2}, 21)):
        module = AlexNet(hidden=(), **fields)
        _, layers = trace(module, least)
        assert layers["pool5"][1].shape == (1, 1, 1, 256)
        message = f"images of at least {least}x{least}, not {least + 1}x{least - 1}; resize them or use a smaller stem"
        with pytest.raises(UserError, match=message):
            shapes(module, jnp.zeros((1, least + 1, least - 1, 3)))


# What every network must do.


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_gradients_reach_every_parameter(norm):
    module, variables = build(norm=norm)
    stats = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        logits, moved = module.apply(
            {"params": params} | stats, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        return jnp.square(logits).sum(), moved

    gradients, moved = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    unreached = {path for path, gradient in flat(gradients).items() if np.abs(gradient).max() < 1e-6}
    if norm == "batch":  # it takes out what such a bias adds
        unreached = {path for path in unreached if not (path.startswith("conv") and path.endswith("bias"))}
        before, after = flat(stats), flat(dict(moved))
        assert not any(np.array_equal(before[path], after[path]) for path in before)
    assert unreached == set()


def test_evaluation_does_not_depend_on_the_batch():
    module, variables = build(norm="batch")
    apply = jax.jit(partial(module.apply, train=False))
    logits, order = apply(variables, IMAGES), np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(variables, IMAGES[order]), logits[order], rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_and_float32_answers():
    module = models.create("alexnet_owt", lrn=True, dtype="bfloat16", param_dtype="bfloat16")
    params, layers = trace(module, 224)
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("bfloat16")}
    assert layers.pop("")[1].dtype == jnp.float32
    assert {output.dtype for _, output in layers.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": (96, 256, 384, 384)}, "there must be 5 numbers, multiples of groups=2"),
        ({"features": (96, 256, 384, 384, 255)}, "there must be 5 numbers, multiples of groups=2"),
        ({"groups": 0}, "groups=0 is out of range; it must be 1 or more"),
        ({"pool": "none"}, "pool='none' is not known"),
        ({"pool_window": 1}, "pool_window=1 is out of range; it must be 2 or more"),
        ({"stem_padding": -1}, "stem_padding=-1 is out of range; it must be 0 or more"),
        ({"adaptive_size": -1}, "adaptive_size=-1 is out of range"),
        ({"hidden": (0,)}, "each layer must have 1 or more units"),
        ({"hidden": (), "dropout_rate": 0.2}, r"dropout_rate=0.2 does nothing with hidden=\(\)"),
        ({"dropout_at": "input"}, "did you mean 'inputs'"),
        ({"bn_epsilon": 0.5}, "bn_epsilon=0.5 does nothing with norm='none'"),
        ({"kernel_init": "normal"}, "kernel_init='normal' is not known; did you mean"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        AlexNet(**fields)
