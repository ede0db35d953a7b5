"""Pooling layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.layers import AdaptiveAvgPool, Pool, TrainablePool
from cnn_research.ops.pooling import avg_pool, max_pool


@pytest.mark.parametrize(("kind", "function"), [("max", max_pool), ("avg", avg_pool)])
def test_pool_is_the_function_of_its_kind(kind, function):
    x = jax.random.normal(jax.random.key(0), (1, 7, 7, 2))
    arguments = (3, (2, 1), ((0, 1), (1, 1)))
    np.testing.assert_array_equal(Pool(kind, *arguments).apply({}, x), function(x, *arguments))


def test_padding_counts_in_a_mean_unless_it_is_told_not_to():
    x = jnp.ones((1, 4, 4, 1))
    padding = ((0, 1), (0, 1))
    pooled = {counts: Pool("avg", 3, 2, padding, count_include_pad=counts).apply({}, x) for counts in (True, False)}
    np.testing.assert_allclose(pooled[True][0, ..., 0], [[1, 2 / 3], [2 / 3, 4 / 9]], rtol=1e-6)
    np.testing.assert_allclose(pooled[False], 1)
    np.testing.assert_array_equal(Pool("max", 3, 2, padding, count_include_pad=False).apply({}, -x), -1)


def test_an_unknown_kind_gets_the_nearest():
    with pytest.raises(UserError, match="pool 'mx' is not known; did you mean 'max'"):
        Pool("mx", 2, 2).apply({}, jnp.ones((1, 2, 2, 1)))


def test_trainable_pool_is_the_sum_times_a_weight_plus_a_bias():
    x = jnp.arange(16.0).reshape(1, 4, 2, 2)
    module = TrainablePool(2, 2)
    params = {"scale": jnp.array([1.0, 0.5]), "bias": jnp.array([0.0, 3.0])}
    y = module.apply({"params": params}, x)
    sums = np.asarray(x).reshape(1, 2, 2, 1, 2, 2).sum((2, 4))
    np.testing.assert_allclose(y, sums * np.array([1, 0.5]) + np.array([0, 3]))


def test_trainable_pool_starts_by_the_four_inputs_of_a_unit():
    def fan_in(key, shape, dtype):
        return jnp.full(shape, np.prod(shape[:-1]), dtype)

    params = TrainablePool(2, 2, kernel_init=fan_in).init(jax.random.key(0), jnp.ones((1, 4, 4, 6)))["params"]
    assert params["scale"].tolist() == [4] * 6
    assert params["bias"].tolist() == [0] * 6


@pytest.mark.parametrize("shape", [(2, 13, 9, 3), (1, 6, 6, 2), (1, 2, 7, 1), (2, 12, 3, 1)])
def test_adaptive_pooling_equals_loops(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    _, height, width, _ = shape
    expected = np.empty((shape[0], 6, 6, shape[-1]), np.float32)
    for row, column in np.ndindex(6, 6):  # as PyTorch documents it: from ⌊i · size / 6⌋ to ⌈(i + 1) · size / 6⌉
        top, left = math.floor(row * height / 6), math.floor(column * width / 6)
        bottom, right = math.ceil((row + 1) * height / 6), math.ceil((column + 1) * width / 6)
        expected[:, row, column] = x[:, top:bottom, left:right].mean((1, 2))
    actual = AdaptiveAvgPool(6).apply({}, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    if shape[1:3] == (6, 6):
        np.testing.assert_array_equal(actual, x)
