"""Regions of feature maps as maps of one size, and masks of one size as regions of images.

Boxes are [ymin, xmin, ymax, xmax] in pixels of the map, and continuous, as in `ops.boxes`: the first pixel is the box
[0, 0, 1, 1]. A box in pixels of the image is divided by the map's stride, and by nothing else.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cnn_research.errors import UserError
from cnn_research.ops.boxes import SMALLEST, area
from cnn_research.ops.geometry import pair


def roi_align(
    features: Float[Array, "height width channels"],
    boxes: Float[Array, "boxes 4"],
    output_size: int | Sequence[int],
    sampling_ratio: int = 2,
) -> Float[Array, "boxes out_height out_width channels"]:
    """Cuts each box into bins and takes the mean of points spread evenly in each, interpolated bilinearly.

    He et al. 2017, arXiv:1703.06870, section 3, with half-pixel centres: Detectron2 and torchvision say `aligned`.
    Values stay beyond the outermost pixels' centres; a point more than half a pixel outside of the map counts as 0.

    Interpolation is linear along each axis, and so a region is the map between two matrices. Both products and their
    transposes, the gradient, are what accelerators are made for, and add in a fixed order. On two cores they take as
    long as gathering the four pixels around each point, or less, for maps of up to 64 x 64, and the gradient mostly
    about half, since it scatters nothing; from 100 x 100 on gathering is faster forwards. Sums are of float32 at least.

    Args:
      features: of one image.
      boxes: in pixels of the map. The result has a gradient with respect to them too, which papers leave out.
      output_size: bins, one number or (vertical, horizontal).
      sampling_ratio: points along each axis of a bin.

    Raises:
      UserError: a bin has no point.
    """
    if sampling_ratio < 1:
        raise UserError(f"sampling_ratio={sampling_ratio} is out of range; a bin has 1 point along each axis or more")
    (height, width, _), (tall, wide) = features.shape, pair(output_size)
    rows = _sampling(boxes[:, 0], boxes[:, 2], height, tall, sampling_ratio)
    columns = _sampling(boxes[:, 1], boxes[:, 3], width, wide, sampling_ratio)
    of_rows = jnp.einsum("kih,hwc->kiwc", rows, features)
    return jnp.einsum("kjw,kiwc->kijc", columns, of_rows).astype(features.dtype)


def _sampling(
    start: Float[Array, " boxes"], end: Float[Array, " boxes"], size: int, bins: int, ratio: int
) -> Float[Array, "boxes bins size"]:
    """Returns the weight of each of `size` pixels in each bin, along one axis."""
    places = (np.arange(bins * ratio, dtype=np.float32) + 0.5) / (bins * ratio)
    points = start[:, None] - 0.5 + (end - start)[:, None] * places  # 0 is the first pixel's centre
    inside = (points >= -1) & (points <= size)
    distance = jnp.abs(jnp.clip(points, 0, size - 1)[..., None] - np.arange(size, dtype=np.float32))
    weights = jnp.where(inside[..., None], jnp.maximum(1 - distance, 0), 0)
    return weights.reshape(-1, bins, ratio, size).mean(axis=2)


def roi_pool(
    features: Float[Array, "height width channels"], boxes: Float[Array, "boxes 4"], output_size: int | Sequence[int]
) -> Float[Array, "boxes out_height out_width channels"]:
    """Takes the largest value of each bin of each box, whose borders are rounded to whole pixels.

    Girshick 2015, arXiv:1504.08083, section 2.1, and as in its code the i-th of n bins of s pixels has those from
    ⌊s i / n⌋ to before ⌈s (i + 1) / n⌉, so that bins may share pixels. A box is first rounded, half up, and cut off at
    the map's borders, and keeps one pixel at least. (In Caffe and torchvision a box's last corner is the last pixel
    that it has: they do the same to these boxes with 1 less there.) Equal values share the gradient.

    Maxima over 1, 2, 4, … pixels from each pixel on are made once for all boxes; a bin is then the largest of four of
    them that overlap. For 1,000 boxes of 7x7 bins in a map of 20 x 20 with 128 channels that takes 2 ms on two cores,
    against 27 ms pixel by pixel.

    Args:
      features: of one image.
      boxes: in pixels of the map.
      output_size: bins, one number or (vertical, horizontal).
    """
    (height, width, _), (tall, wide) = features.shape, pair(output_size)
    row_level, rows = _windows(boxes[:, 0], boxes[:, 2], height, tall)
    column_level, columns = _windows(boxes[:, 1], boxes[:, 3], width, wide)
    maxima = _doubling(_doubling(features, 0, _levels(height, tall)), 2, _levels(width, wide))
    pooled = [
        maxima[column_level[:, None, :], row_level[:, :, None], row[:, :, None], column[:, None, :]]
        for row in rows
        for column in columns
    ]
    return jnp.stack(pooled).max(axis=0)


def _levels(size: int, bins: int) -> int:
    """Returns for how many powers of 2 a bin may have as many pixels: it has ⌈size / bins⌉ + 1 at most."""
    return min(-(-size // bins) + 1, size).bit_length()


def _windows(
    start: Float[Array, " boxes"], end: Float[Array, " boxes"], size: int, bins: int
) -> tuple[Int[Array, "boxes bins"], tuple[Int[Array, "boxes bins"], Int[Array, "boxes bins"]]]:
    """Returns which power of 2 covers more than half of each bin, and where its window starts at either end."""
    first = jnp.clip(jnp.floor(start + 0.5), 0, size - 1).astype(jnp.int32)[:, None]
    last = jnp.clip(jnp.floor(end + 0.5), first[:, 0] + 1, size).astype(jnp.int32)[:, None]
    index = np.arange(bins, dtype=np.int32)
    low, high = first + index * (last - first) // bins, first - (-(index + 1) * (last - first) // bins)
    powers = 2 ** np.arange(1, _levels(size, bins), dtype=np.int32)
    level = (high - low >= powers[:, None, None]).sum(axis=0, dtype=jnp.int32)
    return level, (low, high - 2**level)


def _doubling(x: Float[Array, "..."], axis: int, levels: int) -> Float[Array, "levels ..."]:
    """Stacks the maxima over 1, 2, 4, … values from each place on; what wraps around is never asked for."""
    stack = [x]
    for level in range(levels - 1):
        stack.append(jnp.maximum(stack[-1], jnp.roll(stack[-1], -(2**level), axis)))
    return jnp.stack(stack)


def pyramid_level(
    boxes: Float[Array, "boxes 4"], lowest: int, highest: int, canonical_level: int = 4, canonical_size: float = 224
) -> Int[Array, " boxes"]:
    """Returns which level of a feature pyramid a box is cut out of: ⌊k0 + log2(√(height · width) / 224)⌋.

    Lin et al. 2016, arXiv:1612.03144, eq. 1, by comparing areas, which is exact where the logarithm is rounded.

    Args:
      boxes: in pixels of the image.
      lowest: finest level there is; level l has stride 2^l.
      highest: coarsest level there is.
      canonical_level: k0, of a box of the canonical size.
      canonical_size: ImageNet's, in pixels.
    """
    sides = canonical_size * 2.0 ** (np.arange(lowest + 1, highest + 1) - canonical_level)
    return lowest + (area(boxes)[:, None] >= jnp.asarray(sides**2, boxes.dtype)).sum(axis=1, dtype=jnp.int32)


def pyramid_roi_align(
    levels: Sequence[Float[Array, "_ _ channels"]],
    boxes: Float[Array, "boxes 4"],
    lowest: int,
    output_size: int | Sequence[int],
    sampling_ratio: int = 2,
) -> Float[Array, "boxes out_height out_width channels"]:
    """Takes each box's `roi_align` from the level that `pyramid_level` says.

    With static shapes all boxes are cut out of all levels, which costs a third more than all out of the finest.

    Args:
      levels: feature maps of one image, the finest first, each with half the size of the one before.
      boxes: in pixels of the image.
      lowest: the finest's level l; its stride is 2^l.
      output_size: bins, one number or (vertical, horizontal).
      sampling_ratio: points along each axis of a bin.
    """
    chosen = pyramid_level(boxes, lowest, lowest + len(levels) - 1)
    regions = [
        jnp.where(
            (chosen == level)[:, None, None, None],
            roi_align(features, boxes / 2**level, output_size, sampling_ratio),
            0,
        )
        for level, features in enumerate(levels, lowest)
    ]
    return jnp.stack(regions).sum(axis=0)


def paste_masks(
    masks: Float[np.ndarray, "masks mask_height mask_width"],
    boxes: Float[np.ndarray, "masks 4"],
    image_size: Sequence[int],
    threshold: float = 0.5,
) -> Bool[np.ndarray, "masks height width"]:
    """Stretches masks over their boxes in an image, on the host, since every image has another size.

    Probabilities are interpolated bilinearly at the pixels' centres, between cells' centres and zeros around the mask,
    as in Detectron2.

    Args:
      masks: probabilities.
      boxes: in pixels of the image.
      image_size: its height and width.
      threshold: probability from which a pixel is in the mask.
    """
    height, width = image_size
    pasted = np.zeros((len(masks), height, width), bool)
    for canvas, mask, (ymin, xmin, ymax, xmax) in zip(pasted, masks, boxes.tolist(), strict=True):
        rows = _cell_weights(ymin, ymax, mask.shape[0], height)
        columns = _cell_weights(xmin, xmax, mask.shape[1], width)
        canvas[:] = rows @ mask @ columns.T >= threshold
    return pasted


def _cell_weights(start: float, end: float, cells: int, pixels: int) -> Float[np.ndarray, "pixels cells"]:
    """Returns the weight of each cell at each pixel, along one axis."""
    scale = cells / max(end - start, SMALLEST)
    points = (np.arange(pixels) + 0.5 - start) * scale - 0.5  # 0 is the first cell's centre
    return np.maximum(1 - np.abs(points[:, None] - np.arange(cells)), 0).astype(np.float32)
