"""Pooling: one value for a window of each channel."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.ops.geometry import Padding, Pair, explicit_padding, output_size, pair


def _windows(
    shape: Sequence[int], window: int | Sequence[int], strides: int | Sequence[int], padding: Padding
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Pair, ...]]:
    """Returns window, strides and padding for all four axes of images, after checking that they fit."""
    window, strides = pair(window), pair(strides)
    widths = explicit_padding(padding, window)
    for size, extent, stride, width in zip(shape[1:3], window, strides, widths, strict=True):
        output_size(size, extent, stride, width)
        if max(width) >= extent:
            raise UserError(
                f"padding {width} lets a window of {extent} see padding alone; it may be at most {extent - 1}"
            )
    return (1, *window, 1), (1, *strides, 1), ((0, 0), *widths, (0, 0))


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: int | Sequence[int],
    strides: int | Sequence[int],
    padding: Padding = 0,
) -> Float[Array, "batch out_height out_width channels"]:
    """Takes the largest value of each window; padding never wins.

    Args:
      x: images.
      window: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).

    Raises:
      UserError: a window does not fit into the images or would see padding alone.
    """
    return lax.reduce_window(x, -jnp.inf, lax.max, *_windows(x.shape, window, strides, padding))


def avg_pool(
    x: Float[Array, "batch height width channels"],
    window: int | Sequence[int],
    strides: int | Sequence[int],
    padding: Padding = 0,
    count_include_pad: bool = True,
) -> Float[Array, "batch out_height out_width channels"]:
    """Takes the mean of each window, added up in float32 at least.

    Args:
      x: images.
      window: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
      count_include_pad: whether padding counts as zeros in the mean, as in Caffe and PyTorch; otherwise a window at the
        border is the mean of the pixels that it sees.

    Raises:
      UserError: a window does not fit into the images or would see padding alone.
    """
    windows = _windows(x.shape, window, strides, padding)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total = lax.reduce_window(x.astype(dtype), 0.0, lax.add, *windows)
    if count_include_pad:
        return (total / math.prod(windows[0])).astype(x.dtype)
    count = lax.reduce_window(jnp.ones((1, *x.shape[1:3], 1), dtype), 0.0, lax.add, *windows)
    return (total / count).astype(x.dtype)


def global_avg_pool(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """Takes the mean of each channel over the whole image, added up in float32 at least.

    Args:
      x: images.
    """
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)
