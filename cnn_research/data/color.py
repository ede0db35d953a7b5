"""Colour: brightness, contrast, saturation and hue of one image with values in 0..1, changed by a given amount."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# The weights of red, green and blue in the brightness that the eye sees: ITU-R BT.601, as JPEG has them.
LUMA = (0.299, 0.587, 0.114)

Image = Float[Array, "height width channels"]
Scalar = Float[Array, ""] | float


def luma(image: Image) -> Float[Array, "height width 1"]:
    """Returns an image in grey; a grey one is returned as it is."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.split(image, 3, axis=-1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def adjust_brightness(image: Image, factor: Scalar) -> Image:
    """Blends an image with black: 0 is black, 1 changes nothing."""
    return jnp.clip(image * factor, 0, 1)


def adjust_contrast(image: Image, factor: Scalar) -> Image:
    """Blends an image with its mean grey: 0 is that grey all over, 1 changes nothing."""
    return jnp.clip(image * factor + luma(image.mean(axis=(0, 1), keepdims=True)) * (1 - factor), 0, 1)


def adjust_saturation(image: Image, factor: Scalar) -> Image:
    """Blends an image with its grey self: 0 takes all colour away, 1 changes nothing. A grey image stays as it is."""
    if image.shape[-1] == 1:
        return image
    return jnp.clip(image * factor + luma(image) * (1 - factor), 0, 1)


def adjust_hue(image: Image, turns: Scalar) -> Image:
    """Turns the hue of each pixel in HSV, at constant saturation and value. A grey image stays as it is.

    Args:
      image: red, green and blue, or grey.
      turns: of the colour circle; 1/3 makes red green, and 1 changes nothing.
    """
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    divisor = jnp.where(chroma > 0, chroma, 1)
    # In sixths of a turn, from red; grey has none, and its chroma of 0 lets any do.
    hue = jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = jnp.where(value == red, (green - blue) / divisor, hue)
    # HSV to RGB without cases: a channel falls from the value by the chroma as the hue leaves its third of the circle.
    offset = jnp.array([5, 3, 1], image.dtype) + (hue + 6 * turns)[..., None]
    offset = offset - 6 * jnp.floor(offset / 6)  # on a CPU ten times as fast as the operator %
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(offset, 4 - offset), 0, 1)
