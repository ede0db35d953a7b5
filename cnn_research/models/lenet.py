"""LeNet-5: convolutions, subsampling and radial basis functions. LeCun, Bottou, Bengio & Haffner 1998.

"Gradient-based learning applied to document recognition", Proceedings of the IEEE 86(11), doi:10.1109/5.726791.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    Activation,
    Conv,
    DenseConv,
    LocalConv,
    Norm,
    PartialConv,
    Pool,
    TrainablePool,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)

# Table I: which maps of S2 (rows) each map of C3 (columns) sees.
C3_TABLE = (
    "X...XXX..XXXX.XX",
    "XX...XXX..XXXX.X",
    "XXX...XXX..X.XXX",
    ".XXX..XXXX..X.XX",
    "..XXX..XXXX.XX.X",
    "...XXX..XXXX.XXX",
)

# The paper's first two ideas, local perception and shared weights: both, the first alone, neither.
SHARING: dict[str, Callable[..., nn.Module]] = {"convolution": Conv, "local": LocalConv, "dense": DenseConv}

# Figure 3: the digits 0 to 9 of a 7x12 bitmap font, as the transcription shared by public code has them.
DIGITS = """
.#####.  ...##..  .#####.  #######  .#####.  .#####.  ..####.  #######  .#####.  .#####.
.......  ..###..  .......  .....##  .......  .......  .##....  .....##  ##...##  ##..###
..###..  .####..  .#####.  ....##.  .......  #######  ##.....  .....##  ##...##  ##...##
.##.##.  ...##..  ##...##  ...##..  .##..##  ##.....  ##.....  ....##.  ##...##  ##...##
##...##  ...##..  #....##  ..####.  .##..##  ##.....  ######.  ...##..  .#####.  ##..###
##...##  ...##..  ....##.  .....##  ###..##  .####..  ###..##  ...##..  ##...##  .######
##...##  ...##..  ..###..  .....##  ##...##  ..####.  ##...##  ..##...  ##...##  .....##
##...##  ...##..  .##....  .....##  ##...##  .....##  ##...##  ..##...  ##...##  .....##
.##.##.  ...##..  ##.....  ##...##  ##..###  ##...##  ###..##  ..##...  ##...##  ....##.
..###..  .######  #######  .#####.  .######  .#####.  .#####.  ..##...  .#####.  .####..
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
.......  .......  .......  .......  .....##  .......  .......  .......  .......  .......
"""


def rbf_codes() -> Float[np.ndarray, "10 84"]:
    """Returns the bitmaps of `DIGITS` as vectors of ±1, the centres of the ten output units."""
    rows = [row.split() for row in DIGITS.split("\n") if row]
    bitmaps = [[[1.0 if pixel == "#" else -1.0 for pixel in row[digit]] for row in rows] for digit in range(10)]
    return np.array(bitmaps, np.float32).reshape(10, 84)


def c3_inputs(maps: int, features: int) -> tuple[tuple[int, ...], ...]:
    """Returns the maps of S2 that each map of C3 sees: table I, its rows and columns repeated or thinned out evenly.

    Args:
      maps: maps of S2, 6 in the paper.
      features: maps of C3, 16 in the paper.

    Raises:
      UserError: a map of C3 would see nothing.
    """
    rows = [C3_TABLE[index * 6 // maps] for index in range(maps)]
    columns = [[row[index * 16 // features] for row in rows] for index in range(features)]
    if not all("X" in column for column in columns):
        raise UserError(f"with {maps} maps in S2 a map of C3 would see none of them; use more width or c3='dense'")
    return tuple(tuple(index for index, cell in enumerate(column) if cell == "X") for column in columns)


class RadialBasis(nn.Module):
    """Minus the squared distances to the digits' bitmaps: the paper's penalties with the sign of logits.

    Attributes:
      num_classes: how many of the ten digits, from 0.
    """

    num_classes: int

    def __call__(self, features: Float[Array, "batch 84"]) -> Float[Array, "batch classes"]:
        """Compares features with the bitmaps.

        Args:
          features: what F6 says.
        """
        distances = features[:, None] - rbf_codes()[: self.num_classes]
        return -jnp.square(distances).sum(-1)


class LeNet(nn.Module):
    """LeNet-5 as of 1998, and by its fields the network that the name stands for today.

    Attributes:
      num_classes: classes; `rbf` knows the ten digits.
      width: multiplies the maps of C1, C3 and C5 and the units of F6 (which stay the bitmap's 84 with `rbf`).
      activation: follows every layer with weights but the last, and trainable subsampling too.
      pool: `trainable` subsampling (the sum of four, times a weight, plus a bias, squashed), or avg or max.
      c3: `partial` connections from S2 to C3 (table I) or `dense` ones.
      sharing: what C1, C3 and C5 are: a `convolution`; `local` windows, each with kernels and biases of its own; or
        `dense`, every unit with a weight for every input value. C5 sees all of its input at one position: the three
        are the same there.
      output: `rbf`, fixed radial basis functions whose logits are minus the squared distances, or `softmax`, a layer
        of weights.
      norm: follows C1, C3 and C5 in place of their biases.
      padding: border of C1; 2 takes images of 28x28 in.
      padding_mode: what that border holds.
      dropout_rate: share of C5's outputs that training drops.
      kernel_init: initializer of the weights.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norm's variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 10
    width: float = 1.0
    activation: str | Callable[[Array], Array] = "scaled_tanh"
    pool: str = "trainable"
    c3: str = "partial"
    sharing: str = "convolution"
    output: str = "rbf"
    norm: str = "none"
    padding: int = 0
    padding_mode: str = "zeros"
    dropout_rate: float = 0.0
    kernel_init: str = "lecun1998"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        check_choice("pool", self.pool, ("avg", "max", "trainable"))
        check_choice("c3", self.c3, ("dense", "partial"))
        check_choice("sharing", self.sharing, SHARING)
        check_choice("output", self.output, ("rbf", "softmax"))
        if self.output == "rbf" and self.num_classes > 10:
            raise UserError(f"output='rbf' knows 10 digits, not {self.num_classes} classes; use output='softmax'")
        if self.c3 == "partial" and self.sharing != "convolution":
            raise UserError(f"c3='partial' needs sharing='convolution', not {self.sharing!r}; use c3='dense' with it")
        if self.padding < 0:
            raise UserError(f"padding={self.padding} is out of range; it must be 0 or more")
        if self.padding == 0:
            check_unused(self, ["padding_mode"], "with padding=0")
        if self.sharing == "dense":
            check_unused(self, ["padding_mode"], "with sharing='dense'")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of images.

        Args:
          images: 32x32 together with the padding, any number of channels.
          train: whether to drop units and to use the batch's own statistics.

        Raises:
          UserError: the images have another size.
        """
        height, width = images.shape[1:3]
        if (height, width) != (32 - 2 * self.padding,) * 2:
            raise UserError(
                f"LeNet-5 takes images of 32x32 with padding=0 or of 28x28 with padding=2, "
                f"not {height}x{width} with padding={self.padding}; resize them"
            )
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        convolution: dict[str, Any] = {"kernel_size": 5, "use_bias": self.norm == "none", **weights}
        conv = partial(SHARING[self.sharing], **convolution)
        border: dict[str, Any] = {} if self.sharing == "dense" else {"padding_mode": self.padding_mode}
        norm = partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)
        c1, c3, c5, f6 = (max(1, round(self.width * features)) for features in (6, 16, 120, 84))

        def activate(x: Array, layer: str) -> Array:
            return Activation(self.activation, name=f"{layer}_activation")(x)

        def subsample(x: Array, layer: str) -> Array:
            if self.pool == "trainable":
                return activate(TrainablePool(2, 2, **weights, name=layer)(x), layer)
            return Pool(self.pool, window=2, strides=2, name=layer)(x)

        x = conv(c1, padding=self.padding, **border, name="C1")(images)
        x = activate(norm(name="C1_norm")(x, train), "C1")
        x = subsample(x, "S2")
        if self.c3 == "partial":
            x = PartialConv(c3_inputs(c1, c3), **convolution, name="C3")(x)
        else:
            x = conv(c3, name="C3")(x)
        x = activate(norm(name="C3_norm")(x, train), "C3")
        x = subsample(x, "S4")
        x = conv(c5, name="C5")(x)
        x = activate(norm(name="C5_norm")(x, train), "C5")
        x = x.reshape(len(x), -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        x = nn.Dense(84 if self.output == "rbf" else f6, **weights, name="F6")(x)
        x = activate(x, "F6")
        logits_dtype = jnp.promote_types(self.dtype, jnp.float32)
        if self.output == "rbf":
            return RadialBasis(self.num_classes, name="output")(x.astype(logits_dtype))
        return nn.Dense(self.num_classes, **weights, name="output")(x).astype(logits_dtype)
