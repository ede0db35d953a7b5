"""Instance segmentation: the class, the box and the mask of each object, by Mask R-CNN."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cnn_research.metrics import records
from cnn_research.metrics.detection import coco_average_precision, encode_masks
from cnn_research.metrics.records import Record
from cnn_research.ops.regions import paste_masks
from cnn_research.tasks.region_detection import RegionDetection
from cnn_research.tasks.region_loss import Detected, Drawn, mask_loss, mask_targets, of_detections
from cnn_research.tasks.task import Batch, Predictions, Ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceSegmentation(RegionDetection):
    """Classes, boxes and masks of objects: `RegionDetection`, and the loss `mask`.

    Attributes:
      mask_threshold: probability from which on a pixel is in a mask.
    """

    mask_threshold: float = 0.5

    primary_metric: ClassVar[str] = "mask_ap50"

    def _further_losses(self, network: Any, maps: Any, drawn: Drawn, batch: Batch) -> dict[str, Ratio]:
        """Returns the loss of masks, of the regions of objects alone, which come first."""
        drawn = jax.tree.map(lambda x: x[:, : round(self.regions_drawn * self.positives)], drawn)
        logits = network.masks(maps, drawn.boxes)
        numbers = jnp.take_along_axis(jnp.asarray(batch["objects/number"]), drawn.objects, axis=1)
        instances = jnp.asarray(batch["segmentation_mask"])[..., 0]

        def of_image(instances: Array, numbers: Array, drawn: Drawn, logits: Array) -> Ratio:
            masks = mask_targets(instances.astype(jnp.int32), numbers, drawn.boxes, logits.shape[1])
            return mask_loss(logits, drawn.labels, masks)

        return {"mask": jax.vmap(of_image)(instances, numbers, drawn, logits)}

    def _further_predictions(self, network: Any, maps: Any, found: Detected) -> dict[str, Array]:
        """Returns `masks` float32[batch, detections, height, width], probabilities within each detection's box."""
        return {"masks": jax.vmap(of_detections)(network.masks(maps, found.boxes), found.labels)}

    def measure(self, predictions: Predictions, batch: Batch) -> dict[str, Any]:
        """Returns what is found in each example, with the masks.

        Args:
          predictions: what `predict` gave.
          batch: unused.
        """
        return super().measure(predictions, batch) | {"masks": predictions["masks"]}

    def record(self, found: Record, truth: Record) -> Record:
        """Returns both, the found masks at the size of the image.

        Args:
          found: `boxes` in pixels of the image, and `masks` within them, beside what the boxes' metrics need.
          truth: `masks` as `metrics.detection.encode_masks` makes them, and `size`, the image's.
        """
        masks = paste_masks(found["masks"], found["boxes"], truth["size"].tolist(), self.mask_threshold)
        return records.join(found | {"masks": encode_masks(masks), "size": truth["size"]}, truth)

    def summarize(self, measured: Sequence[Record], /) -> dict[str, float]:
        """Scores the records of a whole split.

        Args:
          measured: what `record` gave.

        Returns:
          `mask_ap`, `mask_ap50` and `mask_ap75`, COCO's average precision of masks, those of small, medium and large
          objects where there are such; and all that boxes have.

        Raises:
          UserError: no image has an object that counts.
        """
        of_boxes = super().summarize(measured)
        of_masks = self.of_masks(measured)
        names = ("ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        return {
            "mask_ap": of_masks["mean"],
            **{f"mask_{name}": of_masks[name] for name in names if not math.isnan(of_masks[name])},
            **of_boxes,
        }

    def _scores_by_class(self, measured: Sequence[Record]) -> dict[str, dict[int, float]]:
        return super()._scores_by_class(measured) | {"mask AP": self.of_masks(measured)["per_class"]}

    def of_masks(self, measured: Sequence[Record]) -> dict[str, Any]:
        """Returns what `metrics.detection.coco_average_precision` says of the records' masks."""
        found, truth = records.split(measured)
        return coco_average_precision(found, [{**each, "crowd": each["ignored"]} for each in truth], masks=True)
