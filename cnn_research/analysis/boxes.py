"""Pictures of boxes: what is said of an image and what is true, over the image."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnn_research.analysis.figures import CRISP_BELOW, DPI, INK, LINES, TRUE

GUESS = LINES[1]

Box = tuple[Float[np.ndarray, "4"], str]  # ymin, xmin, ymax, xmax in 0..1 of the image; what it is called


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
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    side, title = 2.2, 0.4
    shape = float(np.mean([image.shape[0] / image.shape[1] for image in images]))
    height = side * shape + title
    figure = Figure(figsize=(columns * side, rows * height), dpi=DPI)
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.01, 0.01, 0.99, 1 - title / (rows * height), 0.03, title / (side * shape))
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, guesses, known in zip(grid.flat, images, predicted, truths, strict=False):
        axes.imshow(
            image[..., 0] if image.shape[-1] == 1 else image,
            cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1],
            interpolation="nearest" if max(image.shape[:2]) < CRISP_BELOW else "antialiased",
        )  # fmt: skip
        for boxes, color, style in ((known, TRUE, "--"), (guesses, GUESS, "-")):
            for box, _ in boxes:
                _draw_box(axes, box, color, style)
        lines = [", ".join(name for _, name in boxes) for boxes in (guesses, known)]
        axes.set_title("\n".join(filter(None, lines)), size=7.5, color=INK, pad=2, parse_math=False)
    return figure


def _draw_box(axes: Axes, box: Float[np.ndarray, "4"], color: str, style: str) -> None:
    ymin, xmin, ymax, xmax = map(float, box)
    axes.add_patch(
        Rectangle((xmin, ymin), xmax - xmin, ymax - ymin, fill=False, edgecolor=color, linestyle=style, linewidth=1.5)
    )
