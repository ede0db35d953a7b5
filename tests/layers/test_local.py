"""`LocalConv` against its definition and Flax's, and both layers against a convolution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.errors import UserError
from cnn_research.layers import Conv, DenseConv, LocalConv
from cnn_research.ops.padding import MODES

X = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))


def started(layer, x=X):
    """Returns parameters and output."""
    y, variables = jax.jit(layer.init_with_output)(jax.random.key(1), x)
    return variables["params"], y


def brute_force(x, kernel, bias, strides, padding, mode):
    """The definition, one output value after the other."""
    x = np.pad(x, ((0, 0), *padding, (0, 0)), mode=MODES[mode])
    y = np.zeros((len(x), *bias.shape))
    for row, column, feature in np.ndindex(bias.shape):
        top, left = row * strides[0], column * strides[1]
        window = x[:, top : top + kernel.shape[2], left : left + kernel.shape[3]]
        y[:, row, column, feature] = (window * kernel[row, column, ..., feature]).sum((1, 2, 3)) + bias[
            row, column, feature
        ]
    return y


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding", "mode", "size"),
    [
        ((3, 2), (1, 1), ((0, 0), (0, 0)), "zeros", (5, 5)),
        ((2, 3), (2, 1), ((1, 0), (2, 1)), "zeros", (4, 7)),
        ((3, 3), (2, 3), ((1, 1), (1, 1)), "edge", (4, 2)),
        ((3, 3), (1, 1), ((1, 1), (1, 1)), "reflect", (7, 6)),
    ],
)
def test_every_position_has_its_own_kernel_and_biases(kernel_size, strides, padding, mode, size):
    layer = LocalConv(4, kernel_size, strides, padding, mode, bias_init=nn.initializers.normal())
    params, y = started(layer)
    assert params["kernel"].shape == (*size, *kernel_size, 3, 4)
    assert params["bias"].shape == (*size, 4)
    expected = brute_force(np.asarray(X), *map(np.asarray, (params["kernel"], params["bias"])), strides, padding, mode)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_local_is_flaxs_unshared_convolution():
    ours = LocalConv(4, (3, 2), (2, 1), 1, bias_init=nn.initializers.normal())
    theirs = nn.ConvLocal(4, (3, 2), (2, 1), padding=1)
    params, y = started(ours)
    kernel = params["kernel"]  # theirs has the channels before the taps, all in one axis
    kernel = jnp.moveaxis(kernel, 4, 2).reshape(*kernel.shape[:2], -1, 4)
    expected_shapes = jax.eval_shape(lambda: theirs.init(jax.random.key(0), X))["params"]
    assert kernel.shape == expected_shapes["kernel"].shape
    assert params["bias"].shape == expected_shapes["bias"].shape
    expected = theirs.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, X)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", [0, "same"])
def test_tied_kernels_are_a_convolution(padding):
    local, shared = LocalConv(4, 3, padding=padding), Conv(4, 3, padding=padding)
    params, expected = started(shared)
    shapes = jax.eval_shape(lambda: local.init(jax.random.key(0), X))["params"]
    tied = jax.tree.map(lambda value, shape: jnp.broadcast_to(value, shape.shape), dict(params), dict(shapes))
    np.testing.assert_allclose(local.apply({"params": tied}, X), expected, rtol=1e-4, atol=1e-5)


def test_each_position_draws_its_own_kernel_as_a_convolution_does():
    def draw(key, shape, dtype):
        return math.prod(shape[:-1]) + jax.random.uniform(key, shape, dtype)  # the inputs of a unit, and noise

    kernel = started(LocalConv(4, 3, kernel_init=draw))[0]["kernel"]
    assert (kernel.astype(int) == 3 * 3 * 3).all()
    assert len(np.unique(kernel)) > 0.99 * kernel.size


def test_dense_is_one_matrix_to_the_maps_of_a_convolution():
    layer = DenseConv(4, (3, 2), (2, 1), 1, bias_init=nn.initializers.normal())
    params, y = started(layer)
    maps = started(Conv(4, (3, 2), (2, 1), 1))[1].shape[1:]
    assert params["kernel"].shape == (7 * 6 * 3, np.prod(maps))
    expected = np.asarray(X).reshape(2, -1) @ np.asarray(params["kernel"]) + np.asarray(params["bias"])
    np.testing.assert_allclose(y, expected.reshape(2, *maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [LocalConv, DenseConv])
def test_biases_and_dtypes_are_fields(layer):
    params, y = started(layer(4, 3, use_bias=False, dtype="bfloat16", param_dtype="float16"))
    assert set(params) == {"kernel"}
    assert params["kernel"].dtype == jnp.float16
    assert y.dtype == jnp.bfloat16


@pytest.mark.parametrize("layer", [LocalConv, DenseConv])
def test_a_window_that_does_not_fit_is_refused(layer):
    with pytest.raises(UserError, match="a window of 8 does not fit an input of 7"):
        started(layer(4, 8))
