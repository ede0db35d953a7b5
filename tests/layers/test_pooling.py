"""Pooling layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.layers import Pool, TrainablePool
from cnn_research.ops.pooling import avg_pool, max_pool


@pytest.mark.parametrize(("kind", "function"), [("max", max_pool), ("avg", avg_pool)])
def test_pool_is_the_function_of_its_kind(kind, function):
    x = jax.random.normal(jax.random.key(0), (1, 7, 7, 2))
    arguments = (3, (2, 1), ((0, 1), (1, 1)))
    np.testing.assert_array_equal(Pool(kind, *arguments).apply({}, x), function(x, *arguments))


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
