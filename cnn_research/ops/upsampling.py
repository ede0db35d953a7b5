"""Upsampling: each pixel becomes a block of pixels, copied or interpolated."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float


def nearest(
    x: Float[Array, "batch height width channels"], factor: int
) -> Float[Array, "batch out_height out_width channels"]:
    """Copies each pixel to a block of factor x factor pixels.

    Args:
      x: images.
      factor: how many times as high and as wide they become.
    """
    _, height, width, _ = x.shape
    blocks = jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)
    return blocks.reshape(len(x), factor * height, factor * width, x.shape[-1])


def bilinear(
    x: Float[Array, "batch height width channels"], factor: int
) -> Float[Array, "batch out_height out_width channels"]:
    """Interpolates between the centres of the blocks that pixels become; beyond the outermost ones values stay.

    Inside that is the transposed convolution by the kernel of `layers.initializers.bilinear` of 2 · factor pixels, if
    the factor is even, without a sum of zeros at the borders; and it is what `jax.image.resize` returns.

    Args:
      x: images.
      factor: how many times as high and as wide they become.
    """
    return _interpolated(_interpolated(x, 1, factor), 2, factor)


def _interpolated(x: Float[Array, "..."], axis: int, factor: int) -> Float[Array, "..."]:
    """Interpolates along one axis: each new pixel lies between the centre of its block and that of a neighbour."""
    size = x.shape[axis]
    # Of the new pixels of a block: how far they lie beyond its centre, in blocks.
    distance = ((np.arange(factor) + 0.5) / factor - 0.5).reshape(-1, *(1,) * (x.ndim - axis - 1))
    widths = [(0, 0)] * x.ndim
    widths[axis] = (1, 1)
    padded = jnp.pad(x, widths, mode="edge")
    shares = (np.maximum(-distance, 0), 1 - np.abs(distance), np.maximum(distance, 0))
    before, here, after = (
        jnp.asarray(share, x.dtype)
        * jnp.expand_dims(lax.slice_in_dim(padded, first, first + size, axis=axis), axis + 1)
        for first, share in enumerate(shares)
    )
    y = before + here + after
    return y.reshape(*x.shape[:axis], factor * size, *x.shape[axis + 1 :])
