"""ResNet against the papers' numbers and against references written out by hand."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax import lax

from cnn_research.errors import UserError
from cnn_research.layers import Conv, Norm
from cnn_research.models.resnet import BLOCKS, SHORTCUTS, SKIPS, VARIANTS, Block, ResNet

# Small enough to run operation by operation.
TINY = dict(num_classes=3, block="basic", features=4, stem_kernel=3, stem_strides=1, pool="none", stage_sizes=(2, 1))


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape, np.float32))


# One size for most tests, so that operations are compiled once; odd and even, so that a stride cuts both.
IMAGES = normal(4, 7, 8, 3)


def shapes(module, x=IMAGES, **fields):
    return jax.eval_shape(partial(module.init, train=False, **fields), jax.random.key(0), x)


def random_variables(module, x=IMAGES):
    """Returns variables none of which is 0 or 1, the variances positive."""
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape) / 3 if path.endswith("kernel") else rng.uniform(0.5, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    drawn = {path: draw(path, leaf) for path, leaf in flat(shapes(module, x)).items()}
    return traverse_util.unflatten_dict(drawn, sep="/")


def build(**fields):
    module = ResNet(**TINY | fields)
    return module, random_variables(module)


# The papers' numbers.


def trace(module, size):
    """Returns the shapes of the parameters and those of the outputs of all layers with weights, by path."""

    def has_weights(layer, method):
        return isinstance(layer, Conv | nn.Dense)

    variables = shapes(module, jnp.zeros((1, size, size, 3)), mutable=True, capture_intermediates=has_weights)
    outputs = flat(variables["intermediates"])
    return flat(variables["params"]), {path.removesuffix("/__call__"): out[0].shape for path, out in outputs.items()}


def multiply_accumulates(params, outputs):
    return sum(math.prod(params[f"{path}/kernel"].shape) * math.prod(out[1:-1]) for path, out in outputs.items())


@pytest.mark.parametrize(
    ("name", "fields", "parameters", "macs"),
    [
        ("resnet18", {}, 11_689_512, "1.814e9"),
        ("resnet34", {}, 21_797_672, "3.664e9"),
        ("resnet34", {"shortcut": "A"}, 21_623_848, None),
        ("resnet34", {"shortcut": "C"}, 22_716_840, None),
        ("resnet50", {}, 25_557_032, "4.089e9"),
        ("resnet50", {"stride_in": "1x1"}, 25_557_032, "3.858e9"),
        ("resnet101", {}, 44_549_160, "7.801e9"),
        pytest.param("resnet101", {"stride_in": "1x1"}, 44_549_160, "7.570e9", marks=pytest.mark.slow),
        pytest.param("resnet152", {}, 60_192_808, "11.514e9", marks=pytest.mark.slow),
        pytest.param("resnet152", {"stride_in": "1x1"}, 60_192_808, "11.282e9", marks=pytest.mark.slow),
        ("resnet20_cifar", {}, 269_722, "40.6e6"),
        ("resnet32_cifar", {}, 464_154, "68.9e6"),
        ("resnet44_cifar", {}, 658_586, "97.2e6"),
        ("resnet56_cifar", {}, 853_018, "125.5e6"),
        ("resnet110_cifar", {}, 1_727_962, "252.9e6"),
        pytest.param("resnet1202_cifar", {}, 19_421_274, "2829e6", marks=pytest.mark.slow),
        ("resnet164_cifar", {}, 1_703_258, None),
        pytest.param("resnet1001_cifar", {}, 10_327_706, None, marks=pytest.mark.slow),
    ],
)
def test_parameters_and_multiply_accumulates(name, fields, parameters, macs):
    params, outputs = trace(ResNet(**VARIANTS[name] | fields), 32 if "cifar" in name else 224)
    assert sum(leaf.size for leaf in params.values()) == parameters
    if macs:
        number, unit = macs.split("e")
        decimals = len(number.partition(".")[2])
        assert f"{multiply_accumulates(params, outputs) / 10 ** int(unit):.{decimals}f}" == number


def test_the_number_in_a_name_counts_the_layers_in_a_row():
    for name, fields in VARIANTS.items():
        module = ResNet(**fields)
        layers = 2 + sum(module.stage_sizes) * len(BLOCKS[module.block])
        assert int(re.findall(r"\d+", name)[0]) == layers, name


def test_maps_shrink_as_in_the_first_papers_table():
    _, outputs = trace(ResNet(stage_sizes=(1, 1, 1, 1)), 224)
    assert outputs["conv1"] == (1, 112, 112, 64)
    assert [outputs[f"stage{stage}/block1/conv3"] for stage in (1, 2, 3, 4)] == [
        (1, 56, 56, 256),
        (1, 28, 28, 512),
        (1, 14, 14, 1024),
        (1, 7, 7, 2048),
    ]
    assert outputs["stage2/block1/conv1"] == (1, 56, 56, 128)
    _, outputs = trace(ResNet(stage_sizes=(1, 1, 1, 1), stride_in="1x1"), 224)
    assert outputs["stage2/block1/conv1"] == (1, 28, 28, 128)


def test_width_multiplies_all_channels():
    def kernels(**fields):
        params = flat(shapes(ResNet(**TINY | fields))["params"])
        return {path: leaf.shape for path, leaf in params.items()}

    assert kernels(features=8, width=0.5) == kernels(features=4)
    assert kernels(features=4, width=1e-9)["stage2/block1/conv2/kernel"] == (3, 3, 1, 1)


# References by hand.


assert_close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)


def convolve(x, kernel, strides=1):
    border = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        [(border, border)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def normalize(x, params, stats):
    return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def reference_block(skip, shortcut, strided, params, stats, x, strides, first):
    """Figure 4 of "Identity mappings", in evaluation."""
    last = sum(name in params for name in ("conv1", "conv2", "conv3"))
    relu = jax.nn.relu

    def conv(index, x):
        return convolve(x, params[f"conv{index}"]["kernel"], strides if index == strided else 1)

    def bn(index, x):
        return normalize(x, params[f"bn{index}"], stats[f"bn{index}"])

    def add(residual, activated, norm=True):
        if residual.shape == x.shape:
            return residual + x
        if shortcut == "A":
            new = residual.shape[-1] - x.shape[-1]
            return residual + np.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (0, new)))
        projection = convolve(activated, params["shortcut_conv"]["kernel"], strides)
        return residual + (normalize(projection, params["shortcut_bn"], stats["shortcut_bn"]) if norm else projection)

    if skip == "full_preactivation":
        h = activated = x if first else relu(bn(1, x))
        for index in range(1, last):
            h = relu(bn(index + 1, conv(index, h)))
        return add(conv(last, h), activated, norm=False)
    h = activated = relu(x) if skip == "relu_only_preactivation" and not first else x
    for index in range(1, last):
        h = relu(bn(index, conv(index, h)))
    h = conv(last, h)
    return {
        "original": lambda: relu(add(bn(last, h), x)),
        "bn_after_addition": lambda: relu(bn(last, add(h, x, norm=False))),
        "relu_before_addition": lambda: add(relu(bn(last, h)), x),
        "relu_only_preactivation": lambda: add(bn(last, h), activated),
    }[skip]()


def reference(module, variables, x):
    params, stats = variables["params"], variables["batch_stats"]
    x = convolve(x, params["conv1"]["kernel"], module.stem_strides)
    x = jax.nn.relu(normalize(x, params["bn1"], stats["bn1"]))
    if module.pool == "max":
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    strided = 2 if module.block == "bottleneck" and module.stride_in == "3x3" else 1
    for stage in range(1, len(module.stage_sizes) + 1):
        for block in range(1, module.stage_sizes[stage - 1] + 1):
            own_params, own_stats = (tree[f"stage{stage}"][f"block{block}"] for tree in (params, stats))
            strides, first = (2 if stage > 1 and block == 1 else 1), stage == block == 1
            x = reference_block(module.skip, module.shortcut, strided, own_params, own_stats, x, strides, first)
    if module.skip == "full_preactivation":
        x = normalize(x, params["head_bn"], stats["head_bn"])
    if "preactivation" in module.skip:
        x = jax.nn.relu(x)
    x = x.max((1, 2)) if module.global_pool == "max" else x.mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.mark.parametrize(
    "fields",
    [
        *({"skip": skip, "block": block} for skip in SKIPS for block in BLOCKS),
        {"shortcut": "A"},
        {"shortcut": "A", "skip": "full_preactivation"},
        {"block": "bottleneck", "stride_in": "1x1", "global_pool": "max"},
    ],
    ids=lambda fields: " ".join(fields.values()),
)
def test_equals_the_reference(fields):
    module, variables = build(**fields)
    expected = reference(module, variables, IMAGES)
    assert_close(module.apply(variables, IMAGES, train=False), expected)


def test_the_stem_for_larger_images_equals_the_reference():
    x = normal(2, 21, 22, 3)
    module, variables = build(stem_kernel=7, stem_strides=2, pool="max", stage_sizes=(1, 1))
    assert_close(module.apply(variables, x, train=False), reference(module, variables, x))


# Shortcuts: no order but this one leaves the sum as it is.

MAPS = normal(4, 7, 8, 4)


def block_and_variables(shortcut, features=8, strides=2, **fields):
    defaults = dict(shortcut_scale=0.5, residual_scale=0.5, gate_bias=-6.0, shortcut_dropout_rate=0.5)
    module = Block(
        BLOCKS["basic"],
        SKIPS["relu_only_preactivation"],
        features=features,
        strides=strides,
        strided=0,
        preactivated=False,
        shortcut=shortcut,
        zero_init_last_norm=False,
        activation="relu",
        conv=partial(Conv, padding="same", use_bias=False),
        norm=Norm,
        **defaults | fields,
    )
    return module, random_variables(module, MAPS)


def run_beside_residual(shortcut, strides=2, train=False, **fields):
    """Returns the output of a block that widens `MAPS` from 4 channels to 8, its residual alone and its variables."""
    module, variables = block_and_variables(shortcut, strides=strides, **fields)
    plain, _ = block_and_variables("none", strides=strides)
    rngs = {"dropout": jax.random.key(5)}
    output, residual = (
        each.apply(variables, MAPS, train=train, mutable=["batch_stats"], rngs=rngs)[0] for each in (module, plain)
    )
    return output, residual, variables


def zero_padded(strides=2):
    return np.pad(MAPS[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), (0, 4)))


@pytest.mark.parametrize("strides", [1, 2])
def test_a_pads_with_zeros(strides):
    output, residual, variables = run_beside_residual("A", strides)
    assert set(variables["params"]) == {"conv1", "bn1", "conv2", "bn2"}
    assert_close(output - residual, zero_padded(strides))


@pytest.mark.parametrize("shortcut", ["B", "C", "conv1x1"])
def test_a_projection_starts_from_the_activated_input_and_is_normalized(shortcut):
    output, residual, variables = run_beside_residual(shortcut)
    params, stats = variables["params"], variables["batch_stats"]
    projection = convolve(jax.nn.relu(MAPS), params["shortcut_conv"]["kernel"], 2)
    assert_close(output - residual, normalize(projection, params["shortcut_bn"], stats["shortcut_bn"]))


@pytest.mark.parametrize(("shortcut", "projects"), [("A", False), ("B", False), ("C", True), ("conv1x1", True)])
def test_where_the_shape_stays_only_c_projects(shortcut, projects):
    module, variables = block_and_variables(shortcut, features=4, strides=1)
    assert ("shortcut_conv" in variables["params"]) == projects
    if not projects:
        plain, _ = block_and_variables("none", features=4, strides=1)
        assert_close(module.apply(variables, MAPS, train=False) - plain.apply(variables, MAPS, train=False), MAPS)


def test_constant_scales_both():
    output, residual, _ = run_beside_residual("constant", shortcut_scale=0.25, residual_scale=3.0)
    assert_close(output, 0.25 * zero_padded() + 3 * residual)


@pytest.mark.parametrize("shortcut", ["exclusive_gating", "shortcut_gating"])
def test_gates(shortcut):
    output, residual, variables = run_beside_residual(shortcut)
    params = variables["params"]["shortcut_gate"]
    gate = jax.nn.sigmoid(convolve(MAPS, params["kernel"], 2) + params["bias"])
    if shortcut == "exclusive_gating":
        residual = gate * residual
    assert_close(output, (1 - gate) * zero_padded() + residual)


def test_gates_start_with_their_bias():
    module, _ = block_and_variables("shortcut_gating", gate_bias=-3.5)
    params = jax.jit(partial(module.init, train=False))(jax.random.key(0), MAPS)["params"]
    assert params["shortcut_gate"]["bias"].tolist() == [-3.5] * 8


def test_dropout_drops_values_of_the_shortcut_in_training_only():
    output, residual, _ = run_beside_residual("dropout")
    assert_close(output - residual, zero_padded())
    output, residual, _ = run_beside_residual("dropout", train=True, shortcut_dropout_rate=0.75)
    ratio = ((output - residual)[..., :4] / MAPS[:, ::2, ::2]).round(2)
    assert set(ratio.flatten().tolist()) == {0, 4}
    assert 0.6 < (ratio == 0).mean() < 0.9


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_only_none_leaves_no_way_around_the_convolutions(shortcut):
    module, variables = block_and_variables(shortcut, features=4, strides=1)
    still = {name: jax.tree.map(jnp.zeros_like, variables["params"][name]) for name in ("conv1", "conv2")}
    variables["params"] |= still
    gradient = jax.grad(lambda x: module.apply(variables, x, train=False).sum())(MAPS)
    assert gradient.any() == (shortcut != "none")


# What every network must do.

# The others are among the long tests.
QUICK = [
    {"skip": "original", "shortcut": "C"},
    {"skip": "full_preactivation", "block": "bottleneck"},
    {"shortcut": "none"},
]
CASES = [
    *({"skip": skip, "shortcut": "C"} for skip in SKIPS),
    *({"shortcut": shortcut} for shortcut in SHORTCUTS),
    {"skip": "full_preactivation", "block": "bottleneck"},
    {"block": "bottleneck", "norm": "none"},
]


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, marks=() if fields in QUICK else pytest.mark.slow, id=" ".join(fields.values()))
        for fields in CASES
    ],
)
def test_gradients_reach_every_parameter_and_training_moves_every_statistic(fields):
    module, variables = build(**fields)
    stats = {name: tree for name, tree in variables.items() if name != "params"}
    rngs = {"dropout": jax.random.key(1)}

    def loss(params):
        logits, moved = module.apply({"params": params} | stats, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)
        return jnp.square(logits).sum(), moved

    gradients, moved = jax.grad(loss, has_aux=True)(variables["params"])
    assert {path for path, gradient in flat(gradients).items() if not gradient.any()} == set()
    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(gradients))
    before, after = flat(stats), flat(dict(moved))
    assert before.keys() == after.keys()
    assert not any(np.array_equal(before[path], after[path]) for path in before)


def test_evaluation_moves_nothing_and_does_not_depend_on_the_batch():
    module, variables = build(dropout_rate=0.5, shortcut="dropout")
    logits, moved = module.apply(variables, IMAGES, train=False, mutable=["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], variables["batch_stats"])
    order = np.array([2, 0, 3, 1])
    assert_close(module.apply(variables, IMAGES[order], train=False), logits[order])


def test_dropout_before_the_head():
    module, variables = build(dropout_rate=0.5)

    def logits(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    assert not np.allclose(logits(0), logits(1))
    np.testing.assert_array_equal(logits(0), logits(0))


def test_bfloat16_computes_and_float32_answers():
    module, variables = build(
        skip="full_preactivation", shortcut="exclusive_gating", dtype="bfloat16", param_dtype="bfloat16"
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("bfloat16")}
    apply = partial(module.apply, train=True, mutable=["batch_stats", "intermediates"], capture_intermediates=True)
    logits, state = jax.jit(apply)(variables, IMAGES)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(state["batch_stats"])} == {jnp.dtype("float32")}
    outputs = {path: output[0].dtype for path, output in flat(state["intermediates"]).items() if path != "__call__"}
    assert set(outputs.values()) == {jnp.dtype("bfloat16")}


def test_names_of_layers():
    module = ResNet(**TINY | dict(skip="full_preactivation", pool="max"))
    outputs = flat(shapes(module, mutable=True, capture_intermediates=True)["intermediates"])
    first = {"conv1", "bn2", "activation2", "conv2"}
    whole = first | {"bn1", "activation1"}
    assert {path.removesuffix("/__call__") for path in outputs} - {"__call__"} == {
        *("conv1", "bn1", "activation1", "pool1", "stage1", "stage2"),
        *("stage1/block1", "stage1/block2", "stage2/block1", "stage2/block1/shortcut_conv"),
        *(f"stage1/block1/{layer}" for layer in first),
        *(f"{block}/{layer}" for block in ("stage1/block2", "stage2/block1") for layer in whole),
        *("head_bn", "head_activation", "head_pool", "dropout", "head"),
    }


def test_every_layer_of_torchvisions_has_its_counterpart():
    params = flat(shapes(ResNet(num_classes=3, stage_sizes=(1, 1), features=4))["params"])
    assert {path.rpartition("/")[0] for path in params if path.startswith("stage2")} == {
        f"stage2/block1/{layer}"
        for layer in ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "shortcut_conv", "shortcut_bn")
    }
    assert {path for path in params if "conv" in path and path.endswith("bias")} == set()


def test_initialization_is_he_by_the_outputs():
    module = ResNet(**TINY | dict(stage_sizes=(1,), features=32, zero_init_last_norm=True))
    params = flat(jax.jit(partial(module.init, train=False))(jax.random.key(0), IMAGES)["params"])
    kernels = [kernel for path, kernel in params.items() if path.endswith("kernel") and "conv" in path]
    assert len(kernels) == 3
    for kernel in kernels:
        height, width, _, features = kernel.shape
        assert kernel.std() == pytest.approx(math.sqrt(2 / (height * width * features)), rel=0.1)
    scales = {path: set(scale.tolist()) for path, scale in params.items() if path.endswith("scale")}
    assert scales == {"bn1/scale": {1}, "stage1/block1/bn1/scale": {1}, "stage1/block1/bn2/scale": {0}}


def test_convolutions_have_biases_only_where_no_norm_follows():
    for norm in ("batch", "frozen", "group", "layer", "none"):
        params = flat(shapes(ResNet(**TINY | {"norm": norm}))["params"])
        biases = {path for path in params if "conv" in path and path.endswith("bias")}
        assert len(biases) == (8 if norm == "none" else 0), norm


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": "botleneck"}, "block='botleneck' is not known; did you mean 'bottleneck'"),
        ({"skip": "full"}, "skip='full' is not known"),
        ({"shortcut": "D"}, "shortcut='D' is not known; there are A, B, C"),
        ({"pool": "mean"}, "pool='mean' is not known"),
        ({"global_pool": "none"}, "global_pool='none' is not known"),
        ({"stride_in": "2x2"}, "stride_in='2x2' is not known"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"stage_sizes": ()}, "each stage must have 1 or more blocks"),
        ({"stage_sizes": (2, 0)}, "each stage must have 1 or more blocks"),
        ({"features": 0}, "features=0 is out of range; it must be 1 or more"),
        ({"stem_kernel": 0}, "stem_kernel=0 is out of range"),
        ({"stem_strides": 0}, "stem_strides=0 is out of range"),
        ({"shortcut": "dropout", "shortcut_dropout_rate": 1.0}, "must be at least 0 and less than 1"),
        ({"block": "basic", "stride_in": "1x1"}, "stride_in='1x1' does nothing with block='basic'"),
        ({"gate_bias": 0.0}, "gate_bias=0.0 does nothing with shortcut='B'; leave it at -6.0"),
        ({"shortcut": "dropout", "shortcut_scale": 0.1}, "shortcut_scale=0.1 does nothing with shortcut='dropout'"),
        ({"shortcut": "none", "residual_scale": 0.1}, "residual_scale=0.1 does nothing"),
        ({"shortcut": "A", "shortcut_dropout_rate": 0.1}, "shortcut_dropout_rate=0.1 does nothing"),
        *(
            ({"zero_init_last_norm": True, **fields}, "zero_init_last_norm needs a shortcut and a branch that ends")
            for fields in (
                {"skip": "full_preactivation"},
                {"skip": "bn_after_addition"},
                {"skip": "relu_before_addition"},
                {"shortcut": "none"},
                {"norm": "frozen"},
                {"norm": "none"},
            )
        ),
    ],
)
def test_the_rest_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=re.escape(message)) as fault:
        ResNet(**fields)
    assert "\n" not in str(fault.value)
