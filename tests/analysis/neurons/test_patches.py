"""Top patches against a loop, and windows against the pixels that a value depends on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.analysis.attribution.cams import layers_of, row_of
from cnn_research.analysis.neurons.batches import in_batches
from cnn_research.analysis.neurons.patches import cut, strongest
from cnn_research.analysis.table import Row
from cnn_research.errors import UserError
from cnn_research.models import create

MODEL = create("lenet5", width=0.5)
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 1), np.uint8)
VARIABLES = jax.jit(partial(MODEL.init, train=False))(jax.random.key(0), jnp.asarray(IMAGES[:1] / np.float32(255)))


def prepare(images):
    return images / np.float32(255)


def test_the_strongest_images_of_each_channel_and_where():
    """The batch does not divide the images."""
    found = strongest(MODEL, VARIABLES, IMAGES, "C3_activation", k=4, batch_size=3, prepare=prepare)
    maps = MODEL.apply(VARIABLES, prepare(jnp.asarray(IMAGES)), train=False, capture_intermediates=True)[1][
        "intermediates"
    ]
    maps = np.asarray(maps["C3_activation"]["__call__"][0])
    assert found.values.shape == (8, 4)
    for channel in range(8):
        largest = maps[..., channel].max((1, 2))
        order = np.argsort(-largest)[:4]
        np.testing.assert_array_equal(found.examples[channel], order)
        np.testing.assert_allclose(found.values[channel], largest[order], rtol=1e-4, atol=1e-8)
        for value, example, (row, column) in zip(*(each[channel] for each in found), strict=True):
            assert maps[example, row, column, channel] == pytest.approx(value, rel=1e-4, abs=1e-8)


def test_layers_without_maps_are_refused():
    with pytest.raises(UserError, match="layer F6 gives one vector an image and no maps"):
        strongest(MODEL, VARIABLES, IMAGES, "F6", prepare=prepare)
    with pytest.raises(UserError, match="the network has no layer 'C9'; did you mean 'C"):
        strongest(MODEL, VARIABLES, IMAGES, "C9", prepare=prepare)


def test_a_patch_is_what_the_value_depends_on():
    image = np.arange(32 * 32.0).reshape(32, 32, 1)
    row = row_of(layers_of(MODEL, (32, 32, 1)), "S4_activation")
    np.testing.assert_array_equal(cut(image, row, (2, 4)), image[8:24, 16:32])
    bordered = Row("layer", "Conv", receptive_field=(7, 40), first_pixel=(-3, -20), jump=(2, 2))
    patch = cut(image, bordered, (0, 4), fill=-1.0)
    assert patch.shape == (7, 32, 1)  # wider than the image: all of it
    assert (patch[:3] == -1).all()
    np.testing.assert_array_equal(patch[3:], image[:4])
    np.testing.assert_array_equal(cut(image, bordered, (16, 4), fill=-1.0)[:3], image[29:])
    assert cut(image, Row("layer", "Dense"), (0, 0)) is image


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_of_one_size_say_what_all_at_once_do(size):
    seen = []

    def double(batch):
        seen.append(len(batch))
        return 2 * batch, batch[:, 0]

    doubled, first = in_batches(double, IMAGES.astype(float), size)
    np.testing.assert_array_equal(doubled, 2.0 * IMAGES)
    np.testing.assert_array_equal(first, IMAGES[:, 0])
    assert set(seen) == {min(size, 7)}
