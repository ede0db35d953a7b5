"""Layers that make maps larger."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.layers import Unpool, Upsample, extended
from cnn_research.ops import upsampling
from cnn_research.ops.pooling import max_pool

X = jax.random.normal(jax.random.key(0), (2, 6, 9, 3))
SMALL = jax.random.normal(jax.random.key(1), (2, 3, 4, 3))


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
def test_upsampling_by_name(kind):
    np.testing.assert_array_equal(Upsample(kind, 3).apply({}, SMALL), getattr(upsampling, kind)(SMALL, 3))


def test_switches_put_values_where_the_largest_were():
    y = np.asarray(Unpool().apply({}, SMALL, X))
    expected = np.zeros_like(X)
    for batch, row, column, channel in np.ndindex(SMALL.shape):
        window = np.asarray(X)[batch, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, channel]
        down, right = np.unravel_index(window.argmax(), (2, 2))
        expected[batch, 2 * row + down, 2 * column + right, channel] = SMALL[batch, row, column, channel]
    np.testing.assert_array_equal(y, expected)


def test_pooling_undoes_unpooling_of_what_it_gave():
    maps = jnp.abs(X)
    pooled = max_pool(maps, 3, 3)
    unpooled = Unpool(factor=3).apply({}, pooled, maps)
    np.testing.assert_array_equal(max_pool(unpooled, 3, 3), pooled)
    kept = np.asarray(unpooled) != 0
    np.testing.assert_array_equal(unpooled[kept], np.asarray(maps)[kept])


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
def test_without_switches_the_rest_repeats_what_is_last(kind):
    y = np.asarray(Unpool(kind).apply({}, SMALL[..., :2], X))
    np.testing.assert_array_equal(y[:, :, :8], getattr(upsampling, kind)(SMALL[..., :2], 2))
    np.testing.assert_array_equal(y[:, :, 8], y[:, :, 7])


def test_extended():
    y = extended(SMALL, 4, 6)
    assert y.shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(y[:, 3], y[:, 2])
    np.testing.assert_array_equal(y[:, :, 5], y[:, :, 3])


def test_unknown_kinds():
    with pytest.raises(UserError, match="unpool 'switch' is not known; did you mean 'switches'"):
        Unpool("switch").apply({}, SMALL, X)
    with pytest.raises(UserError, match="upsampling 'linear' is not known"):
        Upsample("linear", 2).apply({}, SMALL)
