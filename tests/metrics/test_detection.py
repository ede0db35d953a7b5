"""Average precision against pycocotools, and against the devkit's words read literally."""

import contextlib
import io
import itertools
from fractions import Fraction

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cnn_research.errors import UserError
from cnn_research.metrics.detection import (
    average_recall,
    coco_average_precision,
    encode_masks,
    voc_average_precision,
)

NAMES = ("mean", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
SIZE = 150


def random_boxes(rng, count, side):
    low = rng.integers(0, side - 1, (count, 2))
    high = np.minimum(low + rng.integers(1, side, (count, 2)) * rng.choice([0.1, 0.5, 1], (count, 1)), side)
    return np.concatenate([low, np.maximum(high, low + 1)], axis=1).round()


def random_split(seed, images=12, classes=4, most=8, side=SIZE, levels=5):
    """Truth, and detections near to it, doubled, elsewhere, of the wrong class and with equal scores."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(images):
        count = rng.integers(0, most)
        boxes, labels = random_boxes(rng, count, side), rng.integers(0, classes - 1, count)
        truth.append(
            {
                "boxes": boxes,
                "classes": labels,
                "difficult": rng.random(count) < 0.2,
                "crowd": rng.random(count) < 0.2,
            }
        )
        copies = np.repeat(np.arange(count), rng.integers(0, 4, count))
        near = np.maximum(boxes[copies] + rng.integers(-6, 7, (len(copies), 4)), 0)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        other = random_boxes(rng, rng.integers(0, 5), side)
        guesses = np.where(rng.random(len(copies)) < 0.8, labels[copies], rng.integers(0, classes, len(copies)))
        found.append(
            {
                "boxes": np.concatenate([near, other]),
                "classes": np.concatenate([guesses, rng.integers(0, classes, len(other))]),
                "scores": rng.integers(0, levels, len(near) + len(other)) / levels,
            }
        )
    return found, truth


def masks_of(boxes, side=SIZE):
    """Ellipses in boxes."""
    y, x = np.arange(side)[:, None] + 0.5, np.arange(side) + 0.5
    shapes = [((y - (t + b) / 2) / (b - t)) ** 2 + ((x - (a + c) / 2) / (c - a)) ** 2 <= 0.25 for t, a, b, c in boxes]
    return np.array(shapes, bool).reshape(-1, side, side)


def with_masks(images):
    return [{**image, "masks": masks_of(image["boxes"])} for image in images]


def pycocotools(found, truth, kind="bbox", **params):
    """Returns the evaluation of COCO's own code."""
    annotations = {"truth": [], "found": []}
    for side, images in (("truth", truth), ("found", found)):
        for index, image in enumerate(images):
            for place, (ymin, xmin, ymax, xmax) in enumerate(np.asarray(image["boxes"], float).tolist()):
                fields = {
                    "id": len(annotations[side]) + 1,
                    "image_id": index + 1,
                    "category_id": int(image["classes"][place]) + 1,
                    "iscrowd": int(image.get("crowd", np.zeros(99))[place]) if side == "truth" else 0,
                    "area": (ymax - ymin) * (xmax - xmin),
                }
                if kind == "bbox":
                    fields["bbox"] = [xmin, ymin, xmax - xmin, ymax - ymin]
                else:
                    fields["segmentation"] = coco_mask.encode(np.asfortranarray(image["masks"][place], np.uint8))
                    fields["area"] = float(image["masks"][place].sum())
                if "areas" in image:
                    fields["area"] = float(image["areas"][place])
                if side == "found":
                    fields["score"] = float(image["scores"][place])
                annotations[side].append(fields)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": index + 1, "height": SIZE, "width": SIZE} for index in range(len(truth))],
            "categories": [{"id": label + 1} for label in range(4)],
            "annotations": annotations["truth"],
        }
        coco.createIndex()
        if annotations["found"]:
            results = coco.loadRes(annotations["found"])
        else:
            results = COCO()
            results.dataset = {**coco.dataset, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(coco, results, kind)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        if not params:
            evaluation.summarize()
    return evaluation


def compare(found, truth, masks=False):
    theirs = pycocotools(found, truth, "segm" if masks else "bbox")
    ours = coco_average_precision(found, truth, masks=masks)
    expected = np.where(theirs.stats == -1, np.nan, theirs.stats)
    np.testing.assert_allclose([ours[name] for name in NAMES], expected, atol=1e-9)
    precision = theirs.eval["precision"][..., 0, -1]
    for label in range(4):
        known = precision[:, 0, label].max() >= 0
        assert (label in ours["curves"]) == known
        if known:
            assert ours["per_class"][label] == pytest.approx(precision[:, :, label].mean(), abs=1e-9)
            assert ours["per_class_ap50"][label] == pytest.approx(precision[0, :, label].mean(), abs=1e-9)
            curve = ours["curves"][label]
            np.testing.assert_allclose(curve.precision, precision[0, :, label], atol=1e-9)
            np.testing.assert_allclose(curve.scores, theirs.eval["scores"][0, :, label, 0, -1], atol=1e-9)
            np.testing.assert_allclose(curve.recall, theirs.params.recThrs)
        else:
            assert np.isnan(ours["per_class"].get(label, np.nan))


@pytest.mark.parametrize("seed", range(6))
def test_coco_is_pycocotools(seed):
    """Ties, crowds, classes without detections and without objects, images without either."""
    found, truth = random_split(seed, levels=(2, 5, 1000)[seed % 3])
    compare(found, truth)
    if seed < 2:
        compare(with_masks(found), with_masks(truth), masks=True)


def test_coco_of_crowds_of_detections():
    """More than the best 100 of an image count nowhere."""
    rng = np.random.default_rng(0)
    found, truth = random_split(0, images=3, classes=2, most=40, levels=20)
    for image in found:
        more = random_boxes(rng, 150, SIZE)
        image["boxes"] = np.concatenate([image["boxes"], more])
        image["classes"] = np.concatenate([image["classes"], np.zeros(150, int)])
        image["scores"] = np.concatenate([image["scores"], rng.integers(0, 20, 150) / 20])
    compare(found, truth)


def test_coco_of_given_areas():
    found, truth = random_split(3)
    truth = [{**image, "areas": 40.0 ** np.arange(len(image["boxes"]))} for image in truth]
    compare(found, truth)


NOTHING = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int), "scores": np.zeros(0)}


@pytest.mark.parametrize("masks", [False, True])
def test_coco_of_nothing(masks):
    found, truth = (with_masks(images) for images in random_split(1, images=4))
    nothing = [{**NOTHING, "masks": masks_of([])}] * 4
    for pair in ((nothing, truth), (found, nothing), (nothing, nothing)):
        compare(*pair, masks=masks)
    assert np.isnan(coco_average_precision([], [], masks=masks)["mean"])
    assert coco_average_precision(nothing, truth, masks=masks)["mean"] == 0


def test_perfect_detections_score_1():
    _, truth = random_split(2)
    found = [{**image, "scores": np.ones(len(image["boxes"]))} for image in truth]
    assert coco_average_precision(found, [{**image, "crowd": 0 * image["classes"]} for image in truth])["mean"] == 1
    for method in ("area", "11point"):
        assert voc_average_precision(found, truth, method=method)["mean"] == 1


def test_encoded_masks_score_as_masks():
    found, truth = (with_masks(images) for images in random_split(4, images=5))
    expected = coco_average_precision(found, truth, masks=True)
    short = [
        [{**image, "masks": encode_masks(image["masks"]), "size": np.array([SIZE, SIZE])} for image in images]
        for images in (found, truth)
    ]
    np.testing.assert_equal(coco_average_precision(*short, masks=True)["per_class"], expected["per_class"])
    for image in short[0]:
        masks = [coco_mask.decode({"size": [SIZE, SIZE], "counts": counts}) for counts in image["masks"].tolist()]
        np.testing.assert_array_equal(np.array(masks, bool).reshape(-1, SIZE, SIZE), masks_of(image["boxes"]))


def test_average_recall_is_pycocotools():
    found, truth = random_split(5, most=12)
    # COCO's code orders equal scores by their class, which proposals have none of.
    plain = [[{**image, "classes": 0 * image["classes"]} for image in images] for images in (found, truth)]
    theirs = pycocotools(*plain, useCats=0, maxDets=[1, 3, 20]).eval["recall"][:, 0, 0]
    ours = average_recall(found, truth, (20, 1, 3))
    np.testing.assert_allclose([ours["per_count"][count] for count in (1, 3, 20)], theirs.mean(0), atol=1e-9)
    np.testing.assert_allclose([ours["recall50"][count] for count in (1, 3, 20)], theirs[0], atol=1e-9)
    assert ours["mean"] == ours["per_count"][20]
    assert np.isnan(average_recall([NOTHING], [NOTHING])["mean"])


def devkit(found, truth, label, threshold, method):
    """VOCevaldet.m and VOCap.m line by line, in fractions."""
    claimed, count, listed = set(), 0, []
    for image, (mine, theirs) in enumerate(zip(found, truth, strict=True)):
        hard = theirs.get("difficult", np.zeros(len(theirs["classes"])))
        count += sum(int(c == label and not d) for c, d in zip(theirs["classes"], hard, strict=True))
        zipped = zip(mine["boxes"], mine["classes"], mine["scores"], strict=True)
        listed += [(image, box, score) for box, c, score in zipped if c == label]
    tp, fp = [], []
    for image, box, _ in sorted(listed, key=lambda each: -each[2]):
        best, place = -1, None
        for index, other in enumerate(truth[image]["boxes"]):
            if truth[image]["classes"][index] != label:
                continue
            low, high = np.maximum(box, other)[:2], np.minimum(box, other)[2:]
            height, width = (int(b - a) + 1 for a, b in zip(low, high, strict=True))
            if height > 0 and width > 0:
                areas = [int(b[2] - b[0] + 1) * int(b[3] - b[1] + 1) for b in (box, other)]
                overlap = Fraction(height * width, sum(areas) - height * width)
                if overlap > best:
                    best, place = overlap, index
        right = wrong = 0
        if best >= threshold:
            if not truth[image].get("difficult", np.zeros(99))[place]:
                right = (image, place) not in claimed
                wrong = not right
                claimed.add((image, place))
        else:
            wrong = 1
        tp.append((tp or [0])[-1] + right)
        fp.append((fp or [0])[-1] + wrong)
    if not count:
        return None
    points = [(Fraction(t, count), Fraction(t, t + f)) for t, f in zip(tp, fp, strict=True) if t + f]
    if method == "11point":
        tenths = (Fraction(t, 10) for t in range(11))
        return sum(max((p for r, p in points if r >= t), default=Fraction(0)) for t in tenths) / 11
    recalls = sorted({Fraction(0), *(r for r, _ in points)})
    steps = itertools.pairwise(recalls)
    return sum(((b - a) * max(p for r, p in points if r >= b) for a, b in steps), Fraction(0))


@pytest.mark.parametrize("seed", range(8))
def test_voc_is_the_devkits(seed):
    found, truth = random_split(seed, side=30, levels=(2, 5, 1000)[seed % 3])
    for method, threshold in (("area", 0.5), ("11point", 0.5), ("area", 0.25)):
        ours = voc_average_precision(found, truth, threshold, method)
        known = []
        for label in range(4):
            expected = devkit(found, truth, label, Fraction(threshold), method)
            if expected is None:
                assert np.isnan(ours["per_class"].get(label, np.nan))
                assert label not in ours["curves"]
            else:
                known.append(expected)
                assert ours["per_class"][label] == pytest.approx(float(expected), abs=1e-12)
        assert ours["mean"] == pytest.approx(float(sum(known) / len(known)))


def test_voc_by_hand():
    """Five objects, one difficult; of the detections the 1st and the 4th are right, the 3rd finds what the 1st did."""
    objects = np.array([[1, 1, 10, 10], [1, 21, 10, 30], [21, 1, 30, 10], [21, 21, 30, 30], [41, 41, 50, 50]])
    truth = [{"boxes": objects, "classes": np.zeros(5, int), "difficult": np.arange(5) == 4}]
    boxes = objects[[0, 4, 0, 1, 4]] + np.array(
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, -5, 0], [0, 0, 0, 10], [0, 0, 0, 0]]
    )
    found = [{"boxes": boxes, "classes": np.zeros(5, int), "scores": np.array([0.9, 0.8, 0.7, 0.6, 0.5])}]
    result = voc_average_precision(found, truth)
    # Both inexact ones have an IoU of 1/2 with the +1, and the difficult object's count nowhere.
    curve = result["curves"][0]
    assert curve.scores.tolist() == [0.9, 0.7, 0.6]
    assert curve.recall.tolist() == [1 / 4, 1 / 4, 1 / 2]
    assert curve.precision.tolist() == [1, 1 / 2, 2 / 3]
    assert result["mean"] == pytest.approx((1 + 2 / 3) / 4)
    # Recalls of 0, 0.1, 0.2 have precision 1; 0.3, 0.4, 0.5 have 2/3.
    assert voc_average_precision(found, truth, method="11point")["mean"] == pytest.approx((3 + 3 * 2 / 3) / 11)
    assert voc_average_precision(found, truth, iou_threshold=0.51)["mean"] == pytest.approx(1 / 4)


def test_recalls_of_the_eleven_points_are_not_rounded():
    """3 of 10 objects are a recall of 0.3, though in floats 3/10 < 0.1 + 0.1 + 0.1."""
    boxes = 20 * np.arange(10)[:, None] + np.array([1, 1, 10, 10])
    truth = [{"boxes": boxes, "classes": np.zeros(10, int)}]
    found = [{"boxes": boxes[:3], "classes": np.zeros(3, int), "scores": np.ones(3)}]
    assert voc_average_precision(found, truth, method="11point")["mean"] == pytest.approx(4 / 11)


def test_voc_of_nothing():
    _, truth = random_split(1, images=3)
    nothing = [NOTHING] * 3
    assert voc_average_precision(nothing, truth)["mean"] == 0
    assert np.isnan(voc_average_precision(nothing, nothing)["mean"])
    assert np.isnan(voc_average_precision([], [])["mean"])


def test_faults_are_named():
    with pytest.raises(UserError, match="did you mean '11point'"):
        voc_average_precision([], [], method="11-point")
    for metric in (voc_average_precision, coco_average_precision, average_recall):
        with pytest.raises(UserError, match="1 images and the truth of 0"):
            metric([NOTHING], [])
