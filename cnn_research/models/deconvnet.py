"""DeconvNet: a VGG and its mirror image, which unpools where VGG pooled. Noh, Hong & Han 2015, arXiv:1505.04366.

"Learning deconvolution network for semantic segmentation"; the layers are those of its table 2 and of the authors'
published network, https://github.com/HyeonwooNoh/DeconvNet.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    POOLS,
    UNPOOLS,
    Activation,
    Conv,
    ConvTranspose,
    Norm,
    Pool,
    SlidingDense,
    Unpool,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)
from cnn_research.models.vgg import CONFIGURATIONS, convolutions


class DeconvNet(nn.Module):
    """DeconvNet; its first half's layers are named and shaped as those of VGG up to fc7.

    Attributes:
      configuration: of VGG: A, B, C, D or E.
      stages: how many of its five stages there are; 3 make a network for images of 64x64.
      unpool: the way back from a pooling: `switches` puts each value where the largest of its window was, among zeros;
        `nearest` fills the window with it; `bilinear` interpolates.
      num_classes: classes.
      width: multiplies all channels and units, rounded to whole ones.
      hidden: units of the fully connected layers in the middle, fc6, fc7 and so on; without any the last pooling is
        unpooled at once.
      hidden_kernel: size of the maps that fc6 takes and fc6_deconv gives back: 7 for five stages and 224x224 pixels.
      norm: follows every layer with weights but the head; they keep their biases.
      activation: follows every layer with weights but the head.
      pool: kind of the poolings: max, or with another unpool than `switches` avg.
      padding_mode: what lies beyond the borders of the 3x3 convolutions' inputs.
      dropout_rate: share of the hidden layers' outputs that training drops; batch norm stands in for it here.
      kernel_init: initializer of the weights.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    configuration: str = "D"
    stages: int = 5
    unpool: str = "switches"
    num_classes: int = 21
    width: float = 1.0
    hidden: tuple[int, ...] = (4096, 4096)
    hidden_kernel: int = 7
    norm: str = "batch"
    activation: str | Callable[[Array], Array] = "relu"
    pool: str = "max"
    padding_mode: str = "zeros"
    dropout_rate: float = 0.0
    kernel_init: str = "normal_0.01"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("configuration", self.configuration, [key for key in CONFIGURATIONS if "LRN" not in key])
        check_choice("unpool", self.unpool, UNPOOLS)
        check_choice("pool", self.pool, POOLS)
        if self.pool != "max" and self.unpool == "switches":
            raise UserError(f"pool={self.pool!r} leaves no switches; use pool='max', or unpool='nearest'")
        if not 1 <= self.stages <= 5:
            raise UserError(f"stages={self.stages} is out of range; it must be from 1 to 5")
        if any(units < 1 for units in self.hidden):
            raise UserError(f"hidden={self.hidden} is out of range; each layer must have 1 or more units")
        if self.hidden_kernel < 1:
            raise UserError(f"hidden_kernel={self.hidden_kernel} is out of range; it must be 1 or more")
        if not self.hidden:
            check_unused(self, ["dropout_rate", "hidden_kernel"], "with hidden=()")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width classes"]:
        """Returns the logits of each pixel.

        Args:
          images: 224x224 in the paper, of that size or larger and any number of channels.
          train: whether to drop units and to use the batch's own statistics.

        Raises:
          UserError: the images are too small.
        """
        height, width = images.shape[1:3]
        least = 2**self.stages * (self.hidden_kernel if self.hidden else 1)
        if min(height, width) < least:
            raise UserError(
                f"DeconvNet with stages={self.stages} and hidden_kernel={self.hidden_kernel} takes images of at least "
                f"{least}x{least}, not {height}x{width}; use fewer stages or a smaller kernel"
            )
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        conv: Callable[..., nn.Module] = partial(Conv, padding="same", padding_mode=self.padding_mode, **weights)
        norm = partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)

        def widened(features: int) -> int:
            return max(1, round(self.width * features))

        def layer(x: Array, make: Callable[..., nn.Module], features: int, kernel: int, name: str) -> Array:
            x = norm(name=f"{name}_norm")(make(widened(features), kernel, name=name)(x), train)
            return Activation(self.activation, name=f"{name}_activation")(x)

        x = images
        stages = [convolutions(stage) for stage in CONFIGURATIONS[self.configuration][: self.stages]]
        pooled = []  # what each pooling takes
        for stage, layers in enumerate(stages, start=1):
            for index, (kernel, features) in enumerate(layers, start=1):
                x = layer(x, conv, features, kernel, f"conv{stage}_{index}")
            pooled.append(x)
            x = Pool(self.pool, window=2, strides=2, name=f"pool{stage}")(x)

        for index, units in enumerate(self.hidden, start=6):
            x = layer(x, partial(SlidingDense, **weights), units, self.hidden_kernel if index == 6 else 1, f"fc{index}")
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"fc{index}_dropout")(x)
        if self.hidden:
            x = layer(x, partial(ConvTranspose, **weights), stages[-1][-1][1], self.hidden_kernel, "fc6_deconv")

        # A stage's layers mirrored: the last gives what the stage before has. With a stride of 1 a transposed
        # convolution is a convolution by the kernel turned by 180°.
        for stage in range(self.stages, 0, -1):
            x = Unpool(self.unpool, name=f"unpool{stage}")(x, pooled.pop())
            mirrored = stages[stage - 1][::-1]
            channels = [features for _, features in (*mirrored[1:], stages[max(stage - 2, 0)][-1])]
            for index, ((kernel, _), features) in enumerate(zip(mirrored, channels, strict=True), start=1):
                x = layer(x, conv, features, kernel, f"deconv{stage}_{index}")
        return conv(self.num_classes, 1, name="head")(x).astype(jnp.promote_types(self.dtype, jnp.float32))
