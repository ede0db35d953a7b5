"""FCN: classifiers that slide over whole images, and what they say made finer. Long, Shelhamer & Darrell 2015.

"Fully convolutional networks for semantic segmentation", arXiv:1411.4038.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import (
    POOLS,
    Activation,
    Conv,
    ConvTranspose,
    SlidingDense,
    Upsample,
    check_choice,
    check_shared,
    check_unused,
    initializer,
)
from cnn_research.layers.initializers import bilinear
from cnn_research.layers.taps import intermediates
from cnn_research.models import resnet, vgg
from cnn_research.models.classifiers import as_body


class Body(NamedTuple):
    """Where a classifier leaves its maps.

    Attributes:
      layers: what gives them, by their stride: the pixels of a map's cell.
      margins: pixels that the image needs before and after its own, where windows have no padding: for a cell for each
        stride's pixels, in their middle.
    """

    layers: dict[int, str]
    margins: tuple[int, int] = (0, 0)


STAGES = dict(zip((8, 16, 32), ("stage2", "stage3", "stage4"), strict=True))
MODULES = ("inception_3b", "inception_4e", "inception_5b")

BODIES = {
    **dict.fromkeys(vgg.VARIANTS, Body({8: "pool3", 16: "pool4", 32: "pool5"})),
    **dict.fromkeys(("alexnet", "alexnet_ungrouped"), Body({8: "pool1", 16: "pool2", 32: "pool5"}, margins=(17, 18))),
    "alexnet_owt": Body({8: "pool1", 16: "pool2", 32: "pool5"}, margins=(15, 16)),
    "nin_imagenet": Body({8: "pool1", 16: "pool2", 32: "pool3"}, margins=(17, 18)),
    "nin_cifar": Body({2: "pool1", 4: "pool2"}),
    **dict.fromkeys(("googlenet", "googlenet_bn"), Body(dict(zip((8, 16, 32), MODULES, strict=True)))),
    "googlenet_cifar": Body(dict(zip((1, 2, 4), MODULES, strict=True))),
    **dict.fromkeys(resnet.VARIANTS, Body(STAGES)),
    **{name: Body({1: "stage1", 2: "stage2", 4: "stage3"}) for name in resnet.VARIANTS if name.endswith("_cifar")},
    # What their last stage gives is not activated.
    **dict.fromkeys(("resnet164_cifar", "resnet1001_cifar"), Body({1: "stage1", 2: "stage2", 4: "head_activation"})),
}

VARIANTS: dict[str, dict[str, Any]] = {"fcn32s": dict(skips=0), "fcn16s": dict(skips=1), "fcn8s": dict(skips=2)}


class FCN(nn.Module):
    """FCN-32s to FCN-8s, on the convolutions of any classifier.

    The body's layers keep their names and so do VGG's fc6 and fc7, with their parameters' shapes: a classifier's
    weights are those of the network but for its head (`init_except="head|score"`).

    Attributes:
      body: the classifier, a key of `BODIES`. A ResNet wants `norm="batch"` and, in the literature, `hidden=()`.
      skips: how many finer maps have a say: 0 for 32s, whose scores are `stride` pixels apart, 1 for 16s, 2 for 8s.
      num_classes: classes.
      width: multiplies the channels of the body and the units of the hidden layers, rounded to whole ones.
      hidden: units of the fully connected layers that slide over the body's last maps, fc6, fc7 and so on.
      hidden_kernel: size of the maps that fc6 takes, 7 cells for VGG at 224x224 pixels.
      border: what fc6 sees beyond the image: `same`, zeros; or `image`, what the body makes of a border of zeros around
        the image, three cells wide for a kernel of 7: the paper's 100 pixels less the 4 that its crops take off. That
        border multiplies the work (1.9 times for 500x500 pixels), and both give maps of the image's size.
      learned: which of the layers that make scores finer are learned, from bilinear interpolation on: `inner`, those
        before the sums; `all`, the last one too; or `none`. Those that are not, are no transposed convolutions of
        the paper's but interpolate up to the border. (The paper has `inner`, the authors' published code `none`.)
      norm: follows the body's convolutions.
      activation: follows every layer with weights but the scores.
      pool: kind of the body's poolings, where it has any: avg or max.
      padding_mode: what lies beyond the borders of the inputs of the convolutions, but with the `image` of fc6.
      dropout_rate: share of the hidden layers' outputs that training drops.
      kernel_init: initializer of the body's weights, where it has the field, and of the hidden layers; the scores start
        at 0 (section 4.2).
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norms' variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    body: str = "vgg16"
    skips: int = 2
    num_classes: int = 21
    width: float = 1.0
    hidden: tuple[int, ...] = (4096, 4096)
    hidden_kernel: int = 7
    border: str = "same"
    learned: str = "inner"
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
        check_choice("border", self.border, ("image", "same"))
        check_choice("learned", self.learned, ("all", "inner", "none"))
        check_choice("pool", self.pool, POOLS)
        finer = len(BODIES[self.body].layers) - 1
        if not 0 <= self.skips <= finer:
            raise UserError(f"skips={self.skips} is out of range; {self.body} has {finer} finer maps")
        if any(units < 1 for units in self.hidden):
            raise UserError(f"hidden={self.hidden} is out of range; each layer must have 1 or more units")
        if self.hidden_kernel < 1:
            raise UserError(f"hidden_kernel={self.hidden_kernel} is out of range; it must be 1 or more")
        if self.border == "image" and self.hidden_kernel % 2 == 0:
            raise UserError(
                f"border='image' needs an odd hidden_kernel, not {self.hidden_kernel}; or use border='same'"
            )
        if not self.hidden:
            check_unused(self, ["border", "dropout_rate", "hidden_kernel"], "with hidden=()")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch height width classes"]:
        """Returns the logits of each pixel.

        Args:
          images: of any size and any number of channels. Zeros all around, half of them before and half after, make
            height and width multiples of the body's largest stride.
          train: whether to drop units and to use the batch's own statistics.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        score: Callable[..., nn.Module] = partial(Conv, self.num_classes, 1, kernel_init=initializers.zeros, **dtypes)
        body = BODIES[self.body]
        strides = sorted(body.layers, reverse=True)[: self.skips + 1]  # from coarse to fine
        cells = [-(-size // strides[0]) for size in images.shape[1:3]]
        around = strides[0] * (self.hidden_kernel - 1) if self.hidden and self.border == "image" else 0

        before, after = body.margins
        spare = [strides[0] * count + around - size for count, size in zip(cells, images.shape[1:3], strict=True)]
        widths = [(total // 2 + before, total - total // 2 + after) for total in spare]
        padded = jnp.pad(images, ((0, 0), *widths, (0, 0)))

        layers = [body.layers[stride] for stride in reversed(strides)]
        classifier = self.classifier()
        nn.share_scope(self, classifier)
        *finer, x = intermediates(classifier, layers, padded, train=train)
        x = _cropped(x, *(count + around // strides[0] for count in cells))
        for index, units in enumerate(self.hidden, start=6):
            kernel, border = (self.hidden_kernel, "valid" if around else "same") if index == 6 else (1, "same")
            x = SlidingDense(
                max(1, round(self.width * units)),
                kernel,
                border,
                self.padding_mode,
                kernel_init=initializer(self.kernel_init),
                **dtypes,
                name=f"fc{index}",
            )(x)
            x = Activation(self.activation, name=f"fc{index}_activation")(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"fc{index}_dropout")(x)
        x = score(name="score")(x)
        for maps, layer, coarse, fine in zip(finer[::-1], layers[-2::-1], strides, strides[1:], strict=False):
            x = self._finer(x, coarse // fine, self.learned != "none", f"upscore_{layer}")
            x += _cropped(score(name=f"score_{layer}")(maps), *x.shape[1:3])
        x = self._finer(x, strides[-1], self.learned == "all", "upscore")
        return _cropped(x, *images.shape[1:3]).astype(jnp.promote_types(self.dtype, jnp.float32))

    @nn.nowrap
    def classifier(self) -> nn.Module:
        """Returns the body, without hidden layers."""
        return as_body(self, hidden=())

    def _finer(self, x: Array, factor: int, learned: bool, name: str) -> Array:
        if factor == 1:
            return x
        if not learned:
            return Upsample("bilinear", factor, name=name)(x)
        size: dict[str, Any] = {"kernel_size": 2 * factor, "strides": factor, "padding": factor // 2}
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return ConvTranspose(self.num_classes, **size, use_bias=False, kernel_init=bilinear, **dtypes, name=name)(x)


def _cropped(x: Array, height: int, width: int) -> Array:
    """Returns the middle of maps; of an odd rest one row or column more is left away at the end."""
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
