"""Pooling as a layer."""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_research.errors import UserError, nearest
from cnn_research.layers.initializers import Initializer
from cnn_research.ops.geometry import Padding, pair
from cnn_research.ops.pooling import avg_pool, max_pool

POOLS = {"avg": avg_pool, "max": max_pool}


class Pool(nn.Module):
    """Max or average pooling as a layer, so that `nn.intercept_methods` can address it by name.

    Attributes:
      kind: max or avg.
      window: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
      count_include_pad: whether padding counts as zeros in a mean.
    """

    kind: str
    window: int | tuple[int, int]
    strides: int | tuple[int, int]
    padding: Padding = 0
    count_include_pad: bool = True

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width channels"]:
        """Pools images.

        Args:
          x: images.

        Raises:
          UserError: the kind is not known.
        """
        if self.kind not in POOLS:
            raise UserError(f"pool {self.kind!r} is not known; {nearest(self.kind, POOLS)}")
        mean = {"count_include_pad": self.count_include_pad} if self.kind == "avg" else {}
        return POOLS[self.kind](x, self.window, self.strides, self.padding, **mean)


class TrainablePool(nn.Module):
    """Subsampling as of 1998: the sum of each window, times a weight and plus a bias that each channel learns.

    Attributes:
      window: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      kernel_init: initializer of the weights, called with the shape of a window, all of whose values share one.
      bias_init: initializer of the bias.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    window: int | tuple[int, int]
    strides: int | tuple[int, int]
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width channels"]:
        """Pools images.

        Args:
          x: images.
        """
        window, channels = pair(self.window), x.shape[-1]
        shape = (*window, 1, channels)
        scale = self.param("scale", lambda key: self.kernel_init(key, shape, self.param_dtype)[0, 0, 0])
        bias = self.param("bias", self.bias_init, (channels,), self.param_dtype)
        total = math.prod(window) * avg_pool(x.astype(self.dtype), window, self.strides)
        return total * scale.astype(self.dtype) + bias.astype(self.dtype)


class AdaptiveAvgPool(nn.Module):
    """Means of as many windows as it takes to give maps of one size, whatever the size of the images: PyTorch's.

    The windows part the image as evenly as whole pixels allow; they overlap where the sizes do not divide.

    Attributes:
      size: height and width of what it gives.
    """

    size: int

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch size size channels"]:
        """Pools images.

        Args:
          x: images.
        """
        if x.shape[1:3] == (self.size, self.size):
            return x
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        def shares(extent: int) -> Float[Array, "size extent"]:
            first = np.arange(self.size) * extent // self.size
            last = -(-np.arange(1, self.size + 1) * extent // self.size)
            pixels = np.arange(extent)
            inside = (first[:, None] <= pixels) & (pixels < last[:, None])
            return jnp.asarray(inside / inside.sum(1, keepdims=True), wide.dtype)

        vertical, horizontal = map(shares, x.shape[1:3])
        y = jnp.einsum("ih,bhwc,jw->bijc", vertical, wide, horizontal, precision=lax.Precision.HIGHEST)
        return y.astype(x.dtype)
