"""AlexNet: five convolutions and three fully connected layers. Krizhevsky, Sutskever & Hinton 2012.

"ImageNet classification with deep convolutional neural networks", NIPS 25. Its narrower successor is that of
"One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997, in torchvision's shape.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    POOLS,
    Activation,
    AdaptiveAvgPool,
    Conv,
    LocalResponseNorm,
    Norm,
    Pool,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "alexnet": {},
    "alexnet_ungrouped": dict(groups=1),
    "alexnet_owt": dict(
        features=(64, 192, 384, 256, 256), groups=1, lrn=False, stem_padding=2, adaptive_size=6, dropout_at="inputs"
    ),
}


class AlexNet(nn.Module):
    """AlexNet as of 2012, and by its fields the network that the name stands for today.

    Attributes:
      num_classes: classes.
      features: channels of the five convolutions.
      groups: groups of channels that conv2, conv4 and conv5 convolve on their own, in the paper one for each GPU.
      width: multiplies the channels, rounded to multiples of the groups, and the units of the hidden layers.
      stem_kernel: size of conv1.
      stem_strides: step of conv1.
      stem_padding: border of conv1.
      lrn: whether local response normalization follows the activations of conv1 and conv2.
      pool: kind of the three poolings, with stride 2: avg or max.
      pool_window: their size: 3 overlaps, 2 does not and gives maps of the same size at the paper's (section 3.4: 0.4%
        worse).
      adaptive_size: height and width of the maps that fc6 takes, averaged to that size; 0: as pool5 leaves them.
      hidden: units of the fully connected layers before the head, fc6, fc7 and so on; there may be none.
      norm: follows the convolutions, which keep their biases.
      activation: follows every layer with weights but the head.
      padding_mode: what lies beyond the borders of the convolutions' inputs.
      dropout_at: whether training drops the hidden layers' `outputs`, as the paper does, or their `inputs`, as
        torchvision does.
      dropout_rate: share that it drops.
      kernel_init: initializer of the weights.
      initial_bias: what the biases of conv2, conv4, conv5 and the hidden layers start with, so that their units start
        active; the others start at 0.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 1000
    features: tuple[int, ...] = (96, 256, 384, 384, 256)
    groups: int = 2
    width: float = 1.0
    stem_kernel: int = 11
    stem_strides: int = 4
    stem_padding: int = 0
    lrn: bool = True
    pool: str = "max"
    pool_window: int = 3
    adaptive_size: int = 0
    hidden: tuple[int, ...] = (4096, 4096)
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "relu"
    padding_mode: str = "zeros"
    dropout_at: str = "outputs"
    dropout_rate: float = 0.5
    kernel_init: str = "normal_0.01"
    initial_bias: float = 1.0
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("pool", self.pool, POOLS)
        check_choice("dropout_at", self.dropout_at, ("inputs", "outputs"))
        bounds = dict(groups=1, stem_kernel=1, stem_strides=1, stem_padding=0, adaptive_size=0, pool_window=2)
        for field, least in bounds.items():
            if getattr(self, field) < least:
                raise UserError(f"{field}={getattr(self, field)} is out of range; it must be {least} or more")
        if len(self.features) != 5 or any(each < 1 or each % self.groups for each in self.features):
            raise UserError(
                f"features={self.features} is out of range; there must be 5 numbers, multiples of groups={self.groups}"
            )
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
          images: 227x227 for the sizes of the paper's maps, which says 224 (that is `alexnet_owt`'s, with its border).
            The first call decides, unless `adaptive_size` does: fc6 takes all that pool5 leaves.
          train: whether to drop units and to use the batch's own statistics.

        Raises:
          UserError: the images are too small.
        """
        self._check_size(*images.shape[1:3])
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        active: dict[str, Any] = {"bias_init": initializers.constant(self.initial_bias)}
        grouped: dict[str, Any] = {"groups": self.groups, **active}
        conv: Callable[..., nn.Module] = partial(Conv, padding="same", padding_mode=self.padding_mode, **weights)
        norm = partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)
        features = [self.groups * max(1, round(self.width * each / self.groups)) for each in self.features]

        def activate(x: Array, layer: str) -> Array:
            return Activation(self.activation, name=f"{layer}_activation")(x)

        def convolve(x: Array, index: int, kernel: int, **fields: Any) -> Array:
            x = conv(features[index - 1], kernel, **fields, name=f"conv{index}")(x)
            return activate(norm(name=f"conv{index}_norm")(x, train), f"conv{index}")

        def normalize_and_pool(x: Array, index: int, lrn: bool) -> Array:
            if lrn:
                x = LocalResponseNorm(name=f"lrn{index}")(x)
            return Pool(self.pool, self.pool_window, strides=2, name=f"pool{index}")(x)

        def dropout(x: Array, layer: str) -> Array:
            return nn.Dropout(self.dropout_rate, deterministic=not train, name=f"{layer}_dropout")(x)

        x = convolve(images, 1, self.stem_kernel, strides=self.stem_strides, padding=self.stem_padding)
        x = normalize_and_pool(x, 1, self.lrn)
        x = convolve(x, 2, 5, **grouped)
        x = normalize_and_pool(x, 2, self.lrn)
        x = convolve(x, 3, 3)
        x = convolve(x, 4, 3, **grouped)
        x = convolve(x, 5, 3, **grouped)
        x = normalize_and_pool(x, 5, lrn=False)
        if self.adaptive_size:
            x = AdaptiveAvgPool(self.adaptive_size, name="avgpool")(x)
        x = x.reshape(len(x), -1)
        for index, units in enumerate(self.hidden, start=6):
            layer = f"fc{index}"
            if self.dropout_at == "inputs":
                x = dropout(x, layer)
            x = nn.Dense(max(1, round(self.width * units)), **weights, **active, name=layer)(x)
            x = activate(x, layer)
            if self.dropout_at == "outputs":
                x = dropout(x, layer)
        logits = nn.Dense(self.num_classes, **weights, name="head")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _check_size(self, height: int, width: int) -> None:
        """Refuses images that vanish on the way to pool5."""
        least = 1
        for _ in range(3):
            least = 2 * (least - 1) + self.pool_window
        least = self.stem_strides * (least - 1) + self.stem_kernel - 2 * self.stem_padding
        if min(height, width) < least:
            raise UserError(
                f"AlexNet with stem_kernel={self.stem_kernel}, stem_strides={self.stem_strides}, "
                f"stem_padding={self.stem_padding} takes images of at least {least}x{least}, not {height}x{width}; "
                "resize them or use a smaller stem"
            )
