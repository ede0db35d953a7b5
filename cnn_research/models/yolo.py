"""YOLO: boxes and classes of a whole image from one look. Redmon, Divvala, Girshick & Farhadi 2015, arXiv:1506.02640.

"You only look once: unified, real-time object detection", version 1: figure 3; and Fast YOLO of section 2.4, whose nine
convolutions are those of the authors' tiny-yolo.cfg, https://pjreddie.com/darknet/yolov1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    POOLS,
    Activation,
    Conv,
    Norm,
    Pool,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)
from cnn_research.layers.taps import intermediates
from cnn_research.models.classifiers import CLASSIFIERS, as_body

# (kernel, channels) of convolutions, and their stride where it is not 1; a 2x2 pooling stands between two stages.
BODIES: dict[str, tuple[tuple[tuple[int, ...], ...], ...]] = {
    "darknet": (
        ((7, 64, 2),),
        ((3, 192),),
        ((1, 128), (3, 256), (1, 256), (3, 512)),
        (*4 * ((1, 256), (3, 512)), (1, 512), (3, 1024)),
        (*2 * ((1, 512), (3, 1024)), (3, 1024), (3, 1024, 2), (3, 1024), (3, 1024)),
    ),
    "fast": (((3, 16),), ((3, 32),), ((3, 64),), ((3, 128),), ((3, 256),), ((3, 512),), 3 * ((3, 1024),)),
    # For small images: of 64x64 pixels it makes maps of 8x8.
    "small": (
        ((3, 32),),
        ((3, 64), (3, 64)),
        ((3, 128), (1, 64), (3, 128)),
        ((3, 256), (1, 128), (3, 256), (1, 128), (3, 256)),
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {"yolo": {}, "fast_yolo": dict(body="fast", hidden=(256, 4096))}


class Grid(NamedTuple):
    """What each cell of a grid over an image says.

    Attributes:
      cells: of each box y and x of its centre within the cell, in 0..1 of the cell; the square roots of its height and
        width, in 0..1 of the image; and its confidence, which is to be its IoU.
      classes: probabilities of the classes, given an object whose centre is in the cell. As all other numbers they come
        from no sigmoid or softmax.
    """

    cells: Float[Array, "batch rows columns boxes 5"]
    classes: Float[Array, "batch rows columns classes"]


class YOLO(nn.Module):
    """YOLO and Fast YOLO, or the same head on the convolutions of any classifier.

    Attributes:
      body: its convolutions: a key of `BODIES`, or a classifier.
      body_layer: the classifier's layer whose maps the head sees, such as `stage3`; of `BODIES` it is the last one.
      grid: rows and columns of the cells. Without hidden layers each map's pixel must be a cell.
      boxes: that a cell predicts.
      hidden: units of the fully connected layers before the head, which see the whole image; without them the head is a
        1x1 convolution.
      num_classes: classes.
      width: multiplies the channels of the body and the units of the hidden layers, rounded to whole ones.
      norm: follows the body's convolutions, which keep their biases.
      activation: follows every layer with weights but the head.
      pool: kind of the body's poolings, where it has any: avg or max.
      padding_mode: what lies beyond the borders of the inputs of the convolutions.
      dropout_rate: share of the last hidden layer's outputs that training drops.
      kernel_init: initializer of the weights of all layers but the head.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; what comes out is in float32 at least.
      param_dtype: of the parameters.
    """

    body: str = "darknet"
    body_layer: str = ""
    grid: tuple[int, ...] = (7, 7)
    boxes: int = 2
    hidden: tuple[int, ...] = (4096,)
    num_classes: int = 20
    width: float = 1.0
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "leaky_relu_0.1"
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
        check_choice("body", self.body, BODIES | CLASSIFIERS)
        check_choice("pool", self.pool, POOLS)
        if self.body in BODIES:
            check_unused(self, ["body_layer"], f"with body={self.body!r}")
        elif not self.body_layer:
            raise UserError(f"body_layer is empty; name the layer of body={self.body!r} whose maps the head is to see")
        if len(self.grid) != 2 or min(*self.grid, self.boxes) < 1:
            raise UserError(f"grid={self.grid} with boxes={self.boxes}: give rows and columns, and boxes, from 1")
        if any(units < 1 for units in self.hidden):
            raise UserError(f"hidden={self.hidden} is out of range; each layer must have 1 or more units")
        if not self.hidden:
            check_unused(self, ["dropout_rate"], "with hidden=()")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool) -> Grid:
        """Returns what the cells of images say.

        Args:
          images: 448x448 in the paper; the first call decides where there are hidden layers.
          train: whether to drop units and to use the batch's own statistics.

        Raises:
          UserError: the maps are not as large as the grid, without hidden layers, or the body has no such layer.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        x = self._darknet(images, train, weights) if self.body in BODIES else self._maps(images, train)
        numbers = 5 * self.boxes + self.num_classes
        # At the start each box is in the middle of its cell and a quarter of the image high and wide.
        bias = np.array(self.boxes * [0.5, 0.5, 0.5, 0.5, 0.0] + self.num_classes * [0.0])
        if self.hidden:
            x = x.reshape(len(x), -1)
            for index, units in enumerate(self.hidden, start=1):
                x = nn.Dense(self._widened(units), **weights, name=f"fc{index}")(x)
                x = Activation(self.activation, name=f"fc{index}_activation")(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
            cells = self.grid[0] * self.grid[1]
            x = nn.Dense(cells * numbers, bias_init=_constant(np.tile(bias, cells)), **dtypes, name="head")(x)
        else:
            if x.shape[1:3] != self.grid:
                raise UserError(f"grid={self.grid} without hidden layers, on maps of {x.shape[1:3]}; give that as grid")
            x = nn.Conv(numbers, (1, 1), bias_init=_constant(bias), **dtypes, name="head")(x)
        x = x.reshape(len(x), *self.grid, numbers).astype(jnp.promote_types(self.dtype, jnp.float32))
        boxes, classes = jnp.split(x, [5 * self.boxes], axis=-1)
        return Grid(boxes.reshape(*boxes.shape[:3], self.boxes, 5), classes)

    @nn.nowrap
    def _darknet(self, x: Array, train: bool, weights: dict[str, Any]) -> Array:
        dtypes = {field: weights[field] for field in ("dtype", "param_dtype")}
        conv: Callable[..., nn.Module] = partial(Conv, padding="same", padding_mode=self.padding_mode, **weights)
        for stage, layers in enumerate(BODIES[self.body], start=1):
            if stage > 1:
                x = Pool(self.pool, window=2, strides=2, name=f"pool{stage - 1}")(x)
            for index, (size, channels, *stride) in enumerate(layers, start=1):
                layer = f"conv{stage}_{index}"
                x = conv(self._widened(channels), size, strides=stride[0] if stride else 1, name=layer)(x)
                norm = Norm(self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes, name=f"{layer}_norm")
                x = Activation(self.activation, name=f"{layer}_activation")(norm(x, train))
        return x

    @nn.nowrap
    def _maps(self, images: Array, train: bool) -> Array:
        classifier = as_body(self, hidden=())
        nn.share_scope(self, classifier)
        [x] = intermediates(classifier, [self.body_layer], images, train=train)
        return x

    @nn.nowrap
    def _widened(self, features: int) -> int:
        return max(1, round(self.width * features))


def _constant(values: Float[np.ndarray, " units"]) -> Callable[..., Array]:
    return lambda key, shape, dtype: jnp.asarray(values, dtype)
