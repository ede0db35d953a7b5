import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.metrics.detection import coco_average_precision, voc_average_precision
from cnn_research.metrics.records import join, split
from cnn_research.tasks.average_precision import AveragePrecision


def make_records(seed=0, images=12):
    """Objects, and detections near them and elsewhere, on images of 100x80."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(images):
        corners = np.sort(rng.integers(0, 100, (3 * (index > 0), 2, 2)), axis=1)
        boxes = (corners + np.array([[0], [1]])).reshape(-1, 4).astype(np.float32)
        classes = rng.integers(0, 2, len(boxes)).astype(np.int32)
        near = np.concatenate([boxes + rng.normal(0, 2, boxes.shape), [[5, 5, 30, 30]]]).astype(np.float32)
        found = {"boxes": near, "classes": np.append(classes, 0), "scores": rng.random(len(near), np.float32)}
        truth = {"boxes": boxes, "classes": classes, "ignored": rng.random(len(boxes)) < 0.2}
        made.append((found, truth))
    return made


def test_join_is_undone_by_split():
    pairs = make_records()
    found, truth = split([join(*pair) for pair in pairs])
    assert (found, truth) == tuple(map(list, zip(*pairs, strict=True)))


def shifted(images, by, ignored=None):
    return [
        {**image, "boxes": image["boxes"] + by} | ({ignored: image["ignored"]} if ignored else {}) for image in images
    ]


@pytest.mark.parametrize("inclusive", [False, True])
def test_both_metrics_get_boxes_as_they_define_them(inclusive):
    """VOC's are of the first and the last pixel, counted from 1; COCO's are continuous."""
    pairs = make_records()
    task = AveragePrecision(inclusive=inclusive)
    values = task.summarize([task.record(*pair) for pair in pairs])
    found, truth = map(list, zip(*pairs, strict=True))
    first = np.array([1, 1, 0, 0])
    voc, coco = (0, -first) if inclusive else (first, 0)
    for name, method in (("ap50", "area"), ("ap50_11point", "11point")):
        expected = voc_average_precision(shifted(found, voc), shifted(truth, voc, "difficult"), method=method)
        assert values[name] == pytest.approx(expected["mean"])
        assert 0.3 < values[name] < 1
    expected = coco_average_precision(shifted(found, coco), shifted(truth, coco, "crowd"))
    assert values["coco_ap"] == pytest.approx(expected["mean"])
    assert values["coco_ap75"] == pytest.approx(expected["ap75"])
    assert values["coco_ar100"] == pytest.approx(expected["ar100"])
    assert values["examples"] == 12
    assert values["objects"] == sum((~each["ignored"]).sum() for each in truth)
    assert all(np.isfinite(value) for value in values.values())
    assert task.primary_metric in values


def test_scores_of_each_class():
    pairs, task = make_records(), AveragePrecision()
    measured = [task.record(*pair) for pair in pairs]
    labels = np.concatenate([truth["classes"][~truth["ignored"]] for _, truth in pairs])
    voc, coco = (scores["per_class"] for scores in (task.of_voc(measured), task.of_coco(measured)))
    expected = {
        label: {"AP50": voc[label], "AP by COCO": coco[label], "objects": (labels == label).sum()} for label in (0, 1)
    }
    assert task.by_class(measured) == expected


def test_measure_leaves_out_what_is_no_detection():
    predictions = dict.fromkeys(("boxes", "classes", "scores", "valid", "logits"), np.zeros((2, 3)))
    assert AveragePrecision().measure(predictions, {}).keys() == {"boxes", "classes", "scores", "valid"}


def test_a_split_without_objects_is_refused():
    task = AveragePrecision()
    with pytest.raises(UserError, match="the split holds no object that counts"):
        task.summarize([task.record(*pair) for pair in make_records(images=1)])
