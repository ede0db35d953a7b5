"""Pooling: one value for a window of each channel."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from cnn_research.errors import UserError
from cnn_research.ops.convolution_forms import stored
from cnn_research.ops.geometry import Padding, Pair, explicit_padding, output_size, pair

# Window, strides and padding for all four axes of images.
Windows = tuple[tuple[int, ...], tuple[int, ...], tuple[Pair, ...]]

# Up to this size of a window a CPU takes its places one by one; the time to compile grows with their number.
LARGEST_UNROLLED = 16

# Windows of so many places and fewer a CPU takes at once. The gradient of the sums costs as many additions for each
# pixel, most of them of zeros where windows do not overlap: of 4x4 windows it takes 7 times as long as along the axes.
MOST_AT_ONCE = 9


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: int | Sequence[int],
    strides: int | Sequence[int],
    padding: Padding = 0,
) -> Float[Array, "batch out_height out_width channels"]:
    """Takes the largest value of each window; padding never wins, and NaN always does.

    The gradient goes to the largest value, to the first one in row-major order where there are several.

    Args:
      x: images.
      window: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).

    Raises:
      UserError: a window does not fit into the images or would see padding alone.
    """
    return _reduced(x, -jnp.inf, lax.max, _largest, _windows(x.shape, window, strides, padding))


def max_pool_with_switches(
    x: Float[Array, "batch height width channels"],
    window: int | Sequence[int],
    strides: int | Sequence[int],
    padding: Padding = 0,
) -> tuple[Float[Array, "batch out_height out_width channels"], Int[Array, "batch out_height out_width channels"]]:
    """Takes the largest value of each window and says where it was (Zeiler & Fergus 2014, section 2.1).

    Args:
      x: images.
      window: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).

    Returns:
      What `max_pool` returns, and the switches: of each value the pixel that it was, row · width + column, int32, as
      PyTorch's indices. A switch points to the first pixel of several in row-major order, never to padding, and in a
      window with NaN to the first one that is NaN or infinite.

    Raises:
      UserError: a window does not fit into the images or would see padding alone.
    """
    vertical, horizontal = _lines(_windows(x.shape, window, strides, padding))
    numbers = lax.stop_gradient(jnp.where(jnp.isnan(x), jnp.inf, x))
    rows = _places(_largest(numbers, horizontal), vertical)
    columns = _taken(_places(numbers, horizontal), rows, vertical)
    _, height, width, _ = x.shape
    switches = (vertical.starts(height) + rows) * width + horizontal.starts(width) + columns
    return max_pool(x, window, strides, padding), switches


def unpool(
    pooled: Float[Array, "batch height width channels"],
    switches: Int[Array, "batch height width channels"],
    output_shape: Sequence[int],
    window: int | Sequence[int] | None = None,
) -> Float[Array, "batch out_height out_width channels"]:
    """Puts each value where its switch points, among zeros (Zeiler & Fergus 2014, section 2.1; Noh et al. 2015).

    Where windows overlap, several switches may point to one pixel: their values add up. That makes unpooling linear and
    the transpose of the pooling that took the switches, so that a deconvnet without its rectifications is the gradient,
    and unpooling's own gradient is to take the values at the switches. (PyTorch leaves open which value stays.)

    Args:
      pooled: values, of the pooled map or of what was reconstructed in its place.
      switches: row · width + column of each, as `max_pool_with_switches` returns them.
      output_shape: of the images that were pooled: their whole shape, or (height, width).
      window: of a pooling without padding whose strides are its window, one number or (height, width). Given it, each
        window is filled on its own; else values are scattered, which takes longer and suits every pooling.

    Raises:
      UserError: the shapes do not fit together, or the window does not fit them.
    """
    batch, rows, columns, channels = pooled.shape
    height, width = output_shape[1:3] if len(output_shape) == 4 else output_shape
    if len(output_shape) == 4 and (output_shape[0], output_shape[3]) != (batch, channels):
        raise UserError(f"output_shape={tuple(output_shape)} must have the batch and the channels of {pooled.shape}")
    if window is None:
        values, places = (each.reshape(batch, rows * columns, channels) for each in (pooled, switches))
        zeros = jnp.zeros((batch, height * width, channels), pooled.dtype)
        scattered = zeros.at[np.arange(batch)[:, None, None], places, np.arange(channels)].add(values)
        return scattered.reshape(batch, height, width, channels)

    tall, wide = pair(window)
    if (rows, columns) != (height // tall, width // wide):
        raise UserError(
            f"windows of {(tall, wide)} side by side make {(height // tall, width // wide)} values of "
            f"{(height, width)}, not {(rows, columns)}; leave the window out where they overlap or see padding"
        )
    pixels = width * np.arange(rows * tall, dtype=np.int32)[:, None] + np.arange(columns * wide, dtype=np.int32)
    here = switches[:, :, None, :, None] == pixels.reshape(rows, tall, columns, wide, 1)
    maps = jnp.where(here, pooled[:, :, None, :, None], 0).reshape(batch, rows * tall, columns * wide, channels)
    return jnp.pad(maps, ((0, 0), (0, height - rows * tall), (0, width - columns * wide), (0, 0)))


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
    total = _reduced(x.astype(dtype), 0.0, lax.add, _summed, windows)
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


class _Line(NamedTuple):
    """Windows along one axis of images."""

    axis: int
    window: int
    stride: int
    padding: Pair

    def count(self, size: int) -> int:
        """Returns how many windows there are along an axis of this size."""
        return output_size(size, self.window, self.stride, self.padding)

    def starts(self, size: int) -> np.ndarray:
        """Returns where each begins, negative in the padding, in a shape that broadcasts with pooled maps."""
        starts = self.stride * np.arange(self.count(size), dtype=np.int32) - self.padding[0]
        return starts.reshape(-1, *(1,) * (3 - self.axis))

    def seen(self, size: int, place: int) -> tuple[slice, int, int]:
        """Returns which pixels all windows see at a place, and how many windows see padding before and after them."""
        first, count = place - self.padding[0], self.count(size)
        before = min(count, max(0, -(first // self.stride)))
        inside = max(0, min(count, -(-(size - first) // self.stride)) - before)
        start = max(0, first + before * self.stride)
        return slice(start, start + inside * self.stride, self.stride), before, count - before - inside


def _windows(
    shape: Sequence[int], window: int | Sequence[int], strides: int | Sequence[int], padding: Padding
) -> Windows:
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


def _lines(windows: Windows) -> tuple[_Line, _Line]:
    """Returns the windows along the vertical and along the horizontal axis."""
    vertical, horizontal = (_Line(axis, *along) for axis, along in enumerate([*zip(*windows, strict=True)][1:3], 1))
    return vertical, horizontal


@partial(jax.jit, static_argnums=(1, 2, 3, 4))  # or each call outside of a jit would compile
def _reduced(
    x: Float[Array, "batch height width channels"],
    initial: float,
    operation: Callable[[Array, Array], Array],
    along: Callable[[Array, _Line], Array],
    windows: Windows,
) -> Float[Array, "batch out_height out_width channels"]:
    """Reduces each window: by `lax`, or on a CPU small windows at once, others along one axis after the other.

    There XLA loops over each window, value by value, and so it does for the gradient of a maximum. At once, 3x3 windows
    are 1.6 to 7 times as fast forwards, and sums with the gradient 2 to 7 times. The gradient of a maximum is taken
    along the axes, which is 5 to 19 times as fast (`python -m experiments.benchmark --suite=pool` on two cores,
    AVX-512, jaxlib 0.10.2). The gradient of large sums at every pixel is twice as fast as such a loop, and so is left
    to it.
    """
    at_once = math.prod(windows[0]) <= MOST_AT_ONCE
    large = max(windows[0]) > LARGEST_UNROLLED or (operation is lax.add and max(windows[1]) == 1)
    if large and not at_once:
        return lax.reduce_window(x, initial, operation, *windows)
    if not at_once:
        on_cpu = partial(_along_axes, along=along, windows=windows)
    elif operation is lax.max:
        on_cpu = partial(_largest_at_once, windows=windows)
    else:
        on_cpu = partial(_at_once, initial=initial, operation=operation, windows=windows)
    return lax.platform_dependent(x, cpu=on_cpu, default=lambda x: lax.reduce_window(x, initial, operation, *windows))


def _at_once(
    x: Float[Array, "batch height width channels"],
    initial: float,
    operation: Callable[[Array, Array], Array],
    windows: Windows,
) -> Float[Array, "batch out_height out_width channels"]:
    """Reduces each window in one loop over the output, which keeps no other array.

    What is seen at each place is cut and padded on its own: XLA fuses that, while padded images would be stored first.
    Arrays of more than 32 MB are new pages each time, and those of the images cost more than the maxima.
    """
    lines = _lines(windows)
    taps = []
    for places in np.ndindex(*(line.window for line in lines)):
        (rows, above, below), (columns, left, right) = (
            line.seen(x.shape[line.axis], place) for line, place in zip(lines, places, strict=True)
        )
        widths = ((0, 0, 0), (above, below, 0), (left, right, 0), (0, 0, 0))
        taps.append(lax.pad(x[:, rows, columns], jnp.asarray(initial, x.dtype), widths))
    return reduce(operation, taps)


def _along_axes(
    x: Float[Array, "batch height width channels"], along: Callable[[Array, _Line], Array], windows: Windows
) -> Float[Array, "batch out_height out_width channels"]:
    """Reduces each window along its rows, and then what they gave."""
    # The columns first: the first of equal rows, and in it the first of equal columns, is first in row-major order.
    return reduce(along, reversed(_lines(windows)), x)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest_at_once(
    x: Float[Array, "batch height width channels"], windows: Windows
) -> Float[Array, "batch out_height out_width channels"]:
    """Returns the largest value of each window."""
    return _at_once(x, -jnp.inf, lax.max, windows)


@_largest_at_once.defjvp
def _largest_at_once_jvp(windows: Windows, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Takes the way along the axes: at once, the places of 3x3 windows at every pixel take 3 times as long."""
    return jax.jvp(partial(_along_axes, along=_largest, windows=windows), primals, tangents)


def _taps(x: Num[Array, "..."], fill: float, line: _Line) -> list[Num[Array, "..."]]:
    """Returns what all windows see at their first place, at their second, and so on.

    The pixels are cut into as many phases as a stride has, which the transpose puts together side by side. Slices with
    a stride would be padded with zeros one by one and added up, which takes twice as long.
    """
    axis, window, stride, (before, _) = line
    count, size = line.count(x.shape[axis]), x.shape[axis]
    blocks = count - 1 + -(-window // stride)
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (before, blocks * stride - size - before, 0)
    x = lax.pad(x, jnp.asarray(fill, x.dtype), widths)
    phases = lax.split(x.reshape(*x.shape[:axis], blocks, stride, *x.shape[axis + 1 :]), (1,) * stride, axis + 1)
    steps = (divmod(place, stride) for place in range(window))
    return [lax.slice_in_dim(phases[phase].squeeze(axis + 1), step, step + count, axis=axis) for step, phase in steps]


def _summed(x: Float[Array, "..."], line: _Line) -> Float[Array, "..."]:
    """Returns the sum of each window."""
    return reduce(lax.add, _taps(x, 0.0, line))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x: Float[Array, "..."], line: _Line) -> Float[Array, "..."]:
    """Returns the largest value of each window."""
    return reduce(lax.max, _taps(x, -jnp.inf, line))


@_largest.defjvp
def _largest_jvp(line: _Line, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """Takes the tangent at the largest value's place, which the gradient finds in memory, or XLA would search again."""
    (x,), (tangent,) = primals, tangents
    return _largest(x, line), _taken(tangent, stored(_places(x, line)), line)


def _places(x: Float[Array, "..."], line: _Line) -> Int[Array, "..."]:
    """Returns at which place of each window its largest number is: the first one of several, never in the padding."""
    taps = _taps(x, -jnp.inf, line)
    dtype = np.int8 if line.window < 128 else np.int32
    largest = jnp.full_like(taps[0], -jnp.inf)
    places = jnp.broadcast_to(np.maximum(-line.starts(x.shape[line.axis]), 0).astype(dtype), largest.shape)
    for place, tap in enumerate(taps):
        larger = tap > largest
        largest, places = jnp.where(larger, tap, largest), jnp.where(larger, dtype(place), places)
    return places


def _taken(x: Num[Array, "..."], places: Int[Array, "..."], line: _Line) -> Num[Array, "..."]:
    """Returns the value at a place of each window."""
    return reduce(lax.add, (jnp.where(places == place, tap, 0) for place, tap in enumerate(_taps(x, 0.0, line))))
