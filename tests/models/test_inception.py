"""GoogLeNet against the paper's and torchvision's numbers and against references written out by hand."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax import lax

from cnn_research.errors import UserError
from cnn_research.layers import Conv, taps
from cnn_research.models.inception import STAGES, VARIANTS, GoogLeNet, Inception
from cnn_research.tasks import Classification

HEADS = dict(auxiliary_weights=(0.3, 0.5))
# Small enough to run operation by operation: nearly all layers have few channels, and the images a few pixels.
TINY = dict(num_classes=3, width=1 / 128, stem="3x3", lrn=False)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape, np.float32))


IMAGES = normal(4, 12, 11, 3)


def shapes(module, x=IMAGES, **fields):
    return jax.eval_shape(partial(module.init, train=False, **fields), jax.random.key(0), x)


def random_variables(module, x=IMAGES):
    """Returns variables none of which is 0 or 1, the variances positive."""
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        values = rng.normal(0, 0.5, leaf.shape) if path.endswith("kernel") else rng.uniform(0.2, 1, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    drawn = {path: draw(path, leaf) for path, leaf in flat(shapes(module, x)).items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


def build(**fields):
    module = GoogLeNet(**TINY | fields)
    return module, random_variables(module)


def trace(module, size):
    """Returns the shapes of the parameters and those of the outputs of all layers, by path."""
    variables = shapes(module, jnp.zeros((1, size, size, 3)), mutable=True, capture_intermediates=True)
    outputs = flat(variables["intermediates"])
    return flat(variables["params"]), {
        path.removesuffix("__call__").strip("/"): out[0].shape for path, out in outputs.items()
    }


def multiply_accumulates(params, outputs, prefix=""):
    convolutions = {
        path: out for path, out in outputs.items() if f"{path}/kernel" in params and path.startswith(prefix)
    }
    return sum(math.prod(params[f"{path}/kernel"].shape) * math.prod(out[1:-1]) for path, out in convolutions.items())


def count(params, prefix=""):
    return sum(leaf.size for path, leaf in params.items() if path.startswith(prefix))


# The papers' numbers.


@pytest.mark.parametrize(
    ("name", "fields", "parameters", "gmacs"),
    [
        ("googlenet", {}, 6_998_552, "1.583"),
        ("googlenet", HEADS, 13_378_280, None),
        ("googlenet_bn", {}, 6_624_904, "1.498"),
        ("googlenet_bn", HEADS, 13_004_888, None),
    ],
)
def test_parameters_and_multiply_accumulates(name, fields, parameters, gmacs):
    params, outputs = trace(GoogLeNet(**VARIANTS[name] | fields), 224)
    assert count(params) == parameters
    assert gmacs in (None, f"{multiply_accumulates(params, outputs) / 1e9:.3f}")


@pytest.mark.parametrize(
    ("fields", "parameters", "mmacs", "channels"),
    [({}, 163_696, "128.0", 256), ({"reduction": False}, 387_296, "303.5", 416)],
)
def test_the_price_of_a_module_with_and_without_reduction(fields, parameters, mmacs, channels):
    params, outputs = trace(GoogLeNet(**fields), 224)
    assert count(params, "inception_3a/") == parameters
    assert f"{multiply_accumulates(params, outputs, 'inception_3a/') / 1e6:.1f}" == mmacs
    assert outputs["inception_3a"] == (1, 28, 28, channels)


def test_the_small_images_network_is_counted_by_hand():
    params, outputs = trace(GoogLeNet(**VARIANTS["googlenet_cifar"]), 32)
    expected, channels = 27 * 192 + 2 * 192, 192
    for modules in STAGES.values():
        for only, reduced3, middle, reduced5, large, projected in modules.values():
            expected += (
                channels * (only + reduced3 + reduced5 + projected) + 9 * reduced3 * middle + 25 * reduced5 * large
            )
            channels = only + middle + large + projected
            expected += 2 * (channels + reduced3 + reduced5)
    assert count(params) == expected + 1024 * 10 + 10 == 5_871_914
    assert [outputs[f"inception_{module}"][1:] for module in ("3b", "4e", "5b")] == [
        (32, 32, 480),
        (16, 16, 832),
        (8, 8, 1024),
    ]


@pytest.mark.parametrize("name", ["googlenet", "googlenet_bn"])
def test_maps_are_those_of_table_1(name):
    params, outputs = trace(GoogLeNet(**VARIANTS[name] | HEADS), 224)
    maps = {
        layer: outputs[layer][2:] for layer in ("conv1", "pool1", "conv2_reduce", "conv2", "pool2", "pool3", "pool4")
    }
    assert maps == {
        "conv1": (112, 64),
        "pool1": (56, 64),
        "conv2_reduce": (56, 64),
        "conv2": (56, 192),
        "pool2": (28, 192),
        "pool3": (14, 480),
        "pool4": (7, 832),
    }
    depths = {
        path.removeprefix("inception_"): out[1:] for path, out in outputs.items() if path.startswith("inception_")
    }
    assert {module: depth for module, depth in depths.items() if "/" not in module} == {
        "3a": (28, 28, 256),
        "3b": (28, 28, 480),
        "4a": (14, 14, 512),
        "4b": (14, 14, 512),
        "4c": (14, 14, 512),
        "4d": (14, 14, 528),
        "4e": (14, 14, 832),
        "5a": (7, 7, 832),
        "5b": (7, 7, 1024),
    }
    for head, depth in (("auxiliary_1", 512), ("auxiliary_2", 528)):
        assert outputs[f"{head}/pool"] == (1, 4, 4, depth)
        assert outputs[f"{head}/conv"] == (1, 4, 4, 128)
        assert params[f"{head}/fc/kernel"].shape == (2048, 1024)
        assert params[f"{head}/head/kernel"].shape == (1024, 1000)
    assert outputs["dropout"] == (1, 1024)


def test_torchvisions_layout_has_norms_in_place_of_biases_and_no_5x5():
    variables = shapes(GoogLeNet(**VARIANTS["googlenet_bn"] | HEADS), jnp.zeros((1, 224, 224, 3)))
    params = flat(variables["params"])
    kernels = {path for path, leaf in params.items() if leaf.ndim == 4}
    assert len(kernels) == 57 + 2
    assert not {path.replace("/kernel", "/bias") for path in kernels} & params.keys()
    assert {path.replace("/kernel", "_norm/scale") for path in kernels} <= params.keys()
    assert {leaf.shape[:2] for path, leaf in params.items() if "conv5x5/" in path} == {(3, 3)}
    assert VARIANTS["googlenet_bn"]["dropout_rate"] == 0.2
    assert GoogLeNet(**VARIANTS["googlenet_bn"]).bn_epsilon == 0.001


# References by hand.


def convolve(x, layer, strides=1):
    border = layer["kernel"].shape[0] // 2
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, layer["kernel"], (strides, strides), [(border, border)] * 2, dimension_numbers=dimensions
    )
    return jax.nn.relu(y + layer["bias"])


def pool(x, kind, kernel, stride, border=0):
    """Caffe's and PyTorch's pooling with the last window hanging over, window by window."""
    x = np.asarray(x)
    fill = {"max": -np.inf, "avg": 0}[kind]
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0)), constant_values=fill)
    steps = [range(0, math.ceil((size - kernel) / stride) * stride + 1, stride) for size in padded.shape[1:3]]
    reduce = {"max": np.max, "avg": np.mean}[kind]
    rows = [[reduce(padded[:, i : i + kernel, j : j + kernel], (1, 2)) for j in steps[1]] for i in steps[0]]
    return np.moveaxis(np.array(rows), 2, 0)


def module_reference(params, x, kind):
    branches = {
        "conv1x1": convolve(x, params["conv1x1"]),
        "conv3x3": x,
        "conv5x5": x,
        "pool": pool(x, kind, 3, 1, border=1),
    }
    for branch in ("conv3x3", "conv5x5"):
        if f"{branch}_reduce" in params:
            branches[branch] = convolve(x, params[f"{branch}_reduce"])
        branches[branch] = convolve(branches[branch], params[branch])
    if "pool_proj" in params:
        branches["pool"] = convolve(branches["pool"], params["pool_proj"])
    return np.concatenate(list(branches.values()), -1)


def plain(x, features, kernel, *, train, name):
    return nn.relu(Conv(features, kernel, padding="same", name=name)(x))


@pytest.mark.parametrize(
    ("reduction", "large_kernel", "kind", "features"),
    [(True, 5, "max", 3 + 4 + 2 + 3), (True, 3, "avg", 3 + 4 + 2 + 3), (False, 5, "max", 3 + 4 + 2 + 5)],
)
def test_a_module_equals_the_reference(reduction, large_kernel, kind, features):
    module = Inception((3, 2, 4, 1, 2, 3), reduction, large_kernel, kind, plain)
    x = normal(2, 5, 6, 5)
    variables = random_variables(module, x)
    assert variables["params"]["conv5x5"]["kernel"].shape[0] == large_kernel
    y = module.apply(variables, x, train=False)
    assert y.shape == (2, 5, 6, features)
    np.testing.assert_allclose(y, module_reference(variables["params"], x, kind), rtol=1e-4, atol=1e-5)


def respond(x):
    """Caffe's local response normalization: alpha is divided by the size."""
    x = np.asarray(x)
    squares = np.pad(x**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = sum(squares[..., shift : shift + x.shape[-1]] for shift in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


def reference(module, params, x):
    """Returns what the modules and the head say."""
    outputs = {}
    if module.stem == "7x7":
        x = respond(pool(convolve(x, params["conv1"], 2), module.pool, 3, 2))
        x = pool(respond(convolve(convolve(x, params["conv2_reduce"]), params["conv2"])), module.pool, 3, 2)
    else:
        x = convolve(x, params["conv1"])
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        if name in ("4a", "5a"):
            x = pool(x, module.pool, module.pool4_window if name == "5a" else 3, 2)
        x = outputs[name] = module_reference(params[f"inception_{name}"], x, module.pool)
    return outputs, x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize("fields", [{}, {"pool": "avg", "pool4_window": 2}], ids=str)
def test_equals_the_reference(fields):
    module, variables = build(**fields)
    _, expected = reference(module, variables["params"], IMAGES)
    np.testing.assert_allclose(module.apply(variables, IMAGES, train=False), expected, rtol=1e-3, atol=1e-4)


def test_the_stem_of_the_paper_equals_the_reference():
    # Large values, so that the response counts; odd and even, so that windows hang over and do not.
    x = 300 * normal(2, 66, 37, 3)
    module = GoogLeNet(**TINY | {"stem": "7x7", "lrn": True})
    variables = random_variables(module, x)
    _, expected = reference(module, variables["params"], x)
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, rtol=1e-3)


def test_local_response_norm_stands_after_the_first_pooling_and_before_the_second():
    order = []

    def note(method, args, kwargs, context):
        order.append("/".join(context.module.path))
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes(GoogLeNet(), jnp.zeros((1, 224, 224, 3)))
    stem = [name for name in order if name and "/" not in name and not name.endswith(("_norm", "_activation"))]
    assert stem[:8] == ["conv1", "pool1", "lrn1", "conv2_reduce", "conv2", "lrn2", "pool2", "inception_3a"]


# Auxiliary classifiers.


def adaptive(x):
    """PyTorch's adaptive average pooling to 4x4."""
    edges = [[(i * size // 4, math.ceil((i + 1) * size / 4)) for i in range(4)] for size in x.shape[1:3]]
    rows = [[x[:, a:b, c:d].mean((1, 2)) for c, d in edges[1]] for a, b in edges[0]]
    return np.moveaxis(np.array(rows), 2, 0)


@pytest.mark.parametrize("kind", ["5x5", "adaptive"])
def test_auxiliary_classifiers_equal_the_reference_and_run_in_training_alone(kind):
    module, variables = build(**HEADS, auxiliary_pool=kind, auxiliary_dropout_rate=0.0, dropout_rate=0.0)
    assert set(variables) == {"params"}
    params = variables["params"]
    halfway, expected = reference(module, params, IMAGES)
    logits, updated = module.apply(variables, IMAGES, train=True, mutable=["auxiliary"])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    assert updated["auxiliary"].keys() == {"auxiliary_1", "auxiliary_2"}
    for name, after, weight in (("auxiliary_1", "4a", 0.3), ("auxiliary_2", "4d", 0.5)):
        head, x = params[name], np.asarray(halfway[after])
        x = convolve(x[:, :5, :5].mean((1, 2), keepdims=True) if kind == "5x5" else adaptive(x), head["conv"])
        x = jax.nn.relu(x.reshape(len(x), -1) @ head["fc"]["kernel"] + head["fc"]["bias"])
        expected = x @ head["head"]["kernel"] + head["head"]["bias"]
        np.testing.assert_allclose(updated["auxiliary"][name]["logits"], expected, rtol=1e-3, atol=1e-4)
        assert updated["auxiliary"][name]["weight"] == weight

    logits, outputs = taps.record(lambda: module.apply(variables, IMAGES, train=False, mutable=["auxiliary"]))
    assert not logits[1]
    assert not any("auxiliary" in path for path in outputs)


def test_without_weights_there_are_no_auxiliary_classifiers():
    with_heads, without = (flat(shapes(GoogLeNet(**TINY, auxiliary_weights=weights))) for weights in ((0.0, 1.0), ()))
    assert {path.split("/")[1] for path in with_heads.keys() - without.keys()} == {"auxiliary_1", "auxiliary_2"}


def test_gradients_of_the_loss_reach_every_parameter():
    module, variables = build(**HEADS, activation="elu", dropout_rate=0.0, auxiliary_dropout_rate=0.1)
    batch = {"image": IMAGES, "label": jnp.array([0, 2, 1, 1]), "example_mask": jnp.ones(4, bool)}

    def loss(params):
        state = {**variables, "params": params}
        terms, _ = Classification().loss(module, state, batch, jax.random.key(0), train=True)
        assert terms.keys() == {"main", "auxiliary_1", "auxiliary_2"}
        return sum(total for total, _ in terms.values())

    quickly = {"xla_backend_optimization_level": 0}  # in half the time
    gradients = jax.jit(jax.grad(loss), compiler_options=quickly)(variables["params"])
    for path, gradient in flat(gradients).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


# Fields.


def test_evaluation_is_independent_of_the_order_of_the_batch():
    module, variables = build(norm="batch")
    order = np.array([2, 0, 3, 1])
    logits = module.apply(variables, IMAGES, train=False)
    np.testing.assert_allclose(module.apply(variables, IMAGES[order], train=False), logits[order], rtol=1e-4, atol=1e-5)


def test_logits_of_bfloat16_are_float32():
    module = GoogLeNet(**TINY, **HEADS, dtype="bfloat16", param_dtype="bfloat16")
    variables = shapes(module)
    apply = partial(module.apply, train=True, mutable=["auxiliary"], rngs={"dropout": jax.random.key(0)})
    logits, updated = jax.eval_shape(apply, variables, IMAGES)
    assert logits.dtype == updated["auxiliary"]["auxiliary_1"]["logits"].dtype == jnp.float32


def test_biases_start_as_published():
    module = GoogLeNet(**TINY, **HEADS)
    params = flat(module.init(jax.random.key(0), IMAGES, train=False)["params"])
    for path, leaf in params.items():
        if path.endswith("bias"):
            np.testing.assert_allclose(leaf, 0 if path.endswith("head/bias") else 0.2, err_msg=path)


def test_width_multiplies_all_channels():
    halves = flat(shapes(GoogLeNet(width=0.5, **HEADS), jnp.zeros((1, 96, 96, 3)))["params"])
    whole = flat(shapes(GoogLeNet(**HEADS), jnp.zeros((1, 96, 96, 3)))["params"])
    for path, leaf in whole.items():
        assert halves[path].shape[-1] * (1 if "head/" in path else 2) == leaf.shape[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stem": "7x7s"}, "did you mean '7x7'"),
        ({"pool": "mx"}, "did you mean 'max'"),
        ({"auxiliary_pool": "adaptiv"}, "did you mean 'adaptive'"),
        ({"lrn": True}, "lrn=True does nothing with stem='3x3'"),
        ({"large_kernel": 4}, "large_kernel=4 is out of range; it must be odd"),
        ({"pool4_window": 1}, "pool4_window=1 is out of range"),
        ({"auxiliary_weights": (0.3,)}, "there must be two numbers"),
        ({"auxiliary_weights": (0.3, -0.1)}, "there must be two numbers, 0 or more"),
        ({"auxiliary_weights": (0.3, math.inf)}, "there must be two numbers, 0 or more"),
        ({"auxiliary_dropout_rate": 0.5}, "auxiliary_dropout_rate=0.5 does nothing with auxiliary_weights=()"),
        ({**HEADS, "auxiliary_dropout_rate": 1.0}, "auxiliary_dropout_rate=1.0 is out of range"),
        ({"norm": "batch", "initial_bias": 0.1}, "initial_bias=0.1 does nothing with norm='batch'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError) as fault:
        GoogLeNet(**TINY | fields)
    assert message in str(fault.value)


def test_maps_too_small_for_auxiliary_classifiers_are_refused():
    images = jnp.zeros((1, 64, 64, 3))
    with pytest.raises(UserError, match="images of 64x64 leave the auxiliary classifiers 4x4, less than 5x5"):
        shapes(GoogLeNet(**HEADS), images)
    shapes(GoogLeNet(**HEADS, auxiliary_pool="adaptive"), images)
