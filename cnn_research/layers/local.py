"""A convolution's two arguments taken back: local perception without shared weights, and neither of the two."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_research.layers.initializers import Initializer
from cnn_research.ops.geometry import Padding, explicit_padding, output_size, pair
from cnn_research.ops.padding import pad


def _output_shape(
    x: Array, kernel_size: int | tuple[int, int], strides: int | tuple[int, int], padding: Padding
) -> tuple[int, int]:
    """Returns height and width of what a convolution makes of images."""
    widths = explicit_padding(padding, kernel_size)
    sizes = zip(x.shape[1:3], pair(kernel_size), pair(strides), widths, strict=True)
    height, width = (output_size(*size) for size in sizes)
    return height, width


class LocalConv(nn.Module):
    """An unshared convolution: every output position looks through its own kernel and adds its own biases.

    Attributes:
      features: output channels.
      kernel_size: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
      padding_mode: zeros, edge, reflect, symmetric or circular.
      use_bias: whether a bias is added to each output value.
      kernel_init: initializer of the kernels, called for each position with the shape of a convolution's.
      bias_init: initializer of the biases.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
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
        """Convolves images.

        Args:
          x: images.
        """
        size, (down, right) = pair(self.kernel_size), pair(self.strides)
        height, width = _output_shape(x, self.kernel_size, self.strides, self.padding)
        shape = (*size, x.shape[-1], self.features)

        def init(key: Array) -> Float[Array, "out_height out_width kernel_height kernel_width channels features"]:
            draw = jax.vmap(lambda key: self.kernel_init(key, shape, self.param_dtype))
            return draw(jax.random.split(key, height * width)).reshape(height, width, *shape)

        kernel = self.param("kernel", init).astype(self.dtype)
        widths = explicit_padding(self.padding, self.kernel_size)
        x = pad(x.astype(self.dtype), ((0, 0), *widths, (0, 0)), self.padding_mode)
        # What each tap of the kernel sees, at all positions. On CPU this and one product are faster than
        # `lax.conv_general_dilated_local`, which cuts the windows out by a convolution with an identity: 1.2 to 15
        # times for the gradients of LeNet-5's layers.
        taps = [
            x[:, top : top + down * (height - 1) + 1 : down, left : left + right * (width - 1) + 1 : right]
            for top in range(size[0])
            for left in range(size[1])
        ]
        windows = jnp.stack(taps, axis=3).reshape(len(x), height, width, *shape[:3])
        y = jnp.einsum("bhwijc,hwijcf->bhwf", windows, kernel)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (height, width, self.features), self.param_dtype)
            y += bias.astype(self.dtype)
        return y


class DenseConv(nn.Module):
    """A fully connected layer to the maps that a convolution would give: every output value sees the whole input.

    Padding only says how large those maps are: a weight for what lies beyond the border would learn nothing.

    Attributes:
      features: output channels.
      kernel_size: of the convolution, one number or (height, width).
      strides: of the convolution, one number or (vertical, horizontal).
      padding: of the convolution: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
      use_bias: whether a bias is added to each output value.
      kernel_init: initializer of the kernel, a matrix.
      bias_init: initializer of the biases.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = 0
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Computes the maps.

        Args:
          x: images.
        """
        maps = (*_output_shape(x, self.kernel_size, self.strides, self.padding), self.features)
        x = x.reshape(len(x), -1)
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], math.prod(maps)), self.param_dtype)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (math.prod(maps),), self.param_dtype).astype(self.dtype)
        return y.reshape(len(x), *maps)
