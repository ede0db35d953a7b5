"""Pictures of boxes: what is said of an image and what is true, over the image; and curves of how well that agrees."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnn_research.analysis.figures import CRISP_BELOW, DPI, INK, LINES, TRUE
from cnn_research.metrics.detection import Curve

GUESS = LINES[1]

Box = tuple[Float[np.ndarray, "4"], str]  # ymin, xmin, ymax, xmax in 0..1 of the image; what it is called
Found = tuple[Float[np.ndarray, "4"], str, float]  # likewise, and a score in 0..1


def box_grid(
    images: Sequence[UInt8[np.ndarray, "_height _width _channels"]],
    predicted: Sequence[Sequence[Box]],
    truths: Sequence[Sequence[Box]],
    columns: int = 4,
) -> Figure:
    """Draws each image with the boxes that are predicted, and dashed and in green those that are true.

    Args:
      images: grey (one channel) or RGB, of any sizes.
      predicted: of each image.
      truths: of each image; none where they are not known.
      columns: images in a row.
    """
    figure, grid = _grid(images, columns, side=2.2, title=0.4)
    for axes, image, guesses, known in zip(grid.flat, images, predicted, truths, strict=False):
        _show(axes, image)
        for boxes, color, style in ((known, TRUE, "--"), (guesses, GUESS, "-")):
            for box, _ in boxes:
                _draw_box(axes, box, color, style)
        lines = [", ".join(name for _, name in boxes) for boxes in (guesses, known)]
        axes.set_title("\n".join(filter(None, lines)), size=7.5, color=INK, pad=2, parse_math=False)
    return figure


def detection_grid(
    images: Sequence[UInt8[np.ndarray, "_height _width _channels"]],
    predicted: Sequence[Sequence[Found]],
    truths: Sequence[Sequence[Box]],
    class_names: Sequence[str],
    columns: int = 4,
) -> Figure:
    """Draws each image with the boxes that are found and their scores, and dashed and in green those that are true.

    Args:
      images: grey (one channel) or RGB, of any sizes.
      predicted: of each image.
      truths: of each image; none where they are not known.
      class_names: of all classes, each of which has a colour.
      columns: images in a row.
    """
    figure, grid = _grid(images, columns, side=3.2, title=0.1)
    for axes, image, guesses, known in zip(grid.flat, images, predicted, truths, strict=False):
        _show(axes, image)
        for box, _ in known:
            _draw_box(axes, box, TRUE, "--")
        for box, name, score in guesses:
            color = LINES[class_names.index(name) % len(LINES)]
            _draw_box(axes, box, color, "-")
            left, top = float(box[1]), max(float(box[0]), 0.04)  # so that it stays in the picture
            axes.text(
                left, top, f"{name} {score:.0%}", size=7, color="white", va="bottom", parse_math=False,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.8}, clip_on=True,
            )  # fmt: skip
    return figure


def precision_recall(curves: Mapping[str, Curve]) -> Figure:
    """Draws precision against recall, a line a class.

    Args:
      curves: by the names of the classes.
    """
    figure = Figure(figsize=(4.6, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        style = "-" if index < len(LINES) else "--"
        axes.plot(curve.recall, curve.precision, style, color=LINES[index % len(LINES)], label=name, linewidth=1.3)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    return figure


def _grid(
    images: Sequence[UInt8[np.ndarray, "_height _width _channels"]], columns: int, side: float, title: float
) -> tuple[Figure, np.ndarray]:
    """Returns a figure with axes for each image, and room for titles; in inches."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    shape = float(np.mean([image.shape[0] / image.shape[1] for image in images]))
    height = side * shape + title
    figure = Figure(figsize=(columns * side, rows * height), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - title / (rows * height), 0.03, title / (side * shape))
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _show(axes: Axes, image: UInt8[np.ndarray, "_height _width _channels"]) -> None:
    axes.imshow(
        image[..., 0] if image.shape[-1] == 1 else image,
        cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1],
        interpolation="nearest" if max(image.shape[:2]) < CRISP_BELOW else "antialiased",
    )  # fmt: skip


def _draw_box(axes: Axes, box: Float[np.ndarray, "4"], color: str, style: str) -> None:
    ymin, xmin, ymax, xmax = map(float, box)
    axes.add_patch(
        Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, edgecolor=color, linestyle=style, linewidth=1.5)
    )
