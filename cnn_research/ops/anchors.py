"""Anchors: the boxes at every place of a feature map that a region proposal network tells boxes by.

Ren et al. 2015, arXiv:1506.01497, section 3.1.1. Coordinates are continuous, as in `ops.boxes`. An anchor's centre is
that of the area that its feature stands for: the one at row i and column j of a map with stride s has its centre at
((i + ½) s, (j + ½) s). So it is in the paper's code, within half a pixel; torchvision's and Detectron2's lie half a
stride before, which `offset=0` gives.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cnn_research.ops.geometry import pair


def anchors(
    map_size: int | Sequence[int],
    stride: int,
    sizes: Sequence[float],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    offset: float = 0.5,
) -> Float[np.ndarray, "anchors 4"]:
    """Returns the anchors of a feature map: those of its first place, then of the next one in the row, and so on.

    Args:
      map_size: of the features, one number or (height, width).
      stride: distance of places, in pixels of the image.
      sizes: square roots of the anchors' areas, in pixels of the image.
      ratios: their heights over their widths; at each place all sizes with the first ratio come first.
      offset: where an anchor's centre is between its place and the next.

    Returns:
      ymin, xmin, ymax, xmax in pixels of the image, float32; some reach beyond it.
    """
    stretch = np.sqrt(np.asarray(ratios, np.float64))[:, None]
    half = np.stack([stretch * sizes, 1 / stretch * sizes], axis=-1).reshape(-1, 2) / 2
    rows, columns = ((np.arange(size) + offset) * stride for size in pair(map_size))
    centers = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    return np.concatenate([centers - half, centers + half], axis=-1).reshape(-1, 4).astype(np.float32)


def pyramid_anchors(
    image_size: Sequence[int],
    strides: Sequence[int],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    offset: float = 0.5,
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Returns the `anchors` of each level of a feature pyramid, whose map has ⌈image size / stride⌉ places.

    Lin et al. 2016, arXiv:1612.03144, section 4.1, has strides of 4 to 64 with one size each, 32 to 512.

    Args:
      image_size: height and width, in pixels.
      strides: of the levels.
      sizes: of each level's anchors.
      ratios: of all.
      offset: of all.
    """
    return tuple(
        anchors([-(-side // stride) for side in image_size], stride, of_level, ratios, offset)
        for stride, of_level in zip(strides, sizes, strict=True)
    )
