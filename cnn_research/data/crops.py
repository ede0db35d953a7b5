"""Random windows of an image: cropped, resized, mirrored or cut out."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from cnn_research.data.color import Image
from cnn_research.data.windows import TRIES

Pixels = Shaped[Array, "height width channels"]  # an image, or a mask
Window = Shaped[Array, "new_height new_width channels"]
Boxes = Float[Array, "objects 4"]


def center_crop(
    images: Shaped[Array, "*batch height width channels"], size: tuple[int, ...]
) -> Shaped[Array, "*batch new_height new_width channels"]:
    """Returns the middle of images, the upper left one where there are several."""
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[-3:-1], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1], :]


def random_crop(key: Key[Array, ""], image: Pixels, size: tuple[int, ...]) -> Window:
    """Crops a random window, all offsets alike."""
    row, column = _corner(key, image.shape[:2], size)
    # On a CPU 13 times as fast as products with one-hot matrices or shifts by powers of two, for 128 images of 32x32.
    return jax.lax.dynamic_slice(image, (row, column, 0), (*size, image.shape[-1]))


def _corner(key: Key[Array, ""], whole: tuple[int, ...], part: tuple[int, ...]) -> Int[Array, "2"]:
    return random_integers(key, jnp.array(whole) - jnp.array(part) + 1)


def random_resized_crop(
    key: Key[Array, ""],
    image: Pixels,
    area: tuple[float, ...],
    aspect_ratio: tuple[float, ...],
    size: tuple[int, ...] = (),
    nearest: bool = False,
) -> Window:
    """Resizes a random window, bilinearly.

    To the image's own size it only ever grows, so that nothing aliases. To a smaller one it may shrink, and aliases by
    that much: keep the sizes close, such as 256 and 224.

    Args:
      key: to draw from.
      image: any.
      area: the smallest and the largest window's part of the image's area, uniform.
      aspect_ratio: the smallest and the largest width over height, log-uniform. Where ten draws do not fit into the
        image, the largest window that does is taken.
      size: height and width of what it gives; the image's own unless given.
      nearest: see `resize_window`.
    """
    corner, window = _resized_window(key, image.shape[:2], area, aspect_ratio)
    return resize_window(image, corner, window, size or image.shape[:2], nearest)


def resized_crop_boxes(
    key: Key[Array, ""], boxes: Boxes, size: tuple[int, ...], area: tuple[float, ...], aspect_ratio: tuple[float, ...]
) -> Boxes:
    """Moves boxes as `random_resized_crop` moves their image with this key; see `into_window`."""
    return into_window(boxes, size, *_resized_window(key, size, area, aspect_ratio))


def _resized_window(
    key: Key[Array, ""], size: tuple[int, ...], area: tuple[float, ...], aspect_ratio: tuple[float, ...]
) -> tuple[Int[Array, "2"], Int[Array, "2"]]:
    """Returns the corner and the size of a random window."""
    height, width = size
    size_key, corner_key = jax.random.split(key)
    low, high = np.array([area, np.log(aspect_ratio)]).T
    areas, aspects = jax.random.uniform(size_key, (TRIES, 2), minval=low, maxval=high).T
    areas, aspects = areas * height * width, jnp.exp(aspects)
    sizes = jnp.round(jnp.sqrt(jnp.stack([areas / aspects, areas * aspects], axis=-1))).astype(int)
    aspect = min(max(width / height, aspect_ratio[0]), aspect_ratio[1])
    largest = jnp.array([max(1, round(min(height, width / aspect))), max(1, round(min(width, height * aspect)))])
    limits = jnp.array([height, width])
    fits = ((sizes >= 1) & (sizes <= limits)).all(axis=-1)
    window = jnp.where(fits.any(), sizes[jnp.argmax(fits)], largest)
    return random_integers(corner_key, limits - window + 1), window


def resize_window(
    image: Pixels, corner: Int[Array, "2"], window: Int[Array, "2"], size: tuple[int, ...], nearest: bool = False
) -> Window:
    """Resizes a window, bilinearly between pixel centres; nothing outside the window is read.

    Args:
      image: any.
      corner: row and column of the window's first pixel.
      window: the window's height and width, at most the image's.
      size: height and width of what it gives.
      nearest: whether each pixel is the nearest one, as classes need it, instead.
    """
    # Gathered rows and columns: on a CPU 7 times as fast as products with interpolation matrices at 224x224, 2 to 3 at
    # 32x32.
    for axis, length in enumerate(size):
        # (i + 1/2) window / length - 1/2, in units of 1 / (2 length): in whole numbers the whole image stays as it is.
        centre = (2 * jnp.arange(length) + 1) * window[axis]
        if nearest:
            image = jnp.take(image, corner[axis] + centre // (2 * length), axis=axis, mode="clip")
            continue
        source = jnp.clip(centre - length, 0, 2 * length * (window[axis] - 1))
        first, rest = jnp.divmod(source, 2 * length)
        fraction = jnp.expand_dims((rest / (2 * length)).astype(image.dtype), (1 - axis, 2))
        below, above = (jnp.take(image, corner[axis] + first + step, axis=axis, mode="clip") for step in (0, 1))
        image = below * (1 - fraction) + above * fraction
    return image


def pad_crop(
    key: Key[Array, ""],
    image: Pixels,
    padding: int,
    mode: str = "zeros",
    fill: tuple[float, ...] = (0.0,),
    size: tuple[int, ...] = (),
) -> Window:
    """Pads an image on each side and crops a random window, of its first size unless another is given."""
    widths = ((padding, padding), (padding, padding), (0, 0))
    if mode == "reflect":
        padded = jnp.pad(image, widths, mode="reflect")
    else:
        inside = jnp.pad(jnp.ones((*image.shape[:2], 1), bool), widths)
        padded = jnp.where(inside, jnp.pad(image, widths), jnp.array(fill, image.dtype))
    return random_crop(key, padded, size or image.shape[:2])


def pad_crop_boxes(
    key: Key[Array, ""], boxes: Boxes, size: tuple[int, ...], padding: int = 0, window: tuple[int, ...] = ()
) -> Boxes:
    """Moves boxes as `pad_crop`, or without padding `random_crop`, moves their image with this key; see `into_window`.

    Args:
      key: that of the image.
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      size: height and width of the image.
      padding: on each side, in pixels.
      window: height and width of what is cropped; those of the image unless given.
    """
    whole = size[0] + 2 * padding, size[1] + 2 * padding
    return into_window(boxes, size, _corner(key, whole, window or size) - padding, jnp.array(window or size))


def scale_jitter(
    key: Key[Array, ""],
    image: Pixels,
    scale: tuple[float, ...],
    fill: tuple[float, ...] = (0.0,),
    nearest: bool = False,
) -> Pixels:
    """Makes an image larger or smaller, bilinearly, and shows it through a frame of its own size at a random place.

    A larger one is cut off at the frame, a smaller one lies within it. Shrunk to less than half it aliases.

    Args:
      key: to draw from.
      image: any.
      scale: the smallest and the largest factor of its sides, log-uniform.
      fill: what is beyond its borders.
      nearest: whether each pixel is the nearest one, as classes need it, instead.
    """
    size = image.shape[:2]
    corner, window = _scaled_window(key, size, scale)
    inside = jnp.ones((1, 1, 1), bool)
    for axis, length in enumerate(size):
        centre = corner[axis] + (jnp.arange(length) + 0.5) * window[axis] / length
        inside &= jnp.expand_dims((centre >= 0) & (centre <= length), (1 - axis, 2))
        if nearest:
            image = jnp.take(image, jnp.floor(centre).astype(int), axis=axis, mode="clip")
            continue
        first = jnp.floor(centre - 0.5)
        fraction = jnp.expand_dims((centre - 0.5 - first).astype(image.dtype), (1 - axis, 2))
        below, above = (jnp.take(image, first.astype(int) + step, axis=axis, mode="clip") for step in (0, 1))
        image = below * (1 - fraction) + above * fraction
    return jnp.where(inside, image, jnp.array(fill, image.dtype))


def scale_jitter_boxes(key: Key[Array, ""], boxes: Boxes, size: tuple[int, ...], scale: tuple[float, ...]) -> Boxes:
    """Moves boxes as `scale_jitter` moves their image with this key; see `into_window`."""
    return into_window(boxes, size, *_scaled_window(key, size, scale))


def _scaled_window(
    key: Key[Array, ""], size: tuple[int, ...], scale: tuple[float, ...]
) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """Returns the corner and the size of what the frame shows, in pixels of the image."""
    scale_key, corner_key = jax.random.split(key)
    low, high = np.log(scale)
    window = jnp.array(size) / jnp.exp(jax.random.uniform(scale_key, minval=low, maxval=high))
    return jax.random.uniform(corner_key, (2,)) * (jnp.array(size) - window), window


def into_window(boxes: Boxes, size: tuple[int, ...], corner: Shaped[Array, "2"], window: Shaped[Array, "2"]) -> Boxes:
    """Returns boxes as a window sees them, also what of them it does not show.

    Args:
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      size: height and width of the image, in pixels.
      corner: row and column where the window begins, in pixels.
      window: its height and width, in pixels.

    Returns:
      In 0..1 of the window; below and above where they leave it.
    """
    return ((boxes.reshape(-1, 2, 2) * jnp.array(size) - corner) / window).reshape(-1, 4)


def flip(key: Key[Array, ""], image: Pixels) -> Pixels:
    """Mirrors an image left to right with probability 1/2."""
    # XLA for CPUs works out again and again what the alternatives of a choice between two images are made of: after a
    # resized crop that took ten times as long as a gather. On a TPU a gather moves 57 MB for an image of 224x224 from
    # uint8 to the network, a choice 3.5 (libtpu 0.0.42).
    return jax.lax.platform_dependent(
        image,
        jax.random.bernoulli(key),
        cpu=_flip_by_gather,
        default=lambda image, flips: jnp.where(flips, image[:, ::-1], image),
    )


def _flip_by_gather(image: Pixels, flips: Bool[Array, ""]) -> Pixels:
    columns = jnp.arange(image.shape[1])
    return jnp.take(image, jnp.where(flips, columns[::-1], columns), axis=1, mode="clip")


def flip_boxes(key: Key[Array, ""], boxes: Boxes, size: tuple[int, ...]) -> Boxes:
    """Mirrors the boxes of the image that `flip` mirrors with this key.

    Args:
      key: that of the image.
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      size: height and width of the image, which are all the same here.
    """
    del size
    return jnp.where(jax.random.bernoulli(key), _mirrored(boxes, axis=1), boxes)


def dihedral(key: Key[Array, ""], image: Pixels) -> Pixels:
    """Returns one of the images that mirrors and right angles make: eight of a square one, four of another."""
    turn = jax.random.bernoulli(key, shape=(3,))
    return jax.lax.platform_dependent(image, turn, cpu=_turned_by_gather, default=_turned)  # as in `flip`


def _turned(image: Pixels, turn: Bool[Array, "3"]) -> Pixels:
    upside_down, mirrored, transposed = turn
    image = jnp.where(upside_down, image[::-1], image)
    image = jnp.where(mirrored, image[:, ::-1], image)
    return jnp.where(transposed, image.swapaxes(0, 1), image) if image.shape[0] == image.shape[1] else image


def _turned_by_gather(image: Pixels, turn: Bool[Array, "3"]) -> Pixels:
    height, width, _ = image.shape
    upside_down, mirrored, transposed = turn
    rows, columns = jnp.arange(height), jnp.arange(width)
    rows = jnp.where(upside_down, rows[::-1], rows)[:, None]
    columns = jnp.where(mirrored, columns[::-1], columns)[None, :]
    if height == width:
        rows, columns = (jnp.where(transposed, places.T, places) for places in (rows, columns))
    return image.at[rows, columns].get(mode="clip")


def dihedral_boxes(key: Key[Array, ""], boxes: Boxes, size: tuple[int, ...]) -> Boxes:
    """Mirrors and turns the boxes of an image as `dihedral` does the image with this key.

    Args:
      key: that of the image.
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      size: height and width of the image.
    """
    upside_down, mirrored, transposed = jax.random.bernoulli(key, shape=(3,))
    boxes = jnp.where(upside_down, _mirrored(boxes, axis=0), boxes)
    boxes = jnp.where(mirrored, _mirrored(boxes, axis=1), boxes)
    return jnp.where(transposed & (size[0] == size[1]), boxes[:, np.array([1, 0, 3, 2])], boxes)


def _mirrored(boxes: Boxes, axis: int) -> Boxes:
    return boxes.at[:, axis].set(1 - boxes[:, axis + 2]).at[:, axis + 2].set(1 - boxes[:, axis])


def cutout(key: Key[Array, ""], image: Image, side: int, fill: tuple[float, ...] = (0.0,)) -> Image:
    """Fills a square around a random pixel; what of it hangs over the border is lost."""
    return jnp.where(random_rectangle(key, image, jnp.array([side, side])), jnp.array(fill, image.dtype), image)


def random_rectangle(key: Key[Array, ""], image: Image, size: Int[Array, "2"]) -> Bool[Array, "height width 1"]:
    """Marks the pixels of a rectangle around a random pixel."""
    height, width, _ = image.shape
    top, left = random_integers(key, jnp.array([height, width])) - size // 2
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    return (rows >= top) & (rows < top + size[0]) & (columns >= left) & (columns < left + size[1])


def random_integers(key: Key[Array, ""], bounds: Int[Array, "2"]) -> Int[Array, "2"]:
    """Draws whole numbers from 0 to below the bounds, in half the time that `jax.random.randint` takes to compile."""
    return jnp.floor(jax.random.uniform(key, (2,)) * bounds).astype(int)
