"""Network in Network: perceptrons as filters, and averages as the classifier. Lin, Chen & Yan 2013, arXiv:1312.4400.

The layers are those of the authors' published definitions, https://gist.github.com/mavenlin/e56253735ef32c3c296d
(CIFAR-10) and https://gist.github.com/mavenlin/d802a5849de39225bcc6 (ImageNet); the paper gives no numbers.
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
    Conv,
    MlpConv,
    Norm,
    Pool,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)
from cnn_research.ops.geometry import ceil_padding

VARIANTS: dict[str, dict[str, Any]] = {
    "nin_cifar": {},
    "nin_imagenet": dict(
        num_classes=1000,
        kernel_sizes=(11, 5, 3, 3),
        features=(96, 96, 96, 256, 256, 256, 384, 384, 384, 1024, 1024),
        stem_strides=4,
        stem_padding="valid",
        last_pool="max",
        dropout_after=(3,),
    ),
}


class NIN(nn.Module):
    """Network in Network: blocks of `MlpConv` with poolings between them; the last block gives one map a class.

    Attributes:
      num_classes: classes, and channels of the last block.
      kernel_sizes: size of each block's convolution.
      features: channels, block after block: of its convolution and of the 1x1 convolutions after it, equally many in
        each block. The last one's are the `num_classes`, which are not listed.
      width: multiplies all channels but the last, rounded to whole ones.
      mlpconv: `mlp`, or `linear`: the blocks' convolutions alone, without the 1x1 convolutions.
      stem_strides: step of the first convolution.
      stem_padding: its border: same or valid.
      pool: kind of the 3x3 poolings with stride 2 between the blocks, but the last: avg or max.
      last_pool: kind of the last of them. In the paper all take the maximum; in the published network for CIFAR-10 the
        last one averages.
      dropout_after: the poolings, from 1, whose outputs training drops.
      dropout_rate: share that it drops.
      head: `global_pool`, the mean of each map, or `dense`: a fully connected layer over all maps (section 4.6).
      head_dropout_rate: share of its inputs that training drops, with `dense`.
      norm: follows every convolution in place of its biases.
      activation: follows every convolution.
      activate_last: whether also the last, whose maps are the classes', as in the paper. A class that ReLU silences on
        every image learns no more. On the 16x16 digits, in 8 epochs of AdamW, that happened to all classes with the
        published start as with `he_normal`; `he_normal` without the last activation reached 97%, `norm="batch"` 99%.
      padding_mode: what lies beyond the borders of the convolutions' inputs.
      kernel_init: initializer of the weights. (Published for ImageNet is 0.01 in conv1, conv3 and cccp8 alone.)
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 10
    kernel_sizes: tuple[int, ...] = (5, 5, 3)
    features: tuple[int, ...] = (192, 160, 96, 192, 192, 192, 192, 192)
    width: float = 1.0
    mlpconv: str = "mlp"
    stem_strides: int = 1
    stem_padding: str = "same"
    pool: str = "max"
    last_pool: str = "avg"
    dropout_after: tuple[int, ...] = (1, 2)
    dropout_rate: float = 0.5
    head: str = "global_pool"
    head_dropout_rate: float = 0.5
    activate_last: bool = True
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "relu"
    padding_mode: str = "zeros"
    kernel_init: str = "normal_0.05"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("mlpconv", self.mlpconv, ("linear", "mlp"))
        check_choice("stem_padding", self.stem_padding, ("same", "valid"))
        check_choice("pool", self.pool, POOLS)
        check_choice("last_pool", self.last_pool, POOLS)
        check_choice("head", self.head, ("dense", "global_pool"))
        blocks = len(self.kernel_sizes)
        if blocks < 2 or (len(self.features) + 1) % blocks:
            raise UserError(
                f"features={self.features} and num_classes are {len(self.features) + 1} convolutions, which make no "
                f"equal blocks of kernel_sizes={self.kernel_sizes}, two or more"
            )
        if min(*self.kernel_sizes, *self.features, self.stem_strides) < 1:
            raise UserError("kernel_sizes, features and stem_strides are out of range; they must be 1 or more")
        if not all(1 <= index < blocks for index in self.dropout_after):
            raise UserError(f"dropout_after={self.dropout_after} is out of range; there are poolings 1 to {blocks - 1}")
        if not 0 <= self.head_dropout_rate < 1:
            rate = self.head_dropout_rate
            raise UserError(f"head_dropout_rate={rate} is out of range; it must be at least 0 and less than 1")
        if blocks == 2:
            check_unused(self, ["pool"], "with two blocks, between which stands the last pooling alone")
        if not self.dropout_after:
            check_unused(self, ["dropout_rate"], "with dropout_after=()")
        if self.head != "dense":
            check_unused(self, ["head_dropout_rate"], f"with head={self.head!r}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of images.

        Args:
          images: of any size and any number of channels; 32x32 for CIFAR-10, 224x224 for ImageNet in the published
            networks. With `head="dense"` the first call decides on the size.
          train: whether to drop values and to use the batch's own statistics.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        block = partial(
            MlpConv,
            activation=self.activation,
            conv=partial(Conv, padding_mode=self.padding_mode, use_bias=self.norm == "none", **weights),
            norm=partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes),
        )
        layers = [*(max(1, round(self.width * channels)) for channels in self.features), self.num_classes]
        depth = len(layers) // len(self.kernel_sizes)
        features = [tuple(layers[first : first + depth]) for first in range(0, len(layers), depth)]
        if self.mlpconv == "linear":
            features = [channels[:1] for channels in features[:-1]] + [features[-1][-1:]]

        x = images
        for index, (kernel, channels) in enumerate(zip(self.kernel_sizes, features, strict=True), start=1):
            strides, padding = (self.stem_strides, self.stem_padding) if index == 1 else (1, "same")
            active = self.activate_last or index < len(features)
            x = block(channels, kernel, strides, padding, activate_last=active, name=f"mlpconv{index}")(x, train)
            if index < len(features):
                kind = self.pool if index < len(features) - 1 else self.last_pool
                # Windows as Caffe lays them: 32 pixels give 16, 16 give 8; what hangs over counts in no mean.
                overhang = (ceil_padding(x.shape[1], 3, 2), ceil_padding(x.shape[2], 3, 2))
                x = Pool(kind, 3, 2, overhang, count_include_pad=False, name=f"pool{index}")(x)
            if index in self.dropout_after:
                x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{index}")(x)

        if self.head == "dense":
            x = x.reshape(len(x), -1)
            x = nn.Dropout(self.head_dropout_rate, deterministic=not train, name="head_dropout")(x)
            logits = nn.Dense(self.num_classes, **weights, name="head")(x)
        else:
            logits = Pool("avg", window=(x.shape[1], x.shape[2]), strides=1, name="head_pool")(x).reshape(len(x), -1)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))
