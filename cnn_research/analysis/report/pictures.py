"""Pictures inside the page."""

import base64
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
from PIL import Image

from cnn_research.analysis import gallery
from cnn_research.analysis.report.markup import element
from cnn_research.analysis.report.picker import Panel

WIDEST = 1400  # pixels of a picture in the page
MOST = 12  # pictures of one method

LEARNED, LOOKS, SAYS = "What it has learned", "Where it looks", "What it says"
# By the beginning of a file's name: where the picker has it, what it is called, and what it shows.
METHODS: dict[str, tuple[str, str, str]] = {
    "filters": (LEARNED, "Filters", "A layer's kernels: in colours where they see the image, else by input channel."),
    "activations": (LEARNED, "Activations", "The channels that an image excites most, layer by layer."),
    "top_patches": (LEARNED, "Top patches", "What excites a channel most in the data. Zeiler & Fergus 2014."),
    "deconvnet": (LEARNED, "Deconvnet", "Strongest values projected back to their pixels. Zeiler & Fergus 2014."),
    "maximize": (LEARNED, "Maximization", "Images that raise a score as far as they can. Olah et al. 2017."),
    "invert": (LEARNED, "Inversion", "Images made of a layer's features: what it keeps. Mahendran & Vedaldi 2014."),
    "embedding": (LEARNED, "Embedding", "Codes of images in the plane: neighbours are alike for the network."),
    "saliency": (LOOKS, "Saliency", "The size of the score's gradient by the pixels. Simonyan et al. 2013."),
    "input_x_gradient": (LOOKS, "Input x gradient", "Blue raises the score, red lowers it. Shrikumar et al. 2016."),
    "smoothgrad": (LOOKS, "SmoothGrad", "The mean gradient over noisy copies. Smilkov et al. 2017."),
    "integrated_gradients": (
        LOOKS,
        "Integrated gradients",
        "Gradients on the way from grey. Sundararajan et al. 2017.",
    ),
    "guided_backprop": (LOOKS, "Guided backpropagation", "What raises the score alone. Springenberg et al. 2014."),
    "cam": (LOOKS, "CAM", "The last maps, weighed as the class weighs them. Zhou et al. 2015."),
    "grad_cam": (LOOKS, "Grad-CAM", "A layer's maps, weighed by their mean gradients. Selvaraju et al. 2016."),
    "grad_cam_pp": (LOOKS, "Grad-CAM++", "Grad-CAM with a weight for each place. Chattopadhyay et al. 2017."),
    "occlusion": (LOOKS, "Occlusion", "What the score loses where a patch covers the image. Zeiler & Fergus 2014."),
    "mistakes": (SAYS, "Surest mistakes", "Images that it gets wrong and is surest of; true labels are green."),
    "confusions": (SAYS, "Confusions", "How often each class is taken for each."),
    "worst": (SAYS, "Worst images", "Those of the split with the lowest score."),
    "curves": (SAYS, "Precision and recall", "Of detections, as the score sinks that one must have."),
    "grid": (SAYS, "Predictions", "What the network says of images."),
}
# As `experiments.predict` names what it draws; its masks of classes are no pictures.
_PREDICTION, _MASK = re.compile(r"\d{5}_(.+)"), re.compile(r"\d{5}_.+_classes")
_PLANE = {"pca": "PCA", "tsne": "t-SNE"}


class Picture(NamedTuple):
    """A picture, and where the picker has it.

    Attributes:
      group: of methods.
      method: what is shown.
      part: of what: a layer, or an image; empty where there is but one.
      caption: what the method is.
      source: the picture as a data URI.
      size: width and height in pixels.
    """

    group: str
    method: str
    part: str
    caption: str
    source: str
    size: tuple[int, int]


def read_pictures(folder: epath.Path, layers: Sequence[str] = (), without: Sequence[str] = ()) -> list[Picture]:
    """Returns the PNGs of a folder in the order of `METHODS`, unknown ones last.

    Args:
      folder: that `visualize`, `evaluate` and `predict` have drawn into; may be missing.
      layers: names of the network's layers, which file names spell without slashes.
      without: methods that the page shows in a better way.
    """
    spelled = {gallery.plain(layer): layer for layer in layers}
    order = [*METHODS]
    found: list[tuple[int, str, str, epath.Path]] = []
    for path in sorted(folder.glob("*.png")) if folder.is_dir() else []:
        method, rest = _parse(path.stem)
        if method not in without and not _MASK.fullmatch(path.stem):
            place = order.index(method) if method in order else len(order)
            found.append((place, method, spelled.get(rest, _PLANE.get(rest, rest)), path))
    ranks = {layer: rank for rank, layer in enumerate(layers)}
    found.sort(key=lambda each: (each[0], ranks.get(each[2], 0)))
    kept: dict[str, int] = {}
    pictures = []
    for _, method, part, path in found:
        kept[method] = kept.get(method, 0) + 1
        if kept[method] <= MOST:
            group, title, caption = METHODS.get(method, ("Other pictures", method.replace("_", " ").capitalize(), ""))
            pictures.append(Picture(group, title, part, caption, *inline(path)))
    return pictures


def _parse(stem: str) -> tuple[str, str]:
    """Returns the method of a file's name, and what comes after it."""
    if match := _PREDICTION.fullmatch(stem):
        return "grid", match[1]
    method = max((name for name in METHODS if f"{stem}_".startswith(f"{name}_")), key=len, default=stem)
    rest = stem[len(method) + 1 :]
    return method, f"image {int(rest)}" if rest.isdigit() else rest


def inline(path: epath.Path) -> tuple[str, tuple[int, int]]:
    """Returns a picture as a data URI, not wider than `WIDEST`, and its size.

    It is WebP, lossless where that is smaller: flat colours are, photographs are not.

    Args:
      path: of the file.
    """
    with path.open("rb") as file:
        picture = Image.open(file).convert("RGB")
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)), Image.Resampling.LANCZOS)
    forms = []
    for options in ({"quality": 80}, {"lossless": True}):
        encoded = io.BytesIO()
        picture.save(encoded, "webp", **options)
        forms.append(encoded.getvalue())
    return f"data:image/webp;base64,{base64.b64encode(min(forms, key=len)).decode()}", picture.size


def panel(picture: Picture) -> Panel:
    """Returns a picture on white paper, with its caption, for the picker."""
    width, height = picture.size
    name = f"{picture.method}: {picture.part}" if picture.part else picture.method
    shown = element("img", src=picture.source, alt=name, width=width, height=height)
    caption = element("figcaption", element("strong", name), f" {picture.caption}")
    return Panel(picture.group, picture.method, picture.part, element("figure", shown, caption))
