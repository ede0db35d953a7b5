"""Initializers: the spread of what they draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.layers import INITIALIZERS, ConvTranspose, initializer

# Variance times F for a kernel with F inputs and F outputs a unit.
VARIANCES = {
    "glorot_normal": 1,
    "glorot_uniform": 1,
    "he_normal": 2,
    "he_uniform": 2,
    "lecun1998": 2.4**2 / 3 / 225,
    "lecun_normal": 1,
    "lecun_uniform": 1,
    "normal_0.01": 0.01**2 * 225,
    "normal_0.05": 0.05**2 * 225,
}


@pytest.mark.parametrize("name", sorted(VARIANCES))
def test_variance(name):
    weights = np.asarray(initializer(name)(jax.random.key(0), (3, 3, 25, 25), "float32"))
    assert abs(weights.mean()) < 0.05 * weights.std()
    assert weights.var() * 225 == pytest.approx(VARIANCES[name], rel=0.05)


def test_lecun1998_fills_the_interval_of_the_paper():
    weights = initializer("lecun1998")(jax.random.key(0), (5, 5, 6, 16), "bfloat16")
    assert weights.dtype == "bfloat16"
    assert float(abs(weights).max()) == pytest.approx(2.4 / 150, rel=0.02)


def test_every_random_initializer_has_its_variance():
    assert {*INITIALIZERS} == {*VARIANCES, "bilinear"}


@pytest.mark.parametrize(("size", "stride", "padding"), [(4, 2, 1), (3, 2, 1), (6, 3, 2), (8, 4, 2)])
def test_bilinear_interpolates(size, stride, padding):
    """A plane stays a plane, but at the borders, beyond which the image is zero."""
    plane = np.add.outer(np.arange(6.0), 2 * np.arange(5.0)).astype(np.float32)
    x = jnp.stack([plane, -plane], -1)[None]
    for groups in (1, 2):
        layer = ConvTranspose(
            2, size, stride, padding, groups=groups, use_bias=False, kernel_init=initializer("bilinear")
        )
        y, _ = layer.init_with_output(jax.random.key(0), x)
        inside = np.asarray(y[0, size:-size, size:-size, 0])
        np.testing.assert_allclose(np.diff(inside, axis=0), 1 / stride, rtol=1e-4)
        np.testing.assert_allclose(np.diff(inside, axis=1), 2 / stride, rtol=1e-4)
        np.testing.assert_allclose(y[..., 1], -y[..., 0], rtol=1e-5)


def test_bilinear_wants_a_feature_for_each_channel():
    with pytest.raises(UserError, match="3 features cannot interpolate 2 channels"):
        initializer("bilinear")(jax.random.key(0), (4, 4, 2, 3))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="initializer 'he' is not known"):
        initializer("he")
