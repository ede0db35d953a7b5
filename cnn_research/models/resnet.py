"""ResNet: blocks that add what they compute to what they are given. He, Zhang, Ren & Sun 2015, arXiv:1512.03385.

The orders of a block's layers, most kinds of shortcuts and the deepest networks are those of the same authors'
"Identity mappings in deep residual networks", arXiv:1603.05027.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import Activation, Conv, Norm, Pool, check_choice, check_shared, check_unused

# The convolutions of a block: (kernel size, channels as a multiple of the stage's).
BLOCKS = {
    "basic": ((3, 1), (3, 1)),
    "bottleneck": ((1, 1), (3, 1), (1, 4)),
}

# "Identity mappings", figure 4: what stands before a block's first convolution, after its last one, and after the
# addition. Between two convolutions there are always norm and activation.
SKIPS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "original": ((), ("bn",), ("activation",)),
    "bn_after_addition": ((), (), ("bn", "activation")),
    "relu_before_addition": ((), ("bn", "activation"), ()),
    "relu_only_preactivation": (("activation",), ("bn",), ()),
    "full_preactivation": (("bn", "activation"), (), ()),
}

# The first paper's options, then "Identity mappings", figure 2, with the fields that only they use.
SHORTCUTS: dict[str, tuple[str, ...]] = {
    "A": (),
    "B": (),
    "C": (),
    "constant": ("shortcut_scale", "residual_scale"),
    "exclusive_gating": ("gate_bias",),
    "shortcut_gating": ("gate_bias",),
    "conv1x1": (),
    "dropout": ("shortcut_dropout_rate",),
    "none": (),
}
SHORTCUT_FIELDS = ("shortcut_scale", "residual_scale", "gate_bias", "shortcut_dropout_rate")

CIFAR = dict(num_classes=10, block="basic", features=16, stem_kernel=3, stem_strides=1, pool="none", shortcut="A")
# As in the authors' published code, https://github.com/KaimingHe/resnet-1k-layers.
PREACTIVATION = CIFAR | dict(block="bottleneck", skip="full_preactivation", shortcut="B", stride_in="1x1")

VARIANTS: dict[str, dict[str, Any]] = {
    # Table 1 of the first paper.
    "resnet18": dict(block="basic", stage_sizes=(2, 2, 2, 2)),
    "resnet34": dict(block="basic", stage_sizes=(3, 4, 6, 3)),
    "resnet50": dict(stage_sizes=(3, 4, 6, 3)),
    "resnet101": dict(stage_sizes=(3, 4, 23, 3)),
    "resnet152": dict(stage_sizes=(3, 8, 36, 3)),
    # Three stages of n blocks, of two convolutions or of three, between the stem and the head.
    **{f"resnet{6 * n + 2}_cifar": CIFAR | dict(stage_sizes=(n, n, n)) for n in (3, 5, 7, 9, 18, 200)},
    **{f"resnet{9 * n + 2}_cifar": PREACTIVATION | dict(stage_sizes=(n, n, n)) for n in (18, 111)},
}


class Block(nn.Module):
    """A residual block; the fields that are not listed are those of `ResNet`.

    Attributes:
      convolutions: a value of `BLOCKS`.
      order: a value of `SKIPS`.
      features: channels of the stage.
      strides: step of the block.
      strided: index of the convolution that takes it.
      preactivated: whether the input is activated already, so that the order's first layers fall away.
      conv: makes a convolution.
      norm: makes a norm.
    """

    convolutions: tuple[tuple[int, int], ...]
    order: tuple[tuple[str, ...], ...]
    features: int
    strides: int
    strided: int
    preactivated: bool
    shortcut: str
    shortcut_scale: float
    residual_scale: float
    gate_bias: float
    shortcut_dropout_rate: float
    zero_init_last_norm: bool
    activation: str | Callable[[Array], Array]
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width features"]:
        """Adds what the convolutions compute to what the shortcut hands on.

        Args:
          x: activations.
          train: whether to use the batch's own statistics, and to drop values of a dropout shortcut.
        """
        before, after, last = self.order
        # Layers that fall away are counted, so that a number means the same place in every block.
        numbers = Counter(before if self.preactivated else ())

        def sequence(x: Array, kinds: Sequence[str], **norm_fields: Any) -> Array:
            for kind in kinds:
                numbers[kind] += 1
                name = f"{kind}{numbers[kind]}"
                if kind == "bn":
                    x = self.norm(**norm_fields, name=name)(x, train)
                else:
                    x = Activation(self.activation, name=name)(x)
            return x

        activated = residual = x if self.preactivated else sequence(x, before)
        for index, (kernel, multiple) in enumerate(self.convolutions):
            if index > 0:
                residual = sequence(residual, ("bn", "activation"))
            strides = self.strides if index == self.strided else 1
            residual = self.conv(multiple * self.features, kernel, strides, name=f"conv{index + 1}")(residual)
        scale_init = initializers.zeros if self.zero_init_last_norm else initializers.ones
        residual = sequence(residual, after, scale_init=scale_init)
        return sequence(self._add(x, activated, residual, train), last)

    def _add(self, x: Array, activated: Array, residual: Array, train: bool) -> Array:
        """Returns the residual plus what the shortcut makes of the input `x`, or of `activated` where it projects."""
        features = residual.shape[-1]
        if self.shortcut == "none":
            return residual
        if self.shortcut in ("C", "conv1x1") or (self.shortcut == "B" and x.shape != residual.shape):
            projection = self.conv(features, 1, self.strides, name="shortcut_conv")(activated)
            if "bn" in self.order[1]:  # where the branch ends without a norm, so does the projection
                projection = self.norm(name="shortcut_bn")(projection, train)
            return projection + residual

        # Option A: every second pixel where the block strides, and zeros for the channels that are new.
        identity = x[:, :: self.strides, :: self.strides]
        identity = jnp.pad(identity, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))
        if self.shortcut == "constant":
            return self.shortcut_scale * identity + self.residual_scale * residual
        if self.shortcut == "dropout":
            rate, name = self.shortcut_dropout_rate, "shortcut_dropout"
            return nn.Dropout(rate, deterministic=not train, name=name)(identity) + residual
        if self.shortcut in ("exclusive_gating", "shortcut_gating"):
            bias_init = initializers.constant(self.gate_bias)
            gate = self.conv(features, 1, self.strides, use_bias=True, bias_init=bias_init, name="shortcut_gate")(x)
            gate = nn.sigmoid(gate)
            return (1 - gate) * identity + (gate * residual if self.shortcut == "exclusive_gating" else residual)
        return identity + residual


class Stage(nn.Module):
    """Blocks that work on maps of one size.

    Attributes:
      block: makes a block.
      size: how many.
      strides: step of the first one.
      preactivated: whether the input is activated already.
    """

    block: Callable[..., nn.Module]
    size: int
    strides: int
    preactivated: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width features"]:
        """Applies the blocks one after another.

        Args:
          x: activations.
          train: as for the blocks.
        """
        x = self.block(strides=self.strides, preactivated=self.preactivated, name="block1")(x, train)
        for index in range(2, self.size + 1):
            x = self.block(strides=1, preactivated=False, name=f"block{index}")(x, train)
        return x


class ResNet(nn.Module):
    """ResNet-18 to ResNet-1202, with or without pre-activation, and by `shortcut="none"` the plain networks.

    Attributes:
      num_classes: classes.
      stage_sizes: blocks of each stage; all stages but the first halve height and width and double the channels.
      block: `basic`, two 3x3 convolutions, or `bottleneck`: 1x1, 3x3, and a 1x1 that gives four times the channels.
      features: channels of the stem and of the first stage's 3x3 convolutions.
      width: multiplies all channels, rounded to whole ones.
      stem_kernel: size of the stem's convolution.
      stem_strides: step of the stem's convolution.
      pool: kind of the 3x3 pooling with stride 2 that ends the stem: max, avg or none.
      global_pool: kind of the pooling over all pixels before the head: avg or max.
      stride_in: the bottleneck's convolution that takes the stride: `3x3`, or the first paper's `1x1`.
      skip: order of a block's layers, a key of `SKIPS`. Orders that put activations first have those of the first block
        right after the stem's convolution, and once more after the last block.
      shortcut: `A` hands the input on, with zeros for new channels; `B` projects it where the shape changes, `C` and
        `conv1x1` (the second paper's name of C) everywhere. The rest builds on A: `constant` scales shortcut and
        residual; `exclusive_gating` multiplies them by 1 - g and g, `shortcut_gating` the shortcut alone, g the sigmoid
        of a 1x1 convolution of the input; `dropout` drops values of the shortcut. `none` leaves the residual alone.
      shortcut_scale: factor of the shortcut with `constant`.
      residual_scale: factor of the residual with `constant`.
      gate_bias: bias that the gates start with.
      shortcut_dropout_rate: share of the shortcut that training drops with `dropout`.
      zero_init_last_norm: whether the norm at a branch's end starts at scale 0, so that each block starts as its
        shortcut alone.
      norm: kind of the norms; with `none` the convolutions have biases.
      activation: kind of the activations.
      padding_mode: what lies beyond the borders of the convolutions' inputs.
      dropout_rate: share of the head's inputs that training drops.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 1000
    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)
    block: str = "bottleneck"
    features: int = 64
    width: float = 1.0
    stem_kernel: int = 7
    stem_strides: int = 2
    pool: str = "max"
    global_pool: str = "avg"
    stride_in: str = "3x3"
    skip: str = "original"
    shortcut: str = "B"
    shortcut_scale: float = 0.5
    residual_scale: float = 0.5
    gate_bias: float = -6.0
    shortcut_dropout_rate: float = 0.5
    zero_init_last_norm: bool = False
    norm: str = "batch"
    activation: str | Callable[[Array], Array] = "relu"
    padding_mode: str = "zeros"
    dropout_rate: float = 0.0
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("block", self.block, BLOCKS)
        check_choice("skip", self.skip, SKIPS)
        check_choice("shortcut", self.shortcut, SHORTCUTS)
        check_choice("pool", self.pool, ("avg", "max", "none"))
        check_choice("global_pool", self.global_pool, ("avg", "max"))
        check_choice("stride_in", self.stride_in, ("1x1", "3x3"))
        if not self.stage_sizes or min(self.stage_sizes) < 1:
            raise UserError(f"stage_sizes={self.stage_sizes} is out of range; each stage must have 1 or more blocks")
        for field in ("features", "stem_kernel", "stem_strides"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is out of range; it must be 1 or more")
        rate = self.shortcut_dropout_rate
        if not 0 <= rate < 1:
            raise UserError(f"shortcut_dropout_rate={rate} is out of range; it must be at least 0 and less than 1")
        if self.block == "basic":
            check_unused(self, ["stride_in"], "with block='basic'")
        unused = [field for field in SHORTCUT_FIELDS if field not in SHORTCUTS[self.shortcut]]
        check_unused(self, unused, f"with shortcut={self.shortcut!r}")
        if self.zero_init_last_norm and (
            SKIPS[self.skip][1] != ("bn",) or self.norm in ("frozen", "none") or self.shortcut == "none"
        ):
            # Before an activation, whose gradient at 0 is 0, or with nothing to add to, zeros would be there to stay.
            raise UserError(
                "zero_init_last_norm needs a shortcut and a branch that ends with a trainable norm; "
                "use skip='original' or skip='relu_only_preactivation', or leave it at False"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of images.

        Args:
          images: of any size and any number of channels.
          train: whether to drop values and to use the batch's own statistics.
        """
        conv, norm = self._layers()
        x = conv(self._channels(1), self.stem_kernel, self.stem_strides, name="conv1")(images)
        x = norm(name="bn1")(x, train)
        x = Activation(self.activation, name="activation1")(x)
        if self.pool != "none":
            x = Pool(self.pool, window=3, strides=2, padding=1, name="pool1")(x)
        for index in range(1, len(self.stage_sizes) + 1):
            x = self.stage(index)(x, train)
        if "bn" in SKIPS[self.skip][0]:
            x = norm(name="head_bn")(x, train)
        if "activation" in SKIPS[self.skip][0]:
            x = Activation(self.activation, name="head_activation")(x)
        x = Pool(self.global_pool, window=(x.shape[1], x.shape[2]), strides=1, name="head_pool")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x.reshape(len(x), -1))
        # No ReLU follows the head: Flax's own initializer, not He's.
        logits = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="head")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))

    @nn.nowrap
    def stage(self, index: int) -> nn.Module:
        """Returns a stage, `stage1` and so on, as a layer of the module that calls this.

        Args:
          index: counted from 1.
        """
        conv, norm = self._layers()
        shared = ("shortcut", *SHORTCUT_FIELDS, "zero_init_last_norm", "activation")
        block = partial(
            Block,
            BLOCKS[self.block],
            SKIPS[self.skip],
            self._channels(index),
            strided=1 if self.block == "bottleneck" and self.stride_in == "3x3" else 0,
            conv=conv,
            norm=norm,
            **{field: getattr(self, field) for field in shared},
        )
        first = index == 1
        return Stage(block, self.stage_sizes[index - 1], 1 if first else 2, preactivated=first, name=f"stage{index}")

    @nn.nowrap
    def _channels(self, index: int) -> int:
        return max(1, round(self.width * self.features * 2 ** (index - 1)))

    @nn.nowrap
    def _layers(self) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
        """Returns what makes a convolution, and what makes a norm."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(
            Conv,
            padding="same",
            padding_mode=self.padding_mode,
            use_bias=self.norm == "none",
            # He et al. 2015, arXiv:1502.01852, equation 14: by the outputs, as in the authors' published code.
            kernel_init=initializers.variance_scaling(2.0, "fan_out", "normal"),
            **dtypes,
        )
        return conv, partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)
