"""GoogLeNet: modules that look at several scales at once. Szegedy et al. 2014, arXiv:1409.4842.

"Going deeper with convolutions"; the layers are those of its table 1, its details those of BVLC's published network,
https://github.com/BVLC/caffe/tree/master/models/bvlc_googlenet.
"""

import math
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
from cnn_research.ops.geometry import ceil_padding

# The rows of table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj of each stage's modules.
STAGES = {
    3: {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    4: {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    5: {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}

# The modules after which the auxiliary classifiers stand.
AUXILIARY = ("4a", "4d")

VARIANTS: dict[str, dict[str, Any]] = {
    "googlenet": {},
    # As torchvision has it, for its weights. That the large kernel is 3x3 is known to it as a bug, which they keep:
    # https://github.com/pytorch/vision/issues/906.
    "googlenet_bn": dict(
        norm="batch", lrn=False, large_kernel=3, pool4_window=2, auxiliary_pool="adaptive", dropout_rate=0.2
    ),
    "googlenet_cifar": dict(num_classes=10, norm="batch", lrn=False, stem="3x3"),
}


class Inception(nn.Module):
    """Convolutions of three sizes and a pooling of one input, side by side: their maps are concatenated.

    Attributes:
      features: channels as in a row of table 1.
      reduction: whether 1x1 convolutions reduce the channels before the larger convolutions and after the pooling
        (figure 2b). The naive version (2a) convolves the input itself and hands the pooled one on.
      large_kernel: size of the kernel of `conv5x5`.
      pool: kind of the pooling.
      layer: applies a convolution with norm and activation.
    """

    features: tuple[int, ...]
    reduction: bool
    large_kernel: int
    pool: str
    layer: Callable[..., Array]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width features"]:
        """Looks at images at all scales.

        Args:
          x: activations.
          train: whether the norms use the batch's own statistics.
        """
        layer = partial(self.layer, train=train)
        only, reduced3, middle, reduced5, large, projected = self.features
        pooled = Pool(self.pool, window=3, strides=1, padding=1, name="pool")(x)
        inputs3 = inputs5 = x
        if self.reduction:
            inputs3 = layer(x, reduced3, 1, name="conv3x3_reduce")
            inputs5 = layer(x, reduced5, 1, name="conv5x5_reduce")
            pooled = layer(pooled, projected, 1, name="pool_proj")
        branches = [
            layer(x, only, 1, name="conv1x1"),
            layer(inputs3, middle, 3, name="conv3x3"),
            layer(inputs5, large, self.large_kernel, name="conv5x5"),
            pooled,
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier halfway, which training alone uses: its loss sends gradients to the lower layers.

    It leaves its `logits` and its `weight` in the collection `auxiliary`, where the task finds them.

    Attributes:
      weight: factor of its loss.
      num_classes: classes.
      features: channels of its convolution, units of its hidden layer.
      pool: makes the pooling that it starts with.
      dropout_rate: share of the hidden units that training drops.
      activation: kind of the hidden layer's activation.
      layer: applies a convolution with norm and activation.
      hidden: makes the hidden layer.
      dense: makes the last layer.
    """

    weight: float
    num_classes: int
    features: tuple[int, int]
    pool: Callable[..., nn.Module]
    dropout_rate: float
    activation: str | Callable[[Array], Array]
    layer: Callable[..., Array]
    hidden: Callable[..., nn.Module]
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch classes"]:
        """Returns the logits of images.

        Args:
          x: activations halfway.
          train: whether to drop units and to use the batch's own statistics.
        """
        channels, units = self.features
        x = self.pool(name="pool")(x)
        x = self.layer(x, channels, 1, train=train, name="conv")
        x = self.hidden(units, name="fc")(x.reshape(len(x), -1))
        x = Activation(self.activation, name="fc_activation")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        logits = self.dense(self.num_classes, name="head")(x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if not self.is_initializing():  # what it leaves there is no variable
            for name, value in (("logits", logits), ("weight", self.weight)):
                self.sow("auxiliary", name, value, reduce_fn=lambda _, last: last, init_fn=lambda: None)
        return logits


class GoogLeNet(nn.Module):
    """GoogLeNet, as published or as torchvision has it, and with a stem for small images.

    Attributes:
      num_classes: classes.
      width: multiplies all channels and the hidden units of auxiliary heads, rounded to whole ones.
      stem: `7x7`, table 1's, which leaves an eighth of height and width, or `3x3`: one convolution that leaves all.
      lrn: whether local response normalization follows the first pooling and the convolution before the second.
      reduction: whether the modules reduce channels by 1x1 convolutions (figure 2b) or are naive (2a).
      large_kernel: size of the modules' largest kernel, an odd number.
      pool: kind of the poolings in the modules and between the stages: avg or max.
      pool4_window: size of the pooling before the last stage.
      auxiliary_weights: factors of the losses of the auxiliary classifiers after modules 4a and 4d, in the paper (0.3,
        0.3); () builds none, which is the network that classifies. Only training runs them.
      auxiliary_pool: what their pooling is: `5x5` windows with stride 3, in the paper, or `adaptive`: to 4x4 means.
      auxiliary_dropout_rate: share of their hidden units that training drops.
      norm: follows every convolution in place of its biases.
      activation: follows every layer with weights but the heads'.
      padding_mode: what lies beyond the borders of the convolutions' inputs.
      dropout_rate: share of the head's inputs that training drops.
      kernel_init: initializer of the weights; Caffe knows this one as xavier.
      initial_bias: what the biases start with, but the heads', which start at 0.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 1000
    width: float = 1.0
    stem: str = "7x7"
    lrn: bool = True
    reduction: bool = True
    large_kernel: int = 5
    pool: str = "max"
    pool4_window: int = 3
    auxiliary_weights: tuple[float, ...] = ()
    auxiliary_pool: str = "5x5"
    auxiliary_dropout_rate: float = 0.7
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "relu"
    padding_mode: str = "zeros"
    dropout_rate: float = 0.4
    kernel_init: str = "lecun_uniform"
    initial_bias: float = 0.2
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-3
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("stem", self.stem, ("3x3", "7x7"))
        check_choice("pool", self.pool, POOLS)
        check_choice("auxiliary_pool", self.auxiliary_pool, ("5x5", "adaptive"))
        if self.lrn and self.stem == "3x3":
            raise UserError("lrn=True does nothing with stem='3x3'; use lrn=False")
        if self.large_kernel < 1 or self.large_kernel % 2 == 0:
            raise UserError(f"large_kernel={self.large_kernel} is out of range; it must be odd and 1 or more")
        if self.pool4_window < 2:
            raise UserError(f"pool4_window={self.pool4_window} is out of range; it must be 2 or more")
        weights = self.auxiliary_weights
        if len(weights) not in (0, len(AUXILIARY)) or not all(0 <= weight < math.inf for weight in weights):
            raise UserError(
                f"auxiliary_weights={weights} is out of range; there must be two numbers, 0 or more, or none"
            )
        if not 0 <= self.auxiliary_dropout_rate < 1:
            rate = self.auxiliary_dropout_rate
            raise UserError(f"auxiliary_dropout_rate={rate} is out of range; it must be at least 0 and less than 1")
        if not weights:
            # auxiliary_pool is of a network's layout and stays even where there is nothing to lay out.
            check_unused(self, ["auxiliary_dropout_rate"], "with auxiliary_weights=()")
            if self.norm != "none":
                check_unused(self, ["initial_bias"], f"with norm={self.norm!r} and auxiliary_weights=()")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of images; those of auxiliary classifiers go to the collection `auxiliary`.

        Args:
          images: 224x224 in the paper, of any size and any number of channels. With auxiliary classifiers the first
            call decides on the size, which must leave their `5x5` windows as much: 80x80 do, 10x10 with the stem 3x3.
          train: whether to drop units, to use the batch's own statistics and to run the auxiliary classifiers.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        bias_init = initializers.constant(self.initial_bias)
        dense: Callable[..., nn.Module] = partial(nn.Dense, **weights)

        def layer(x: Array, features: int, kernel: int, strides: int = 1, *, train: bool, name: str) -> Array:
            border: dict[str, Any] = {"padding": "same", "padding_mode": self.padding_mode}
            biases: dict[str, Any] = {"use_bias": self.norm == "none", "bias_init": bias_init}
            x = Conv(features, kernel, strides, **border, **biases, **weights, name=name)(x)
            norm = Norm(self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes, name=f"{name}_norm")
            return Activation(self.activation, name=f"{name}_activation")(norm(x, train))

        def pool(x: Array, window: int, name: str) -> Array:
            # Windows as Caffe and torchvision lay them: 112 pixels give 56; what hangs over counts in no mean.
            overhang = (ceil_padding(x.shape[1], window, 2), ceil_padding(x.shape[2], window, 2))
            return Pool(self.pool, window, 2, overhang, count_include_pad=False, name=name)(x)

        def lrn(x: Array, name: str) -> Array:
            # Caffe divides alpha = 1e-4 by the size.
            return LocalResponseNorm(size=5, k=1.0, alpha=1e-4 / 5, beta=0.75, name=name)(x) if self.lrn else x

        def widened(features: int) -> int:
            return max(1, round(self.width * features))

        inception = partial(Inception, reduction=self.reduction, large_kernel=self.large_kernel, pool=self.pool)
        auxiliary_head = partial(
            AuxiliaryHead,
            num_classes=self.num_classes,
            features=(widened(128), widened(1024)),
            pool=partial(Pool, "avg", 5, 3) if self.auxiliary_pool == "5x5" else partial(AdaptiveAvgPool, 4),
            dropout_rate=self.auxiliary_dropout_rate,
            activation=self.activation,
            layer=layer,
            hidden=partial(dense, bias_init=bias_init),
            dense=dense,
        )
        heads = dict(zip(AUXILIARY, self.auxiliary_weights, strict=False))

        if self.stem == "7x7":
            x = layer(images, widened(64), 7, strides=2, train=train, name="conv1")
            x = lrn(pool(x, 3, "pool1"), "lrn1")
            x = layer(x, widened(64), 1, train=train, name="conv2_reduce")
            x = layer(x, widened(192), 3, train=train, name="conv2")
            x = pool(lrn(x, "lrn2"), 3, "pool2")
        else:
            x = layer(images, widened(192), 3, train=train, name="conv1")
        for stage, modules in STAGES.items():
            if stage > 3:
                x = pool(x, self.pool4_window if stage == 5 else 3, f"pool{stage - 1}")
            for module, features in modules.items():
                module = f"{stage}{module}"
                x = inception(tuple(map(widened, features)), layer=layer, name=f"inception_{module}")(x, train)
                if module in heads and (train or self.is_initializing()):
                    if self.auxiliary_pool == "5x5" and min(x.shape[1:3]) < 5:
                        raise UserError(
                            f"images of {images.shape[1]}x{images.shape[2]} leave the auxiliary classifiers "
                            f"{x.shape[1]}x{x.shape[2]}, less than 5x5; use larger ones or auxiliary_pool='adaptive'"
                        )
                    name = f"auxiliary_{AUXILIARY.index(module) + 1}"
                    auxiliary_head(heads[module], name=name)(x, train)
        x = Pool("avg", window=(x.shape[1], x.shape[2]), strides=1, name="head_pool")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x.reshape(len(x), -1))
        logits = dense(self.num_classes, name="head")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))
