"""Detection from one look: YOLO's loss, and boxes with classes out of what the cells of a grid say."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from cnn_research.errors import UserError
from cnn_research.ops.boxes import clip, nms
from cnn_research.tasks.average_precision import AveragePrecision
from cnn_research.tasks.task import Batch, Ratio, Variables, apply
from cnn_research.tasks.yolo_loss import cell_targets, predicted_boxes, yolo_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(AveragePrecision):
    """Boxes and their classes by YOLO (Redmon et al. 2015, arXiv:1506.02640); see `AveragePrecision` for the scores.

    Attributes:
      coordinates_weight: λ_coord of the loss.
      no_object_weight: λ_noobj of the loss.
      score_threshold: the least score of a detection, its confidence times the probability of its class; Darknet's
        validation has 0.001.
      nms_threshold: of two detections of a class with a larger IoU the worse goes; Darknet's validation has 0.5.
      max_detections: of an image at most.
    """

    coordinates_weight: float = 5.0
    no_object_weight: float = 0.5
    score_threshold: float = 0.001
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for field in ("coordinates_weight", "no_object_weight"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(f"loss.{field}={getattr(self, field)} is no weight; give a number from 0")
        if not 0 <= self.nms_threshold <= 1:
            raise UserError(f"loss.nms_threshold={self.nms_threshold} is no IoU; give a number from 0 to 1")
        if self.max_detections < 1:
            raise UserError(f"loss.max_detections={self.max_detections} is out of range; it must be 1 or more")

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Sums YOLO's loss over the batch's images, of which also those without objects count.

        What is ignored is no object, as in Darknet.

        Args:
          model: maps images to `cells` and `classes`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`, `example_mask`, and `objects/` `bbox`, `label`, `valid` and `ignored`.
          rng: the key of dropout; unused unless `train`.
          train: whether the model runs in its training mode.

        Returns:
          The terms of `yolo_loss` as (sum, number of images); and aux: the new `batch_stats`, and no `metrics`.
        """
        found, updated = apply(model, variables, batch["image"], rng, train)
        bbox, label, valid, ignored = (
            jnp.asarray(batch[f"objects/{name}"]) for name in ("bbox", "label", "valid", "ignored")
        )
        real = jnp.asarray(batch["example_mask"])

        def of_image(cells: Array, classes: Array, bbox: Array, label: Array, valid: Array) -> dict[str, Array]:
            rows, columns = cells.shape[:2]
            targets = cell_targets(bbox, label, valid, (rows, columns))
            return yolo_loss(cells, classes, targets, self.coordinates_weight, self.no_object_weight)

        # Before the loss, not only after it: the gradient of a NaN is NaN even where it is not selected.
        cells, classes = (jnp.where(real[(...,) + (None,) * (x.ndim - 1)], x, 0) for x in found)
        terms = jax.vmap(of_image)(cells, classes, bbox, label, valid & ~ignored)
        weight = real.sum(dtype=jnp.float32)
        losses = {name: (jnp.where(real, values, 0).sum(), weight) for name, values in terms.items()}
        return losses, {"batch_stats": updated.get("batch_stats", {}), "metrics": {}}

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Finds objects.

        Each box of a cell is a candidate for each class, and those of a class suppress each other.

        Args:
          model: maps images to `cells` and `classes`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`.

        Returns:
          `boxes` float32[batch, max_detections, 4], in 0..1 of the image and cut off at its borders; `classes` int32
          and `scores` float32 of each; `valid`, which there are. The best come first.
        """
        found: Any = model.apply(variables, batch["image"], train=False)

        def of_image(cells: Array, classes: Array) -> dict[str, Array]:
            boxes = clip(predicted_boxes(cells), 1, 1)
            scores = cells[..., 4:] * classes[:, :, None]
            shape = scores.shape
            flat_boxes = jnp.broadcast_to(boxes[..., None, :], (*shape, 4)).reshape(-1, 4)
            flat_classes = jnp.broadcast_to(jnp.arange(shape[-1]), shape).reshape(-1)
            flat_scores = scores.reshape(-1)
            index, valid = nms(
                flat_boxes,
                flat_scores,
                self.nms_threshold,
                self.max_detections,
                flat_classes,
                flat_scores >= self.score_threshold,
            )
            return {
                "boxes": flat_boxes[index],
                "classes": flat_classes[index],
                "scores": flat_scores[index],
                "valid": valid,
            }

        return jax.vmap(of_image)(*found)
