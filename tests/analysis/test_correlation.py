"""Correlation of neighbours against NumPy's, and what pooling makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.analysis import correlation


def test_neighbours_are_those_below_and_beside():
    maps = np.random.default_rng(0).normal(size=(3, 5, 4, 2)).cumsum(1).astype(np.float32)
    maps[..., 1] += 7
    pairs = [
        (maps[:, :-1, :, channel], maps[:, 1:, :, channel])
        if axis == 1
        else (maps[:, :, :-1, channel], maps[:, :, 1:, channel])
        for axis in (1, 2)
        for channel in range(2)
    ]
    expected = np.mean([np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in pairs])
    constant = np.concatenate([maps, np.ones_like(maps)], axis=-1)  # whose channels do not count
    for given in (maps, constant):
        assert correlation.neighbour_correlation(jnp.asarray(given)) == pytest.approx(expected, abs=1e-5)
    assert np.isnan(correlation.neighbour_correlation(jnp.ones((2, 1, 1, 3))))


def test_poolings_of_a_network():
    """What lies smoothly in the image is less alike after each pooling: its units lie further apart."""
    draws = np.random.default_rng(0).normal(size=(8, 32, 32, 1)).cumsum(1).cumsum(2)
    images = jnp.asarray((draws - draws.mean()) / draws.std())
    model = models.create("lenet5_modern", pool="avg")
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images[:1], train=False)
    changes = correlation.of_poolings(model, variables, images)
    assert [*changes] == ["S2", "S4"]
    for change in changes.values():
        assert 0.3 < change.after < change.before <= 1
