"""YOLO's loss, term by term. Redmon et al. 2015, "You only look once", arXiv:1506.02640, section 2.2."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cnn_research.ops.boxes import centers_and_sizes, from_centers_and_sizes, iou_of_pairs

Cells = Float[Array, "rows columns boxes 5"]


class CellTargets(NamedTuple):
    """What the cells of an image's grid are to predict.

    Attributes:
      occupied: whether an object's centre is in the cell.
      boxes: that object's, in 0..1 of the image; any where there is none.
      labels: its class.
    """

    occupied: Bool[Array, "rows columns"]
    boxes: Float[Array, "rows columns 4"]
    labels: Int[Array, "rows columns"]


def cell_targets(
    boxes: Float[Array, "objects 4"],
    labels: Int[Array, " objects"],
    valid: Bool[Array, " objects"],
    grid: tuple[int, int],
) -> CellTargets:
    """Gives each object to the cell that holds its centre; of several in one cell, the first stays, as in Darknet.

    Args:
      boxes: of an image, in 0..1 of it.
      labels: their classes.
      valid: which there are.
      grid: rows and columns.
    """
    (rows, columns), count = grid, len(labels)
    centers, _ = centers_and_sizes(boxes)
    row, column = jnp.clip(jnp.floor(centers * np.array(grid)), 0, np.array(grid) - 1).astype(jnp.int32).T
    objects = jnp.where(valid, jnp.arange(count), count)
    first = jnp.full((rows, columns), count).at[row, column].min(objects)
    owner = jnp.minimum(first, count - 1)
    return CellTargets(first < count, boxes[owner], labels[owner])


def predicted_boxes(cells: Cells) -> Float[Array, "rows columns boxes 4"]:
    """Returns the boxes that cells predict, in 0..1 of the image.

    Args:
      cells: of each box y and x of its centre within its cell, in 0..1 of the cell; the square roots of its height and
        width, in 0..1 of the image; and its confidence.
    """
    grid = cells.shape[:2]
    centers = (cells[..., :2] + _corners(grid)[:, :, None]) / np.array(grid)
    return from_centers_and_sizes(centers, jnp.square(cells[..., 2:4]))


def _corners(grid: tuple[int, ...]) -> Int[np.ndarray, "rows columns 2"]:
    """Returns row and column of each cell, where it begins."""
    return np.moveaxis(np.indices(grid), 0, -1)


def yolo_loss(
    cells: Cells,
    probabilities: Float[Array, "rows columns classes"],
    targets: CellTargets,
    coordinates_weight: float = 5.0,
    no_object_weight: float = 0.5,
) -> dict[str, Float[Array, ""]]:
    """Returns the terms of the paper's equation 3 for an image; the loss is their sum.

    Of an occupied cell's boxes that one is responsible whose IoU with the object is largest, or where none overlaps it
    the nearest in centre and size, as in Darknet. Its confidence is to be its IoU, through which no gradient flows.

    Args:
      cells: as `predicted_boxes` takes them.
      probabilities: of the classes, given an object.
      targets: what is to be predicted.
      coordinates_weight: λ_coord.
      no_object_weight: λ_noobj.

    Returns:
      `center`, `size`, `object`, `no_object` and `class`, in the equation's order, each with its factor.
    """
    grid, classes = targets.occupied.shape, probabilities.shape[-1]
    centers, sizes = centers_and_sizes(targets.boxes)
    within = centers * np.array(grid) - _corners(grid)
    guesses = jax.lax.stop_gradient(predicted_boxes(cells))
    overlaps = iou_of_pairs(guesses, targets.boxes[:, :, None])
    guessed_centers, guessed_sizes = centers_and_sizes(guesses)
    far = jnp.square(guessed_centers - centers[:, :, None]) + jnp.square(guessed_sizes - sizes[:, :, None])
    merit = jnp.where(overlaps.max(axis=-1, keepdims=True) > 0, overlaps, -far.sum(axis=-1))
    best = jnp.argmax(merit, axis=-1)[..., None] == np.arange(cells.shape[2])
    responsible = best & targets.occupied[..., None]

    def total(where: Bool[Array, "..."], errors: Float[Array, "..."]) -> Float[Array, ""]:
        return jnp.where(where, jnp.square(errors), 0).sum()

    center_errors = cells[..., :2] - within[:, :, None]
    size_errors = cells[..., 2:4] - jnp.sqrt(sizes)[:, :, None]
    confidence = cells[..., 4]
    return {
        "center": coordinates_weight * total(responsible[..., None], center_errors),
        "size": coordinates_weight * total(responsible[..., None], size_errors),
        "object": total(responsible, confidence - overlaps),
        "no_object": no_object_weight * total(~responsible, confidence),
        "class": total(targets.occupied[..., None], probabilities - jax.nn.one_hot(targets.labels, classes)),
    }
