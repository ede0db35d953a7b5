"""Localizer: a classifier that also says where. Simonyan & Zisserman 2014, Sermanet et al. 2013.

"Very deep convolutional networks for large-scale image recognition", arXiv:1409.1556, appendix A: a box by regression
on a network's last hidden layer. "OverFeat: integrated recognition, localization and detection using convolutional
networks", arXiv:1312.6229, section 4: by layers of its own, on the maps that the classes are told by, too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import POOLS, Activation, check_choice, check_shared, check_unused, initializer
from cnn_research.layers.taps import intermediates
from cnn_research.models.classifiers import CLASSIFIERS, as_body
from cnn_research.ops.boxes import from_centers_and_sizes


class Localization(NamedTuple):
    """What is in images, and where.

    Attributes:
      logits: of the classes.
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image, which they may leave: one for each class, or one for all.
    """

    logits: Float[Array, "batch classes"]
    boxes: Float[Array, "batch kinds 4"]


class Localizer(nn.Module):
    """Any classifier, whole and under its layers' own names, and beside its head one that gives a box.

    A classifier's weights are those of the network but for `box`, and for `box1`, `box2` and so on before it. A box is
    told by its centre and its size, as VGG does it, and starts around the middle half of the image.

    Attributes:
      body: the classifier. A ResNet wants `norm="batch"` and, in the literature, `dropout_rate=0`.
      box_layer: the body's layer that the box is told by: the last one before its head, as for VGG, or the maps before
        they are pooled over all pixels (`stage4`, and `stage3` of the ResNets for CIFAR), which know better where.
      box_hidden: units of the fully connected layers between that and the box; (4096, 1024) in OverFeat.
      box_per_class: whether each class has a box (VGG's PCR), or all have one (SCR).
      num_classes: classes.
      width: multiplies the channels of the body and the units of the hidden layers, rounded to whole ones.
      hidden: units of the body's fully connected layers, where it has such a field: VGG and AlexNet.
      norm: that of the body.
      activation: follows every layer with weights but the heads.
      pool: kind of the body's poolings, where it has any: avg or max.
      padding_mode: what lies beyond the borders of the inputs of the convolutions.
      dropout_rate: share of units that training drops where the body does.
      kernel_init: initializer of the body's weights, where it has the field, and of the boxes' layers.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits and boxes are in float32 at least.
      param_dtype: of the parameters.
    """

    body: str = "vgg16"
    box_layer: str = "fc7_dropout"
    box_hidden: tuple[int, ...] = ()
    box_per_class: bool = False
    num_classes: int = 1000
    width: float = 1.0
    hidden: tuple[int, ...] = (4096, 4096)
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
        check_choice("body", self.body, CLASSIFIERS)
        check_choice("pool", self.pool, POOLS)
        if any(units < 1 for units in self.box_hidden):
            raise UserError(f"box_hidden={self.box_hidden} is out of range; each layer must have 1 or more units")
        if "hidden" not in vars(CLASSIFIERS[self.body](parent=None)):
            check_unused(self, ["hidden"], f"with body={self.body!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width channels"], train: bool) -> Localization:
        """Returns the logits and boxes of images.

        Args:
          images: of a size that the body takes.
          train: whether to drop units and to use the batch's own statistics.

        Raises:
          UserError: the body has no `box_layer`.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense: Callable[..., nn.Module] = partial(nn.Dense, kernel_init=initializer(self.kernel_init), **dtypes)
        classifier = as_body(self, num_classes=self.num_classes, hidden=self.hidden, dropout_rate=self.dropout_rate)
        nn.share_scope(self, classifier)
        x, logits = intermediates(classifier, [self.box_layer, ""], images, train=train)
        x = x.reshape(len(x), -1)
        for index, units in enumerate(self.box_hidden, start=1):
            x = dense(max(1, round(self.width * units)), name=f"box{index}")(x)
            x = Activation(self.activation, name=f"box{index}_activation")(x)
        kinds = self.num_classes if self.box_per_class else 1
        x = dense(4 * kinds, bias_init=initializers.constant(0.5), name="box")(x)
        x = x.reshape(len(x), kinds, 4).astype(jnp.promote_types(self.dtype, jnp.float32))
        return Localization(logits, from_centers_and_sizes(x[..., :2], x[..., 2:]))
