"""Membranes: do they part the cells? The two scores of the ISBI 2012 challenge, on the host.

A gap of one pixel in a membrane is nothing to the pixel error, and joins two cells. Both scores therefore compare
regions: cells are 4-connected, so that membranes part them even where these are 8-connected only (Arganda-Carreras et
al. 2015, "Crowdsourcing the creation of image segmentation algorithms for connectomics").
"""

import functools
from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np
import scipy.ndimage
import scipy.sparse
from jaxtyping import Bool, Float, Int, Integer

EIGHT = np.ones((3, 3), bool)
# The neighbours of a pixel, each of which is a bit of the number of a neighbourhood.
NEIGHBOURS = tuple((row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column)

MARGIN = 32  # pixels, more than half of a membrane's width

Interior = Bool[np.ndarray, "height width"]


def cells(interior: Interior, thin: bool = False) -> Int[np.ndarray, "height width"]:
    """Numbers the cells of an image from 1; membranes are 0.

    Args:
      interior: False on membranes.
      thin: whether membranes are first made as thin as a line, as the challenge does to what is predicted. Their width
        then costs nothing.
    """
    if thin:
        # Thinning eats a line from its ends by half its width: membranes that leave the image go on outside.
        membranes = np.pad(np.uint8(255) * ~interior, MARGIN, mode="edge")
        interior = cv2.ximgproc.thinning(membranes)[MARGIN:-MARGIN, MARGIN:-MARGIN] == 0
    return scipy.ndimage.label(interior)[0]


def rand_f_score(truth: Integer[np.ndarray, "*shape"], predicted: Integer[np.ndarray, "*shape"]) -> float:
    """Foreground-restricted Rand F-score: of two pixels in one true cell, are they in one predicted cell?

    The score is Σ p_ij² / (½ Σ s_i² + ½ Σ t_j²), where p_ij is the share of pixels in predicted cell i and true cell j,
    s and t its sums; only pixels of true cells count. A predicted membrane's pixels are each a cell of their own.

    Args:
      truth: the number of each pixel's cell; 0 is membrane and does not count.
      predicted: likewise; 0 is membrane.

    Returns:
      In 0..1, where 1 is best; NaN where there is no true cell.
    """
    inside = truth > 0
    if not inside.any():
        return float("nan")
    pairs = predicted[inside], truth[inside]
    joint = scipy.sparse.coo_array((np.ones(len(pairs[0])), pairs)).tocsr()
    alone = joint[[0]].sum()  # pixels of predicted membranes: each a cell of one pixel, in the truth and out of it
    of_truth, of_predicted = (np.square(joint.sum(axis=axis)) for axis in (0, 1))
    both = joint[1:].power(2).sum() + alone
    return float(2 * both / (of_predicted[1:].sum() + alone + of_truth.sum()))


def best_rand_f_score(
    interiors: Sequence[Interior],
    probabilities: Sequence[Float[np.ndarray, "height width"]],
    thresholds: Sequence[float] = tuple(np.linspace(0.05, 0.95, 19)),
) -> tuple[float, float]:
    """Returns the best mean Rand F-score over all thresholds, and its threshold, as the challenge ranks.

    Args:
      interiors: the truth, an image each.
      probabilities: of the interior.
      thresholds: above which a pixel is interior; membranes are made thin.
    """
    truths = [cells(interior) for interior in interiors]
    scores = [
        np.mean([
            rand_f_score(truth, cells(values > threshold, thin=True))
            for truth, values in zip(truths, probabilities, strict=True)
        ])
        for threshold in thresholds
    ]  # fmt: skip
    best = int(np.argmax(scores))
    return float(scores[best]), float(thresholds[best])


def warping_error(truth: Interior, predicted: Interior) -> float:
    """Returns the share of pixels in which a segmentation differs from the truth that `warp` has bent towards it."""
    return float(np.mean(warp(truth, predicted) != predicted))


def warp(truth: Interior, predicted: Interior) -> Interior:
    """Bends the truth towards a segmentation as far as its topology stays: what still differs are splits and merges.

    That flips simple points, which split, join, make or remove no cell and no hole (Jain et al. 2010, "Boundary
    learning by optimization with topological constraints"), first come first flipped: as there, a descent that another
    order may end elsewhere. Membrane surrounds the image.

    Args:
      truth: False on membranes.
      predicted: likewise.
    """
    warped, target = np.pad(truth, 1), np.pad(predicted, 1)
    simple = _simple_neighbourhoods()
    waiting = deque(zip(*(axis.tolist() for axis in np.nonzero(warped != target)), strict=True))
    while waiting:
        row, column = waiting.popleft()
        if warped[row, column] == target[row, column]:  # as everywhere in the border
            continue
        around = [(row + y, column + x) for y, x in NEIGHBOURS]
        if simple[sum(bool(warped[place]) << bit for bit, place in enumerate(around))]:
            warped[row, column] = target[row, column]
            waiting.extend(around)
    return warped[1:-1, 1:-1]


@functools.cache
def _simple_neighbourhoods() -> Bool[np.ndarray, "256"]:
    """Tells by a neighbourhood's number whether its middle may be flipped without a change of topology.

    It may where it touches one 4-connected part of the cells and one 8-connected part of the membranes.
    """
    simple = np.zeros(256, bool)
    for number in range(256):
        cell = np.zeros((3, 3), bool)
        for bit, (row, column) in enumerate(NEIGHBOURS):
            cell[1 + row, 1 + column] = number >> bit & 1
        membrane = ~cell
        membrane[1, 1] = False
        parts = scipy.ndimage.label(cell)[0]
        touched = {int(parts[place]) for place in ((0, 1), (1, 0), (1, 2), (2, 1))} - {0}
        simple[number] = len(touched) == 1 and scipy.ndimage.label(membrane, EIGHT)[1] == 1
    return simple
