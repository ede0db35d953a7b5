import numpy as np
import pytest
import sklearn.metrics

from cnn_research.metrics.segmentation import (
    IGNORE,
    class_accuracy,
    class_iou,
    confusion_matrix,
    frequency_weighted_iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)


@pytest.fixture(scope="module")
def pixels():
    """Masks of four classes, with pixels to ignore, and predictions of five."""
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 1, 2, 3, IGNORE], (3, 6, 7), p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.uint8)
    predicted = np.where(rng.random(masks.shape) < 0.6, masks % IGNORE, rng.integers(0, 5, masks.shape))
    return masks, predicted.astype(np.int32)


def test_confusion_matrix_agrees_with_scikit_learn(pixels):
    masks, predicted = pixels
    known = masks != IGNORE
    expected = sklearn.metrics.confusion_matrix(masks[known], predicted[known], labels=range(6))
    np.testing.assert_array_equal(confusion_matrix(masks, predicted, 6), expected)


def test_pixels_that_do_not_count_are_left_out(pixels):
    masks, predicted = pixels
    counts = np.zeros(masks.shape, bool)
    counts[:2] = True
    first = confusion_matrix(masks[:2], predicted[:2], 5)
    np.testing.assert_array_equal(confusion_matrix(masks, predicted, 5, counts), first)


def test_scores_are_those_of_counted_pixels(pixels):
    masks, predicted = pixels
    confusion = confusion_matrix(masks, predicted, 6)
    known = masks != IGNORE
    true, guess = masks[known], predicted[known]
    ious, accuracies = [], []
    for index in range(6):
        union = sum((true == index) | (guess == index))
        ious.append(sum((true == index) & (guess == index)) / union if union else np.nan)
        accuracies.append(np.mean(guess[true == index] == index) if (true == index).any() else np.nan)
    np.testing.assert_allclose(class_iou(confusion), ious)
    np.testing.assert_allclose(class_accuracy(confusion), accuracies)
    assert np.isnan(ious).tolist() == [False] * 5 + [True]
    assert mean_iou(confusion) == pytest.approx(np.nanmean(ious))
    assert mean_accuracy(confusion) == pytest.approx(np.nanmean(accuracies))
    assert pixel_accuracy(confusion) == pytest.approx(np.mean(true == guess))
    shares = [np.mean(true == index) for index in range(6)]
    assert frequency_weighted_iou(confusion) == pytest.approx(np.nansum(np.multiply(shares, ious)))
    labels = sorted({*true, *guess})
    assert mean_iou(confusion) == pytest.approx(
        sklearn.metrics.jaccard_score(true, guess, labels=labels, average="macro", zero_division=0)
    )


def test_matrices_add_up_before_anything_is_divided(pixels):
    masks, predicted = pixels
    parts = [np.asarray(confusion_matrix(*pair, 5)) for pair in zip(masks, predicted, strict=True)]
    assert mean_iou(sum(parts)) == mean_iou(confusion_matrix(masks, predicted, 5))


def test_no_pixels_have_no_score():
    nothing = np.zeros((3, 3), np.int32)
    for score in (mean_iou, mean_accuracy, pixel_accuracy, frequency_weighted_iou):
        assert np.isnan(score(nothing))
