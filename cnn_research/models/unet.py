"""U-Net: a contracting path, an expanding one, and skips between them. Ronneberger, Fischer & Brox 2015.

"U-Net: convolutional networks for biomedical image segmentation", arXiv:1505.04597, figure 1. (In the authors'
published network a ReLU follows each up-convolution, and the last one does not halve the channels.)
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    POOLS,
    Activation,
    Conv,
    ConvTranspose,
    Norm,
    Pool,
    Unpool,
    Upsample,
    check_choice,
    check_shared,
    check_unused,
    extended,
    initializer,
)

UPS = ("bilinear", "transposed", "unpool")
SKIPS = ("add", "concat", "none")


def output_size(size: int, depth: int = 4) -> int:
    """Returns how many pixels of an axis a U-Net with valid convolutions labels; 0 if the size does not fit.

    >>> output_size(572)
    388

    Args:
      size: pixels of the axis. At each pooling their number must be even.
      depth: how many poolings there are.
    """
    for _ in range(depth):
        size -= 4  # two convolutions
        if size < 2 or size % 2:
            return 0
        size //= 2
    size -= 4
    for _ in range(depth):
        size = 2 * size - 4
    return max(size, 0)


def fitting_sizes(size: int, depth: int = 4) -> tuple[int, ...]:
    """Returns the nearest sizes that a U-Net with valid convolutions takes: the size alone if it does, or two.

    >>> fitting_sizes(576)
    (572, 588)

    Args:
      size: pixels of an axis.
      depth: how many poolings there are.
    """
    step, least = 2**depth, next(each for each in itertools.count(1) if output_size(each, depth))
    below = max(size - (size - least) % step, least)
    return (below,) if size <= below else (below, below + step)


class UNet(nn.Module):
    """U-Net as published, and by its fields its common form: `padding="same", norm="batch"`.

    Attributes:
      padding: of the 3x3 convolutions: `valid`, which label the pixels whose whole context is in the image, 388x388 of
        572x572, or `same`, which label all.
      depth: how many poolings there are, and as many steps back.
      features: channels of the first level; each pooling doubles them.
      up: the step to a finer level, which halves the channels: a `transposed` 2x2 convolution; or a 2x2 convolution
        after `bilinear` interpolation; or one before an `unpool` by the switches of that level's pooling. All have
        equally many parameters.
      skip: what comes from the contracting path: `concat`, its maps beside the others; `add`, their sum; or `none`.
      num_classes: classes.
      width: multiplies all channels, rounded to whole ones.
      auxiliary_weights: factors of the losses of classifiers on the maps of the expanding path's coarser levels, the
        coarsest first, as many as the path has levels but the last; () builds none. Their logits, made as large as the
        network's own, and their weights are left in the collection `auxiliary`. Only training runs them.
      norm: follows the 3x3 convolutions in place of their biases.
      activation: follows the 3x3 convolutions.
      pool: kind of the poolings: max, or with another up than `unpool` avg.
      padding_mode: what lies beyond the borders of the convolutions' inputs.
      dropout_rate: share of the maps at the end of the contracting path that training drops: the last two levels'
        (section 3.1; the levels as in the authors' published network).
      kernel_init: initializer of the weights.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    padding: str = "valid"
    depth: int = 4
    features: int = 64
    up: str = "transposed"
    skip: str = "concat"
    num_classes: int = 2
    width: float = 1.0
    auxiliary_weights: tuple[float, ...] = ()
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "relu"
    pool: str = "max"
    padding_mode: str = "zeros"
    dropout_rate: float = 0.5
    kernel_init: str = "he_normal"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("padding", self.padding, ("same", "valid"))
        check_choice("up", self.up, UPS)
        check_choice("skip", self.skip, SKIPS)
        check_choice("pool", self.pool, POOLS)
        for field in ("depth", "features"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)} is out of range; it must be 1 or more")
        if self.pool != "max" and self.up == "unpool":
            raise UserError(f"pool={self.pool!r} leaves no switches; use pool='max', or up='bilinear'")
        weights = self.auxiliary_weights
        if len(weights) not in (0, self.depth - 1) or not all(0 <= weight < math.inf for weight in weights):
            raise UserError(
                f"auxiliary_weights={weights} is out of range; there must be {self.depth - 1} numbers, 0 or more, or "
                f"none, with depth={self.depth}"
            )
        if self.padding == "valid" and self.up == "transposed":
            check_unused(self, ["padding_mode"], "with padding='valid' and up='transposed'")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch out_height out_width classes"]:
        """Returns the logits of each pixel, with `valid` convolutions of those in the middle.

        Args:
          images: of any number of channels; 572x572 in the paper. With `valid` convolutions height and width are even
            before each pooling; with `same` ones any size does that leaves a pixel after the last.
          train: whether to drop values, to use the batch's own statistics and to run the auxiliary classifiers.

        Raises:
          UserError: the images' size does not fit.
        """
        self._check_size(*images.shape[1:3])
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        conv: Callable[..., nn.Module] = partial(Conv, padding_mode=self.padding_mode, **weights)
        norm = partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)
        final = jnp.promote_types(self.dtype, jnp.float32)

        def features(level: int) -> int:
            return max(1, round(self.width * self.features * 2 ** (level - 1)))

        def convolved(x: Array, level: int, indices: tuple[int, int]) -> Array:
            for index in indices:
                name = f"conv{level}_{index}"
                x = conv(features(level), 3, padding=self.padding, use_bias=self.norm == "none", name=name)(x)
                x = Activation(self.activation, name=f"{name}_activation")(norm(name=f"{name}_norm")(x, train))
            return x

        def raised(x: Array, skip: Array, level: int) -> Array:
            name = f"upconv{level}"
            if self.up == "transposed":
                x = ConvTranspose(features(level), 2, strides=2, **weights, name=name)(x)
            else:
                if self.up == "bilinear":
                    x = Upsample("bilinear", 2, name=f"upsample{level}")(x)
                x = conv(features(level), 2, padding="same", name=name)(x)
                if self.up == "unpool":
                    x = Unpool("switches", name=f"unpool{level}")(x, skip)
            return extended(x, *skip.shape[1:3])

        x = images
        skips = []
        for level in range(1, self.depth + 2):
            x = convolved(x, level, (1, 2))
            if level >= self.depth:
                x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"dropout{level}")(x)
            if level <= self.depth:
                skips.append(x)
                x = Pool(self.pool, window=2, strides=2, name=f"pool{level}")(x)

        coarser = []  # levels' maps
        for level in range(self.depth, 0, -1):
            skip = skips.pop()
            if self.padding == "valid":
                skip = _cropped(skip, 2 * x.shape[1], 2 * x.shape[2])
            x = raised(x, skip, level)
            if self.skip == "concat":
                x = jnp.concatenate([skip, x], axis=-1)
            elif self.skip == "add":
                x += skip
            x = convolved(x, level, (3, 4))
            coarser.append(x)
        logits = conv(self.num_classes, 1, name="head")(x).astype(final)

        if train or self.is_initializing():
            for weight, maps, level in zip(self.auxiliary_weights, coarser, range(self.depth, 1, -1), strict=False):
                head = partial(conv, self.num_classes, 1)
                size = logits.shape[1:3]
                AuxiliaryHead(weight, 2 ** (level - 1), size, head, name=f"auxiliary_{level}")(maps)
        return logits

    def _check_size(self, height: int, width: int) -> None:
        """Refuses images whose sides do not fit."""
        if self.padding == "same":
            least = 2**self.depth
            if min(height, width) < least:
                raise UserError(
                    f"a U-Net with depth={self.depth} takes images of at least {least}x{least}, not {height}x{width}"
                )
            return
        for size in (height, width):
            if not output_size(size, self.depth):
                nearest = " or ".join(map(str, fitting_sizes(size, self.depth)))
                raise UserError(
                    f"a U-Net with depth={self.depth} and padding='valid' does not take images of {height}x{width}; "
                    f"instead of {size} it takes {nearest}, with padding='same' any size"
                )


class AuxiliaryHead(nn.Module):
    """A classifier on the maps of a coarser level, which training alone uses (deep supervision, Lee et al. 2014).

    It leaves its `logits` and its `weight` in the collection `auxiliary`, where the task finds them.

    Attributes:
      weight: factor of its loss.
      factor: pixels of a cell of its maps.
      size: height and width of the network's logits.
      head: makes the layer that classifies.
    """

    weight: float
    factor: int
    size: tuple[int, int]
    head: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width classes"]:
        """Returns the logits of each pixel that the network labels.

        Args:
          x: maps of a coarser level.
        """
        logits = self.head(name="head")(x)
        logits = Upsample("bilinear", self.factor, name="upsample")(logits)
        height, width = self.size
        logits = _cropped(logits, min(height, logits.shape[1]), min(width, logits.shape[2]))
        logits = extended(logits, height, width).astype(jnp.promote_types(logits.dtype, jnp.float32))
        if not self.is_initializing():  # what it leaves there is no variable
            for name, value in (("logits", logits), ("weight", self.weight)):
                self.sow("auxiliary", name, value, reduce_fn=lambda _, last: last, init_fn=lambda: None)
        return logits


def _cropped(x: Array, height: int, width: int) -> Array:
    """Returns the middle of maps."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
