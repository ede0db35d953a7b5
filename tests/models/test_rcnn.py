from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.models.rcnn import warp

BOXES = jnp.float32([[2, 3, 12, 19], [0, 0, 20, 24], [15, 18, 20, 24], [4, 4, 5, 6], [40, 40, 44, 44]])


def warped_slowly(image, box, size, context):
    """Appendix A: the box fills all but `context` pixels of each side; beyond the image is nothing."""
    image = np.asarray(image)
    height, width, channels = image.shape
    out = np.zeros((size, size, channels))
    ymin, xmin, ymax, xmax = map(float, box)
    for row in range(size):
        for column in range(size):
            y = ymin + (row + 0.5 - context) / (size - 2 * context) * (ymax - ymin) - 0.5
            x = xmin + (column + 0.5 - context) / (size - 2 * context) * (xmax - xmin) - 0.5
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
            top, left = min(int(y), height - 2), min(int(x), width - 2)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                out[row, column] += weight * image[top + i, left + j]
    return out


def test_warping_is_that_of_loops():
    image = jnp.float32(np.random.default_rng(0).normal(size=(20, 24, 3)))
    warped = jax.jit(partial(warp, size=9, context=2))(image, BOXES)
    for one, box in zip(warped, BOXES, strict=True):
        np.testing.assert_allclose(one, warped_slowly(image, box, 9, 2), atol=1e-4)
    assert not np.asarray(warped[-1]).any()


def test_what_is_said_of_regions_is_what_the_classifier_says_of_them_warped():
    """The classifier's variables are the network's; the others start at zero."""
    layers = dict(machine_layer="fc1_activation", box_layer="fc1")
    network = models.create("rcnn", body="mlp", region_size=6, context=1, num_classes=3, width=0.1, **layers)
    classifier = models.create("mlp", num_classes=3, width=0.1, activation="relu")
    images = jnp.float32(np.random.default_rng(0).normal(size=(2, 20, 24, 3)))
    regions = jnp.stack([BOXES, BOXES[::-1]])

    @jax.jit
    def compare(images, regions):
        variables = network.init(jax.random.key(0), images, train=False)
        own = {name: layer for name, layer in variables["params"].items() if name not in ("machines", "box")}
        crops = jax.vmap(lambda image, boxes: warp(image, boxes, size=6, context=1))(images, regions)
        expected = classifier.apply({"params": own}, crops.reshape(-1, 6, 6, 3), train=False)
        return network.apply(variables, images, False, regions), expected

    (logits, margins, offsets), expected = compare(images, regions)
    assert (margins.shape, offsets.shape) == ((2, 5, 2), (2, 5, 2, 4))
    assert not np.asarray(margins).any()
    assert not np.asarray(offsets).any()
    np.testing.assert_allclose(logits, expected.reshape(2, 5, 3), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": "alexnett"}, "did you mean 'alexnet"),
        ({"context": 114}, "context=114 leaves nothing of region_size=227"),
        ({"sampling_ratio": 0}, "sampling_ratio=0 is out of range"),
        ({"body": "resnet20_cifar", "hidden": (64,)}, "does nothing with body='resnet20_cifar'"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("rcnn", **fields)
