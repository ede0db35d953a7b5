"""Segmentation: a class for each pixel, by cross-entropy, focal loss or Dice."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Shaped

from cnn_research.errors import UserError, nearest
from cnn_research.metrics import segmentation as metrics
from cnn_research.tasks.task import Batch, Predictions, Ratio, Variables, apply, likeliest

CRITERIA = ("cross_entropy", "dice", "focal")

Logits = Float[Array, "batch height width classes"]
Masks = Integer[Array, "batch height width"]
Pixels = Float[Array, "batch height width"]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A class for each pixel.

    A network may label fewer pixels than the mask has, or, where it sees a border of `data.mirror`, more: those in the
    middle of both are compared. A pixel that is 255 in the mask counts nowhere.

    Attributes:
      criterion: `cross_entropy`; `focal`, (1 - p)^gamma times that (Lin et al. 2017, arXiv:1708.02002, eq. 4); or
        `dice` (Milletari et al. 2016, arXiv:1606.04797, section 3): 1 - (2 Σ p g + 1) / (Σ p² + Σ g² + 1) over the
        pixels of an image, the mean of all classes.
      class_weights: factor of the loss of each class's pixels, such as median frequency / frequency (Eigen & Fergus
        2015, arXiv:1411.4734, section 6.3.2); () is 1. Sums are divided by the number of pixels, not by the weights.
      border_weight: w0 of the weight w0 exp(-(d1 + d2)² / 2σ²) that pixels of class 0 have beside their class's, d1 and
        d2 the distances to the two nearest objects (Ronneberger et al. 2015, arXiv:1505.04597, eq. 2: 10); 0 is off.
      border_sigma: σ of that, in pixels.
      gamma: of `focal`, from 1.
    """

    criterion: str = "cross_entropy"
    class_weights: tuple[float, ...] = ()
    border_weight: float = 0.0
    border_sigma: float = 5.0
    gamma: float = 2.0

    primary_metric: ClassVar[str] = "mean_iou"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UserError(f"loss.criterion={self.criterion!r} is unknown; {nearest(self.criterion, CRITERIA)}")
        if not all(0 <= weight < math.inf for weight in self.class_weights):
            raise UserError(f"loss.class_weights={self.class_weights}: give a number from 0 for each class, or ()")
        if not 0 <= self.border_weight < math.inf:
            raise UserError(f"loss.border_weight={self.border_weight} is no weight; give a number from 0")
        if not 0 < self.border_sigma < math.inf:
            raise UserError(f"loss.border_sigma={self.border_sigma} is no distance; give a number of pixels above 0")
        if not 1 <= self.gamma < math.inf:
            raise UserError(f"loss.gamma={self.gamma} must be a number from 1")
        if self.criterion == "dice" and (self.class_weights or self.border_weight):
            raise UserError(
                "loss.class_weights and loss.border_weight weigh pixels, which loss.criterion=dice does not"
            )

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Sums the criterion over the batch's pixels, or over its images with `dice`.

        Auxiliary classifiers, which leave {name: {"logits": …, "weight": …}} in the collection `auxiliary` in training,
        have the same targets (deep supervision); each adds its loss times its weight.

        Args:
          model: maps images to logits, one a class for each pixel.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`, `segmentation_mask`, `example_mask` and, where borders have weight, `border_distance`.
          rng: the key of dropout; unused unless `train`.
          train: whether the model runs in its training mode.

        Returns:
          {"loss": (sum, weight)}, or with auxiliary classifiers a term `main` and one by the name of each; and aux: the
          new `batch_stats`, and `metrics` with the pixel accuracy as (sum, weight).

        Raises:
          UserError: there is not one weight for each class.
        """
        logits, updated = apply(model, variables, batch["image"], rng, train)
        heads = updated.get("auxiliary", {})
        terms = {"main" if heads else "loss": self._ratio(logits, batch)}
        for name, head in heads.items():
            total, weight = self._ratio(head["logits"], batch)
            terms[name] = head["weight"] * total, weight
        logits, masks, known = _middle(logits, batch)
        correct = (jnp.argmax(logits, axis=-1) == masks) & known
        aux = {
            "batch_stats": updated.get("batch_stats", {}),
            "metrics": {"pixel_accuracy": (_count(correct), _count(known))},
        }
        return terms, aux

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Classifies pixels.

        Args:
          model: maps images to logits, one a class for each pixel.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`.

        Returns:
          Of the network's size: `logits` float32[batch, height, width, classes]; `probabilities`, their softmax;
          `label` int32[batch, height, width], the likeliest class, the first of equals, -1 where a logit is NaN.
        """
        logits = jnp.asarray(model.apply(variables, batch["image"], train=False), jnp.float32)
        label = likeliest(logits)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits), "label": label}

    def measure(self, predictions: Predictions, batch: Batch) -> dict[str, Any]:
        """Sums what `summarize` needs.

        Args:
          predictions: what `predict` gave.
          batch: `segmentation_mask` and `example_mask`.

        Returns:
          int32 `examples`, `pixels` and `confusion` [true, predicted]; float32 `loss`, the cross-entropy without
          weights.
        """
        logits, masks, known = _middle(jnp.asarray(predictions["logits"]), batch)
        label = _center(jnp.asarray(predictions["label"]), masks.shape[1:])
        losses = -_of_class(jax.nn.log_softmax(logits), masks)
        return {
            "examples": jnp.asarray(batch["example_mask"]).sum(dtype=jnp.int32),
            "pixels": known.sum(dtype=jnp.int32),
            "confusion": metrics.confusion_matrix(masks, label, logits.shape[-1], known),
            "loss": jnp.where(known, losses, 0).sum(),
        }

    def summarize(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Scores the sums over a whole split.

        Args:
          sums: what `measure` gave, added over all batches.

        Returns:
          `mean_iou`, `pixel_accuracy`, `mean_accuracy` and `frequency_weighted_iou` as shares of 1, the mean `loss` of
          a pixel, and the number of `examples`.

        Raises:
          UserError: no pixel has a class.
        """
        pixels, confusion = int(sums["pixels"]), sums["confusion"]
        if not pixels:
            raise UserError("the split holds no pixel with a class; evaluation needs one at least")
        return {
            "mean_iou": metrics.mean_iou(confusion),
            "pixel_accuracy": metrics.pixel_accuracy(confusion),
            "mean_accuracy": metrics.mean_accuracy(confusion),
            "frequency_weighted_iou": metrics.frequency_weighted_iou(confusion),
            "loss": float(sums["loss"]) / pixels,
            "examples": int(sums["examples"]),
        }

    def _ratio(self, logits: Logits, batch: Batch) -> Ratio:
        """The criterion's sum, and what it is to be divided by."""
        logits, masks, known = _middle(logits, batch)
        # Before the criterion, not only after it: the gradient of a NaN is NaN even where it is not selected.
        logits = jnp.where(known[..., None], jnp.asarray(logits, jnp.float32), 0)
        if self.criterion == "dice":
            return _dice(logits, masks, known)
        log_probability = _of_class(jax.nn.log_softmax(logits), masks)
        losses = -log_probability
        if self.criterion == "focal":
            losses *= jnp.maximum(1 - jnp.exp(log_probability), 0) ** self.gamma  # rounding may give below 0
        losses *= self._weights(masks, batch, logits.shape[-1])
        return jnp.where(known, losses, 0).sum(), _count(known)

    def _weights(self, masks: Masks, batch: Batch, num_classes: int) -> Pixels | float:
        """The factor of each pixel's loss."""
        if len(self.class_weights) not in (0, num_classes):
            raise UserError(
                f"loss.class_weights has {len(self.class_weights)} numbers for {num_classes} classes; give one for each"
            )
        weights: Array | float = jnp.array(self.class_weights)[masks] if self.class_weights else 1.0
        if self.border_weight:
            distance = _center(jnp.asarray(batch["border_distance"])[..., 0], masks.shape[1:])
            weights += border_weights(distance, self.border_weight, self.border_sigma)
        return weights


def border_weights(distance: Float[Array, "*pixels"], weight: float, sigma: float) -> Float[Array, "*pixels"]:
    """Returns w0 exp(-(d1 + d2)² / 2σ²), Ronneberger et al. 2015, arXiv:1505.04597, eq. 2.

    Args:
      distance: d1 + d2, to the two nearest objects, in pixels; infinite where there is nothing to part.
      weight: w0.
      sigma: σ, in pixels.
    """
    return weight * jnp.exp(-jnp.square(distance.astype(jnp.float32)) / (2 * sigma**2))


def _dice(logits: Logits, masks: Masks, known: Bool[Array, "batch height width"]) -> Ratio:
    """The Dice loss of each image, added, and the number of images with known pixels."""
    target = jax.nn.one_hot(masks, logits.shape[-1])
    guess, target = (jnp.where(known[..., None], x, 0) for x in (jax.nn.softmax(logits), target))
    both, squares = (guess * target).sum((1, 2)), (guess**2 + target**2).sum((1, 2))
    losses = 1 - ((2 * both + 1) / (squares + 1)).mean(-1)
    seen = known.any((1, 2))
    return jnp.where(seen, losses, 0).sum(), _count(seen)


def _middle(
    logits: Float[Array, "batch out_height out_width classes"], batch: Batch
) -> tuple[Logits, Masks, Bool[Array, "batch height width"]]:
    """Returns logits and classes of the pixels in the middle of both, and which count; others are of class 0."""
    masks = jnp.asarray(batch["segmentation_mask"])[..., 0]
    size = tuple(map(min, logits.shape[1:3], masks.shape[1:]))
    masks = _center(masks, size).astype(jnp.int32)
    known = (masks != metrics.IGNORE) & jnp.asarray(batch["example_mask"])[:, None, None]
    return _center(logits, size), jnp.where(known, masks, 0), known


def _center(x: Shaped[Array, "batch height width *rest"], size: tuple[int, ...]) -> Shaped[Array, "batch _ _ *rest"]:
    top, left = ((whole - part) // 2 for whole, part in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


def _of_class(values: Logits, masks: Masks) -> Pixels:
    """Picks the values of each pixel's class; by comparing, for the gradient of a gather scatters."""
    return jnp.where(masks[..., None] == jnp.arange(values.shape[-1]), values, 0).sum(-1)


def _count(marks: ArrayLike) -> Float[Array, ""]:
    return jnp.asarray(marks).sum(dtype=jnp.float32)
