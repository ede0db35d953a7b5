"""Draws what classical filters do to images: image, kernel and result side by side, one filter below the other.

python -m experiments.filters --out=filters
python -m experiments.filters --images='photos/*.jpg' --filters=blur,edge,sharpen --padding=symmetric --out=filters

Without `--images` the picture is scikit-learn's photograph of a pavilion. Filters: blur, gaussian, edge, edge_8,
sharpen, sobel_x, sobel_y, sobel. `--out` gets a picture an image, `NAME_filters.png`.
"""

import dataclasses
import glob
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Array, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from tqdm import tqdm

from cnn_research.analysis.figures import CRISP_BELOW, DPI, INK
from cnn_research.data.images import decode
from cnn_research.errors import UserError, nearest
from cnn_research.ops.filters import (
    BLUR,
    EDGE,
    EDGE_8,
    SHARPEN,
    SOBEL_X,
    SOBEL_Y,
    convolve2d,
    gaussian,
    sobel_magnitude,
)
from cnn_research.ops.padding import MODES
from experiments import command_line

_IMAGES = flags.DEFINE_string("images", "", "files, as a glob in quotes; a photograph of a pavilion unless given")
_FILTERS = flags.DEFINE_list("filters", [], "names with commas between; all unless given")
_PADDING = flags.DEFINE_enum("padding", "zeros", list(MODES), "what a kernel sees beyond the border")
_MAX_SIDE = flags.DEFINE_integer(
    "max_side", 640, "larger images are shrunk to this many pixels first, so that small kernels show", lower_bound=1
)
_OUT = flags.DEFINE_string("out", "", "the folder for pictures")

DETAIL = 32  # pixels a side of what is magnified
MARK = "#ffd33d"  # its frame
SIGNS = LinearSegmentedColormap.from_list("signs", ("#f2bf99", "white", "#99c7e0"))  # of a kernel's values
MINUS = "\N{MINUS SIGN}"
FRAME = "#d0d7de"

Image = UInt8[np.ndarray, "height width 3"]
Kernel = Float[np.ndarray, "height width"]


@dataclasses.dataclass(frozen=True)
class Filter:
    """A row of the picture.

    Attributes:
      words: what its result is.
      kernels: one to convolve the image with, or those that `magnitude` does.
      magnitude: of an image, with some padding; None where there is one kernel.
    """

    words: str
    kernels: tuple[Kernel, ...]
    magnitude: Callable[..., Array] | None = None

    def __call__(self, image: Image, padding: str) -> Float[np.ndarray, "height width 3"]:
        """Returns the filtered image."""
        if self.magnitude:
            return np.asarray(self.magnitude(image, padding=padding))
        (kernel,) = self.kernels
        return np.asarray(convolve2d(image, kernel, padding=padding))


def filters() -> dict[str, Filter]:
    """Returns all filters by name; no constant, since a Gaussian starts JAX, and the flags come first."""
    return {
        "blur": Filter("the mean of 3x3 pixels", (BLUR,)),
        "gaussian": Filter("a weighted mean, sigma = 1 pixel", (np.asarray(gaussian(5, 1.0)),)),
        "edge": Filter("the Laplacian of 4 neighbours", (EDGE,)),
        "edge_8": Filter("the Laplacian of 8 neighbours", (EDGE_8,)),
        "sharpen": Filter("the image less its Laplacian", (SHARPEN,)),
        "sobel_x": Filter("how much it brightens to the right", (SOBEL_X,)),
        "sobel_y": Filter("how much it brightens downwards", (SOBEL_Y,)),
        "sobel": Filter("how steep it is, √(x² + y²)", (SOBEL_X, SOBEL_Y), sobel_magnitude),
    }


def choose(names: Sequence[str]) -> dict[str, Filter]:
    """Returns the filters of these names, in their order, or all where there is none.

    Raises:
      UserError: a name is not known.
    """
    known = filters()
    for name in names:
        if name not in known:
            raise UserError(f"--filters: {name!r} is not known; {nearest(name, known)}")
    return {name: known[name] for name in names or known}


def from_files(pattern: str) -> Iterator[tuple[str, Image]]:
    """Yields the paths and the pixels of images, grey ones in colour too.

    Raises:
      UserError: no file matches, or one is no image.
    """
    paths = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not paths:
        raise UserError(f"--images={pattern}: no file matches")
    for path in paths:
        try:
            yield str(path), decode(path.read_bytes(), channels=3)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def pavilion() -> Iterator[tuple[str, Image]]:
    """Yields the name and the pixels of a photograph that scikit-learn brings along."""
    from sklearn.datasets import load_sample_image  # here: importing it takes a second

    yield "china.jpg", load_sample_image("china.jpg")


def shrink(image: Image, side: int) -> Image:
    """Returns an image whose longer side is at most `side` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def to_pixels(result: Float[np.ndarray, "height width 3"], kind: Filter) -> tuple[Image, str]:
    """Brings a filter's result to 0..255, and says how.

    Blurred and sharpened images keep their scale and are cut off at black and white. Edges have no scale of their own:
    0 is grey, or black under a magnitude, and one value in a hundred is cut off.
    """
    values = f"values {_whole(result.min())} to {_whole(result.max())}"
    reach = max(1.0, float(np.percentile(np.abs(result), 99)))
    if kind.magnitude:
        low, high, shown = 0.0, reach, f"black 0, white {_whole(reach)}"
    elif abs(kind.kernels[0].sum()) < 0.5:
        low, high, shown = -reach, reach, f"black {_whole(-reach)}, grey 0, white {_whole(reach)}"
    else:
        low, high, shown = 0.0, 255.0, "black 0, white 255"
    pixels = np.clip(np.rint((result - low) * (255 / (high - low))), 0, 255).astype(np.uint8)
    return pixels, f"{values}\n{shown}"


def _whole(value: float) -> str:
    return f"{value:z,.0f}".replace("-", MINUS)


def number(value: float) -> str:
    """Returns a kernel's value as its cell has it: 5, -1 (with the longer sign of mathematics), 1/9, .098."""
    fraction = Fraction(value).limit_denominator(16)
    exact = math.isclose(value, fraction, rel_tol=1e-6)  # as far as float32 goes
    return (str(fraction) if exact else f"{value:.3f}".removeprefix("0")).replace("-", MINUS)


def picture_names(images: Sequence[str]) -> list[str]:
    """Returns the names of images' pictures: numbered where two images have one name but for folder and ending."""
    stems = [Path(image).stem for image in images]
    unique = len(set(stems)) == len(stems)
    return [f"{stem}_filters.png" if unique else f"{index:05d}_{stem}_filters.png" for index, stem in enumerate(stems)]


def draw(title: str, image: Image, rows: Mapping[str, Filter], padding: str) -> Figure:
    """Draws a row a filter: the image, the kernel and the result, with what they are below them.

    Args:
      title: above all rows.
      image: of any size.
      rows: the filters by name.
      padding: what they see beyond the border.

    Raises:
      UserError: the image is too small for this padding.
    """
    height, width = image.shape[:2]
    scale = min(4.2 / width, 2.8 / height)  # inches a pixel
    wide, high = max(width * scale, 2), max(height * scale, 2)
    size, layout = (2 * wide + 3.6, len(rows) * (high + 0.6) + 0.8), ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    figure = Figure(figsize=size, dpi=DPI, layout=layout)
    figure.suptitle(title, size=11, color=INK, parse_math=False)
    grid = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(wide, 2, wide))
    for (name, kind), (left, middle, right) in zip(rows.items(), grid, strict=True):
        pixels, caption = to_pixels(kind(image, padding), kind)
        _draw_image(left, image)
        _draw_kernels(middle, kind.kernels)
        _draw_image(right, pixels)
        middle.set_title(name, size=11, weight="bold", color=INK)
        middle.set_xlabel(kind.words, size=9, color=INK)
        right.set_xlabel(caption, size=9, color=INK)
        for x, sign in ((-0.17, "\N{ASTERISK OPERATOR}"), (1.17, "=")):
            middle.text(x, 0.5, sign, transform=middle.transAxes, size=18, ha="center", va="center", color=INK)
    grid[0, 0].set_title("image", size=11, weight="bold", color=INK)
    grid[0, 2].set_title("result", size=11, weight="bold", color=INK)
    return figure


def _draw_image(axes: Axes, image: Image) -> None:
    """Draws an image and, where it is too large to see what befalls each pixel, its middle once more, magnified."""
    height, width = image.shape[:2]
    large = min(height, width) > CRISP_BELOW
    axes.imshow(image, interpolation="antialiased" if large else "nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(FRAME)
    if large:
        top, left = (height - DETAIL) // 2, (width - DETAIL) // 2
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), DETAIL, DETAIL, fill=False, color=MARK))
        extent = 0.45 * min(height, width)
        inset = axes.inset_axes((1 - extent / width, 0, extent / width, extent / height))
        inset.imshow(image[top : top + DETAIL, left : left + DETAIL], interpolation="nearest")
        inset.set(xticks=[], yticks=[])
        inset.spines[:].set_color(MARK)


def _draw_kernels(axes: Axes, kernels: tuple[Kernel, ...]) -> None:
    """Draws kernels of one size as cells with their numbers, one below the other, in the middle of a square."""
    height, width = kernels[0].shape
    for index, kernel in enumerate(kernels):
        top, reach = index * (height + 0.5), np.abs(kernel).max()
        axes.imshow(kernel, cmap=SIGNS, vmin=-reach, vmax=reach, extent=(0, width, top + height, top))
        for (row, column), value in np.ndenumerate(kernel):
            cell = Rectangle((column, top + row), 1, 1, fill=False, color=INK, linewidth=0.6, clip_on=False)
            axes.add_patch(cell)
            middle = (column + 0.5, top + row + 0.5)
            axes.text(*middle, number(float(value)), size=10, ha="center", va="center", color=INK)
    bottom = top + height
    axes.set(xticks=[], yticks=[], xlim=((width - bottom) / 2, (width + bottom) / 2), ylim=(bottom, 0))
    axes.spines[:].set_visible(False)


def main() -> None:
    """Filters, draws and writes."""
    command_line.require("out")
    rows = choose(_FILTERS.value)
    out = epath.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    examples = from_files(_IMAGES.value) if _IMAGES.value else pavilion()
    pictures = {}  # all, before the first is written: a fault leaves none
    for name, image in tqdm(examples, desc="drawing", unit="image", disable=None, leave=False):
        small = shrink(image, _MAX_SIDE.value)
        size = "x".join(map(str, small.shape[:2])) + " pixels" + (", shrunk" if small is not image else "")
        title = f"{Path(name).name} ({size}), padding: {_PADDING.value}\nconvolution reads the kernels backwards"
        encoded = io.BytesIO()
        try:
            draw(title, small, rows, _PADDING.value).savefig(encoded, format="png")
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        pictures[name] = encoded.getvalue()

    out.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(picture_names(list(pictures)), pictures.values(), strict=True):
        (out / name).write_bytes(picture)
        print(out / name)


if __name__ == "__main__":
    command_line.run(main)
