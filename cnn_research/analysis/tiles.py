"""Overlap-tile inference: images of any size through a network of one. Ronneberger et al. 2015, arXiv:1505.04597.

Each tile is seen with a margin of context, and labelled without; beyond the image's border the context is mirrored
(figure 2). Where a margin is as wide as what a pixel's logits depend on, the tiles are what the whole image would give.
"""

import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

from cnn_research.errors import UserError

Predict = Callable[
    [Shaped[np.ndarray, "batch height width channels"]], Float[np.ndarray, "batch out_height out_width classes"]
]


def predict_tiles(
    predict: Predict,
    image: Shaped[np.ndarray, "height width channels"],
    tile: tuple[int, int],
    margin: int,
    multiple: int = 1,
    batch_size: int = 4,
) -> Float[np.ndarray, "height width classes"]:
    """Labels an image tile by tile.

    Args:
      predict: labels the pixels in the middle of images of the tile's size; all but the margin at least. It is always
        given `batch_size` images.
      image: any; in whatever form `predict` takes.
      tile: height and width that `predict` takes, margin included; 572x572 in the paper.
      margin: pixels of context on each side; 92 in the paper.
      multiple: the network's stride, of which tiles begin at multiples, so that its poolings see the same windows.
      batch_size: tiles at a time.

    Returns:
      For each pixel what `predict` gives.

    Raises:
      UserError: the margin leaves less than a stride of a tile.
    """
    core = [side - 2 * margin for side in tile]
    step = [side - side % multiple for side in core]
    if min(step) < 1:
        raise UserError(
            f"tiles of {tile} without a margin of {margin} are less than a stride of {multiple}; make them larger"
        )
    counts = [
        1 + max(0, -(-(size - side) // stride)) for size, side, stride in zip(image.shape, core, step, strict=False)
    ]
    ends = [
        (count - 1) * stride + side - size - margin
        for count, stride, side, size in zip(counts, step, tile, image.shape, strict=False)
    ]
    padded = np.pad(image, ((margin, ends[0]), (margin, ends[1]), (0, 0)), mode="reflect")
    corners = [(row * step[0], column * step[1]) for row, column in itertools.product(*map(range, counts))]
    labelled: np.ndarray | None = None
    for begin in range(0, len(corners), batch_size):
        part = corners[begin : begin + batch_size]
        tiles = [padded[top : top + tile[0], left : left + tile[1]] for top, left in part]
        outputs = predict(np.stack(tiles + tiles[:1] * (batch_size - len(part))))
        top, left = ((size - side) // 2 for size, side in zip(outputs.shape[1:3], core, strict=True))
        if labelled is None:
            size = [(count - 1) * stride + side for count, stride, side in zip(counts, step, core, strict=True)]
            labelled = np.empty((*size, outputs.shape[-1]), outputs.dtype)
        for (row, column), output in zip(part, outputs, strict=False):
            middle = output[top : top + core[0], left : left + core[1]]
            labelled[row : row + core[0], column : column + core[1]] = middle
    assert labelled is not None
    return labelled[: image.shape[0], : image.shape[1]]
