"""Local response normalization against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.ops.response import local_response_norm


def reference(x, size=5, k=2.0, alpha=1e-4, beta=0.75):
    """The formula of section 3.3, word for word."""
    x, count = np.asarray(x, np.float64), x.shape[-1]
    y = np.empty_like(x)
    for i in range(count):
        total = 0.0
        for j in range(max(0, i - size // 2), min(count - 1, i + size // 2) + 1):
            total = total + x[..., j] ** 2
        y[..., i] = x[..., i] / (k + alpha * total) ** beta
    return y


def normal(*shape, scale=1.0):
    return scale * np.random.default_rng(0).standard_normal(shape, np.float32)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(2, 3, 4, 1), (2, 3, 4, 7), (3, 5), (4,), (0, 2, 3)]),
    st.sampled_from([1, 3, 5, 9]),
    st.sampled_from([(2.0, 1e-4, 0.75), (1.0, 0.5, 0.5), (0.5, 3.0, 1.0)]),
)
def test_equals_loops(shape, size, constants):
    x = normal(*shape, scale=10)
    actual = local_response_norm(jnp.asarray(x), size, *constants)
    np.testing.assert_allclose(actual, reference(x, size, *constants), rtol=1e-5)


def test_the_defaults_are_the_papers():
    x = normal(2, 3, 3, 12, scale=300)
    np.testing.assert_allclose(local_response_norm(jnp.asarray(x)), reference(x), rtol=1e-5)


def test_alpha_is_not_divided_by_the_size():
    # Five values of 100: 2 + 1e-4 * 5e4 = 7 in the middle, and 2 + 1e-4 * 3e4 = 5 at the ends.
    y = local_response_norm(jnp.full((5,), 100.0))
    np.testing.assert_allclose(y[jnp.array([2, 0, 4])], 100 / np.array([7, 5, 5]) ** 0.75, rtol=1e-6)


def test_gradients_equal_finite_differences():
    x, weights, step = normal(3, 6).astype(np.float64), normal(3, 6), 1e-6
    constants = (3, 1.0, 0.5, 0.75)  # large enough for the neighbours to matter

    def loss(x):
        return (weights * local_response_norm(x, *constants)).sum()

    expected = np.empty_like(x)
    for place in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        ahead, behind = (reference(x + sign * moved, *constants) for sign in (1, -1))
        expected[place] = (weights * (ahead - behind)).sum() / (2 * step)
    gradient = jax.grad(loss)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_squares_in_float32(dtype):
    x = jnp.full((2, 8), 500.0, dtype)  # its square is beyond float16
    y = local_response_norm(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype("float32"), reference(np.full((2, 8), 500.0)), rtol=1e-2)


@pytest.mark.parametrize("size", [4, 0, -1])
def test_a_size_without_a_middle_is_refused(size):
    with pytest.raises(UserError, match=f"size={size} is out of range; it must be odd"):
        local_response_norm(jnp.ones((2, 8)), size)
