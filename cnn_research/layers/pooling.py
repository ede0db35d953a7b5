"""Pooling as a layer."""

import math

from flax import linen as nn
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
    """

    kind: str
    window: int | tuple[int, int]
    strides: int | tuple[int, int]
    padding: Padding = 0

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
        return POOLS[self.kind](x, self.window, self.strides, self.padding)


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
