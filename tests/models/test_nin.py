"""Network in Network against the published definitions' numbers and against a reference written out by hand."""

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
from cnn_research.layers import Conv, Pool, taps
from cnn_research.models.nin import NIN, VARIANTS

# Small enough to run operation by operation.
TINY = dict(num_classes=3, features=(4, 3, 2, 3, 4, 2, 4, 3))


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def normal(*shape):
    return jnp.asarray(np.random.default_rng(7).standard_normal(shape, np.float32))


# The second pooling sees 7x6, so that windows hang over and do not; the first 14x11 likewise.
IMAGES = normal(4, 14, 11, 3)


def shapes(module, x=IMAGES, **fields):
    return jax.eval_shape(partial(module.init, train=False, **fields), jax.random.key(0), x)


def build(**fields):
    module = NIN(**TINY | fields)
    rng = np.random.default_rng(3)
    drawn = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes(module))
    if "batch_stats" in drawn:
        drawn["batch_stats"] = jax.tree.map(jnp.abs, drawn["batch_stats"])
    return module, drawn


def trace(module, size):
    """Returns the shapes of the parameters and those of the outputs of the layers that matter here, by path."""

    def chosen(layer, method):
        return isinstance(layer, Conv | nn.Dense | nn.Dropout | Pool)

    variables = shapes(module, jnp.zeros((1, size, size, 3)), mutable=True, capture_intermediates=chosen)
    outputs = flat(variables["intermediates"])
    return flat(variables["params"]), {path.removesuffix("/__call__"): out[0].shape for path, out in outputs.items()}


@pytest.mark.parametrize(
    ("name", "fields", "size", "parameters", "macs"),
    [
        ("nin_cifar", {}, 32, 966_986, "0.222"),
        ("nin_imagenet", {}, 224, 7_595_176, "1.100"),
        # 75·192 + 4,800·192 + 1,728·10 weights and a bias each.
        ("nin_cifar", {"mlpconv": "linear"}, 32, 953_674, None),
        # Ten maps of 8x8 for each of ten classes, and a bias each.
        ("nin_cifar", {"head": "dense"}, 32, 966_986 + 8 * 8 * 10 * 10 + 10, None),
    ],
)
def test_parameters_and_multiply_accumulates(name, fields, size, parameters, macs):
    params, outputs = trace(NIN(**VARIANTS[name] | fields), size)
    assert sum(leaf.size for leaf in params.values()) == parameters
    convolutions = {path: out for path, out in outputs.items() if f"{path}/kernel" in params}
    total = sum(math.prod(params[f"{path}/kernel"].shape) * math.prod(out[1:-1]) for path, out in convolutions.items())
    assert macs in (None, f"{total / 1e9:.3f}")


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("nin_cifar", 32, [(32, 192), (32, 96), (16, 96), (16, 192), (8, 192), (8, 192), (8, 10)]),
        (
            "nin_imagenet",
            224,
            [(54, 96), (54, 96), (27, 96), (27, 256), (13, 256), (13, 384), (6, 384), (6, 1024), (6, 1000)],
        ),
        (
            "nin_imagenet",
            227,
            [(55, 96), (55, 96), (27, 96), (27, 256), (13, 256), (13, 384), (6, 384), (6, 1024), (6, 1000)],
        ),
    ],
)
def test_maps_shrink_as_in_caffe(name, size, maps):
    _, outputs = trace(NIN(**VARIANTS[name]), size)
    blocks = len(NIN(**VARIANTS[name]).kernel_sizes)
    layers = ["mlpconv1/conv"]
    for block in range(1, blocks):
        layers += [f"mlpconv{block}/cccp2", f"pool{block}"]
    layers += [f"mlpconv{blocks}/conv", f"mlpconv{blocks}/cccp2"]
    assert [outputs[layer][2:] for layer in layers] == maps
    assert outputs["head_pool"] == (1, 1, 1, maps[-1][1])


# References by hand.


def convolve(x, layer, strides=1, padding="SAME"):
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, layer["kernel"], (strides, strides), padding, dimension_numbers=dimensions)
    return y + layer["bias"]


def pool(x, kind):
    """Caffe's pooling of 3x3 with stride 2, window by window."""
    reduce = {"max": np.max, "avg": np.mean}[kind]
    rows, columns = (range(0, math.ceil((size - 3) / 2) * 2 + 1, 2) for size in x.shape[1:3])
    windows = [
        [reduce(np.asarray(x)[:, row : row + 3, column : column + 3], (1, 2)) for column in columns] for row in rows
    ]
    return np.moveaxis(np.array(windows), 2, 0)


def reference(module, variables, x):
    params = variables["params"]
    for index in (1, 2, 3):
        block = params[f"mlpconv{index}"]
        stem = (module.stem_strides, module.stem_padding.upper()) if index == 1 else ()
        x = jax.nn.relu(convolve(x, block["conv"], *stem))
        for layer in ("cccp1", "cccp2"):
            if layer in block:
                x = convolve(x, block[layer])
                x = jax.nn.relu(x) if module.activate_last or index < 3 or layer == "cccp1" else x
        if index < 3:
            x = pool(x, (module.pool, module.last_pool)[index - 1])
    if module.head == "dense":
        return x.reshape(len(x), -1) @ params["head"]["kernel"] + params["head"]["bias"]
    return x.mean((1, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pool": "avg", "last_pool": "max", "activate_last": False},
        {"head": "dense", "mlpconv": "linear"},
        {"stem_padding": "valid", "last_pool": "max"},
    ],
    ids=str,
)
def test_equals_the_reference(fields):
    module, variables = build(**fields)
    expected = reference(module, variables, IMAGES)
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(module.apply(variables, IMAGES, train=False), expected, rtol=1e-4, atol=1e-5)


def test_linear_blocks_are_the_convolutions_alone():
    _, variables = build(mlpconv="linear")
    kernels = {path: leaf.shape for path, leaf in flat(variables["params"]).items() if path.endswith("kernel")}
    assert kernels == {
        "mlpconv1/conv/kernel": (5, 5, 3, 4),
        "mlpconv2/conv/kernel": (5, 5, 4, 3),
        "mlpconv3/conv/kernel": (3, 3, 3, 3),
    }


def test_width_multiplies_all_channels_but_the_classes():
    def kernels(**fields):
        return {path: leaf.shape for path, leaf in flat(shapes(NIN(**TINY | fields))["params"]).items()}

    doubled = tuple(2 * channels for channels in TINY["features"])
    assert kernels(width=2.0) == kernels(features=doubled)
    assert kernels(width=1e-9)["mlpconv3/cccp2/kernel"] == (1, 1, 1, 3)


def run(module, variables, x=IMAGES, train=True):
    rngs = {"dropout": jax.random.key(2)}
    return taps.record(lambda: module.apply(variables, x, train=train, mutable=["batch_stats"], rngs=rngs))[1]


def test_dropout_stands_where_the_fields_say():
    module, variables = build(activation="softplus", dropout_after=(2,), dropout_rate=0.5, head="dense")
    outputs = run(module, variables)
    assert "dropout1" not in outputs
    for name, before in (("dropout2", "pool2"), ("head_dropout", "mlpconv3")):
        kept = np.asarray(outputs[name]).reshape(-1)
        before = np.asarray(outputs[before]).reshape(-1)
        assert 0.2 < (kept == 0).mean() < 0.8
        np.testing.assert_allclose(kept[kept != 0], 2 * before[kept != 0], rtol=1e-5)
    assert np.count_nonzero(run(module, variables, train=False)["dropout2"] == 0) == 0


@pytest.mark.parametrize(
    ("name", "dropouts"), [("nin_cifar", {"dropout1", "dropout2"}), ("nin_imagenet", {"dropout3"})]
)
def test_dropout_stands_where_it_was_published(name, dropouts):
    _, outputs = trace(NIN(**VARIANTS[name]), 67)
    assert {path for path in outputs if "dropout" in path} == dropouts


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "batch"},
        pytest.param({"head": "dense", "dropout_rate": 0.2, "dtype": "bfloat16"}, marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_every_parameter(fields):
    module, variables = build(activation="elu", **fields)

    @jax.jit
    def gradients(params):
        def loss(params):
            state = {**variables, "params": params}
            logits, _ = module.apply(
                state, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(2)}
            )
            return -jax.nn.log_softmax(logits)[:, 1].mean()

        return jax.grad(loss)(params)

    for path, gradient in flat(gradients(variables["params"])).items():
        assert np.isfinite(gradient).all(), path
        assert np.any(gradient), path


def test_evaluation_is_independent_of_the_order_of_the_batch():
    module, variables = build(norm="batch")
    order = np.array([2, 0, 3, 1])
    logits = module.apply(variables, IMAGES, train=False)
    np.testing.assert_allclose(module.apply(variables, IMAGES[order], train=False), logits[order], rtol=1e-5, atol=1e-6)


def test_logits_of_bfloat16_are_float32():
    for head in ("dense", "global_pool"):
        module = NIN(**TINY, head=head, dtype="bfloat16", param_dtype="bfloat16")
        init = partial(module.init_with_output, train=False)
        assert jax.eval_shape(init, jax.random.key(0), IMAGES)[0].dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mlpconv": "lineer"}, "did you mean 'linear'"),
        ({"pool": "mx"}, "pool='mx' is not known; did you mean 'max'"),
        ({"last_pool": "none"}, "last_pool='none' is not known"),
        ({"head": "global"}, "did you mean 'global_pool'"),
        ({"stem_padding": "smae"}, "did you mean 'same'"),
        ({"kernel_sizes": (5, 5, 5, 5)}, "9 convolutions, which make no equal blocks"),
        ({"kernel_sizes": (5,)}, "two or more"),
        ({"kernel_sizes": (5, 0, 3)}, "must be 1 or more"),
        ({"stem_strides": 0}, "must be 1 or more"),
        ({"features": (4, 3, 2, 3, 0, 2, 4, 3)}, "must be 1 or more"),
        ({"dropout_after": (3,)}, "there are poolings 1 to 2"),
        ({"dropout_after": (), "dropout_rate": 0.2}, "dropout_rate=0.2 does nothing with dropout_after=()"),
        ({"head_dropout_rate": 0.2}, "head_dropout_rate=0.2 does nothing with head='global_pool'"),
        ({"head": "dense", "head_dropout_rate": 1.0}, "head_dropout_rate=1.0 is out of range"),
        (
            {"kernel_sizes": (5, 3), "features": (4, 4, 4), "dropout_after": (1,), "pool": "avg"},
            "pool='avg' does nothing with two blocks",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(UserError) as fault:
        NIN(**TINY | fields)
    assert message in str(fault.value)


def test_images_that_vanish_are_refused():
    with pytest.raises(UserError, match="does not fit"):
        shapes(NIN(**TINY), jnp.zeros((1, 2, 2, 3)))
