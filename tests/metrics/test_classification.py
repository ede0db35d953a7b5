import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.metrics.classification import calibration_bins, calibration_error, confusion_matrix, top_k_correct

NAN = float("nan")


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return (e / e.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 60)
    return 2 * rng.normal(size=(60, 7)).astype(np.float32) + 2 * np.eye(7, dtype=np.float32)[labels], labels


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_scikit_learn(scores, k):
    logits, labels = scores
    ours = np.mean(top_k_correct(logits, labels, k))
    assert ours == pytest.approx(sklearn.metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(7)))


# Few values, so that rows hold ties.
rows = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0, math.inf]), min_size=4, max_size=4)
grids = st.lists(rows, min_size=5, max_size=5).map(lambda grid: np.array(grid, np.float32))


@settings(max_examples=40, deadline=None)
@given(grids, st.integers(1, 5))
def test_of_equal_logits_the_smaller_index_goes_first(logits, k):
    labels = np.arange(5) % 4
    expected = [label in np.argsort(-row, kind="stable")[:k] for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_array_equal(top_k_correct(logits, labels, k), expected)


def test_nan_and_labels_out_of_range_are_never_correct():
    logits = np.array([[1, NAN, 0], [NAN, 1, 0], [1, 2, 0], [1, 2, 0]], np.float32)
    assert not np.any(top_k_correct(logits, np.array([1, 1, -1, 3]), k=3))


def test_confusion_matrix_agrees_with_scikit_learn(scores):
    logits, labels = scores
    predicted, mask = logits.argmax(axis=1), np.arange(60) % 3 > 0
    ours = confusion_matrix(labels, predicted, 7, mask)
    assert ours.dtype == jnp.int32
    expected = sklearn.metrics.confusion_matrix(labels[mask], predicted[mask], labels=range(7))
    np.testing.assert_array_equal(ours, expected)


def test_confusion_matrix_leaves_out_indices_out_of_range():
    labels, predicted = np.array([0, -1, 1, 1, 2]), np.array([1, 1, -1, 2, 0])
    np.testing.assert_array_equal(confusion_matrix(labels, predicted, 2, np.ones(5, bool)), [[0, 1], [0, 0]])


def brute_force_error(probabilities, labels, num_bins):
    """Guo et al. 2017, equations 1 to 3, as they stand there."""
    confidence, right = probabilities.max(axis=1).astype(np.float64), probabilities.argmax(axis=1) == labels
    error = 0.0
    for m in range(1, num_bins + 1):
        inside = (confidence > (m - 1) / num_bins) & (confidence <= m / num_bins)
        if inside.any():
            error += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_calibration_error_agrees_with_brute_force(scores, num_bins):
    probabilities, labels = softmax(scores[0]), scores[1]
    bins = calibration_bins(probabilities, labels, np.ones(60, bool), num_bins)
    assert np.sum(bins["count"]) == 60
    assert calibration_error(bins) == pytest.approx(brute_force_error(probabilities, labels, num_bins), abs=1e-6)


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25], [1, 0], [0.8, 0.2]], np.float32)
    bins = calibration_bins(probabilities, np.array([0, 1, 0, 0]), np.ones(4, bool), num_bins=4)
    np.testing.assert_array_equal(bins["count"], [0, 1, 1, 2])
    np.testing.assert_array_equal(bins["correct"], [0, 1, 0, 2])
    np.testing.assert_allclose(bins["confidence"], [0, 0.5, 0.75, 1.8], rtol=1e-6)
    # (|1 - 0.5| + |0 - 0.75| + |2 - 1.8|) / 4
    assert calibration_error(bins) == pytest.approx(1.45 / 4)


def test_calibration_bins_add_up_and_skip_masked_rows(scores):
    probabilities, labels = softmax(scores[0]), scores[1]
    whole = calibration_bins(probabilities, labels, np.ones(60, bool))
    first, second = np.arange(60) < 23, np.arange(60) >= 23
    junk = np.where(first[:, None], probabilities, np.float32(NAN))
    parts = calibration_bins(junk, labels, first), calibration_bins(probabilities, labels, second)
    total = jax.tree.map(jnp.add, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total, whole)


def test_calibration_error_of_nothing_is_nan():
    nothing = calibration_bins(np.ones((2, 2), np.float32), np.zeros(2, np.int32), np.zeros(2, bool))
    assert math.isnan(calibration_error(nothing))
