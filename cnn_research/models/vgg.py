"""VGG: stacks of 3x3 convolutions between poolings. Simonyan & Zisserman 2014, arXiv:1409.1556.

"Very deep convolutional networks for large-scale image recognition"; the layers are those of its table 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    POOLS,
    Activation,
    Conv,
    LocalResponseNorm,
    Norm,
    Pool,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)

# The columns of table 1: the channels of each stage's 3x3 convolutions. "256*" is a 1x1 convolution, and "LRN" stands
# where local response normalization ends the stage.
CONFIGURATIONS: dict[str, tuple[tuple[int | str, ...], ...]] = {
    "A": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    "A-LRN": ((64, "LRN"), (128,), (256, 256), (512, 512), (512, 512)),
    "B": ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    "C": ((64, 64), (128, 128), (256, 256, "256*"), (512, 512, "512*"), (512, 512, "512*")),
    "D": ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
    "E": ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512)),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "vgg11": dict(configuration="A"),
    "vgg11_lrn": dict(configuration="A-LRN"),
    "vgg13": dict(configuration="B"),
    "vgg16_1x1": dict(configuration="C"),
    "vgg16": dict(configuration="D"),
    "vgg19": dict(configuration="E"),
}


def convolutions(stage: Sequence[int | str], kernel: int = 3) -> list[tuple[int, int]]:
    """Returns (kernel size, channels) of a stage's convolutions.

    Args:
      stage: a stage of a value of `CONFIGURATIONS`.
      kernel: size of the kernels that replace 3x3 ones: each 5x5 two in a row of equal channels, each 7x7 three.
    """
    layers = [
        (1, int(layer.removesuffix("*"))) if isinstance(layer, str) else (3, layer) for layer in stage if layer != "LRN"
    ]
    replaced: list[tuple[int, int]] = []
    for (size, channels), run in groupby(layers):
        # n convolutions of 3x3 see 2n + 1 pixels.
        larger, rest = divmod(len(list(run)), (kernel - 1) // 2 if size == 3 else 1)
        replaced += larger * [(kernel if size == 3 else size, channels)] + rest * [(size, channels)]
    return replaced


class VGG(nn.Module):
    """VGG-11 (A) to VGG-19 (E).

    Attributes:
      configuration: the column of table 1, a key of `CONFIGURATIONS`.
      num_classes: classes.
      width: multiplies the channels of the convolutions and the units of the hidden layers, rounded to whole ones.
      hidden: units of the fully connected layers before the head, fc6, fc7 and so on; there may be none.
      kernel: size of the kernels: 3, or 5 or 7 for one convolution in place of each two or three in a row of a stage
        whose channels are equal, with the same field of view (section 2.3; in section 4.1 B loses 7% in top-1 by it).
      norm: follows the convolutions, which keep their biases.
      activation: follows every layer with weights but the head.
      pool: kind of the 2x2 poolings that end the stages: avg or max.
      padding_mode: what lies beyond the borders of the convolutions' inputs.
      dropout_rate: share of the hidden layers' outputs that training drops.
      kernel_init: initializer of the weights; the paper's footnote recommends Glorot & Bengio's, which needs no
        shallower network to start from.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    configuration: str = "D"
    num_classes: int = 1000
    width: float = 1.0
    hidden: tuple[int, ...] = (4096, 4096)
    kernel: int = 3
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "relu"
    pool: str = "max"
    padding_mode: str = "zeros"
    dropout_rate: float = 0.5
    kernel_init: str = "glorot_uniform"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("configuration", self.configuration, CONFIGURATIONS)
        check_choice("pool", self.pool, POOLS)
        if self.kernel not in (3, 5, 7):
            raise UserError(f"kernel={self.kernel} is out of range; it must be 3, 5 or 7")
        stages = CONFIGURATIONS[self.configuration]
        if all(convolutions(stage, self.kernel) == convolutions(stage) for stage in stages):
            run = (self.kernel - 1) // 2
            why = f"with configuration={self.configuration!r}, which has no {run} such convolutions in a row"
            check_unused(self, ["kernel"], why)
        if any(units < 1 for units in self.hidden):
            raise UserError(f"hidden={self.hidden} is out of range; each layer must have 1 or more units")
        if not self.hidden:
            check_unused(self, ["dropout_rate"], "with hidden=()")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of images.

        Args:
          images: 224x224 in the paper, at least 32x32; the first call decides, as the first fully connected layer takes
            all that pool5 leaves.
          train: whether to drop units and to use the batch's own statistics.

        Raises:
          UserError: the images are too small.
        """
        height, width = images.shape[1:3]
        if min(height, width) < 32:
            raise UserError(f"VGG halves images five times; they must be at least 32x32, not {height}x{width}")
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        conv: Callable[..., nn.Module] = partial(Conv, padding="same", padding_mode=self.padding_mode, **weights)
        norm = partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)

        def widened(features: int) -> int:
            return max(1, round(self.width * features))

        x = images
        for stage, layers in enumerate(CONFIGURATIONS[self.configuration], start=1):
            for index, (size, channels) in enumerate(convolutions(layers, self.kernel), start=1):
                layer = f"conv{stage}_{index}"
                x = conv(widened(channels), size, name=layer)(x)
                x = norm(name=f"{layer}_norm")(x, train)
                x = Activation(self.activation, name=f"{layer}_activation")(x)
            if "LRN" in layers:
                x = LocalResponseNorm(name=f"lrn{stage}")(x)
            x = Pool(self.pool, window=2, strides=2, name=f"pool{stage}")(x)
        x = x.reshape(len(x), -1)
        for index, units in enumerate(self.hidden, start=6):
            x = nn.Dense(widened(units), **weights, name=f"fc{index}")(x)
            x = Activation(self.activation, name=f"fc{index}_activation")(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"fc{index}_dropout")(x)
        logits = nn.Dense(self.num_classes, **weights, name="head")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))
