"""How weights start, by name."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt32

from cnn_research.errors import UserError, nearest

# Called with a key, a shape and a dtype.
Initializer = Callable[..., Array]


def lecun1998(
    key: PRNGKeyArray | UInt32[Array, "2"], shape: Sequence[int], dtype: DTypeLike = "float32"
) -> Float[Array, "..."]:
    """Draws uniformly from ±2.4 / F, F the inputs of a unit: LeNet-5's, made for squashing functions (appendix A).

    Args:
      key: random key.
      shape: shape of the kernel, its last axis the units.
      dtype: of the weights.
    """
    limit = 2.4 / math.prod(shape[:-1])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


def bilinear(
    key: PRNGKeyArray | UInt32[Array, "2"], shape: Sequence[int], dtype: DTypeLike = "float32"
) -> Float[Array, "height width channels_per_group features"]:
    """Returns the kernel of a transposed convolution that interpolates each channel bilinearly (Long et al. 2015).

    A kernel of 2·s (or 2·s − 1) does so at a stride of s: it falls from its middle to 0 in steps of 1/s.

    Args:
      key: not used.
      shape: height, width, channels per group, features; each feature of a group interpolates one channel.
      dtype: of the weights.

    Raises:
      UserError: there are more channels than features that could interpolate them.
    """
    *size, channels, features = shape
    if features % channels:
        raise UserError(f"bilinear: {features} features cannot interpolate {channels} channels; a multiple could")
    factors = [(extent + 1) // 2 for extent in size]
    vertical, horizontal = (
        1 - jnp.abs(jnp.arange(extent) - (factor - 1 if extent % 2 else factor - 0.5)) / factor
        for extent, factor in zip(size, factors, strict=True)
    )
    which = jnp.arange(channels)[:, None] == jnp.arange(features) % channels
    return (vertical[:, None, None, None] * horizontal[:, None, None] * which).astype(dtype)


INITIALIZERS: dict[str, Initializer] = {
    "bilinear": bilinear,
    "glorot_normal": initializers.glorot_normal(),
    "glorot_uniform": initializers.glorot_uniform(),
    "he_normal": initializers.he_normal(),
    "he_uniform": initializers.he_uniform(),
    "lecun1998": lecun1998,
    "lecun_normal": initializers.lecun_normal(),
    "lecun_uniform": initializers.lecun_uniform(),
    "normal_0.01": initializers.normal(0.01),  # AlexNet's, whatever the size of the kernel
    "normal_0.05": initializers.normal(0.05),  # Network in Network's
}


def initializer(name: str) -> Initializer:
    """Returns the initializer of a name.

    Args:
      name: a key of `INITIALIZERS`.

    Raises:
      UserError: the name is not known.
    """
    if name not in INITIALIZERS:
        raise UserError(f"initializer {name!r} is not known; {nearest(name, INITIALIZERS)}")
    return INITIALIZERS[name]
