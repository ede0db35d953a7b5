"""Pictures inside the page, and the picker that shows one of them."""

import base64
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath
from PIL import Image

from cnn_research.analysis import gallery
from cnn_research.analysis.report.markup import Markup, element, join

WIDEST = 1400  # pixels of a picture in the page
MOST = 12  # pictures of one method

LEARNED, LOOKS, ERRS = "What it has learned", "Where it looks", "What it says"
# By the beginning of a file's name: where the picker has it, what it is called, and what it shows.
METHODS: dict[str, tuple[str, str, str]] = {
    "filters": (LEARNED, "Filters", "A layer's kernels: as colours where they see the image, else by input channel."),
    "activations": (LEARNED, "Activations", "Maps of the channels that one image excites most, layer by layer."),
    "top_patches": (LEARNED, "Strongest patches", "The parts of the data that excite a channel most. Zeiler & Fergus 2014."),
    "deconvnet": (LEARNED, "Deconvnet", "The strongest values of a channel, projected back to the pixels that they come from. Zeiler & Fergus 2014."),
    "maximize": (LEARNED, "Images made to excite", "Images optimised to raise a class or a channel as far as they can. Erhan et al. 2009, Olah et al. 2017."),
    "invert": (LEARNED, "Inversion", "Images made of a layer's features alone: what the layer keeps. Mahendran & Vedaldi 2014."),
    "embedding": (LEARNED, "Embedding", "The codes of images in the plane: neighbours are alike for the network."),
    "saliency": (LOOKS, "Saliency", "The size of the score's gradient by the pixels. Simonyan et al. 2013."),
    "input_x_gradient": (LOOKS, "Input × gradient", "Pixels times their gradient; blue raises the score, red lowers it. Shrikumar et al. 2016."),
    "smoothgrad": (LOOKS, "SmoothGrad", "The mean gradient over noisy copies. Smilkov et al. 2017."),
    "integrated_gradients": (LOOKS, "Integrated gradients", "What each pixel adds on the way from a grey image. Sundararajan et al. 2017."),
    "guided_backprop": (LOOKS, "Guided backpropagation", "The gradient of what raises the score alone. Springenberg et al. 2014."),
    "cam": (LOOKS, "CAM", "The last maps, weighed by the class's weights. Zhou et al. 2015."),
    "grad_cam": (LOOKS, "Grad-CAM", "Maps of a layer, weighed by their mean gradients. Selvaraju et al. 2016."),
    "grad_cam_pp": (LOOKS, "Grad-CAM++", "Grad-CAM with a weight for each place. Chattopadhyay et al. 2017."),
    "occlusion": (LOOKS, "Occlusion", "What the score loses where a patch covers the image. Zeiler & Fergus 2014."),
    "mistakes": (ERRS, "Surest mistakes", "Images that the network gets wrong and is surest of; true labels in green."),
    "confusions": (ERRS, "Confusions", "How often each class is taken for each."),
    "worst": (ERRS, "Worst images", "The images of the split with the lowest score; what is true is dashed or beside."),
    "curves": (ERRS, "Precision and recall", "Precision against recall as the score sinks that a detection must have."),
    "grid": (ERRS, "Predictions", "What the network says of images."),
}  # fmt: skip
_PREDICTION = re.compile(r"\d{5}_(.+)")  # as `experiments.predict` names what it draws
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

    @property
    def name(self) -> str:
        """Method and part."""
        return f"{self.method}: {self.part}" if self.part else self.method


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
        if method not in without:
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


def picker(pictures: Sequence[Picture]) -> Markup:
    """Returns menus of methods and parts, and all pictures; the page's script hides all but the chosen one.

    Args:
      pictures: at least one, those of a method in a row.
    """
    methods = dict.fromkeys((picture.group, picture.method) for picture in pictures)
    groups = [
        element("optgroup", *(element("option", method) for of, method in methods if of == group), label=group)
        for group in dict.fromkeys(group for group, _ in methods)
    ]
    menus = element(
        "div",
        element("label", element("span", "Method"), element("select", *groups, name="method", autocomplete="off")),
        element("label", element("span", "Layer or image"), element("select", name="part", autocomplete="off")),
        class_="menus",
    )
    return element("div", menus, *map(_figure, pictures), class_="picker")


def _figure(picture: Picture) -> Markup:
    width, height = picture.size
    shown = element("img", src=picture.source, alt=picture.name, width=width, height=height)
    return element(
        "figure",
        element("div", shown, class_="paper"),
        element("figcaption", element("strong", picture.name), join(" ", picture.caption)),
        data_method=picture.method,
        data_part=picture.part,
    )
