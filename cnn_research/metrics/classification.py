"""Classification: top-k correctness, the confusion matrix, and the expected calibration error.

What takes a mask returns arrays that may be added over batches; an example whose mask is False counts nowhere, whatever
stands in its row.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int32, Integer


def top_k_correct(
    logits: Float[ArrayLike, "examples classes"], labels: Integer[ArrayLike, " examples"], k: int
) -> Bool[Array, " examples"]:
    """Tells for each example whether its label is among the k classes with the largest logits.

    Of equal logits the smaller index goes first, so exactly k classes are among the first k.

    Args:
      logits: scores; any increasing function of them (probabilities) gives the same answer.
      labels: the true class; one outside 0..classes-1 is never correct.
      k: how many guesses an example has.

    Returns:
      True where the label is among the k; never in a row that holds a NaN.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)[:, None]
    classes = jnp.arange(logits.shape[1])
    of_label = jnp.take_along_axis(logits, labels, axis=1)
    ahead = (logits > of_label) | ((logits == of_label) & (classes < labels))
    valid = (classes == labels).any(axis=1) & ~jnp.isnan(logits).any(axis=1)
    return (ahead.sum(axis=1) < k) & valid


def confusion_matrix(
    labels: Integer[ArrayLike, " examples"],
    predicted: Integer[ArrayLike, " examples"],
    num_classes: int,
    mask: Bool[ArrayLike, " examples"],
) -> Int32[Array, "classes classes"]:
    """Counts the pairs of true and predicted class.

    Args:
      labels: the true class.
      predicted: the predicted class; -1 where there is no prediction.
      num_classes: the number of rows and columns.
      mask: which examples count.

    Returns:
      counts[true, predicted]; a pair with an index outside 0..num_classes-1 is left out.
    """
    labels, predicted = jnp.asarray(labels), jnp.asarray(predicted)
    # Indices too large are dropped by the scatter; negative ones would wrap around.
    counts = jnp.asarray(mask) & (labels >= 0) & (predicted >= 0)
    zeros = jnp.zeros((num_classes, num_classes), jnp.int32)
    return zeros.at[labels, predicted].add(counts.astype(jnp.int32), mode="drop")


def calibration_bins(
    probabilities: Float[ArrayLike, "examples classes"],
    labels: Integer[ArrayLike, " examples"],
    mask: Bool[ArrayLike, " examples"],
    num_bins: int = 15,
) -> dict[str, Array]:
    """Sorts examples by their confidence, the largest probability, into equal bins ((m-1)/M, m/M] and sums each bin.

    Args:
      probabilities: the predicted distribution of each example.
      labels: the true class.
      mask: which examples count.
      num_bins: M; 15 in Guo et al. 2017, arXiv:1706.04599.

    Returns:
      One value a bin: `count` and `correct` (int32), and `confidence`, the sum of the confidences (float32).
    """
    confidence = jnp.max(jnp.asarray(probabilities), axis=1)
    inner_edges = jnp.arange(1, num_bins) / num_bins
    bins = jnp.searchsorted(inner_edges, confidence, side="left")
    # A masked sum and no scatter-add, whose float sums depend on the order in which a GPU adds.
    members = (bins[:, None] == jnp.arange(num_bins)) & jnp.asarray(mask)[:, None]
    correct = top_k_correct(probabilities, labels, k=1)
    return {
        "count": members.sum(axis=0, dtype=jnp.int32),
        "correct": (members & correct[:, None]).sum(axis=0, dtype=jnp.int32),
        "confidence": jnp.where(members, confidence[:, None], 0).sum(axis=0, dtype=jnp.float32),
    }


def calibration_error(bins: Mapping[str, ArrayLike]) -> float:
    """Expected calibration error: the mean gap of accuracy and confidence, bins weighted by their examples.

    Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
      bins: what `calibration_bins` gave, added over all batches.

    Returns:
      The error in 0..1; NaN where there was no example.
    """
    count, correct, confidence = (np.asarray(bins[key], np.float64) for key in ("count", "correct", "confidence"))
    # A bin's weight count/total cancels the count under its two means.
    return float(np.abs(correct - confidence).sum() / count.sum()) if count.any() else math.nan
