from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cnn_research.data import mixing


def keys(count):
    return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_symmetric_beta_is_scipys(alpha):
    drawn = jax.jit(jax.vmap(partial(mixing.symmetric_beta, alpha=alpha)))(keys(4000))
    assert scipy.stats.kstest(np.asarray(drawn), scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("alpha", "distance"), [(1e-3, 0.5), (1e6, 0.0)])
def test_symmetric_beta_at_its_ends(alpha, distance):
    drawn = np.asarray(jax.jit(jax.vmap(partial(mixing.symmetric_beta, alpha=alpha)))(keys(1000)))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert abs(drawn.mean() - 0.5) < 0.05
    assert (np.abs(np.abs(drawn - 0.5) - distance) < 0.01).mean() > 0.95


def test_mixup_is_a_convex_combination_of_the_stated_weight():
    image, other = np.random.default_rng(0).random((2, 4, 5, 3), dtype=np.float32)
    mixed, weights = jax.vmap(lambda key: mixing.mixup(key, jnp.array(image), jnp.array(other), 0.8))(keys(300))
    assert scipy.stats.kstest(np.asarray(weights), scipy.stats.beta(0.8, 0.8).cdf).pvalue > 1e-2
    for result, weight in zip(mixed, np.asarray(weights), strict=True):
        np.testing.assert_allclose(result, weight * image + (1 - weight) * other, atol=1e-6)


def test_cutmix_pastes_a_rectangle_and_weighs_by_the_area_that_is_left():
    height, width = 64, 96
    image, other = jnp.ones((height, width, 1)), jnp.zeros((height, width, 1))
    mixed, weights = jax.jit(jax.vmap(lambda key: mixing.cutmix(key, image, other, 1.0)))(keys(2000))
    pasted, weights = np.asarray(mixed)[..., 0] == 0, np.asarray(weights)
    np.testing.assert_allclose(weights, 1 - pasted.mean(axis=(1, 2)), atol=1e-6)
    rows, columns = pasted.any(axis=2), pasted.any(axis=1)
    np.testing.assert_array_equal(pasted, rows[:, :, None] & columns[:, None, :])
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert (np.abs(rows.sum(axis=1) / height - columns.sum(axis=1) / width)[inside] <= 1 / height).all()
    # A side of s centred anywhere keeps s - s²/4 on average; s² is uniform: E[(s - s²/4)²] = 1/2 - 1/5 + 1/48.
    assert abs(1 - weights.mean() - (1 / 2 - 1 / 5 + 1 / 48)) < 0.02


@pytest.mark.parametrize("size", [8, 24])
def test_previous_rolls_the_global_batch(size):
    x = np.random.default_rng(0).random((size, 3), dtype=np.float32)
    np.testing.assert_array_equal(mixing.previous(jnp.array(x), None), np.roll(x, 1, axis=0))
    replicas = jax.pmap(partial(mixing.previous, axis_name="devices"), axis_name="devices")(x.reshape(8, -1, 3))
    np.testing.assert_array_equal(np.asarray(replicas).reshape(x.shape), np.roll(x, 1, axis=0))
