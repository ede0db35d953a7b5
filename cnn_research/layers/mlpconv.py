"""The mlpconv layer: a small multilayer perceptron slid over the image. Lin, Chen & Yan 2013, arXiv:1312.4400."""

from collections.abc import Callable
from functools import partial

from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.layers.activations import Activation
from cnn_research.layers.convolution import Conv
from cnn_research.layers.normalization import Norm
from cnn_research.ops.geometry import Padding


class MlpConv(nn.Module):
    """A convolution and 1x1 convolutions after it, each followed by norm and activation.

    The paper's section 3.2 calls the 1x1 convolutions cascaded cross-channel parametric pooling: at each pixel they are
    the further layers of a perceptron whose first layer is the convolution.

    Attributes:
      features: output channels of the convolution and of each 1x1 convolution; with one number there are none of these.
      kernel_size: size of the convolution, one number or (height, width).
      strides: its step, one number or (vertical, horizontal).
      padding: its border, as `Conv` takes it.
      activation: kind of the activations.
      activate_last: whether one follows the last convolution too.
      conv: makes a convolution.
      norm: makes a norm.
    """

    features: tuple[int, ...]
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: Padding = "same"
    activation: str | Callable[[Array], Array] = "relu"
    activate_last: bool = True
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = partial(Norm, "none")

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the perceptron to each window.

        Args:
          x: images.
          train: whether the norms use the batch's own statistics.
        """
        for index, features in enumerate(self.features):
            if index == 0:
                name = "conv"
                x = self.conv(features, self.kernel_size, self.strides, self.padding, name=name)(x)
            else:
                name = f"cccp{index}"
                x = self.conv(features, 1, name=name)(x)
            x = self.norm(name=f"{name}_norm")(x, train)
            if index < len(self.features) - 1 or self.activate_last:
                x = Activation(self.activation, name=f"{name}_activation")(x)
        return x
