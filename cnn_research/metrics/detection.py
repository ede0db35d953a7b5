"""Detection: average precision as VOC's devkit and as COCO define it, for boxes and masks; recall of proposals.

Detections and ground truth are lists, one dict an image, in the same order: what `metrics.records` collects.

- `boxes`: float[n, 4], ymin, xmin, ymax, xmax in pixels; for VOC those of its annotation, which count from 1 and are of
  the last pixels inside.
- `classes`: int[n].
- `scores`: float[n], of detections. Of equal scores the first goes first: images in order, in an image as given.
- `difficult`: bool[n], of the ground truth, may be left out. VOC's objects that count neither way; COCO has no such.
- `crowd`: bool[n], of the ground truth, may be left out. COCO's regions in which any number of detections is no error.
- `areas`: float[n], of the ground truth, may be left out. What COCO calls small and large; the boxes' or masks' own if
  not given. (COCO itself goes by the masks' areas for boxes too.)
- `masks`: bool[n, height, width], or shorter: what `encode_masks` makes of them, and beside it `size`, (height, width).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from jax.typing import ArrayLike
from jaxtyping import Bool, Float64, Shaped

from cnn_research.errors import UserError, nearest

Images = Sequence[Mapping[str, ArrayLike]]

METHODS = ("11point", "area")
# COCO's four ranges of area, in the order of its evaluation's third axis after the thresholds.
RANGES = ("", "_small", "_medium", "_large")
COUNTS = (1, 10, 100)  # of an image's best detections
HALF, THREE_QUARTERS = 0, 5  # places of IoU 0.5 and 0.75 among COCO's thresholds 0.5, 0.55, … 0.95


class Curve(NamedTuple):
    """Precision against recall as the score that a detection must have sinks.

    Attributes:
      recall: the share of the truth that is found, ascending.
      precision: the share of the detections that are right; made monotone by COCO, but not by VOC.
      scores: the least score at each point.
    """

    recall: Float64[np.ndarray, " points"]
    precision: Float64[np.ndarray, " points"]
    scores: Float64[np.ndarray, " points"]


def voc_average_precision(
    detections: Images, ground_truth: Images, iou_threshold: float = 0.5, method: str = "area"
) -> dict[str, Any]:
    """Average precision as the devkit of PASCAL VOC computes it (Everingham et al. 2010, section 4.2).

    From the best score on, a detection is right if its IoU with the box that it overlaps most, the first of equals, is
    at least the threshold and none before it has found that one; it is wrong if one has. Where that box is difficult it
    does not count. Boxes are of whole pixels, and their sides one longer than the difference.

    Args:
      detections: `boxes`, `classes`, `scores`.
      ground_truth: `boxes`, `classes` and where there are such `difficult`.
      iou_threshold: of a right detection.
      method: `area` under the curve made monotone, as from VOC 2010 on; or `11point`, the mean of the precision at
        recalls of 0, 0.1, … 1 or more, as before.

    Returns:
      `mean` over the classes that have objects; `per_class`, NaN for a class that is detected and has none that is not
      difficult; `curves`, a `Curve` for each of the others.

    Raises:
      UserError: the method is not known, or the lists are not of the same images.
    """
    if method not in METHODS:
        raise UserError(f"method={method!r} is unknown; {nearest(method, METHODS)}")
    _check(detections, ground_truth)
    per_class, curves = {}, {}
    for label in _classes(detections, ground_truth):
        pairs = zip(detections, ground_truth, strict=True)
        judged = [_judge(found, truth, label, iou_threshold) for found, truth in pairs]
        scores, right = (np.concatenate(parts) for parts in list(zip(*judged, strict=True))[:2])
        objects = sum(count for _, _, count in judged)
        order = np.argsort(-scores, kind="stable")
        tp = np.cumsum(right[order])
        if not objects:
            per_class[label] = float("nan")
            continue
        precision = tp / np.arange(1, len(tp) + 1)
        curves[label] = Curve(tp / objects, precision, scores[order])
        best = np.maximum.accumulate(precision[::-1])[::-1]
        if method == "area":  # recall grows by one object at each that is right
            per_class[label] = float(best[right[order]].sum() / objects)
        else:  # in whole numbers: 3 of 10 objects are a recall of 0.3, which no float is
            reached = [10 * tp >= tenths * objects for tenths in range(11)]
            per_class[label] = float(np.mean([best[there][0] if there.any() else 0.0 for there in reached]))
    return {"mean": _mean(np.array([*per_class.values()])), "per_class": per_class, "curves": curves}


def _judge(
    found: Mapping[str, ArrayLike], truth: Mapping[str, ArrayLike], label: int, iou_threshold: float
) -> tuple[Float64[np.ndarray, " detections"], Bool[np.ndarray, " detections"], int]:
    """Returns the scores of an image's detections of a class that count, whether each is right, and how many could."""
    mine, theirs = np.asarray(found["classes"]) == label, np.asarray(truth["classes"]) == label
    scores = np.asarray(found["scores"], np.float64)[mine]
    difficult = np.asarray(truth.get("difficult", np.zeros(len(theirs), bool)))[theirs]
    objects = int((~difficult).sum())
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    if not theirs.any():
        return scores, np.zeros(len(scores), bool), objects
    overlaps = _inclusive_iou(_boxes(found)[mine][order], _boxes(truth)[theirs])
    best, large = overlaps.argmax(axis=1), overlaps.max(axis=1) >= iou_threshold
    first = np.zeros(len(scores), bool)
    claims = np.flatnonzero(large)
    first[claims[np.unique(best[claims], return_index=True)[1]]] = True
    counts = ~(large & difficult[best])
    return scores[counts], first[counts], objects


def _inclusive_iou(a: Float64[np.ndarray, "n 4"], b: Float64[np.ndarray, "m 4"]) -> Float64[np.ndarray, "n m"]:
    """Returns the IoU of boxes of whole pixels, the last ones inside."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    both = np.maximum(high - low + 1, 0).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=-1) for boxes in (a, b)]
    return both / (areas[0][:, None] + areas[1] - both)


def coco_average_precision(detections: Images, ground_truth: Images, masks: bool = False) -> dict[str, Any]:
    """Average precision and recall as COCO defines them (Lin et al. 2014, arXiv:1405.0312; cocodataset.org).

    Args:
      detections: `boxes`, `classes`, `scores`; for masks `masks` in place of `boxes`.
      ground_truth: `boxes`, `classes` and where there are such `crowd` and `areas`; for masks `masks`.
      masks: whether masks are compared and not boxes.

    Returns:
      COCO's twelve numbers: `mean`, over classes and the IoU thresholds 0.5, 0.55, … 0.95; `ap50` and `ap75`, at one;
      `ap_small`, `ap_medium`, `ap_large`, of objects of less than 32², less than 96² and more pixels; the mean recall
      `ar1`, `ar10`, `ar100` of so many detections an image, and of 100 `ar_small`, `ar_medium`, `ar_large`. Then
      `per_class`, the mean of each, `per_class_ap50`, and `curves`, the `Curve` at IoU 0.5 and 101 recalls. What there
      are no objects for is NaN, and left out of means and curves.

    Raises:
      UserError: the lists are not of the same images.
    """
    _check(detections, ground_truth)
    classes = _classes(detections, ground_truth)
    evaluation = _evaluate(detections, ground_truth, classes, "masks" if masks else "boxes", COUNTS)
    precision, recall, scores = (evaluation[key] for key in ("precision", "recall", "scores"))
    sizes = [*enumerate(RANGES)][1:]
    overall, of_half = precision[..., 0, -1], precision[HALF, ..., 0, -1]
    return {
        "mean": _mean(overall),
        "ap50": _mean(of_half),
        "ap75": _mean(precision[THREE_QUARTERS, ..., 0, -1]),
        **{f"ap{name}": _mean(precision[..., index, -1]) for index, name in sizes},
        **{f"ar{count}": _mean(recall[..., 0, index]) for index, count in enumerate(COUNTS)},
        **{f"ar{name}": _mean(recall[..., index, -1]) for index, name in sizes},
        "per_class": {label: _mean(overall[..., k]) for k, label in enumerate(classes)},
        "per_class_ap50": {label: _mean(of_half[..., k]) for k, label in enumerate(classes)},
        "curves": {
            label: Curve(np.linspace(0, 1, 101), of_half[:, k], scores[HALF, :, k, 0, -1])
            for k, label in enumerate(classes)
            if of_half[0, k] >= 0
        },
    }


def average_recall(proposals: Images, ground_truth: Images, counts: Sequence[int] = (10, 100, 1000)) -> dict[str, Any]:
    """Which share of objects the best proposals cover, whatever their class (Hosang et al. 2015, arXiv:1502.05082).

    Each object has one proposal at most, and each proposal one object, as COCO pairs them.

    Args:
      proposals: `boxes` and `scores`.
      ground_truth: `boxes` and where there are such `crowd`.
      counts: how many of an image's best proposals are taken.

    Returns:
      `per_count`, the mean recall over the IoU thresholds 0.5, 0.55, … 0.95 for each count; `mean`, that of the
      largest; `recall50`, the recall at IoU 0.5 for each count. NaN where there are no objects.

    Raises:
      UserError: the lists are not of the same images.
    """
    _check(proposals, ground_truth)
    proposals, ground_truth = (
        [{**image, "classes": np.zeros(len(_boxes(image)), int)} for image in images]
        for images in (proposals, ground_truth)
    )
    counts = sorted(counts)
    recall = _evaluate(proposals, ground_truth, [0], "boxes", counts)["recall"][:, 0, 0]
    per_count = {count: _mean(recall[:, index]) for index, count in enumerate(counts)}
    recall50 = {count: _mean(recall[[HALF], index]) for index, count in enumerate(counts)}
    return {"mean": per_count[counts[-1]], "per_count": per_count, "recall50": recall50}


def encode_masks(masks: Bool[np.ndarray, "masks height width"]) -> Shaped[np.ndarray, " masks"]:
    """Returns masks as byte strings, COCO's compressed run lengths, some hundred bytes for each."""
    encoded = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8)) if len(masks) else []
    return np.array([mask["counts"] for mask in encoded], np.bytes_)


def _evaluate(
    detections: Images, ground_truth: Images, classes: Sequence[int], kind: str, counts: Sequence[int]
) -> dict[str, Any]:
    """Returns COCO's arrays: precision and scores [threshold, recall, class, range, count], recall without recall."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": index, "height": 0, "width": 0} for index in range(len(ground_truth))],  # sizes go unused
        "categories": [{"id": label} for label in classes or [0]],
        "annotations": _annotations(ground_truth, kind),
    }
    truth.createIndex()
    found = truth.loadRes(_annotations(detections, kind))
    evaluation = COCOeval_faster(truth, found, "segm" if kind == "masks" else "bbox", print_function=lambda *_: None)
    evaluation.params.maxDets = list(counts)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval


def _annotations(images: Images, kind: str) -> list[dict[str, Any]]:
    """Returns the objects of all images as COCO's files have them."""
    annotations: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        objects = _segments(image) if kind == "masks" else _rectangles(image)
        for place, (label, fields) in enumerate(zip(np.asarray(image["classes"]).tolist(), objects, strict=True)):
            fields |= {"id": len(annotations) + 1, "image_id": index, "category_id": label, "iscrowd": 0}
            for ours, theirs in (("scores", "score"), ("areas", "area"), ("crowd", "iscrowd")):
                if ours in image:
                    fields[theirs] = np.asarray(image[ours])[place].item()
            annotations.append(fields)
    return annotations


def _rectangles(image: Mapping[str, ArrayLike]) -> list[dict[str, Any]]:
    boxes = _boxes(image)
    sizes = boxes[:, 2:] - boxes[:, :2]
    columns = np.concatenate([boxes[:, [1, 0]], sizes[:, ::-1]], axis=1).tolist()
    return [{"bbox": box, "area": area} for box, area in zip(columns, sizes.prod(axis=1).tolist(), strict=True)]


def _segments(image: Mapping[str, ArrayLike]) -> list[dict[str, Any]]:
    masks = np.asarray(image["masks"])
    size = [*masks.shape[1:]] or np.asarray(image["size"]).tolist()
    counts = (encode_masks(masks) if masks.ndim == 3 else masks).tolist()
    encoded = [{"size": size, "counts": each} for each in counts]
    return [{"segmentation": mask, "area": float(rle.area(mask))} for mask in encoded]


def _boxes(image: Mapping[str, ArrayLike]) -> Float64[np.ndarray, "boxes 4"]:
    return np.asarray(image["boxes"], np.float64).reshape(-1, 4)


def _classes(*splits: Images) -> list[int]:
    """Returns all classes that there are, sorted."""
    return sorted({label for images in splits for image in images for label in np.asarray(image["classes"]).tolist()})


def _check(detections: Images, ground_truth: Images) -> None:
    if len(detections) != len(ground_truth):
        raise UserError(
            f"there are detections of {len(detections)} images and the truth of {len(ground_truth)}; give one for each"
        )


def _mean(values: Float64[np.ndarray, "..."]) -> float:
    """Returns the mean of what is known; COCO writes -1 where nothing is."""
    known = values[values >= 0]
    return float(known.mean()) if known.size else float("nan")
