"""Localization: the class and the box of an image's main object, the first of `objects/…`, which is the largest."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cnn_research.errors import UserError, nearest
from cnn_research.metrics.classification import top_k_correct
from cnn_research.ops.boxes import centers_and_sizes, clip, giou_of_pairs, iou_of_pairs
from cnn_research.tasks.task import Batch, Predictions, Ratio, Variables, apply, likeliest

CRITERIA = ("giou", "l2", "smooth_l1")
OVERLAP = 0.5  # IoU from which a box is right: Russakovsky et al. 2015, arXiv:1409.0575, section 4.2

Boxes = Float[Array, "batch 4"]


@dataclasses.dataclass(frozen=True)
class Localization:
    """The class and the box of an image's main object.

    The loss is the class's cross-entropy and, times `box_weight`, that of the box. An image without objects counts
    nowhere.

    Attributes:
      criterion: of boxes. `l2`, the squared distance of centres and sizes in shares of the image's sides (Simonyan &
        Zisserman 2014, arXiv:1409.1556, appendix A); `smooth_l1`, with x²/2β below β and |x| − β/2 above of each of
        the four in place of x² (Girshick 2015, arXiv:1504.08083, eq. 3); or `giou`, 1 − GIoU (Rezatofighi et al. 2019,
        arXiv:1902.09630).
      box_weight: factor of the boxes' loss.
      beta: β of `smooth_l1`.
    """

    criterion: str = "l2"
    box_weight: float = 1.0
    beta: float = 0.1

    primary_metric: ClassVar[str] = "localization_accuracy"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise UserError(f"loss.criterion={self.criterion!r} is unknown; {nearest(self.criterion, CRITERIA)}")
        if not 0 <= self.box_weight < math.inf:
            raise UserError(f"loss.box_weight={self.box_weight} is no weight; give a number from 0")
        if not 0 < self.beta < math.inf:
            raise UserError(f"loss.beta={self.beta} is no distance; give a share of the image's sides above 0")

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Sums the losses over the batch's main objects.

        Where each class has a box, that of the true class is compared.

        Args:
          model: maps images to `logits` and `boxes`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`, `example_mask`, and `objects/` `bbox`, `label` and `valid`.
          rng: the key of dropout; unused unless `train`.
          train: whether the model runs in its training mode.

        Returns:
          {"class": (sum, weight), "box": (sum, weight)}; and aux: the new `batch_stats`, and `metrics` with the
          accuracy and the mean IoU as (sum, weight).
        """
        found, updated = apply(model, variables, batch["image"], rng, train)
        truth, label, known = _main_objects(batch)
        # Before the criterion, not only after it: the gradient of a NaN is NaN even where it is not selected.
        logits = jnp.where(known[:, None], jnp.asarray(found.logits, jnp.float32), 0)
        boxes = jnp.where(known[:, None], _of_class(jnp.asarray(found.boxes, jnp.float32), label), truth)
        weight = known.sum(dtype=jnp.float32)

        def ratio(values: Float[Array, " batch"]) -> Ratio:
            return jnp.where(known, values, 0).sum(), weight

        aux = {
            "batch_stats": updated.get("batch_stats", {}),
            "metrics": {
                "accuracy": ratio(top_k_correct(logits, label, k=1).astype(jnp.float32)),
                "mean_iou": ratio(iou_of_pairs(boxes, truth)),
            },
        }
        return {
            "class": ratio(optax.softmax_cross_entropy_with_integer_labels(logits, label)),
            "box": ratio(self.box_weight * self._box_losses(boxes, truth)),
        }, aux

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Says what is in images, and where.

        Args:
          model: maps images to `logits` and `boxes`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`.

        Returns:
          `logits` float32[batch, classes]; `probabilities`, their softmax; `label` int32[batch], the likeliest class,
          the first of equals, -1 where a logit is NaN; `box` float32[batch, 4], that class's, cut off at the borders of
          the image, which is 0..1; without area where a number of it is NaN.
        """
        found: Any = model.apply(variables, batch["image"], train=False)
        logits = jnp.asarray(found.logits, jnp.float32)
        label = likeliest(logits)
        box = clip(_of_class(jnp.asarray(found.boxes, jnp.float32), jnp.maximum(label, 0)), 1, 1)
        box = jnp.where(jnp.isnan(box).any(axis=-1, keepdims=True), 0, box)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits), "label": label, "box": box}

    def measure(self, predictions: Predictions, batch: Batch) -> dict[str, Any]:
        """Sums what `summarize` needs.

        Args:
          predictions: what `predict` gave.
          batch: `example_mask`, and `objects/` `bbox`, `label` and `valid`.

        Returns:
          int32 `examples`, those with an object, and of these `correct`, whose class is right, `found`, whose box is,
          and `localized`, whose class and box are; float32 `iou`, and `loss`, the cross-entropy.
        """
        truth, label, known = _main_objects(batch)
        overlap = iou_of_pairs(jnp.asarray(predictions["box"]), truth)
        correct = top_k_correct(predictions["logits"], label, k=1) & known
        found = (overlap >= OVERLAP) & known
        counts = {"examples": known, "correct": correct, "found": found, "localized": correct & found}
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(predictions["logits"]), label)
        return {name: marks.sum(dtype=jnp.int32) for name, marks in counts.items()} | {
            "iou": jnp.where(known, overlap, 0).sum(),
            "loss": jnp.where(known, losses, 0).sum(),
        }

    def summarize(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Divides the sums over a whole split.

        Args:
          sums: what `measure` gave, added over all batches.

        Returns:
          As shares of 1: `localization_accuracy`, class right and IoU at least 0.5; `accuracy`, of the class alone;
          `box_accuracy`, of the box alone. `mean_iou`, `loss`, the mean cross-entropy, and the number of `examples`.

        Raises:
          UserError: no image has an object.
        """
        examples = int(sums["examples"])
        if not examples:
            raise UserError("the split holds no image with an object; evaluation needs one at least")
        return {
            "localization_accuracy": int(sums["localized"]) / examples,
            "accuracy": int(sums["correct"]) / examples,
            "box_accuracy": int(sums["found"]) / examples,
            "mean_iou": float(sums["iou"]) / examples,
            "loss": float(sums["loss"]) / examples,
            "examples": examples,
        }

    def _box_losses(self, boxes: Boxes, truth: Boxes) -> Float[Array, " batch"]:
        """The criterion of each example's box."""
        if self.criterion == "giou":
            return 1 - giou_of_pairs(boxes, truth)
        errors = jnp.concatenate(
            [a - b for a, b in zip(centers_and_sizes(boxes), centers_and_sizes(truth), strict=True)], axis=-1
        )
        if self.criterion == "l2":
            return jnp.square(errors).sum(axis=-1)
        return optax.losses.huber_loss(errors, delta=self.beta).sum(axis=-1) / self.beta


def _main_objects(batch: Batch) -> tuple[Boxes, Int[Array, " batch"], Bool[Array, " batch"]]:
    """Returns the box and the class of each example's main object, and which examples count."""
    bbox, label, valid = (jnp.asarray(batch[f"objects/{name}"])[:, 0] for name in ("bbox", "label", "valid"))
    return bbox, label, valid & jnp.asarray(batch["example_mask"])


def _of_class(boxes: Float[Array, "batch kinds 4"], label: Int[Array, " batch"]) -> Boxes:
    """Picks the box of each example's class, or the one that all classes have."""
    kinds = boxes.shape[1]
    return boxes[:, 0] if kinds == 1 else jnp.take_along_axis(boxes, label[:, None, None], axis=1)[:, 0]
