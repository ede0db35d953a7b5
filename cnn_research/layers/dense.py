"""A fully connected layer that slides over maps."""

import math

from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_research.layers.initializers import Initializer
from cnn_research.ops.convolution import convolve
from cnn_research.ops.geometry import Padding, pair


class SlidingDense(nn.Module):
    """A fully connected layer as a convolution over larger maps (Long et al. 2015, section 3.1).

    Its parameters are named and shaped as those of Flax's `Dense`, whose inputs are maps of the kernel's size in one
    row: a classifier's weights fit as they are.

    Attributes:
      features: units, the output's channels.
      kernel_size: height and width of the maps that the fully connected layer takes, one number for both.
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
      padding_mode: zeros, edge, reflect, symmetric or circular.
      use_bias: whether a bias is added to each unit.
      kernel_init: initializer of the kernel, called with the shape of a matrix.
      bias_init: initializer of the bias.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int]
    padding: Padding = 0
    padding_mode: str = "zeros"
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the layer to each window.

        Args:
          x: maps.
        """
        shape = (*pair(self.kernel_size), x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, (math.prod(shape), self.features), self.param_dtype)
        kernel = kernel.astype(self.dtype).reshape(*shape, self.features)
        y = convolve(x.astype(self.dtype), kernel, padding=self.padding, padding_mode=self.padding_mode)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,), self.param_dtype).astype(self.dtype)
        return y
