"""The gallery: what a run's network has learned and looks at, as pictures, one function a method."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from cnn_research.analysis import attribution, figures, sheets
from cnn_research.analysis.attribution import attribute, class_score, neuron
from cnn_research.analysis.attribution.cams import layers_of, row_of
from cnn_research.analysis.attribution.targets import layer_output, outputs
from cnn_research.analysis.neurons import codes, layers, patches, synthesis
from cnn_research.analysis.sheets import Panel, sheet
from cnn_research.analysis.view import CHANNELS, View
from cnn_research.errors import UserError, nearest
from cnn_research.metrics.classification import confusion_matrix

TASKS = ("classification", "segmentation")  # whose runs it shows
TILES = 16  # filters of a layer, and their inputs, at most
THUMBNAILS = 300  # images in the plane

Pictures = Iterator[tuple[str, Figure]]


def filters(view: View) -> Pictures:
    """First layer as colour tiles, deeper ones as tiles by input channel: a row a filter."""
    variables = view.run.variables
    names = [view.layer] if view.layer else layers.kernel_layers(variables, view.run.model, view.shape)[:2]
    for index, layer in enumerate(names):
        try:
            kernels = np.asarray(layers.filters(variables, layer, view.shape))
        except UserError:
            if view.layer or not index:
                raise
            continue
        if kernels.shape[1] == view.shape[-1]:
            tiles = [Panel(sheets.relief(kernel.transpose(1, 2, 0))) for kernel in kernels[: TILES * TILES // 2]]
            rows = [tiles[begin : begin + TILES] for begin in range(0, len(tiles), TILES)]
        else:
            scale = float(np.abs(kernels).max())
            rows = [[Panel(sheets.signed(tile, scale)) for tile in kernel[:TILES]] for kernel in kernels[:TILES]]
        features, inputs = kernels.shape[:2]
        yield (
            f"filters_{plain(layer)}",
            sheet(
                rows,
                title=f"{layer}: {features} filters of {inputs} {'channel' if inputs == 1 else 'channels'}",
                side=0.5,
            ),
        )


def activations(view: View) -> Pictures:
    """Feature maps: of each layer the channels that the image excites most."""
    names = view.map_layers()
    maps = _features(view, names)
    pixels = view.pixels(view.inputs)
    for index in range(len(view.images) if view.layer else 1):
        rows = [[Panel(pixels[index])]]
        for layer in names:
            of_image = maps[layer][index]
            strongest = np.argsort(-of_image.max((0, 1)), kind="stable")[:CHANNELS]
            rows.append([Panel(sheets.stretched(of_image[..., channel]), str(channel)) for channel in strongest])
        sizes = [f"{layer}, {'x'.join(map(str, maps[layer].shape[1:]))}" for layer in names]
        yield f"activations_{index:02d}", sheet(rows, ["image", *sizes], "channels that the image excites most")


def top_patches(view: View) -> Pictures:
    """The images and patches of the data set that excite a channel most."""
    for layer, found, channels in view.strongest:
        rows = [_cut(view, layer, found, channel, _pixels(view, found, channel)) for channel in channels]
        title = f"{layer}: the patches that excite a channel most"
        yield f"top_patches_{plain(layer)}", sheet(rows, [f"channel {channel}" for channel in channels], title)


def deconvnet(view: View) -> Pictures:
    """Top patches, and before them their neuron's projection to the pixels."""
    for layer, found, channels in view.strongest:
        project = jax.jit(functools.partial(_project, view.run.model, layer))
        rows = []
        for channel in channels:
            inputs = view.prepare(jnp.asarray(view.data[found.examples[channel]]))
            wanted = jnp.full(len(inputs), channel), jnp.asarray(found.positions[channel])
            projected = np.asarray(project(view.run.variables, inputs, *wanted))
            reliefs = np.stack([sheets.relief(each) for each in projected])
            pixels = _pixels(view, found, channel)
            rows.append([panel for each in (reliefs, pixels) for panel in _cut(view, layer, found, channel, each)])
        title = f"{layer}: deconvnet's projections of the strongest values, and the patches that they come from"
        yield f"deconvnet_{plain(layer)}", sheet(rows, [f"channel {channel}" for channel in channels], title, 0.8)


def _project(model: Any, layer: str, variables: Any, inputs: Array, channel: Array, places: Array) -> Array:
    def score(result: Any, of_layers: Any) -> Array:
        maps = layer_output(of_layers, layer)
        return maps[jnp.arange(len(maps)), places[:, 0], places[:, 1], channel]

    return attribute("deconvnet", model, variables, inputs, score)


def attributions(method: str, view: View) -> Pictures:
    """Where in the images the class that the network sees comes from."""
    target = class_score(view.targets) if method != "cam" else view.targets
    options: dict[str, Any] = {}
    if method == "occlusion":
        side = min(view.shape[:2])
        options = {"window": max(1, side // 4), "strides": max(1, side // 16)}
    if method in attribution.CAMS and view.layer:
        options["layer"] = view.layer
    compute = jax.jit(functools.partial(attribute, method, view.run.model, target=target, **options))
    maps = np.asarray(compute(view.run.variables, view.inputs))
    pixels = view.pixels(view.inputs)
    panels = [
        (Panel(pixels[index], view.words(index)), Panel(_drawn(method, *pair)))
        for index, pair in enumerate(zip(pixels, maps, strict=True))
    ]
    pairs = [[panel for pair in panels[begin : begin + 4] for panel in pair] for begin in range(0, len(panels), 4)]
    yield method, sheet(pairs, title=f"{method}: what speaks for the class above each image", side=1.3)


def _drawn(method: str, image: np.ndarray, values: np.ndarray) -> np.ndarray:
    if method in attribution.CAMS:
        return sheets.heat(image, values[..., 0])
    if method == "guided_backprop":
        return sheets.relief(values)
    if method in ("saliency", "smoothgrad"):
        return sheets.strength(np.abs(values).max(-1))
    return sheets.signed(values.sum(-1))


def maximize(view: View) -> Pictures:
    """Images that raise a class's logit, or a layer's channel, as far as they can, on three canvases."""
    data = view.pixels(view.prepare(jnp.asarray(view.data[:1000])))
    background = np.median(data, axis=(0, 1, 2))
    if view.layer:
        channels = _features(view, [view.layer])[view.layer].shape[-1]
        count = min(channels, CHANNELS)
        target, names = neuron(view.layer, jnp.arange(count)), [str(channel) for channel in range(count)]
    else:
        count = min(view.run.config.model.num_classes, CHANNELS)
        size = _output_size(view)
        target = class_score(jnp.arange(count), jnp.ones((count, *size), bool) if size else None)
        names = [view.named(label) for label in range(count)]

    def cost(weight: float, images: Array) -> Array:
        # Smooth, and of the data's usual colour where nothing speaks for another.
        plain = 20 * synthesis.variation(images) + 50 * jnp.abs(images - background).mean((1, 2, 3))
        return weight * plain

    canvases = {
        "the data's components": (synthesis.components(data), 0.0),
        "Fourier": (synthesis.fourier(view.shape, synthesis.colour_matrix(data)), 1.0),
        "pixels": (synthesis.pixels(view.shape), 0.0),
    }
    rows = []
    for canvas, weight in canvases.values():
        make = functools.partial(
            synthesis.maximize,
            view.run.model,
            target=target,
            count=count,
            canvas=canvas,
            rng=jax.random.key(0),
            prepare=view.normalize,
            cost=functools.partial(cost, weight),
        )
        images = np.asarray(jax.jit(make)(view.run.variables))
        rows.append([Panel(picture, name) for picture, name in zip(images, names, strict=True)])
    yield (
        f"maximize{'_' + plain(view.layer) if view.layer else ''}",
        sheet(rows, [*canvases], "images that excite most, by what they are written in"),
    )


def invert(view: View) -> Pictures:
    """What each layer keeps of images: others with the same features."""
    names = view.map_layers()
    if not view.layer:
        names = [*names, codes.last_code(view.run.model, view.shape)]
    data = view.pixels(view.prepare(jnp.asarray(view.data[:1000])))
    canvas = synthesis.fourier(view.shape, synthesis.colour_matrix(data))
    inputs = view.inputs[:8]
    features = _features(view, names)
    rows = [[Panel(picture) for picture in view.pixels(inputs)]]
    for layer in names:
        make = functools.partial(
            synthesis.invert,
            view.run.model,
            layer=layer,
            canvas=canvas,
            rng=jax.random.key(0),
            prepare=view.normalize,
            cost=lambda images: 0.5 * synthesis.variation(images),
        )
        images = jax.jit(lambda variables, wanted, make=make: make(variables, features=wanted))(
            view.run.variables, jnp.asarray(features[layer][:8])
        )
        rows.append([Panel(picture) for picture in np.asarray(images)])
    yield "invert", sheet(rows, ["image", *names], "images made of a layer's features alone")


def embedding(view: View) -> Pictures:
    """Codes of the data set in the plane, by t-SNE and by principal components, with thumbnails."""
    _only_classes(view, "embedding")
    layer = view.layer or codes.last_code(view.run.model, view.shape)
    data = view.data[:THUMBNAILS]
    vectors = codes.codes(view.run.model, view.run.variables, data, layer, prepare=view.prepare)
    for method in codes.METHODS:
        places = codes.embed(vectors, method)
        yield f"embedding_{method}", _scatter(view, places, data, f"{layer}: {len(data)} images by {method}")


def _scatter(view: View, places: np.ndarray, data: np.ndarray, title: str) -> Figure:
    figure = Figure(figsize=(9, 9), dpi=figures.DPI, layout="constrained")
    axes = figure.subplots()
    pixels = view.pixels(view.prepare(jnp.asarray(data)))
    for place, picture, label in zip(places, pixels, view.data_labels, strict=False):
        colour = f"C{label % 10}"
        thumbnail = OffsetImage(
            picture[..., 0] if picture.shape[-1] == 1 else picture, zoom=11 / len(picture), cmap="gray", clim=(0, 1)
        )
        axes.add_artist(AnnotationBbox(thumbnail, place, pad=0.08, bboxprops={"edgecolor": colour, "linewidth": 1.2}))
    for label in sorted(set(view.data_labels)):
        axes.plot([], [], "s", color=f"C{label % 10}", label=view.named(label))
    low, high = places.min(0), places.max(0)
    margin = 0.04 * (high - low)
    axes.set(
        xlim=(low[0] - margin[0], high[0] + margin[0]),
        ylim=(low[1] - margin[1], high[1] + margin[1]),
        xticks=[],
        yticks=[],
    )
    axes.set_title(title, loc="left", size=11, weight="bold", color=figures.INK, parse_math=False)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=10)
    return figure


def confusions(view: View) -> Pictures:
    """Which class is taken for which, and the mistakes that the network was surest of."""
    _only_classes(view, "confusions")
    classes = view.run.config.model.num_classes
    probabilities = view.run.predict([*view.data])["probabilities"]
    predicted, true = probabilities.argmax(-1), np.array(view.data_labels)
    matrix = confusion_matrix(true, predicted, classes, np.ones(len(true), bool))
    yield "confusions", _matrix(view, np.asarray(matrix))
    wrong = np.flatnonzero(predicted != true)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:16]
    if len(worst):
        yield (
            "mistakes",
            figures.prediction_grid(view.data[worst], probabilities[worst], view.run.class_names, true[worst]),
        )


def _matrix(view: View, matrix: Integer[np.ndarray, "classes classes"]) -> Figure:
    count = len(matrix)
    side = 1.8 + 0.42 * min(count, 30)
    figure = Figure(figsize=(side, side), dpi=figures.DPI, layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if count <= 30:
        names = [view.named(label) for label in range(count)]
        axes.set_xticks(range(count), names, rotation=90, size=7.5)
        axes.set_yticks(range(count), names, size=7.5)
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                colour = "white" if shares[row, column] > 0.5 else figures.INK
                axes.text(column, row, str(number), size=6.5, ha="center", va="center", color=colour)
    axes.set_xlabel("predicted", size=9)
    axes.set_ylabel("true", size=9)
    axes.set_title(
        f"{int(np.trace(matrix))} of {int(matrix.sum())} right", loc="left", size=10, weight="bold", color=figures.INK
    )
    return figure


# By method, in the order in which `all` shows them.
METHODS: dict[str, Callable[[View], Pictures]] = {
    "filters": filters,
    "activations": activations,
    "top_patches": top_patches,
    "deconvnet": deconvnet,
    **{
        method: functools.partial(attributions, method)
        for method in (
            *("saliency", "input_x_gradient", "smoothgrad", "integrated_gradients", "guided_backprop"),
            *("cam", "grad_cam", "grad_cam_pp", "occlusion"),
        )
    },
    "maximize": maximize,
    "invert": invert,
    "embedding": embedding,
    "confusions": confusions,
}


def show(method: str, view: View) -> Pictures:
    """Returns the pictures of a method, each with the name of its file.

    Args:
      method: a key of `METHODS`.
      view: what to show.

    Raises:
      UserError: the method is not known, or the run's network has not what it needs.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is not known; {nearest(method, METHODS)}")
    return METHODS[method](view)


def _only_classes(view: View, method: str) -> None:
    if view.run.config.task != "classification":
        raise UserError(f"{method} is of images with one label; this is a run of {view.run.config.task}")


def _features(view: View, names: list[str]) -> dict[str, np.ndarray]:
    """Returns what layers say of the images."""

    @jax.jit
    def of_layers(variables: Any, inputs: Array) -> dict[str, Array]:
        found = outputs(view.run.model, variables, inputs)[1]
        return {name: layer_output(found, name) for name in names}

    return jax.device_get(of_layers(view.run.variables, view.inputs))


def _pixels(view: View, found: patches.Strongest, channel: int) -> np.ndarray:
    """Returns the images that excite a channel most, in 0..1."""
    return view.pixels(view.prepare(jnp.asarray(view.data[found.examples[channel]])))


def _cut(view: View, layer: str, found: patches.Strongest, channel: int, pictures: np.ndarray) -> list[Panel]:
    """Returns what a channel's strongest values see of pictures of their images."""
    row = row_of(layers_of(view.run.model, view.shape), layer)
    places = found.positions[channel].tolist()
    return [Panel(patches.cut(each, row, tuple(place))) for each, place in zip(pictures, places, strict=True)]


def _output_size(view: View) -> tuple[int, ...]:
    """Returns height and width of a segmentation's logits, nothing for a classifier."""
    shape = jax.eval_shape(functools.partial(view.run.model.apply, train=False), view.run.variables, view.inputs).shape
    return shape[1:-1]


def plain(layer: str) -> str:
    """Returns a layer's name as files have it in theirs.

    Args:
      layer: `stage1/block1/conv1`.
    """
    return layer.replace("/", "_").replace("#", "_")
