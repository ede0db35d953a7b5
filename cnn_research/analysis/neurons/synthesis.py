"""Images made to order: those that excite a neuron most, and those that have given features."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.scipy import ndimage
from jaxtyping import Array, Float, Key

from cnn_research.analysis.attribution.targets import Target, evaluate, layer_output

Images = Float[Array, "batch height width channels"]
Costs = Float[Array, " batch"]
Variables = Mapping[str, Any]
Prepare = Callable[[Array], Array]


class Canvas(NamedTuple):
    """What images are written in while they are optimised.

    Attributes:
      blank: returns so many empty canvases, but for a little noise that a key draws.
      draw: returns the images on them, in 0..1.
      cost: what each takes off the score.
    """

    blank: Callable[[Key[Array, ""], int], Array]
    draw: Callable[[Array], Images]
    cost: Callable[[Array], Costs] = lambda written: jnp.zeros(len(written))


def pixels(shape: tuple[int, int, int]) -> Canvas:
    """Returns the canvas of pixels that know nothing of each other, which lets high frequencies win.

    Args:
      shape: height, width and channels of the images.
    """
    return Canvas(lambda rng, count: 0.01 * jax.random.normal(rng, (count, *shape)), jax.nn.sigmoid)


def fourier(shape: tuple[int, int, int], colours: Float[np.ndarray, "channels channels"] | None = None) -> Canvas:
    """Returns the canvas of frequencies, each with the weight by which all have a like share, as in photographs.

    Olah, Mordvintsev & Schubert 2017, "Feature visualization", doi:10.23915/distill.00007, section "preconditioning".

    Args:
      shape: height, width and channels of the images.
      colours: from decorrelated colours to the images', as `colour_matrix` gives them; none: as they are.
    """
    height, width, channels = shape
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).astype(np.float32)
    scale = np.sqrt(height * width) / np.maximum(frequencies, 1 / max(height, width)) / 4
    mixing = np.eye(channels, dtype=np.float32) if colours is None else colours

    def draw(spectrum: Array) -> Images:
        waves = jax.lax.complex(spectrum[:, 0], spectrum[:, 1]) * scale[..., None]
        return jax.nn.sigmoid(jnp.fft.irfft2(waves, s=(height, width), axes=(1, 2)) @ mixing.T)

    return Canvas(lambda rng, count: 0.01 * jax.random.normal(rng, (count, 2, *scale.shape, channels)), draw)


def components(
    images: Float[np.ndarray, "examples height width channels"], count: int = 60, strength: float = 0.1
) -> Canvas:
    """Returns the canvas of a data set's principal components: its pixels, decorrelated.

    The cost is the negative logarithm of how likely an image is, were the data normally distributed.

    Args:
      images: of the data set, in 0..1.
      count: components, those with the largest variance.
      strength: factor of the cost.
    """
    flat = images.reshape(len(images), -1)
    mean = flat.mean(0)
    _, deviations, directions = np.linalg.svd(flat - mean, full_matrices=False)
    basis = (deviations[:count, None] / np.sqrt(len(flat)) * directions[:count]).astype(np.float32)

    def draw(weights: Array) -> Images:
        return jnp.clip(mean + weights @ basis, 0, 1).reshape(-1, *images.shape[1:])

    return Canvas(
        lambda rng, number: 0.01 * jax.random.normal(rng, (number, len(basis))),
        draw,
        lambda weights: strength / 2 * jnp.square(weights).sum(1),
    )


def colour_matrix(images: Float[np.ndarray, "*batch channels"]) -> Float[np.ndarray, "channels channels"]:
    """Returns the root of the covariance of images' colours, its longest row of length 1.

    Args:
      images: in any units.
    """
    channels = images.shape[-1]
    covariance = np.cov(images.reshape(-1, channels), rowvar=False).reshape(channels, channels)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return (root / np.linalg.norm(root, axis=1).max()).astype(np.float32)


def jittered(
    images: Images, rng: Key[Array, ""], jitter: float = 2.0, scale: float = 0.1, rotation: float = 10.0
) -> Images:
    """Returns images, each moved, scaled and turned a little by itself; the border's pixels go on beyond it.

    Args:
      images: any.
      rng: draws how.
      jitter: largest shift, in pixels.
      scale: largest change of size, as a share.
      rotation: largest angle, in degrees.
    """
    height, width = images.shape[1:3]

    def moved(image: Array, key: Array) -> Array:
        down, right, log_zoom, turn = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
        angle, zoom = jnp.deg2rad(rotation) * turn, (1 + scale) ** log_zoom
        rows, columns = jnp.meshgrid(
            jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
        )
        cosine, sine = jnp.cos(angle) * zoom, jnp.sin(angle) * zoom
        places = [
            cosine * rows - sine * columns + (height - 1) / 2 + jitter * down,
            sine * rows + cosine * columns + (width - 1) / 2 + jitter * right,
        ]
        sample = functools.partial(ndimage.map_coordinates, coordinates=places, order=1, mode="nearest")
        return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)

    return jax.vmap(moved)(images, jax.random.split(rng, len(images)))


def variation(images: Images) -> Float[Array, " batch"]:
    """Returns each image's mean difference of neighbouring pixels: its total variation, by the pixel.

    Args:
      images: any.
    """
    down, right = jnp.diff(images, axis=1), jnp.diff(images, axis=2)
    return jnp.abs(down).mean((1, 2, 3)) + jnp.abs(right).mean((1, 2, 3))


def maximize(
    model: nn.Module,
    variables: Variables,
    target: Target,
    count: int,
    canvas: Canvas,
    rng: Key[Array, ""],
    prepare: Prepare = lambda images: images,
    cost: Callable[[Images], Costs] = lambda images: jnp.zeros(len(images)),
    robust: bool = True,
    steps: int = 256,
    learning_rate: float = 0.05,
) -> Images:
    """Returns images that raise a score as far as they can. Erhan, Bengio, Courville & Vincent 2009.

    "Visualizing higher-layer features of a deep network", Université de Montréal; by the canvases and motions of
    Olah et al. 2017.

    Args:
      model: the network.
      variables: its variables.
      target: gives the scores: of a class, a channel or a neuron for each image.
      count: images.
      canvas: what they are written in.
      rng: draws where they start, and how they are moved.
      prepare: makes of images in 0..1 what the network takes.
      cost: what an image takes off its score, such as a multiple of its `variation`.
      robust: whether the score is that of images moved, scaled and turned a little, differently in each step.
      steps: of Adam.
      learning_rate: of Adam; it falls to 0 along a cosine.

    Returns:
      The images, in 0..1.
    """
    start, motion = jax.random.split(rng)

    def loss(written: Array, key: Array) -> Array:
        images = canvas.draw(written)
        seen = jittered(images, key) if robust else images
        scores = evaluate(model, variables, prepare(seen), target)
        return (cost(images) + canvas.cost(written) - scores).sum()

    return canvas.draw(_minimize(loss, canvas.blank(start, count), jax.random.split(motion, steps), learning_rate))


def invert(
    model: nn.Module,
    variables: Variables,
    features: Array,
    layer: str,
    canvas: Canvas,
    rng: Key[Array, ""],
    prepare: Prepare = lambda images: images,
    cost: Callable[[Images], Costs] = lambda images: jnp.zeros(len(images)),
    steps: int = 256,
    learning_rate: float = 0.05,
) -> Images:
    """Returns images that have given features: what a layer keeps. Mahendran & Vedaldi 2014, arXiv:1412.0035.

    Args:
      model: the network.
      variables: its variables.
      features: the layer's output for other images; the loss is the squared distance to it over its square.
      layer: name of the layer.
      canvas: what they are written in.
      rng: draws where they start.
      prepare: makes of images in 0..1 what the network takes.
      cost: what an image adds to its loss, such as a multiple of its `variation`.
      steps: of Adam.
      learning_rate: of Adam; it falls to 0 along a cosine.

    Returns:
      The images, in 0..1.
    """
    axes = tuple(range(1, features.ndim))
    size = jnp.square(features).sum(axes)

    def distance(result: Any, layers: Mapping[str, Array]) -> Costs:
        return jnp.square(layer_output(layers, layer) - features).sum(axes) / size

    def loss(written: Array, _: Array) -> Array:
        images = canvas.draw(written)
        far = evaluate(model, variables, prepare(images), distance)
        return (far + cost(images) + canvas.cost(written)).sum()

    blank = canvas.blank(rng, len(features))
    return canvas.draw(_minimize(loss, blank, jax.random.split(rng, steps), learning_rate))


def _minimize(loss: Callable[[Array, Array], Array], start: Array, keys: Array, learning_rate: float) -> Array:
    """Returns where Adam ends after a step for each key; images do not see each other, so each has steps of its own."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, len(keys)))

    def step(carry: tuple[Array, Any], key: Array) -> tuple[tuple[Array, Any], None]:
        canvas, state = carry
        updates, state = optimizer.update(jax.grad(loss)(canvas, key), state)
        return (canvas + updates, state), None

    (end, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), keys)
    return end
