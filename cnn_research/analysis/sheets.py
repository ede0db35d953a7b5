"""Sheets: images in rows and columns, and values over an image as colours."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cnn_research.analysis.figures import CRISP_BELOW, DPI, INK
from cnn_research.data.color import LUMA

Picture = Float[np.ndarray, "_height _width _channels"]  # in 0..1, grey or RGB
Values = Float[np.ndarray, "_height _width"]

FRAME = "#d0d7de"


class Panel(NamedTuple):
    """A picture of a sheet.

    Attributes:
      picture: in 0..1, grey (one channel) or RGB.
      title: words above it.
    """

    picture: Picture
    title: str = ""


def sheet(rows: Sequence[Sequence[Panel]], names: Sequence[str] = (), title: str = "", side: float = 1.0) -> Figure:
    """Draws pictures in rows.

    Args:
      rows: pictures; rows may be of different lengths.
      names: of the rows, written before them.
      title: of the whole.
      side: height of a picture in inches.
    """
    columns = max(map(len, rows))
    shape = np.mean([panel.picture.shape[1] / panel.picture.shape[0] for row in rows for panel in row])
    titled = 0.2 if any(panel.title for row in rows for panel in row) else 0.0
    gap = 0.05
    # All in inches, from the page's upper left corner.
    left = 0.1 + 0.065 * max(map(len, names), default=0)
    top = 0.35 if title else 0.08
    wide, high = side * shape + gap, side + gap + titled
    width, height = max(left + columns * wide + gap, 0.1 * len(title)), top + len(rows) * high + gap
    figure = Figure(figsize=(width, height), dpi=DPI)
    if title:
        figure.text(
            0.08 / width, 1 - 0.12 / height, title, size=10, weight="bold", color=INK, va="top", parse_math=False
        )
    for index, row in enumerate(rows):
        above = top + index * high + titled
        if names:
            middle = 1 - (above + side / 2) / height
            figure.text(0.08 / width, middle, names[index], size=7.5, color=INK, va="center", parse_math=False)
        for column, panel in enumerate(row):
            place = (left + column * wide) / width, 1 - (above + side) / height, side * shape / width, side / height
            axes = figure.add_axes(place)
            crisp = max(panel.picture.shape[:2]) < CRISP_BELOW
            axes.imshow(
                panel.picture[..., 0] if panel.picture.shape[-1] == 1 else panel.picture,
                cmap="gray", vmin=0, vmax=1, interpolation="nearest" if crisp else "antialiased",
            )  # fmt: skip
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(FRAME)
            axes.set_title(panel.title, size=6.5, color=INK, pad=2, parse_math=False)
    return figure


def heat(image: Picture, values: Values) -> Picture:
    """Returns an image in grey under the colours of what raises a score, from none to the most of this image.

    Args:
      image: grey or RGB.
      values: of the pixels; negative ones are none.
    """
    grey = image @ np.array(LUMA) if image.shape[-1] == 3 else image[..., 0]
    share = np.clip(values, 0, None) / max(float(values.max()), 1e-12)
    colours = matplotlib.colormaps["inferno"](share)[..., :3]
    return 0.35 * grey[..., None] + 0.65 * colours


def signed(values: Values, largest: float | None = None) -> Picture:
    """Returns values as colours: blue raises, red lowers, white is nothing.

    Args:
      values: any.
      largest: size of the strongest colour; unless given that which one of a hundred values exceeds.
    """
    scale = _scale(values) if largest is None else largest
    return matplotlib.colormaps["RdBu"](0.5 + 0.5 * np.clip(values / scale, -1, 1))[..., :3]


def strength(values: Values) -> Picture:
    """Returns the sizes of values in grey, white where they are largest.

    Args:
      values: any.
    """
    return np.clip(np.abs(values) / _scale(values), 0, 1)[..., None]


def relief(values: Picture) -> Picture:
    """Returns signed values, a channel each, as a picture around grey.

    Args:
      values: of one or three channels.
    """
    return np.clip(0.5 + 0.5 * values / _scale(values), 0, 1)


def stretched(values: Values) -> Picture:
    """Returns values in grey from the smallest, black, to the largest, white.

    Args:
      values: any.
    """
    low, high = values.min(), values.max()
    return ((values - low) / max(float(high - low), 1e-12))[..., None]


def _scale(values: np.ndarray) -> float:
    """Returns the size that one of a hundred values exceeds, of those that are not 0."""
    sizes = np.abs(values[values != 0])
    return float(np.percentile(sizes, 99)) if sizes.size else 1.0
