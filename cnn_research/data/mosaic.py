"""Four images become one, with their objects and masks. Bochkovskiy, Wang & Liao 2020, arXiv:2004.10934, section 3.3.

The four meet in a point, each with the corner that it has there, and are cut off at the border of a frame of their own
size. All is of one example, with a first axis of four: upper left, upper right, lower left and lower right.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Shaped

from cnn_research.data.crops import into_window

CENTRE = (0.3, 0.7)  # of the frame's height and width: where the four meet
SCALE = (0.5, 1.0)  # of all four: by the least, and in the middle, each is seen whole

PARTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])  # whether each image is the lower one, and the right one


class Layout(NamedTuple):
    """Where four images come to lie.

    Attributes:
      centre: where they meet, in whole pixels.
      scale: of their sides.
    """

    centre: Float[Array, "2"]
    scale: Float[Array, ""]


def draw(key: Key[Array, ""], size: tuple[int, ...]) -> Layout:
    """Draws a layout, uniform in the place and in the logarithm of the scale.

    Args:
      key: to draw from.
      size: height and width of the images, in pixels.
    """
    place_key, scale_key = jax.random.split(key)
    centre = jax.random.uniform(place_key, (2,), minval=CENTRE[0], maxval=CENTRE[1]) * jnp.array(size)
    low, high = np.log(SCALE)
    return Layout(jnp.floor(centre), jnp.exp(jax.random.uniform(scale_key, minval=low, maxval=high)))


def put_together(
    layout: Layout,
    images: Shaped[Array, "4 height width channels"],
    fill: tuple[float, ...] = (0.0,),
    nearest: bool = False,
) -> Shaped[Array, "height width channels"]:
    """Puts images together, bilinearly between pixels' centres.

    Args:
      layout: where they lie.
      images: of one size.
      fill: what is beyond their borders.
      nearest: whether each pixel is the nearest one, as classes need it, instead.
    """
    size = images.shape[1:3]
    which, inside, places = jnp.zeros((), int), jnp.ones((), bool), list[Array]()
    for axis, length in enumerate(size):
        from_centre = jnp.expand_dims(jnp.arange(length) + 0.5 - layout.centre[axis], 1 - axis)
        after = from_centre > 0
        places.append(from_centre / layout.scale + jnp.where(after, 0, length))
        which = 2 * which + after
        inside &= (places[axis] >= 0) & (places[axis] <= length)

    def at(row: Array, column: Array) -> Array:
        rows, columns = (jnp.clip(x.astype(int), 0, length - 1) for x, length in zip((row, column), size, strict=True))
        return images[which, rows, columns]

    if nearest:
        mixed = at(*map(jnp.floor, places))
    else:
        (top, down), (left, right) = (jnp.divmod(place - 0.5, 1) for place in places)
        down, right = (fraction[..., None].astype(images.dtype) for fraction in (down, right))
        above, below = (at(row, left) * (1 - right) + at(row, left + 1) * right for row in (top, top + 1))
        mixed = above * (1 - down) + below * down
    return jnp.where(inside[..., None], mixed, jnp.array(fill, images.dtype))


def move_boxes(
    layout: Layout, boxes: Float[Array, "4 objects 4"], size: tuple[int, ...]
) -> tuple[Float[Array, "4 objects 4"], Bool[Array, "4 objects"]]:
    """Moves boxes as `put_together` does their images, and cuts them off where what is seen of these ends.

    Args:
      layout: where images lie.
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      size: height and width of the images, in pixels.

    Returns:
      In 0..1 of the result; and of which the centre is seen.
    """
    whole, parts = jnp.array(size), jnp.asarray(PARTS)
    corners = jnp.where(parts == 1, 0, whole) - layout.centre / layout.scale
    moved = jax.vmap(lambda each, corner: into_window(each, size, corner, whole / layout.scale))(boxes, corners)
    meet = layout.centre / whole
    low, high = jnp.where(parts == 1, meet, 0.0)[:, None], jnp.where(parts == 1, 1.0, meet)[:, None]
    begin, end = moved[..., :2], moved[..., 2:]
    middle = (begin + end) / 2
    seen = ((middle > low) & (middle < high) & (end > begin)).all(axis=-1)
    return jnp.concatenate([jnp.clip(begin, low, high), jnp.clip(end, low, high)], axis=-1), seen
