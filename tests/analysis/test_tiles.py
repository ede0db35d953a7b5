import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research import models
from cnn_research.analysis.tiles import predict_tiles
from cnn_research.errors import UserError

KEY = jax.random.key(0)


def applied(model, channels=1):
    """Returns a network as a function of arrays on the host."""
    variables = model.init(KEY, jnp.zeros((1, 60, 60, channels)), train=False)
    compiled = jax.jit(lambda images: model.apply(variables, images, train=False))
    return lambda images: np.asarray(compiled(images))


class Strided(nn.Module):
    """A pooling and the way back, as networks of stride 2 have them; a pixel sees 5 at most in each direction."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(3, (3, 3))(images)
        x = nn.Conv(4, (3, 3))(nn.max_pool(x, (2, 2), (2, 2)))
        return x.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize("size", [(61, 47), (20, 90), (16, 16), (5, 33)])
def test_tiles_are_the_whole_image_where_all_context_is_in_it(size):
    image = np.random.default_rng(0).normal(size=(*size, 1)).astype(np.float32)
    predict = applied(Strided())
    whole = predict(np.pad(image, ((20, 20 + size[0] % 2), (20, 20 + size[1] % 2), (0, 0)), mode="reflect")[None])[0]
    tiles = predict_tiles(predict, image, tile=(28, 24), margin=6, multiple=2, batch_size=3)
    np.testing.assert_allclose(tiles, whole[20 : 20 + size[0], 20 : 20 + size[1]], atol=1e-5)
    if min(size) > 12:  # and, away from the border, of the image without one
        alone = predict(image[None, : size[0] // 2 * 2, : size[1] // 2 * 2])[0]
        np.testing.assert_allclose(
            tiles[6 : size[0] - 7, 6 : size[1] - 7], alone[6 : size[0] - 7, 6 : size[1] - 7], atol=1e-5
        )


@pytest.mark.slow
def test_a_published_unet_in_tiles_is_the_whole_image():
    """Narrow, and of two poolings: 60 pixels give 20, whose multiples of the stride are 20 apart."""
    predict = applied(models.create("unet", depth=2, width=0.05))
    image = np.random.default_rng(0).normal(size=(52, 36, 1)).astype(np.float32)
    whole = predict(np.pad(image, ((20, 20), (20, 20), (0, 0)), mode="reflect")[None])[0]
    assert whole.shape == (52, 36, 2)
    tiles = predict_tiles(predict, image, tile=(60, 60), margin=20, multiple=4, batch_size=2)
    np.testing.assert_allclose(tiles, whole, atol=1e-5)


def test_tiles_that_are_all_margin_are_refused():
    with pytest.raises(UserError, match="less than a stride of 16; make them larger"):
        predict_tiles(np.asarray, np.zeros((9, 9, 1)), tile=(64, 64), margin=28, multiple=16)
