"""Similarity of layers against its properties, the formulas written out, and batches against all at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.analysis import similarity
from cnn_research.errors import UserError

DRAWS = np.random.default_rng(0)
X, Y = DRAWS.normal(size=(12, 7)).astype(np.float32), DRAWS.normal(size=(12, 5)).astype(np.float32)
Y += 0.5 * X[:, :5]
X, Y = jnp.asarray(X), jnp.asarray(Y)
gram = jax.jit(similarity.gram)


def slow_hsic(k, ell):
    """Song et al. 2012, equation 5, as sums over pairs."""
    n = len(k)
    k, ell = (matrix - np.diag(np.diag(matrix)) for matrix in (np.asarray(k, np.float64), np.asarray(ell, np.float64)))
    one = np.ones(n)
    trace = np.trace(k @ ell)
    sums = (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * one @ k @ ell @ one) / (n * (n - 3))


def biased_cka(x, y):
    """Equation 3 of Kornblith et al. with the centering matrix written out."""
    n = len(x)
    h = np.eye(n) - 1 / n

    def hsic(a, b):
        return np.trace(a @ a.T @ h @ b @ b.T @ h)

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def test_linear_cka_is_the_formula_and_keeps_its_invariances():
    value = float(similarity.linear_cka(X, Y))
    assert value == pytest.approx(biased_cka(X, Y), rel=1e-5)
    assert 0 < value < 1
    rotation = jnp.asarray(np.linalg.qr(DRAWS.normal(size=(7, 7)))[0].astype(np.float32))
    assert float(similarity.linear_cka(3.0 * X @ rotation + 2.0, Y)) == pytest.approx(value, rel=1e-4)
    assert float(similarity.linear_cka(X, X @ rotation)) == pytest.approx(1, rel=1e-5)
    stretched = X * np.arange(1, 8, dtype=np.float32) ** 2  # no rotation, so no longer the same
    assert float(similarity.linear_cka(stretched, Y)) != pytest.approx(value, rel=1e-2)


def test_unbiased_hsic_is_the_slow_formula():
    first = jnp.stack([gram(X), gram(X[:, :2])])
    second = jnp.stack([gram(Y), gram(Y[:, 1:]), gram(X)])
    expected = [[slow_hsic(a, b) for b in second] for a in first]
    np.testing.assert_allclose(similarity.unbiased_hsic(first, second), expected, rtol=1e-4)
    # Centering the features changes nothing.
    raw = (X + 1) @ (X + 1).T
    assert slow_hsic(raw, second[0]) == pytest.approx(slow_hsic(first[0], second[0]), rel=1e-4)


def test_batches_sum_numerators_and_denominators():
    parts = [slice(0, 4), slice(4, 8), slice(8, 12)]
    grams = [(gram(X[part])[None], gram(Y[part])[None]) for part in parts]
    [[value]] = similarity.minibatch_cka(grams)
    sums = [sum(slow_hsic(a[0], b[0]) for a, b in pairs)
            for pairs in (grams, [(a, a) for a, _ in grams], [(b, b) for _, b in grams])]  # fmt: skip
    assert value == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), rel=1e-4)
    [[same]] = similarity.minibatch_cka((a, a) for a, _ in grams)
    assert same == pytest.approx(1, rel=1e-5)


def test_independent_layers_are_not_alike_without_bias():
    """With more features than examples the biased estimate is far from 0 (Nguyen et al., section 3.1)."""
    draws = jnp.asarray(DRAWS.normal(size=(80, 8, 200)).astype(np.float32))
    pairs = [(gram(a)[None], gram(b)[None]) for a, b in zip(draws[::2], draws[1::2], strict=True)]
    assert abs(similarity.minibatch_cka(pairs).item()) < 0.15
    assert float(similarity.linear_cka(draws[0], draws[1])) > 0.8


def test_too_few_examples_are_refused():
    grams = gram(X[:3])[None]
    with pytest.raises(UserError, match="give 4 or more"):
        similarity.minibatch_cka([(grams, grams)])
    with pytest.raises(UserError, match="no examples"):
        similarity.minibatch_cka([])
