"""Fast, Faster and Mask R-CNN: networks that look at regions of images, and say what is there.

Girshick 2015, "Fast R-CNN", arXiv:1504.08083: the regions are given. Ren et al. 2015, "Faster R-CNN: towards real-time
object detection with region proposal networks", arXiv:1506.01497: the network proposes them. He et al. 2017, "Mask
R-CNN", arXiv:1703.06870: each gets a mask, too. Lin et al. 2016, "Feature pyramid networks for object detection",
arXiv:1612.03144: all of this at several scales.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import POOLS, Conv, ConvTranspose, check_choice, check_shared, check_unused, initializer
from cnn_research.layers.taps import intermediates
from cnn_research.models import alexnet, resnet, vgg
from cnn_research.models.classifiers import as_body
from cnn_research.models.region_heads import (
    Anchored,
    BoxHead,
    Classified,
    FeaturePyramid,
    Found,
    Maps,
    MaskHead,
    ProposalHead,
    Regions,
)
from cnn_research.ops.anchors import pyramid_anchors
from cnn_research.ops.proposals import propose
from cnn_research.ops.regions import pyramid_roi_align, roi_align, roi_pool

# What gives a body's maps, by their stride: the last layer of each size.
BODIES: dict[str, dict[int, str]] = {
    **{
        name: {
            2**stage: f"conv{stage + 1}_{len(vgg.convolutions(layers))}_activation"
            for stage, layers in enumerate(vgg.CONFIGURATIONS[fields["configuration"]])
        }
        for name, fields in vgg.VARIANTS.items()
    },
    **{
        name: {2**index * (1 if name.endswith("_cifar") else 4): f"stage{index + 1}" for index in range(len(sizes))}
        for name, fields in resnet.VARIANTS.items()
        if (sizes := fields["stage_sizes"]) and "skip" not in fields  # what stages give is activated
    },
    **{name: {16: "conv5_activation"} for name in alexnet.VARIANTS},
}

# Pixels that the image needs before and after its own where windows have no padding: AlexNet's first convolution (less
# `alexnet_owt`'s border) and its poolings. So there is a cell for each stride's pixels; their middles are half a pixel
# apart, as windows are odd and strides even.
MARGINS: dict[str, tuple[int, int]] = {
    **dict.fromkeys(("alexnet", "alexnet_ungrouped"), (9, 10)),
    "alexnet_owt": (7, 8),
}

PYRAMID: dict[str, Any] = dict(
    body="resnet50",
    strides=(4, 8, 16, 32),
    neck="fpn",
    anchor_sizes=(32.0, 64.0, 128.0, 256.0, 512.0),
    anchor_ratios=(0.5, 1.0, 2.0),
    rpn_features=256,
    candidates=(2000, 1000),
    proposals=(2000, 1000),
    region_pool="align",
    hidden=(1024, 1024),
    norm="frozen",
    dropout_rate=0.0,
    kernel_init="he_normal",
)

VARIANTS: dict[str, dict[str, Any]] = {
    "fast_rcnn": dict(anchor_sizes=()),
    "faster_rcnn": {},
    # With torchvision's and Detectron2's numbers of regions; 91 are COCO's classes, some of which it left empty.
    "mask_rcnn": PYRAMID | dict(mask_features=(256, 256, 256, 256), num_classes=91),
}

# Fields that do nothing where regions are given.
RPN_FIELDS = ("anchor_ratios", "rpn_features", "candidates", "proposals", "proposal_overlap")


class RCNN(nn.Module):
    """Fast, Faster and Mask R-CNN, with or without feature pyramid, on the maps of AlexNet, VGG or ResNet.

    The body's layers and VGG's and AlexNet's fc6 and fc7 keep their names and shapes: a classifier's weights are those
    of the network but for its other heads. All sizes are static: there are as many regions as a field says, and masks
    that say which of them are any.

    Attributes:
      body: the classifier, a key of `BODIES`. ResNets want `norm="frozen"` or, from scratch, another one than `none`.
      strides: of the body's maps that regions are cut out of, from fine to coarse: one, or with a feature pyramid some.
      neck: `fpn`, a feature pyramid, or `none`.
      fpn_features: channels of its maps.
      anchor_sizes: square roots of anchors' areas, in pixels: of all at each place, or with a feature pyramid one for
        each map. One more there is that of a further map, every second pixel of the coarsest (its P6). () is no region
        proposals: regions are given.
      anchor_ratios: heights over widths of anchors.
      rpn_features: channels of the layer that slides over the maps.
      candidates: how many boxes of each map, the best ones, are asked whether they overlap: in training, and in tests.
      proposals: how many of them become regions: in training, before some are drawn, and in tests.
      proposal_overlap: IoU from which on (exclusive) the worse one of two goes.
      region_pool: `align`, RoIAlign, or `max`, RoI pooling.
      region_size: side of regions' maps: 7 cells is what VGG's fc6 takes, 6 AlexNet's.
      sampling_ratio: points along each axis of a cell, with RoIAlign.
      hidden: units of the fully connected layers that regions' maps go through, fc6, fc7 and so on. () is a ResNet's
        next stage in their place, and the mean over its pixels: "C4" with `strides=16` and `region_size=14`.
      mask_features: channels of the mask head's convolutions; () is no mask head.
      mask_size: side of the maps that it takes; masks have twice as many pixels along each side.
      num_classes: classes, of which 0 is the background.
      width: multiplies the channels and units of all layers but the last ones, rounded to whole ones.
      norm: follows the body's convolutions.
      activation: follows every layer with weights but the last ones and the pyramid's.
      pool: kind of the body's poolings, where it has any: avg or max.
      padding_mode: what lies beyond the borders of the inputs of the convolutions.
      dropout_rate: share of the hidden layers' outputs that training drops.
      kernel_init: initializer of the weights of all layers but the last ones, and a ResNet's.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; what is said is in float32 at least.
      param_dtype: of the parameters.
    """

    body: str = "vgg16"
    strides: tuple[int, ...] = (16,)
    neck: str = "none"
    fpn_features: int = 256
    anchor_sizes: tuple[float, ...] = (128.0, 256.0, 512.0)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rpn_features: int = 512
    candidates: tuple[int, int] = (12_000, 6000)
    proposals: tuple[int, int] = (2000, 300)
    proposal_overlap: float = 0.7
    region_pool: str = "max"
    region_size: int = 7
    sampling_ratio: int = 2
    hidden: tuple[int, ...] = (4096, 4096)
    mask_features: tuple[int, ...] = ()
    mask_size: int = 14
    num_classes: int = 21
    width: float = 1.0
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
        check_choice("body", self.body, BODIES)
        check_choice("neck", self.neck, ("fpn", "none"))
        check_choice("region_pool", self.region_pool, ("align", "max"))
        check_choice("pool", self.pool, POOLS)
        strides = sorted(BODIES[self.body])
        first = strides.index(self.strides[0]) if self.strides and self.strides[0] in strides else -1
        if first < 0 or self.strides != tuple(strides[first : first + len(self.strides)]):
            raise UserError(f"strides={self.strides} are not in a row among those of {self.body}: {tuple(strides)}")
        if self.neck == "none" and len(self.strides) > 1:
            raise UserError(f"neck='none' takes one map, not strides={self.strides}; use neck='fpn'")
        if self.neck == "fpn" and self.region_pool == "max":
            raise UserError("region_pool='max' takes one map; use region_pool='align' with neck='fpn'")
        if self.neck == "fpn" and self.anchor_sizes and len(self.anchor_sizes) - len(self.strides) not in (0, 1):
            raise UserError(
                f"anchor_sizes={self.anchor_sizes} for {len(self.strides)} maps; give one for each, or one more"
            )
        numbers = (*self.candidates, *self.proposals, *self.mask_features, *self.hidden, *self.anchor_sizes)
        if min(*numbers, self.fpn_features, self.rpn_features, self.region_size, self.mask_size, 1) <= 0:
            raise UserError("sizes and numbers of layers, anchors and regions must be more than 0")
        if not 0 <= self.proposal_overlap <= 1:
            raise UserError(f"proposal_overlap={self.proposal_overlap} is out of range; it must be from 0 to 1")
        if not self.hidden and (self.body not in resnet.VARIANTS or self.neck == "fpn" or first + 1 == len(strides)):
            raise UserError("hidden=() needs a map before a ResNet's last stage, and no neck; give units of layers")
        if self.anchor_sizes and not self.anchor_ratios:
            raise UserError("anchor_ratios=() leaves no anchors; (0.5, 1.0, 2.0) are the paper's")
        if not self.anchor_sizes:
            check_unused(self, RPN_FIELDS, "with anchor_sizes=()")
        if self.neck == "none":
            check_unused(self, ["fpn_features"], "with neck='none'")
        if self.region_pool == "max":
            check_unused(self, ["sampling_ratio"], "with region_pool='max'")
        if not self.hidden:
            check_unused(self, ["dropout_rate"], "with hidden=()")
        if not self.mask_features:
            check_unused(self, ["mask_size"], "with mask_features=()")
        super().__post_init__()

    def setup(self) -> None:
        """Makes the layers that more than one method needs, which are all."""

        def widened(features: int) -> int:
            return max(1, round(self.width * features))

        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        weights: dict[str, Any] = {"kernel_init": initializer(self.kernel_init), **dtypes}
        conv: Callable[..., nn.Module] = partial(Conv, padding="same", padding_mode=self.padding_mode, **weights)
        # Without the stage that regions go through: its name is to be free.
        cut = {} if self.hidden else {"stage_sizes": resnet.VARIANTS[self.body]["stage_sizes"][: self._stages()]}
        self.classifier = as_body(self, **cut)
        nn.share_scope(self, self.classifier)
        if self.neck == "fpn":
            self.fpn = FeaturePyramid(widened(self.fpn_features), conv)
        if self.anchor_sizes:
            anchors = len(self.anchor_ratios) * (1 if self.neck == "fpn" else len(self.anchor_sizes))
            self.rpn = ProposalHead(widened(self.rpn_features), anchors, self.activation, conv)
        self.box_head = BoxHead(
            self.num_classes,
            tuple(map(widened, self.hidden)),
            None if self.hidden else partial(as_body(self, parent=None).stage, self._stages() + 1),
            self.activation,
            self.dropout_rate,
            partial(nn.Dense, **weights),
        )
        nn.share_scope(self, self.box_head)
        if self.mask_features:
            upconv = partial(ConvTranspose, **weights)
            features = tuple(map(widened, self.mask_features))
            self.mask_head = MaskHead(self.num_classes, features, self.activation, conv, upconv)

    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool, regions: Regions | None = None
    ) -> Found:
        """Says what is in regions of images, with the mask of every one of them.

        Args:
          images: of any size and any number of channels.
          train: whether to drop units and to use the batch's own statistics, and how many regions are proposed.
          regions: ymin, xmin, ymax, xmax in pixels; without them the network proposes them, or where it does not, the
            whole image is one.
        """
        maps = self.features(images, train)
        anchored = self.anchored(maps) if self.anchor_sizes else None
        if regions is None:
            whole = jnp.array([[0, 0, *images.shape[1:3]]], jnp.float32)
            regions = (
                self.proposed(anchored, images.shape[1:3], train)
                if anchored
                else jnp.broadcast_to(whole, (len(images), 1, 4))
            )
        masks = self.masks(maps, regions) if self.mask_features else None
        return Found(anchored, regions, self.classify(maps, regions, train), masks)

    def features(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> list[Float[Array, "batch _ _ _"]]:
        """Returns the maps that regions are cut out of, from fine to coarse.

        Args:
          images: zeros after them make height and width multiples of the coarsest map's stride, and around them are
            the body's margins.
          train: whether to use the batch's own statistics.
        """
        _, height, width, _ = images.shape
        tall, wide = self._padded((height, width))
        before, after = MARGINS.get(self.body, (0, 0))
        widths = [(before, whole - side + after) for side, whole in ((height, tall), (width, wide))]
        padded = jnp.pad(images, ((0, 0), *widths, (0, 0)))
        layers = [BODIES[self.body][stride] for stride in self.strides]
        maps = intermediates(self.classifier, layers, padded, train=train)
        return self.fpn(maps) if self.neck == "fpn" else maps

    def anchored(self, maps: Maps) -> Anchored:
        """Returns what the region proposal network says of anchors.

        Args:
          maps: what `features` gave.
        """
        further = [maps[-1][:, ::2, ::2]] if self.neck == "fpn" and len(self.anchor_sizes) > len(maps) else []
        return self.rpn([*maps, *further])

    @nn.nowrap
    def anchors(self, image_size: Sequence[int]) -> tuple[Float[np.ndarray, "_ 4"], ...]:
        """Returns the anchors of each map, in the order of `Anchored`.

        Args:
          image_size: height and width of the images, in pixels.
        """
        sizes, ratios = (list(map(float, numbers)) for numbers in (self.anchor_sizes, self.anchor_ratios))
        levels = [[size] for size in sizes] if self.neck == "fpn" else [sizes]
        strides = (*self.strides, 2 * self.strides[-1])[: len(levels)]
        return pyramid_anchors(self._padded(image_size), strides, levels, ratios)

    @nn.nowrap
    def proposed(self, anchored: Anchored, image_size: Sequence[int], train: bool) -> Regions:
        """Returns the regions that are proposed, through which no gradient flows.

        Args:
          anchored: what is said of the anchors.
          image_size: height and width of the images, in pixels.
          train: which of the numbers count.
        """
        numbers = (numbers[0 if train else 1] for numbers in (self.candidates, self.proposals))
        levels, (candidates, count) = self.anchors(image_size), numbers
        make = partial(
            propose,
            levels=levels,
            image_size=image_size,
            candidates=candidates,
            count=count,
            iou_threshold=self.proposal_overlap,
        )
        return jax.vmap(make)(*jax.lax.stop_gradient(anchored))

    def classify(self, maps: Maps, regions: Regions, train: bool) -> Classified:
        """Returns the classes and boxes of regions.

        Args:
          maps: what `features` gave.
          regions: in pixels.
          train: whether to drop units and to use the batch's own statistics.
        """
        logits, offsets = self.box_head(self._cut(maps, regions, self.region_size), train)
        return Classified(*(x.reshape(*regions.shape[:2], *x.shape[1:]) for x in (logits, offsets)))

    def masks(self, maps: Maps, regions: Regions) -> Float[Array, "batch regions mask_height mask_width classes"]:
        """Returns the logits of regions' masks.

        Args:
          maps: what `features` gave.
          regions: in pixels.
        """
        masks = self.mask_head(self._cut(maps, regions, self.mask_size))
        return masks.reshape(*regions.shape[:2], *masks.shape[1:])

    def _cut(self, maps: Maps, regions: Regions, size: int) -> Float[Array, "all_regions size size channels"]:
        """Returns the maps of the regions of all images, in one row."""
        regions = jax.lax.stop_gradient(regions)
        ratio, finest = self.sampling_ratio, self.strides[0]
        if self.neck == "fpn":
            lowest = finest.bit_length() - 1
            cut = partial(pyramid_roi_align, lowest=lowest, output_size=size, sampling_ratio=ratio)
            x = jax.vmap(lambda levels, boxes: cut(levels, boxes))(list(maps), regions)
        elif self.region_pool == "align":
            x = jax.vmap(partial(roi_align, output_size=size, sampling_ratio=ratio))(maps[0], regions / finest)
        else:
            x = jax.vmap(partial(roi_pool, output_size=size))(maps[0], regions / finest)
        return x.reshape(-1, *x.shape[2:])

    @nn.nowrap
    def part(self, layer: str) -> str:
        """Returns what an outermost layer belongs to: the `rpn`, the `detector`, or the `body` that both of them share.

        Args:
          layer: its name.
        """
        if layer == "rpn":
            return layer
        between = [f"fc{index}" for index, _ in enumerate(self.hidden, start=6)] or [f"stage{self._stages() + 1}"]
        return "detector" if layer in ("box", "head", "mask_head", *between) else "body"

    @nn.nowrap
    def _stages(self) -> int:
        """How many sizes of maps the body has up to the coarsest one that regions are cut out of."""
        return sorted(BODIES[self.body]).index(self.strides[-1]) + 1

    @nn.nowrap
    def _padded(self, image_size: Sequence[int]) -> list[int]:
        """Returns the image's size as a multiple of the coarsest map's stride."""
        return [-(-side // self.strides[-1]) * self.strides[-1] for side in image_size]
