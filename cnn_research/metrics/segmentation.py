"""Segmentation: how well classes overlap, out of one confusion matrix over the whole split.

Long et al. 2014, arXiv:1411.4038, section 5, has the four scores. What is added over batches is the matrix; nothing is
divided before.
"""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float64, Int32, Integer

from cnn_research.metrics import classification

IGNORE = 255  # the mask's value where nothing is known

Counts = Integer[np.ndarray | Array, "classes classes"]


def confusion_matrix(
    masks: Integer[ArrayLike, "*pixels"],
    predicted: Integer[ArrayLike, "*pixels"],
    num_classes: int,
    counts: Bool[ArrayLike, "*pixels"] | None = None,
) -> Int32[Array, "classes classes"]:
    """Counts the pixels of each pair of true and predicted class.

    Args:
      masks: the true class; a pixel of `IGNORE` is left out.
      predicted: the predicted class; -1 where there is no prediction.
      num_classes: the number of rows and columns.
      counts: which pixels count; all unless given.

    Returns:
      counts[true, predicted]; below 2^31 pixels of a pair, so add those of many images in 64 bits.
    """
    masks = jnp.asarray(masks, jnp.int32).ravel()
    known = masks != IGNORE
    if counts is not None:
        known &= jnp.asarray(counts).ravel()
    return classification.confusion_matrix(masks, jnp.asarray(predicted).ravel(), num_classes, known)


def class_iou(confusion: Counts) -> Float64[np.ndarray, " classes"]:
    """Returns each class's pixels that are both true and predicted, over those that are either.

    Args:
      confusion: counts[true, predicted].

    Returns:
      In 0..1; NaN for a class that is neither true nor predicted anywhere.
    """
    confusion = np.asarray(confusion, np.float64)
    both = confusion.diagonal()
    return _ratio(both, confusion.sum(axis=0) + confusion.sum(axis=1) - both)


def class_accuracy(confusion: Counts) -> Float64[np.ndarray, " classes"]:
    """Returns which part of each class's pixels was predicted; NaN for a class without pixels."""
    confusion = np.asarray(confusion, np.float64)
    return _ratio(confusion.diagonal(), confusion.sum(axis=1))


def mean_iou(confusion: Counts) -> float:
    """Returns the mean of `class_iou` over the classes that are seen, the ground among them."""
    return _mean(class_iou(confusion))


def mean_accuracy(confusion: Counts) -> float:
    """Returns the mean of `class_accuracy` over the classes that have pixels."""
    return _mean(class_accuracy(confusion))


def pixel_accuracy(confusion: Counts) -> float:
    """Returns which part of the pixels was predicted right; NaN where there are none."""
    confusion = np.asarray(confusion, np.float64)
    return float(_ratio(confusion.trace(), confusion.sum()))


def frequency_weighted_iou(confusion: Counts) -> float:
    """Returns the mean of `class_iou`, each class weighted by its true pixels; NaN where there are none."""
    frequency = np.asarray(confusion, np.float64).sum(axis=1)
    return float(_ratio(np.nansum(frequency * class_iou(confusion)), frequency.sum()))


def _ratio(part: ArrayLike, whole: ArrayLike) -> np.ndarray:
    part, whole = np.asarray(part), np.asarray(whole)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: Float64[np.ndarray, " classes"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
