"""What the tasks that find objects share: records of them are scored by the average precisions of VOC and COCO."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from cnn_research.errors import UserError
from cnn_research.metrics import records
from cnn_research.metrics.detection import coco_average_precision, voc_average_precision
from cnn_research.metrics.records import Record
from cnn_research.tasks.task import Batch, Predictions

FIRST_PIXEL = np.array([1, 1, 0, 0])  # VOC counts pixels from 1, and a box's last ones are in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """Scores boxes that have classes; of a task it lacks `loss` and `predict`.

    Attributes:
      inclusive: whether the data's boxes are of the first and the last pixel inside, counted from 1, as in VOC's
        annotation and those made after it. Otherwise a box over a whole image is 0, 0, height, width. By either, each
        metric gets boxes as it defines them.
    """

    inclusive: bool = False

    primary_metric: ClassVar[str] = "ap50"

    def measure(self, predictions: Predictions, batch: Batch) -> dict[str, Any]:
        """Returns what is found in each example.

        Args:
          predictions: `boxes` float32[batch, found, 4] in 0..1 of what the network sees, `classes`, `scores` and
            `valid` [batch, found].
          batch: unused.
        """
        del batch
        return {name: predictions[name] for name in ("boxes", "classes", "scores", "valid")}

    def record(self, found: Record, truth: Record) -> Record:
        """Returns both, see `metrics.records.join`."""
        return records.join(found, truth)

    def summarize(self, measured: Sequence[Record], /) -> dict[str, float]:
        """Scores the records of a whole split.

        Args:
          measured: what `record` gave.

        Returns:
          As shares of 1: `ap50`, VOC's mean average precision by the area under the curve, and `ap50_11point`, by
          eleven recalls; `coco_ap`, the mean over IoU thresholds from 0.5 to 0.95, `coco_ap75`, and `coco_ar100`, the
          mean recall of 100 detections an image; those of `coco_ap_small`, `coco_ap_medium` and `coco_ap_large` for
          which there are objects. And the numbers of `examples` and `objects`.

        Raises:
          UserError: no image has an object that counts.
        """
        objects = sum(int((~record["true/ignored"]).sum()) for record in measured)
        if not objects:
            raise UserError("the split holds no object that counts; evaluation needs one at least")
        coco = self.of_coco(measured)
        names = ("ap75", "ap_small", "ap_medium", "ap_large", "ar100")
        return {
            "ap50": self.of_voc(measured)["mean"],
            "ap50_11point": self.of_voc(measured, "11point")["mean"],
            "coco_ap": coco["mean"],
            **{f"coco_{name}": coco[name] for name in names if not math.isnan(coco[name])},
            "examples": len(measured),
            "objects": objects,
        }

    def by_class(self, measured: Sequence[Record]) -> dict[int, dict[str, float]]:
        """Returns for each class that is in the split its average precisions, by their names, and its `objects`."""
        labels = np.concatenate([record["true/classes"][~record["true/ignored"]] for record in measured])
        scores = self._scores_by_class(measured)
        classes, counts = np.unique(labels, return_counts=True)
        return {
            label: {**{name: of_class[label] for name, of_class in scores.items()}, "objects": count}
            for label, count in zip(classes.tolist(), counts.tolist(), strict=True)
        }

    def _scores_by_class(self, measured: Sequence[Record]) -> dict[str, dict[int, float]]:
        return {"AP50": self.of_voc(measured)["per_class"], "AP by COCO": self.of_coco(measured)["per_class"]}

    def of_voc(self, measured: Sequence[Record], method: str = "area") -> dict[str, Any]:
        """Returns what `metrics.detection.voc_average_precision` says of the records, also of each class."""
        shift = 0 if self.inclusive else FIRST_PIXEL
        return voc_average_precision(*_parts(measured, "difficult", shift), method=method)

    def of_coco(self, measured: Sequence[Record]) -> dict[str, Any]:
        """Returns what `metrics.detection.coco_average_precision` says of the records."""
        shift = -FIRST_PIXEL if self.inclusive else 0
        return coco_average_precision(*_parts(measured, "crowd", shift))


def _parts(measured: Sequence[Record], ignored: str, shift: Any) -> tuple[list[Record], list[Record]]:
    """Returns detections and truth with their boxes shifted, and what is ignored by its name in a metric."""
    found, truth = records.split(measured)
    return (
        [{**each, "boxes": each["boxes"] + shift} for each in found],
        [{**each, "boxes": each["boxes"] + shift, ignored: each["ignored"]} for each in truth],
    )
