"""Random windows of whole photographs, which the host cuts: pure functions of (seed, step, position).

Images reach the device in one shape, so that windows cut there come out of a photograph's middle; most papers' come out
of all of it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

# So many windows are drawn before the largest that fits is taken, in Szegedy et al.'s code as in torchvision's.
TRIES = 10
# Of each example: an area and an aspect ratio a try, or one length of the shorter side; then a row and a column.
DRAWS = 2 * TRIES + 2


class Window(NamedTuple):
    """A part of an image, in pixels.

    Attributes:
      top: its first row.
      left: its first column.
      height: its rows.
      width: its columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class RandomWindows:
    """Which windows training sees; all places of a window are alike.

    Attributes:
      seed: of the run.
      area: the smallest and the largest part of the photograph's area that a window has, uniform (Szegedy et al. 2014,
        arXiv:1409.4842, section 6: 0.08,1.0); () takes `short_side` instead.
      aspect_ratio: the smallest and the largest width over height of windows by area, log-uniform.
      short_side: the smallest and the largest length in pixels, uniform, to which the photograph's shorter side is
        brought before a window of the result's size is cut (Simonyan & Zisserman 2014, arXiv:1409.1556, section 3.1:
        256,256 or 256,512; He et al. 2015, arXiv:1512.03385, section 3.4: 256,480).
    """

    seed: int
    area: tuple[float, ...] = ()
    aspect_ratio: tuple[float, ...] = (3 / 4, 4 / 3)
    short_side: tuple[int, ...] = (256, 256)

    def draws(self, step: int, count: int) -> Float64[np.ndarray, "count draws"]:
        """Returns numbers in 0..1 for a step's examples: row i is that of position i in the global batch.

        NumPy promises that Philox's raw bits stay the same, but not what its generators make of them.
        """
        # A counter that `order.permutation` does not reach, whose keys are the same.
        bits = np.random.Philox(key=[self.seed, step], counter=[0, 0, 0, 1]).random_raw(count * DRAWS)
        return (bits >> np.uint64(11)).reshape(count, DRAWS) * 2.0**-53

    def __call__(self, size: tuple[int, int], result: tuple[int, int], draws: Sequence[float]) -> Window:
        """Returns the window of one example.

        Args:
          size: height and width of the photograph.
          result: height and width of what the window is resized to.
          draws: the example's row of `draws`.
        """
        if self.area:
            window = _by_area(size, self.area, self.aspect_ratio, draws)
        else:
            side = self.short_side[0] + draws[0] * (self.short_side[1] - self.short_side[0])
            scale = max(side / min(size), result[0] / size[0], result[1] / size[1])
            window = (max(1, round(result[0] / scale)), max(1, round(result[1] / scale)))
        top, left = (int(draw * (size[axis] - window[axis] + 1)) for axis, draw in enumerate(draws[-2:]))
        return Window(top, left, *window)


def _by_area(
    size: tuple[int, int], area: tuple[float, ...], aspect_ratio: tuple[float, ...], draws: Sequence[float]
) -> tuple[int, int]:
    """Returns a window's height and width; `crops.random_resized_crop` is the same on the device."""
    height, width = size
    low, high = map(math.log, aspect_ratio)
    for share, shape in zip(draws[0 : 2 * TRIES : 2], draws[1 : 2 * TRIES : 2], strict=True):
        pixels = (area[0] + share * (area[1] - area[0])) * height * width
        aspect = math.exp(low + shape * (high - low))
        window = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 1 <= window[0] <= height and 1 <= window[1] <= width:
            return window
    aspect = min(max(width / height, aspect_ratio[0]), aspect_ratio[1])
    return max(1, round(min(height, width / aspect))), max(1, round(min(width, height * aspect)))
