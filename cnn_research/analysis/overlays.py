"""Pictures of segmentations: classes as colours over their image, with a legend; and each object in its own colour."""

from collections.abc import Sequence

import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cnn_research.analysis.figures import CRISP_BELOW, DPI, INK
from cnn_research.data.color import LUMA
from cnn_research.data.images import IGNORE

OPACITY = 0.6
TINT = 0.4  # of objects, whose image is still to be seen
# Twenty colours in ten hues, the strong ones first; classes beyond have them again.
PALETTE = np.array([np.uint8(255 * np.array(matplotlib.colormaps["tab20"](index)[:3])) for index in range(20)])
COLOURS = np.concatenate([PALETTE[::2], PALETTE[1::2]])

Image = UInt8[np.ndarray, "_height _width _channels"]
Classes = Integer[np.ndarray, "_height _width"]


def overlay(image: Image, classes: Classes) -> UInt8[np.ndarray, "_height _width 3"]:
    """Returns an image in grey with the colours of its pixels' classes over it, which no other colour is mixed with.

    Args:
      image: grey (one channel) or RGB.
      classes: of the pixels; those of `IGNORE`, or negative, keep the image's own colour.
    """
    known = (classes >= 0) & (classes != IGNORE)
    colours = COLOURS[np.where(known, classes, 0) % len(COLOURS)]
    grey = image @ (np.array(LUMA) if image.shape[-1] == 3 else np.ones(1))
    blended = (1 - OPACITY) * grey[..., None] + OPACITY * colours
    return np.where(known[..., None], blended, image).round().astype(np.uint8)


def instance_overlay(
    image: Image, masks: Bool[np.ndarray, "objects height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns an image with each object tinted in a colour of its own and outlined, the first ones over later ones.

    Args:
      image: grey (one channel) or RGB.
      masks: of the objects, at the image's size.
    """
    painted = np.broadcast_to(image, (*image.shape[:2], 3)).astype(np.float32)
    for index, mask in reversed([*enumerate(masks)]):
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=0) > 0
        colour = COLOURS[index % len(COLOURS)]
        painted[mask] = (1 - TINT) * painted[mask] + TINT * colour
        painted[mask & ~inner] = colour
    return painted.round().astype(np.uint8)


def segmentation_grid(
    images: Sequence[Image],
    predicted: Sequence[Classes],
    truths: Sequence[Classes | None],
    class_names: Sequence[str],
    titles: Sequence[str] = (),
    columns: int = 2,
) -> Figure:
    """Draws each image beside what is said of it, and what is true where it is known; with a legend.

    Args:
      images: grey (one channel) or RGB, of any sizes.
      predicted: the class of each pixel.
      truths: likewise; None where it is not known.
      class_names: of each class; those that are seen are in the legend.
      titles: of each image; none unless given.
      columns: images in a row.
    """
    known = any(truth is not None for truth in truths)
    shown = 2 + known
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    seen = sorted(
        {int(index) for maps in (predicted, truths) for each in maps if each is not None for index in np.unique(each)}
    )
    seen = [index for index in seen if 0 <= index < len(class_names)]
    shape = np.mean([image.shape[0] / image.shape[1] for image in images])
    side, legend = 2.2, 0.25 * -(-len(seen) // 6) + 0.2
    width, height = columns * shown * side, rows * (side * shape + 0.25)
    figure = Figure(figsize=(width, height + legend), dpi=DPI)
    grid = figure.subplots(rows, columns * shown, squeeze=False)
    figure.subplots_adjust(0.01, legend / (height + legend), 0.99, 1 - 0.22 / (height + legend), 0.03, 0.12)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        panels = {"image": image, "predicted": overlay(image, predicted[index])}
        truth = truths[index]
        if truth is not None:
            panels["true"] = overlay(image, truth)
        for axes, (name, panel) in zip(grid[row, column * shown :], panels.items(), strict=False):
            crisp = max(panel.shape[:2]) < CRISP_BELOW
            axes.imshow(
                panel[..., 0] if panel.shape[-1] == 1 else panel,
                cmap="gray", vmin=0, vmax=255, interpolation="nearest" if crisp else "antialiased",
            )  # fmt: skip
            title = titles[index] if titles and name == "image" else name
            axes.set_title(title, size=7.5, color=INK, pad=2, parse_math=False)
    patches = [Patch(color=COLOURS[index % len(COLOURS)] / 255, label=class_names[index]) for index in seen]
    figure.legend(
        handles=patches, loc="lower center", ncols=min(6, len(seen)) or 1, frameon=False, fontsize=8, labelcolor=INK
    )
    return figure
