"""Elastic deformation: pixels move smoothly and at random. Ronneberger et al. 2015, arXiv:1505.04597, section 3.1."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cnn_research.data.crops import Pixels

GRID = 3  # control points along each side, from border to border


def elastic(
    key: Key[Array, ""], image: Pixels, deviation: float, nearest: bool = False, outside: float | None = None
) -> Pixels:
    """Looks each pixel up some way off, by a way that changes smoothly over the image.

    Args:
      key: to draw from.
      image: any.
      deviation: of the displacements of 3x3 control points along each axis, normal, in pixels; 10 in the paper.
      nearest: whether a pixel becomes the nearest one, as classes need it, and not a mean of four.
      outside: the value of what lies beyond the border; unless given, the image is mirrored there.
    """
    height, width, _ = image.shape
    moves = displacements(deviation * jax.random.normal(key, (GRID, GRID, 2)), (height, width))
    rows, columns = jnp.arange(height)[:, None] + moves[..., 0], jnp.arange(width) + moves[..., 1]
    if nearest:
        return _look_up(image, jnp.round(rows).astype(int), jnp.round(columns).astype(int), outside)
    top, left = jnp.floor(rows).astype(int), jnp.floor(columns).astype(int)
    down, right = ((part % 1).astype(image.dtype)[..., None] for part in (rows, columns))

    def between(row: Int[Array, "height width"]) -> Pixels:
        first, second = (_look_up(image, row, left + step, outside) for step in (0, 1))
        return first * (1 - right) + second * right

    return between(top) * (1 - down) + between(top + 1) * down


def displacements(grid: Float[Array, "rows columns 2"], size: tuple[int, int]) -> Float[Array, "height width 2"]:
    """Interpolates the displacements of control points bicubically (Keys 1981); the outer ones lie on the border."""
    # Pixel i lies at (i + 1/2 - translation) / scale - 1/2 of the grid.
    scale = jnp.array([(length - 1) / (points - 1) for length, points in zip(size, grid.shape, strict=False)])
    return jax.image.scale_and_translate(grid, (*size, 2), (0, 1), scale, (1 - scale) / 2, "cubic")


def _look_up(
    image: Pixels, rows: Int[Array, "height width"], columns: Int[Array, "height width"], outside: float | None
) -> Pixels:
    height, width, _ = image.shape
    found = image.at[_mirror(rows, height), _mirror(columns, width)].get(mode="promise_in_bounds")
    if outside is None:
        return found
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return jnp.where(inside[..., None], found, jnp.array(outside, image.dtype))


def _mirror(index: Int[Array, "height width"], length: int) -> Int[Array, "height width"]:
    """Reflects indices at the centres of the first and the last pixel."""
    period = max(2 * (length - 1), 1)
    return jnp.minimum(index % period, -index % period)
