"""Upsampling against JAX's own and against transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.layers.initializers import bilinear as bilinear_kernel
from cnn_research.ops import upsampling
from cnn_research.ops.convolution import convolve_transposed

X = jax.random.normal(jax.random.key(0), (2, 5, 4, 3))


@pytest.mark.parametrize("kind", ["bilinear", "nearest"])
@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_as_jax_resizes(kind, factor):
    resized = jax.image.resize(X, (2, factor * 5, factor * 4, 3), kind)
    np.testing.assert_allclose(getattr(upsampling, kind)(X, factor), resized, atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_interpolation_is_the_transposed_convolution_inside(factor):
    kernel = bilinear_kernel(jax.random.key(0), (2 * factor, 2 * factor, 3, 3))
    stamped = convolve_transposed(X, kernel, factor, factor // 2)
    inside = np.s_[:, factor // 2 : -factor // 2, factor // 2 : -factor // 2]
    np.testing.assert_allclose(upsampling.bilinear(X, factor)[inside], stamped[inside], atol=1e-5)


def test_a_constant_stays_one_and_so_does_its_type():
    y = upsampling.bilinear(jnp.full((1, 2, 1, 1), 3, jnp.bfloat16), 4)
    assert (y.shape, y.dtype) == ((1, 8, 4, 1), jnp.bfloat16)
    assert (y == 3).all()
