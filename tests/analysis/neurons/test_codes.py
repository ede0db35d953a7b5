"""Codes, and how they lie in the plane."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.analysis.neurons import codes
from cnn_research.errors import UserError
from cnn_research.models import create


def test_codes_are_the_layers_outputs():
    model = create("mlp", features=(6,))
    images = np.random.default_rng(0).random((5, 4, 4, 1)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.asarray(images), train=False)
    assert codes.last_code(model, (4, 4, 1)) == "fc1_activation"
    vectors = codes.codes(model, variables, images, "fc1", batch_size=2, prepare=lambda images: 2 * images)
    layer = variables["params"]["fc1"]
    np.testing.assert_allclose(vectors, 2 * images.reshape(5, -1) @ layer["kernel"] + layer["bias"], rtol=1e-4)


@pytest.mark.parametrize("method", codes.METHODS)
def test_what_is_near_stays_near(method):
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(3, 8))
    labels = np.repeat(np.arange(3), 8)
    places = codes.embed(centres[labels] + rng.normal(size=(24, 8)), method)
    assert places.shape == (24, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=-1) + 1e9 * np.eye(24)
    assert (labels[distances.argmin(1)] == labels).all()


def test_an_unknown_method():
    with pytest.raises(UserError, match="embedding 'tsen' is not known; did you mean 'tsne'"):
        codes.embed(np.zeros((5, 3)), "tsen")
