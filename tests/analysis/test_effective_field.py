"""Effective receptive fields against their closed form, and against the theoretical ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.analysis import effective_field, tabulate
from cnn_research.layers import Conv, Pool


class Stack(nn.Module):
    """Three 3x3 convolutions of one channel, which have no activations, and a pooling between."""

    @nn.compact
    def __call__(self, images, train):
        x = Conv(1, 3, padding=1, use_bias=False, name="conv1")(images)
        x = Conv(1, 3, padding=1, use_bias=False, name="conv2")(x)
        x = Pool("avg", window=2, strides=2, name="pool")(x)
        return Conv(1, 3, padding=1, use_bias=False, name="conv3")(x)


@pytest.fixture(scope="module")
def found():
    model = Stack()
    shape = (20, 20, 1)
    variables = jax.tree.map(jnp.ones_like, model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False))
    table = tabulate(model, shape)
    return effective_field.fields(model, table, [variables], jax.random.key(1), images=1)


def test_equal_weights_give_boxes_that_are_convolved(found):
    """Section 2.1 of the paper: n layers of ones convolve n boxes, whatever the image."""
    assert [field.row.name for field in found] == ["conv2", "conv3"]
    fine, coarse = (field.influence for field in found)
    triangle = np.convolve([1, 1, 1], [1, 1, 1])
    expected = np.zeros((20, 20))
    expected[8:13, 8:13] = np.outer(triangle, triangle) / 9
    np.testing.assert_allclose(fine, expected, atol=1e-6)
    wide = np.convolve(triangle, np.ones(6))  # three poolings of two, side by side
    expected = np.zeros((20, 20))
    expected[6:16, 6:16] = np.outer(wide, wide) / wide.max() ** 2
    np.testing.assert_allclose(coarse, expected, atol=1e-6)


def test_it_lies_within_the_theoretical_field_and_is_smaller(found):
    for field in found:
        top, left, height, width = map(int, field.theoretical)
        outside = field.influence.copy()
        outside[top : top + height, left : left + width] = 0
        assert outside.max() == 0
        assert (field.influence[top, left], field.influence[top + height - 1, left]) > (0, 0)
        assert 0 < field.size <= height
    assert effective_field.draw({"stack": found}).axes
