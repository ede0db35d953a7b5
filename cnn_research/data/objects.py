"""Objects of images: boxes and classes as TFDS has them, as batches have them, and as truth that metrics take.

A batch holds, for each of `ImageSpec.max_objects` places, `objects/bbox` (ymin, xmin, ymax, xmax in 0..1 of what the
network sees), `objects/label`, `objects/valid` (False where the place is empty), `objects/ignored` (what counts neither
way: VOC's difficult objects, COCO's crowds) and `objects/number` (what a mask of instances says where the object is
seen: k of the data set's k-th). An image may have no objects.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from cnn_research.data.images import ImageSpec, place_boxes

IGNORED = ("is_difficult", "is_crowd")  # features of objects, which a data set may have


class Objects(NamedTuple):
    """The objects of an image, without those whose boxes have no area.

    Attributes:
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      labels: their classes.
      ignored: which count neither way.
      numbers: their places in the data set's list, counted from 1.
      areas: of what is seen of them, in pixels, where the data set has them; else empty.
      dropped: how many had a box without area.
    """

    boxes: Float32[np.ndarray, "objects 4"]
    labels: Int32[np.ndarray, " objects"]
    ignored: Bool[np.ndarray, " objects"]
    numbers: Int32[np.ndarray, " objects"]
    areas: Float32[np.ndarray, " _"]
    dropped: int

    def truth(self, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """Returns them as `metrics.detection` takes them, boxes in pixels.

        Args:
          size: height and width of the image.
        """
        areas = {"areas": self.areas} if len(self.areas) else {}
        boxes = self.boxes * np.tile(np.array(size, np.float32), 2)
        return {"boxes": boxes, "classes": self.labels, "ignored": self.ignored, **areas}


def read_objects(objects: Mapping[str, Any]) -> Objects:
    """Reads the feature `objects` of an example.

    Args:
      objects: `bbox` and `label` of each, or neither, and where the data set has them `is_difficult`, `is_crowd` and
        `area`.
    """
    boxes = np.asarray(objects.get("bbox", ()), np.float32).reshape(-1, 4)
    labels = np.asarray(objects.get("label", ()), np.int32).reshape(-1)
    ignored = np.zeros(len(boxes), bool)
    for name in filter(objects.__contains__, IGNORED):
        ignored |= np.asarray(objects[name], bool)
    seen = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    areas = np.asarray(objects["area"], np.float32)[seen] if "area" in objects else np.empty(0, np.float32)
    numbers = np.flatnonzero(seen).astype(np.int32) + 1
    return Objects(boxes[seen], labels[seen], ignored[seen], numbers, areas, int((~seen).sum()))


def empty_objects(count: int, room: int) -> dict[str, np.ndarray]:
    """Returns a batch's arrays without objects.

    Args:
      count: images.
      room: objects of an image at most.
    """
    return {
        "objects/bbox": np.zeros((count, room, 4), np.float32),
        "objects/label": np.zeros((count, room), np.int32),
        "objects/valid": np.zeros((count, room), bool),
        "objects/ignored": np.zeros((count, room), bool),
        "objects/number": np.zeros((count, room), np.int32),
    }


def write_objects(
    objects: Objects,
    size: tuple[int, int],
    spec: ImageSpec,
    batch: Mapping[str, np.ndarray],
    row: int,
    draws: Sequence[float] = (),
) -> None:
    """Writes an image's objects into its row of a batch, as they lie in what is seen of the image.

    The largest come first, those that are ignored last, and those for which there is no room are left out.

    Args:
      objects: of the image.
      size: its height and width.
      spec: what it is brought to.
      batch: as `empty_objects` gave it.
      row: of the image.
      draws: of the example, for `spec.windows`.
    """
    boxes = place_boxes(objects.boxes, size, spec, draws)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order = np.lexsort((-areas, objects.ignored))
    chosen = order[areas[order] > 0][: spec.max_objects]
    written = {"bbox": boxes, "label": objects.labels, "ignored": objects.ignored, "number": objects.numbers}
    for name, values in written.items():
        batch[f"objects/{name}"][row, : len(chosen)] = values[chosen]
    batch["objects/valid"][row, : len(chosen)] = True
