"""Convolution with its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_research.layers.initializers import Initializer
from cnn_research.ops.convolution import convolve, convolve_transposed
from cnn_research.ops.geometry import Padding, pair


class Conv(nn.Module):
    """A 2-D convolution; its parameters are named and shaped as those of Flax's `Conv`.

    Attributes:
      features: output channels.
      kernel_size: size, one number or (height, width).
      strides: step, one number or (vertical, horizontal).
      padding: `same`, `valid`, one width for every border, or ((top, bottom), (left, right)).
      padding_mode: zeros, edge, reflect, symmetric or circular.
      dilation: distance of the kernel's taps, one number or (vertical, horizontal).
      groups: groups of channels that are convolved on their own.
      use_bias: whether a bias is added to each output channel.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = 0
    padding_mode: str = "zeros"
    dilation: int | tuple[int, int] = 1
    groups: int = 1
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
        shape = (*pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            self.padding,
            self.padding_mode,
            self.dilation,
            self.groups,
        )
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,), self.param_dtype).astype(self.dtype)
        return y


class ConvTranspose(nn.Module):
    """A transposed 2-D convolution, which makes images larger: see `ops.convolution.convolve_transposed`.

    Attributes:
      features: output channels.
      kernel_size: size, one number or (height, width).
      strides: distance of the stamps, one number or (vertical, horizontal).
      padding: what is cut off at the borders: `same`, `valid`, one width for every border, or
        ((top, bottom), (left, right)).
      output_padding: rows and columns more at the end, one number or (vertical, horizontal).
      groups: groups of channels that are convolved on their own.
      use_bias: whether a bias is added to each output channel.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = 0
    output_padding: int | tuple[int, int] = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Stamps the kernel for each pixel.

        Args:
          x: images.
        """
        shape = (*pair(self.kernel_size), x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        y = convolve_transposed(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            self.strides,
            self.padding,
            self.output_padding,
            groups=self.groups,
        )
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,), self.param_dtype).astype(self.dtype)
        return y


class PartialConv(nn.Module):
    """A convolution in which each output map sees some of the input maps; only those connections have weights.

    Attributes:
      inputs: for each output map the input maps that it sees.
      kernel_size: size, one number or (height, width).
      use_bias: whether a bias is added to each output map.
      kernel_init: initializer of the kernels, called for all output maps that see equally many input maps.
      bias_init: initializer of the bias.
      dtype: of the computation and the output.
      param_dtype: of the parameters.
    """

    inputs: tuple[tuple[int, ...], ...]
    kernel_size: int | tuple[int, int]
    use_bias: bool = True
    kernel_init: Initializer = initializers.lecun_normal()
    bias_init: Initializer = initializers.zeros
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width maps"]
    ) -> Float[Array, "batch out_height out_width features"]:
        """Convolves images.

        Args:
          x: images.
        """
        size, features = pair(self.kernel_size), len(self.inputs)

        counts = [len(maps) for maps in self.inputs]

        def init(key: Array) -> Float[Array, "kernel_height kernel_width connections"]:
            # One draw for all the maps that see equally many, since each draw of another shape is compiled anew.
            drawn = {
                count: self.kernel_init(
                    jax.random.fold_in(key, count), (*size, count, counts.count(count)), self.param_dtype
                )
                for count in sorted(set(counts))
            }
            kernels = [drawn[count][..., counts[:feature].count(count)] for feature, count in enumerate(counts)]
            return jnp.concatenate(kernels, axis=-1)

        connections = self.param("kernel", init).astype(self.dtype)
        sources = np.concatenate(self.inputs)
        targets = np.repeat(np.arange(features), counts)
        kernel = jnp.zeros((*size, x.shape[-1], features), self.dtype).at[:, :, sources, targets].set(connections)
        y = convolve(x.astype(self.dtype), kernel)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (features,), self.param_dtype).astype(self.dtype)
        return y
