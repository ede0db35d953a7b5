"""Initializers: the spread of what they draw."""

import jax
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.layers import INITIALIZERS, initializer

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


@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_variance(name):
    weights = np.asarray(initializer(name)(jax.random.key(0), (3, 3, 25, 25), "float32"))
    assert abs(weights.mean()) < 0.05 * weights.std()
    assert weights.var() * 225 == pytest.approx(VARIANCES[name], rel=0.05)


def test_lecun1998_fills_the_interval_of_the_paper():
    weights = initializer("lecun1998")(jax.random.key(0), (5, 5, 6, 16), "bfloat16")
    assert weights.dtype == "bfloat16"
    assert float(abs(weights).max()) == pytest.approx(2.4 / 150, rel=0.02)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="initializer 'he' is not known"):
        initializer("he")
