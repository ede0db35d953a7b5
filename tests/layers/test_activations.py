"""Activations against their formulas."""

import math

import jax
import jax.numpy as jnp
import pytest

from cnn_research.errors import UserError
from cnn_research.layers import ACTIVATIONS, Activation, activation

FORMULAS = {
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "identity": lambda x: x,
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "leaky_relu_0.1": lambda x: max(x, 0.1 * x),
    "relu": lambda x: max(x, 0),
    "scaled_tanh": lambda x: 1.7159 * math.tanh(2 * x / 3),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * (math.exp(x) - 1)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "softplus": lambda x: math.log(1 + math.exp(x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_each_is_its_formula(name):
    values = [-3.0, -0.5, 0.0, 0.5, 3.0]
    expected = [FORMULAS[name](value) for value in values]
    assert Activation(name).apply({}, jnp.array(values)).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_scaled_tanh_keeps_one_where_its_curvature_is_largest():
    # LeCun et al. 1998, appendix A: f(1) = 1, f(-1) = -1, second derivative extreme there.
    f = activation("scaled_tanh")
    assert f(jnp.array([1.0, -1.0])).tolist() == pytest.approx([1, -1], abs=1e-4)
    x = jnp.linspace(0, 2, 201)
    assert x[jnp.abs(jax.vmap(jax.grad(jax.grad(f)))(x)).argmax()] == pytest.approx(1, abs=0.02)


def test_a_function_is_its_own_name():
    assert activation(jnp.sin) is jnp.sin
    assert Activation(jnp.sin).apply({}, jnp.ones(1)) == pytest.approx(math.sin(1))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="activation 'rleu' is not known; did you mean 'relu'"):
        activation("rleu")
