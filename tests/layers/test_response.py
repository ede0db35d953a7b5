"""Local response normalization as a layer."""

import jax
import numpy as np
from flax import linen as nn

from cnn_research.layers import LocalResponseNorm
from cnn_research.layers.taps import record
from cnn_research.ops.response import local_response_norm

IMAGES = 30 * jax.random.normal(jax.random.key(0), (2, 3, 4, 9))


def test_the_layer_is_the_function():
    np.testing.assert_array_equal(LocalResponseNorm().apply({}, IMAGES), local_response_norm(IMAGES))
    constants = (3, 1.0, 0.5, 0.5)
    np.testing.assert_array_equal(
        LocalResponseNorm(*constants).apply({}, IMAGES), local_response_norm(IMAGES, *constants)
    )


def test_the_layer_has_no_variables_and_an_address():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return LocalResponseNorm(name="lrn1")(x)

    assert Network().init(jax.random.key(0), IMAGES) == {}
    _, outputs = record(lambda: Network().apply({}, IMAGES))
    assert set(outputs) == {"", "lrn1"}
