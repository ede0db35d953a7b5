"""Windows that slide over an image: their padding and the size of what they give, O = ⌊(I − K + P) / S⌋ + 1."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cnn_research.errors import UserError, nearest

Pair = tuple[int, int]

# `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
Padding = int | str | tuple[Pair, Pair]


def pair(value: int | Sequence[int]) -> Pair:
    """Returns (height, width) of a size that may be given as one number for both."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def same_padding(kernel: int, dilation: int = 1) -> Pair:
    """Returns the padding that keeps the size at stride 1, and at stride S gives ⌈I / S⌉.

    It is the same at every stride and, for an odd kernel, symmetric: (3, 3) for 7, where TensorFlow's SAME pads an even
    size at stride 2 by (2, 3). An even kernel has the odd value after.

    Args:
      kernel: size of the kernel along the axis.
      dilation: distance of its taps.
    """
    total = dilation * (kernel - 1)
    return total // 2, total - total // 2


def explicit_padding(
    padding: Padding, kernel_size: int | Sequence[int], dilation: int | Sequence[int] = 1
) -> tuple[Pair, Pair]:
    """Returns ((top, bottom), (left, right)) in numbers.

    Args:
      padding: `same` (see `same_padding`), `valid` (none), one width for every border, or the pairs themselves.
      kernel_size: size of the kernel, one number or (height, width).
      dilation: distance of its taps, one number or (vertical, horizontal).

    Raises:
      UserError: the padding is neither of these.
    """
    if padding == "same":
        vertical, horizontal = map(same_padding, pair(kernel_size), pair(dilation))
        return vertical, horizontal
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        raise UserError(f"padding {padding!r} is not known; {nearest(padding, ('same', 'valid'))}")
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    if any(width < 0 for widths in padding for width in widths):
        raise UserError(f"padding {padding} is negative; a width is 0 or more")
    return padding


def _checked(kernel: int, stride: int, padding: int | Pair, dilation: int) -> Pair:
    """Returns the padding as (before, after), after checking that numbers make a window."""
    before, after = pair(padding)
    if min(kernel, stride, dilation) < 1 or min(before, after) < 0:
        raise UserError(
            f"kernel {kernel}, stride {stride}, dilation {dilation}, padding {(before, after)} is no window; "
            "kernel, stride and dilation are 1 or more, padding 0 or more"
        )
    return before, after


def _steps(size: int, kernel: int, stride: int, padding: int | Pair = 0, dilation: int = 1) -> Pair:
    """Returns how many steps a window makes, fewer than 0 if it does not fit, and how many values then remain."""
    before, after = _checked(kernel, stride, padding, dilation)
    return divmod(before + size + after - dilation * (kernel - 1) - 1, stride)


def output_size(size: int, kernel: int, stride: int = 1, padding: int | Pair = 0, dilation: int = 1) -> int:
    """Returns how many positions a window takes along one axis.

    >>> output_size(224, 7, stride=2, padding=3)  # the stem of a ResNet
    112

    Args:
      size: values along the axis.
      kernel: size of the window.
      stride: step of the window.
      padding: values added at each end, or (before, after).
      dilation: distance of the window's taps.

    Raises:
      UserError: the window does not fit into the padded input, or a number is out of range.
    """
    steps, _ = _steps(size, kernel, stride, padding, dilation)
    if steps < 0:
        (before, after), extent = pair(padding), dilation * (kernel - 1) + 1
        raise UserError(
            f"a window of {extent} does not fit an input of {size} padded by {(before, after)}; "
            f"the input must be at least {extent - before - after}"
        )
    return steps + 1


def transposed_output_size(
    size: int, kernel: int, stride: int = 1, padding: int | Pair = 0, output_padding: int = 0, dilation: int = 1
) -> int:
    """Returns how many values a transposed convolution gives along one axis: S · (I − 1) + K − P + output padding.

    A convolution of that many values gives `size` again. With a stride it does so for several sizes, of which this is
    the least; `output_padding` says how much larger the wanted one is: by that convolution's `remainder`.

    >>> transposed_output_size(28, 2, stride=2)  # an up-convolution of U-Net
    56
    >>> transposed_output_size(112, 7, stride=2, padding=3, output_padding=1)  # back from the stem of a ResNet
    224

    Args:
      size: values along the axis.
      kernel: size of the window.
      stride: distance of the stamps.
      padding: values cut off at each end, or (before, after).
      output_padding: values more at the end, fewer than the stride or the dilation.
      dilation: distance of the window's taps.

    Raises:
      UserError: nothing is left, or a number is out of range.
    """
    before, after = _checked(kernel, stride, padding, dilation)
    if not 0 <= output_padding < max(stride, dilation):
        raise UserError(
            f"output padding {output_padding} is out of range; it must be from 0 to {max(stride, dilation) - 1}, "
            f"less than the stride {stride} or the dilation {dilation}"
        )
    output = stride * (size - 1) + dilation * (kernel - 1) + 1 - before - after + output_padding
    if output < 1 or size < 1:
        raise UserError(
            f"stamps of {dilation * (kernel - 1) + 1}, {stride} apart, for {size} values leave nothing when "
            f"{(before, after)} is cut off"
        )
    return output


def remainder(size: int, kernel: int, stride: int = 1, padding: int | Pair = 0, dilation: int = 1) -> int:
    """Returns how many values at the end of an axis, padding among them, the last window leaves: (I − K + P) mod S.

    >>> remainder(224, 11, stride=4)  # AlexNet's conv1 at the size that the paper says
    1
    >>> remainder(227, 11, stride=4)  # and at the one whose arithmetic works
    0

    Arguments and errors are those of `output_size`.
    """
    output_size(size, kernel, stride, padding, dilation)
    return _steps(size, kernel, stride, padding, dilation)[1]


def fitting_sizes(windows: Iterable[Sequence[Any]], sizes: Iterable[int]) -> list[int]:
    """Returns which sizes pass a chain of windows without a remainder: every division by a stride is exact.

    At any other size the end of some map is treated unlike its beginning: no window sees the last values, or the last
    padding, and then it pads one side alone (Alsallakh et al. 2021, "Mind the pad", arXiv:2010.02178).

    >>> fitting_sizes(5 * [(2, 2)], range(200, 300))  # VGG: multiples of 32
    [224, 256, 288]
    >>> fitting_sizes([(11, 4), (3, 2), (3, 2), (3, 2)], range(200, 300))  # AlexNet: not the 224 of its paper
    [227, 259, 291]
    >>> fitting_sizes(4 * [(3, 1), (3, 1), (2, 2)], range(550, 600))  # U-Net: its 572 among every 16th
    [556, 572, 588]
    >>> fitting_sizes([(7, 2, 3), *4 * [(3, 2, 1)]], range(200, 300))  # ResNet; at 224 the padding takes up the rest
    [225, 257, 289]

    Args:
      windows: (kernel, stride), (kernel, stride, padding) or (kernel, stride, padding, dilation) of each, from the
        image on; those that keep every size may be left out.
      sizes: of the image, to choose from.

    Raises:
      UserError: a number is out of range.
    """
    windows = [*windows]

    def passes(size: int) -> bool:
        for window in windows:
            steps, rest = _steps(size, *window)
            if steps < 0 or rest:
                return False
            size = steps + 1
        return True

    return [*filter(passes, sizes)]


def ceil_padding(size: int, kernel: int, stride: int) -> Pair:
    """Returns the padding with which the last window may hang over the end, as in Caffe's pooling: ⌈(I − K) / S⌉ + 1.

    A window that would see padding alone is left out; where there is none at all, so is the padding.

    >>> ceil_padding(112, 3, stride=2)  # the first pooling of GoogLeNet, which gives 56
    (0, 1)

    Args:
      size: values along the axis.
      kernel: size of the window.
      stride: step of the window.
    """
    windows = min(-(-(size - kernel) // stride) + 1, -(-size // stride))
    return 0, max(0, (windows - 1) * stride + kernel - size) if windows > 0 else 0


def receptive_field(windows: Iterable[Sequence[int]]) -> Pair:
    """Returns how many pixels a unit sees along one axis through a chain of windows, and how far its neighbour's lie.

    Pixels beyond the border count: the numbers do not depend on the size of the image, nor on the padding.

    >>> receptive_field(2 * [(3, 1), (3, 1), (2, 2)] + 3 * [(3, 1), (3, 1), (3, 1), (2, 2)])  # VGG-16 at pool5
    (212, 32)

    Args:
      windows: (kernel, stride) or (kernel, stride, dilation) of each, from the image on.
    """
    size = jump = 1
    for kernel, stride, *dilation in windows:
        size += math.prod(dilation) * (kernel - 1) * jump
        jump *= stride
    return size, jump


def multiply_accumulates(kernel_shape: Sequence[int], positions: Sequence[int] = ()) -> int:
    """Returns how many multiply-adds it takes to apply weights: each is used once at each position.

    That is the papers' convention for convolutions and fully connected layers: one multiply-add is 1 (and 2 FLOPs),
    biases are not counted, and taps that fall on padding are counted as any other.

    >>> multiply_accumulates((3, 3, 64, 128), (112, 112))  # VGG-16, conv2_1
    924844032
    >>> multiply_accumulates((4096, 1000))  # its last layer
    4096000

    Args:
      kernel_shape: of the weights: (height, width, channels per group, features) of a convolution.
      positions: height and width of the output of a layer that shares its weights; none of one that does not.
    """
    return math.prod(kernel_shape) * math.prod(positions)
