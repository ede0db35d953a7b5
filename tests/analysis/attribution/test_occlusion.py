"""Occlusion against a loop over patches, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.analysis.attribution import attribute
from cnn_research.errors import UserError


class Net(nn.Module):
    """A convolution, a square and a sum: not linear."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(3)(jnp.square(nn.Conv(4, (3, 3))(images)).mean((1, 2)))


NET = Net()
IMAGES = jax.random.normal(jax.random.key(0), (2, 7, 9, 2))
VARIABLES = NET.init(jax.random.key(1), IMAGES, False)


@pytest.mark.parametrize(
    ("window", "strides", "fill"), [(3, 2, 0.0), ((2, 5), (1, 3), 0.7), ((7, 9), 1, 0.0), (2, 4, 0.0)]
)
def test_every_pixel_has_the_mean_loss_of_the_patches_that_cover_it(window, strides, fill):
    score = jax.jit(lambda images: NET.apply(VARIABLES, images, False)[:, 1])
    (tall, wide), (down, right) = (np.broadcast_to(each, 2) for each in (window, strides))
    tops = sorted({*range(0, 7 - tall, down), 7 - tall})
    lefts = sorted({*range(0, 9 - wide, right), 9 - wide})
    losses, counts = np.zeros((2, 7, 9)), np.zeros((7, 9))
    for top in tops:
        for left in lefts:
            covered = np.array(IMAGES)
            covered[:, top : top + tall, left : left + wide] = fill
            losses[:, top : top + tall, left : left + wide] += (score(IMAGES) - score(covered))[:, None, None]
            counts[top : top + tall, left : left + wide] += 1
    maps = attribute("occlusion", NET, VARIABLES, IMAGES, 1, window=window, strides=strides, fill=fill, at_a_time=3)
    np.testing.assert_allclose(maps[..., 0], losses / np.maximum(counts, 1), rtol=1e-4, atol=1e-6)


def test_a_patch_larger_than_the_images_is_refused():
    with pytest.raises(UserError, match=r"a window of \(8, 8\) does not fit into images of \(7, 9\)"):
        attribute("occlusion", NET, VARIABLES, IMAGES, 0)
