"""A fully connected layer that slides."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cnn_research.layers import SlidingDense

X = jax.random.normal(jax.random.key(0), (2, 5, 6, 3))


def test_each_window_is_what_the_dense_layer_takes():
    layer = SlidingDense(4, (2, 3))
    variables = layer.init(jax.random.key(1), X)
    variables["params"]["bias"] += 1
    y = layer.apply(variables, X)
    assert y.shape == (2, 4, 4, 4)
    dense = nn.Dense(4)
    for row, column in ((0, 0), (1, 2), (3, 3)):
        window = X[:, row : row + 2, column : column + 3].reshape(2, -1)
        assert jax.tree.map(np.shape, dense.init(jax.random.key(1), window)) == jax.tree.map(np.shape, variables)
        np.testing.assert_allclose(y[:, row, column], dense.apply(variables, window), rtol=1e-4, atol=1e-5)


def test_borders_and_types():
    layer = SlidingDense(4, 3, "same", "edge", use_bias=False, dtype="bfloat16", param_dtype="bfloat16")
    variables = layer.init(jax.random.key(1), X)
    assert jax.tree.map(lambda leaf: leaf.dtype.name, variables) == {"params": {"kernel": "bfloat16"}}
    y = layer.apply(variables, X)
    assert (y.shape, y.dtype) == ((2, 5, 6, 4), "bfloat16")
    padded = jnp.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    inner = SlidingDense(4, 3, use_bias=False, dtype="bfloat16", param_dtype="bfloat16")
    np.testing.assert_array_equal(y.astype("float32"), inner.apply(variables, padded).astype("float32"))
