"""R-CNN: a classifier that looks at regions of images, each warped to its size.

Girshick, Donahue, Darrell & Malik 2014, "Rich feature hierarchies for accurate object detection and semantic
segmentation", arXiv:1311.2524. The regions are given; on the classifier's features linear machines tell the classes,
and linear regressors where the objects are.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import POOLS, check_choice, check_shared, check_unused
from cnn_research.layers.taps import intermediates
from cnn_research.models.classifiers import CLASSIFIERS, as_body
from cnn_research.ops.boxes import centers_and_sizes, from_centers_and_sizes
from cnn_research.ops.regions import roi_align

Regions = Float[Array, "batch regions 4"]


class Scored(NamedTuple):
    """What is said of each region.

    Attributes:
      logits: of the classes by the classifier's own head, 0 the background.
      margins: of the machines, one a class without the background, which has none: above 0 is an object of it.
      offsets: of the box of an object of each class, as `ops.boxes.encode` tells it by the region.
    """

    logits: Float[Array, "batch regions classes"]
    margins: Float[Array, "batch regions objects"]
    offsets: Float[Array, "batch regions objects 4"]


class RegionClassifier(nn.Module):
    """Any classifier, whole and under its layers' own names, over warped regions, and beside its head two others.

    A classifier's weights are those of the network but for `machines` and `box`. These start at zero, no gradient of
    the classes' loss reaches them, and they are fitted when the classifier has been trained.

    Attributes:
      body: the classifier. A ResNet wants `norm="batch"`.
      region_size: height and width that regions are warped to, whatever their shape.
      context: pixels of these on each side that show what is around the region (appendix A).
      sampling_ratio: points along each axis of a pixel, whose mean it is.
      machine_layer: the body's layer that the machines look at.
      box_layer: the body's layer that the boxes are told by (appendix C).
      num_classes: classes, of which 0 is the background.
      width: multiplies the channels of the body and the units of the hidden layers, rounded to whole ones.
      hidden: units of the body's fully connected layers, where it has such a field: VGG and AlexNet.
      norm: that of the body.
      activation: follows every layer with weights but the heads.
      pool: kind of the body's poolings, where it has any: avg or max.
      padding_mode: what lies beyond the borders of the inputs of the convolutions.
      dropout_rate: share of units that training drops where the body does.
      kernel_init: initializer of the body's weights, where it has the field.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; what is said is in float32 at least.
      param_dtype: of the parameters.
    """

    body: str = "alexnet"
    region_size: int = 227
    context: int = 16
    sampling_ratio: int = 1
    machine_layer: str = "fc7_activation"
    box_layer: str = "pool5"
    num_classes: int = 21
    width: float = 1.0
    hidden: tuple[int, ...] = (4096, 4096)
    norm: str = "none"
    activation: str | Callable[[Array], Array] = "relu"
    pool: str = "max"
    padding_mode: str = "zeros"
    dropout_rate: float = 0.5
    kernel_init: str = "normal_0.01"
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
        if self.sampling_ratio < 1:
            raise UserError(f"sampling_ratio={self.sampling_ratio} is out of range; it must be 1 or more")
        if not 0 <= 2 * self.context < self.region_size:
            raise UserError(
                f"context={self.context} leaves nothing of region_size={self.region_size}; it must be from 0 to below"
                " half of it"
            )
        if "hidden" not in vars(CLASSIFIERS[self.body](parent=None)):
            check_unused(self, ["hidden"], f"with body={self.body!r}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool, regions: Regions | None = None
    ) -> Scored:
        """Says what is in regions of images.

        Args:
          images: of any size; what regions show beyond their borders is 0, the mean of all images.
          train: whether to drop units and to use the batch's own statistics.
          regions: ymin, xmin, ymax, xmax in pixels; without them the whole image is one.

        Raises:
          UserError: the body has no `machine_layer` or no `box_layer`.
        """
        if regions is None:
            whole = jnp.array([[0, 0, *images.shape[1:3]]], jnp.float32)
            regions = jnp.broadcast_to(whole, (len(images), 1, 4))
        cut = partial(warp, size=self.region_size, context=self.context, sampling_ratio=self.sampling_ratio)
        warped = jax.vmap(lambda image, boxes: cut(image, boxes))(images, regions)
        classifier = as_body(self, num_classes=self.num_classes, hidden=self.hidden, dropout_rate=self.dropout_rate)
        nn.share_scope(self, classifier)
        layers = [self.machine_layer, self.box_layer, ""]
        *features, logits = intermediates(classifier, layers, warped.reshape(-1, *warped.shape[2:]), train=train)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense: Callable[..., nn.Module] = partial(nn.Dense, kernel_init=initializers.zeros, **dtypes)
        objects = self.num_classes - 1
        margins = dense(objects, name="machines")(features[0].reshape(len(logits), -1))
        offsets = dense(4 * objects, name="box")(features[1].reshape(len(logits), -1))
        scored = logits, margins, offsets.reshape(-1, objects, 4)
        wide = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in scored)
        return Scored(*(x.reshape(*regions.shape[:2], *x.shape[1:]) for x in wide))


def warp(
    image: Float[Array, "height width channels"],
    boxes: Float[Array, "boxes 4"],
    size: int,
    context: int,
    sampling_ratio: int = 1,
) -> Float[Array, "boxes size size channels"]:
    """Cuts boxes out of an image with what is around them, each stretched to a square (appendix A, column D).

    Args:
      image: any; beyond its borders are zeros.
      boxes: in pixels.
      size: side of the squares.
      context: pixels of a square on each side that are around its box.
      sampling_ratio: points along each axis of a pixel of the square, interpolated bilinearly, whose mean it is.
    """
    centers, sizes = centers_and_sizes(boxes)
    around = from_centers_and_sizes(centers, sizes * (size / (size - 2 * context)))
    return roi_align(image, around, size, sampling_ratio)
