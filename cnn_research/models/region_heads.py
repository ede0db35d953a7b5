"""What region networks are made of beside their bodies: the pyramid, the heads, and what is said of regions.

Lin et al. 2016, arXiv:1612.03144 (the pyramid); Ren et al. 2015, arXiv:1506.01497 (proposals); Girshick 2015,
arXiv:1504.08083 (classes and boxes); He et al. 2017, arXiv:1703.06870 (masks).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from cnn_research.layers import Activation, Upsample

Maps = Sequence[Float[Array, "batch _ _ _"]]
Regions = Float[Array, "batch regions 4"]


class Anchored(NamedTuple):
    """What is said of each anchor, those of all levels in one row.

    Attributes:
      logits: of there being an object.
      offsets: of its box, as `ops.boxes.encode` tells it by the anchor.
    """

    logits: Float[Array, "batch anchors"]
    offsets: Float[Array, "batch anchors 4"]


class Classified(NamedTuple):
    """What is said of each region.

    Attributes:
      logits: of the classes, 0 the background.
      offsets: of the box of an object of each class, as `ops.boxes.encode` tells it by the region, with `BOX_WEIGHTS`.
    """

    logits: Float[Array, "batch regions classes"]
    offsets: Float[Array, "batch regions classes 4"]


class Found(NamedTuple):
    """What a network says of images.

    Attributes:
      anchored: of anchors; None where regions are given.
      regions: ymin, xmin, ymax, xmax in pixels; those without area fill up.
      classified: of the regions.
      masks: logits of each region's mask, of an object of each class; None without mask head.
    """

    anchored: Anchored | None
    regions: Regions
    classified: Classified
    masks: Float[Array, "batch regions mask_height mask_width classes"] | None


class FeaturePyramid(nn.Module):
    """Maps of one depth for each size, in which coarser ones have a say.

    Attributes:
      features: channels of all maps.
      conv: makes a convolution.
    """

    features: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Maps) -> list[Float[Array, "batch _ _ _"]]:
        """Adds each map to the coarser one made larger; layers count from the finest map on, as maps do.

        Args:
          maps: from fine to coarse, each half as large as the one before.
        """
        levels: list[Array] = []
        for index in reversed(range(len(maps))):
            x = self.conv(self.features, 1, name=f"lateral{index + 1}")(maps[index])
            if levels:
                x += Upsample("nearest", 2, name=f"upsample{index + 2}")(levels[0])
            levels.insert(0, x)
        return [self.conv(self.features, 3, name=f"output{index}")(x) for index, x in enumerate(levels, start=1)]


class ProposalHead(nn.Module):
    """A small network that slides over maps, the same over all of them.

    Attributes:
      features: channels between.
      anchors: at each place.
      activation: between.
      conv: makes a convolution.
    """

    features: int
    anchors: int
    activation: str | Callable[[Array], Array]
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Maps) -> Anchored:
        """Says of each anchor whether there is an object, and where.

        One logit stands for the paper's two, of which only the difference counts (its footnote 2).

        Args:
          maps: from fine to coarse.
        """
        slide, activation = self.conv(self.features, 3, name="conv"), Activation(self.activation, name="activation")
        small = initializers.normal(0.01)
        score = self.conv(self.anchors, 1, kernel_init=small, name="logits")
        tell = self.conv(4 * self.anchors, 1, kernel_init=small, name="offsets")
        hidden = [activation(slide(x)) for x in maps]
        logits = [score(x).reshape(len(x), -1) for x in hidden]
        offsets = [tell(x).reshape(len(x), -1, 4) for x in hidden]
        return Anchored(_wide(jnp.concatenate(logits, axis=1)), _wide(jnp.concatenate(offsets, axis=1)))


class BoxHead(nn.Module):
    """What stands between a region's map and its class and box.

    Attributes:
      num_classes: classes, with the background.
      hidden: units of the fully connected layers.
      stage: the body's stage that takes their place, and after it the mean over all pixels.
      activation: follows fully connected layers.
      dropout_rate: share of their outputs that training drops.
      dense: makes a fully connected layer.
    """

    num_classes: int
    hidden: tuple[int, ...]
    stage: Callable[[], nn.Module] | None
    activation: str | Callable[[Array], Array]
    dropout_rate: float
    dense: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "regions height width channels"], train: bool
    ) -> tuple[Float[Array, "regions classes"], Float[Array, "regions classes 4"]]:
        """Returns logits and offsets.

        Args:
          x: maps of regions.
          train: whether to drop units and to use the batch's own statistics.
        """
        if self.stage:
            x = self.stage()(x, train).mean((1, 2))
        x = x.reshape(len(x), -1)
        for index, units in enumerate(self.hidden, start=6):
            x = self.dense(units, name=f"fc{index}")(x)
            x = Activation(self.activation, name=f"fc{index}_activation")(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"fc{index}_dropout")(x)
        # Fast R-CNN, section 2.3.
        logits = self.dense(self.num_classes, kernel_init=initializers.normal(0.01), name="head")(x)
        offsets = self.dense(4 * self.num_classes, kernel_init=initializers.normal(0.001), name="box")(x)
        return _wide(logits), _wide(offsets).reshape(len(x), -1, 4)


class MaskHead(nn.Module):
    """Convolutions of a region's map, and one transposed, which doubles its size (Mask R-CNN, figure 4).

    Attributes:
      num_classes: classes, with the background.
      features: channels of each convolution; the last one's are the transposed one's, too.
      activation: follows all but the last.
      conv: makes a convolution.
      upconv: makes a transposed convolution.
    """

    num_classes: int
    features: tuple[int, ...]
    activation: str | Callable[[Array], Array]
    conv: Callable[..., nn.Module]
    upconv: Callable[..., nn.Module]

    @nn.compact
    def __call__(
        self, x: Float[Array, "regions height width channels"]
    ) -> Float[Array, "regions mask_height mask_width classes"]:
        """Returns the logits of masks.

        Args:
          x: maps of regions.
        """
        for index, features in enumerate(self.features, start=1):
            x = self.conv(features, 3, name=f"conv{index}")(x)
            x = Activation(self.activation, name=f"conv{index}_activation")(x)
        x = self.upconv(self.features[-1], 2, 2, name="upconv")(x)
        x = Activation(self.activation, name="upconv_activation")(x)
        return _wide(self.conv(self.num_classes, 1, name="logits")(x))


def _wide(x: Array) -> Array:
    """Returns what is said in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
