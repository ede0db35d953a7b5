"""Pictures for reports: the likeliest labels beside their image, and learning curves.

Figures are matplotlib objects of their own, without pyplot's global state; `figure.savefig(path)` writes them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from cnn_research.errors import UserError, nearest

TRUE = "#1a7f4b"  # the true label
GUESS = "#8a9bb0"  # any other
TRACK = "#eef1f4"  # behind a bar, up to probability 1
INK = "#24292f"
# Okabe & Ito's colours, which the colour-blind can tell apart.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DPI = 150
CRISP_BELOW = 128  # smaller images are shown pixel by pixel
TEXT_LENGTH = 28  # bold characters that fit beside a percentage


def top_predictions(
    image: UInt8[np.ndarray, "height width channels"],
    probabilities: Float[np.ndarray, " classes"],
    class_names: Sequence[str],
    label: int | None,
    k: int = 5,
) -> Figure:
    """Draws an image beside its k likeliest labels, the true one in green, below the others if it is not among them.

    Args:
      image: grey (one channel) or RGB.
      probabilities: of each class.
      class_names: of each class.
      label: the true class; None if it is not known.
      k: the number of bars, at most the number of classes.
    """
    labels = None if label is None else np.array([label])
    return prediction_grid(image[None], probabilities[None], class_names, labels, columns=1, k=k)


def prediction_grid(
    images: Sequence[UInt8[np.ndarray, "_height _width channels"]] | UInt8[np.ndarray, "images height width channels"],
    probabilities: Float[np.ndarray, "images classes"],
    class_names: Sequence[str],
    labels: Sequence[int | None] | Integer[np.ndarray, " images"] | None,
    columns: int = 4,
    k: int = 5,
) -> Figure:
    """Draws many images, each as `top_predictions` does, on one page.

    Args:
      images: grey (one channel) or RGB, of any sizes.
      probabilities: of each class for each image.
      class_names: of each class.
      labels: the true classes; None where one is not known.
      columns: images in a row.
      k: the number of bars, at most the number of classes.
    """
    k = min(k, probabilities.shape[1])
    rankings = np.argsort(-probabilities, axis=1, kind="stable")
    truths = [None] * len(images) if labels is None else [None if label is None else int(label) for label in labels]
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    below = any(truth is not None and truth not in top for truth, top in zip(truths, rankings[:, :k], strict=True))
    slots = max(5, k + below)
    # All in inches, from the page's upper left corner.
    side, gap, bars_width, bars_height = 1.5, 0.15, 2.4, 0.3 * slots
    cell_width, cell_height = side + bars_width + 2 * gap, bars_height + gap
    width, height = columns * cell_width + gap, rows * cell_height + gap
    figure = Figure(figsize=(width, height), dpi=DPI)

    def axes_at(left: float, top: float, wide: float, high: float) -> Axes:
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    for index, image in enumerate(images):
        left, top = gap + cell_width * (index % columns), gap + cell_height * (index // columns)
        _draw_image(axes_at(left, top, side, side), image)
        bars = axes_at(left + side + gap, top, bars_width, bars_height)
        bars.set(xlim=(0, 1), ylim=(slots - 0.5, -0.5))
        _draw_bars(bars, probabilities[index], rankings[index], class_names, truths[index], k)
    return figure


def learning_curves(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Figure:
    """Draws what training logged over its steps: a panel a quantity, a line a split.

    Args:
      records: lines of metrics.jsonl, with `step` and flat names such as `train/loss`.
      keys: which names to draw, such as train/loss, test/loss, test/accuracy.

    Raises:
      UserError: no record holds one of the keys.
    """
    series = {key: [(record["step"], record[key]) for record in records if record.get(key) is not None] for key in keys}
    for key, points in series.items():
        if not points:
            raise UserError(f"no record holds {key!r}; {nearest(key, {name for record in records for name in record})}")
    quantities = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
    splits = list(dict.fromkeys(key.rpartition("/")[0] for key in keys))
    figure = Figure(figsize=(4.6 * len(quantities), 3.4), dpi=DPI, layout="constrained")
    for axes, quantity in zip(np.atleast_1d(figure.subplots(1, len(quantities))), quantities, strict=True):
        lines = {key: points for key, points in series.items() if key.rpartition("/")[2] == quantity}
        for key, points in lines.items():
            split = key.rpartition("/")[0]
            style = {"marker": "o", "markersize": 3.5} if len(points) <= 50 else {"linewidth": 1.1}
            axes.plot(
                *zip(*sorted(points), strict=True),
                color=LINES[splits.index(split) % len(LINES)],
                label=split or key,
                **style,
            )
        if quantity.endswith("loss") and all(value > 0 for points in lines.values() for _, value in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        dress_curves(axes, quantity)
    return figure


def _draw_image(axes: Axes, image: UInt8[np.ndarray, "height width channels"]) -> None:
    crisp = max(image.shape[:2]) < CRISP_BELOW
    axes.imshow(
        image[..., 0] if image.shape[-1] == 1 else image,
        cmap="gray", vmin=0, vmax=255, interpolation="nearest" if crisp else "antialiased",
    )  # fmt: skip
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_color("#d0d7de")


def _draw_bars(
    axes: Axes,
    probabilities: Float[np.ndarray, " classes"],
    ranking: Integer[np.ndarray, " classes"],
    class_names: Sequence[str],
    truth: int | None,
    k: int,
) -> None:
    """Draws one row a class: its name and probability, and under them the bar."""
    for rank, index in enumerate(ranking):
        if rank >= k and index != truth:
            continue
        row, probability = min(rank, k), float(probabilities[index])
        mark = "" if index != truth else "  ✓ true" if rank < k else f"  true, #{rank + 1}"
        name, room = class_names[index], TEXT_LENGTH - len(mark)
        name = name if len(name) <= room else name[: room - 1].rstrip(" ,") + "…"
        style: dict[str, Any] = {"color": TRUE, "weight": "bold"} if mark else {"color": INK}
        axes.barh(row + 0.3, 1, height=0.2, color=TRACK, gid="track")
        axes.barh(row + 0.3, probability, height=0.2, color=TRUE if mark else GUESS, gid="bar")
        axes.text(0, row + 0.12, name + mark, size=8.5, va="bottom", parse_math=False, **style)
        axes.text(1, row + 0.12, f"{probability:.1%}", size=8.5, va="bottom", ha="right", **style)
    axes.set_axis_off()


def dress_curves(axes: Axes, quantity: str, **legend: Any) -> None:
    """Gives a panel of curves over training's steps its title, scales, grid and legend.

    Args:
      axes: with the curves drawn and labelled.
      quantity: what they show; accuracies and errors are in per cent.
      **legend: further options of matplotlib's legend.
    """
    axes.set_title(quantity.replace("_", " "), loc="left", size=11, weight="bold", color=INK)
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if quantity.endswith(("accuracy", "error")):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)
    axes.legend(frameon=False, fontsize=9, **legend)
