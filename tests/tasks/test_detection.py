import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import tasks
from cnn_research.errors import UserError
from cnn_research.models.yolo import Grid
from cnn_research.tasks import RecordTask
from cnn_research.tasks.detection import Detection
from cnn_research.tasks.yolo_loss import cell_targets, yolo_loss

KEY = jax.random.key(0)
ROWS, COLUMNS, BOXES, CLASSES = 3, 4, 2, 3


class Identity(nn.Module):
    """Its images are what the cells say."""

    @nn.compact
    def __call__(self, images, train):
        cells, classes = jnp.split(images, [5 * BOXES], axis=-1)
        return Grid(cells.reshape(*cells.shape[:3], BOXES, 5), classes)


def make_batch(count=5, objects=3):
    """Examples of which the last is padding, the one before has no object, and another one that is ignored."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((count, objects, 2, 2)), axis=2)
    valid, ignored = np.ones((2, count, objects), bool)
    valid[-2], ignored[:] = False, False
    ignored[0, 1] = True
    return {
        "image": rng.random((count, ROWS, COLUMNS, 5 * BOXES + CLASSES)).astype(np.float32),
        "objects/bbox": corners.reshape(count, objects, 4).astype(np.float32),
        "objects/label": rng.integers(0, CLASSES, (count, objects)).astype(np.int32),
        "objects/valid": valid,
        "objects/ignored": ignored,
        "example_mask": np.arange(count) < count - 1,
    }


def test_loss_sums_the_terms_of_the_images_that_are_there():
    batch, task = make_batch(), Detection(coordinates_weight=2.0, no_object_weight=0.25)
    batch["image"][-1] = np.nan
    terms, aux = jax.jit(lambda batch: task.loss(Identity(), {}, batch, KEY, train=True))(batch)
    assert aux == {"batch_stats": {}, "metrics": {}}
    expected = dict.fromkeys(("center", "size", "object", "no_object", "class"), 0.0)

    @jax.jit
    def of_one(image, boxes, labels, there):
        cells, classes = Identity().apply({}, image[None], train=False)
        return yolo_loss(cells[0], classes[0], cell_targets(boxes, labels, there, (ROWS, COLUMNS)), 2.0, 0.25)

    there = batch["objects/valid"] & ~batch["objects/ignored"]
    for row in range(4):
        values = of_one(batch["image"][row], batch["objects/bbox"][row], batch["objects/label"][row], there[row])
        for name, value in values.items():
            expected[name] += float(value)
    assert terms.keys() == expected.keys()
    for name, (total, weight) in terms.items():
        assert weight == 4
        assert float(total) == pytest.approx(expected[name], rel=1e-5)


def find(image, task):
    """What `predict` is to find in an image, one candidate after another."""
    cells, classes = image[..., : 5 * BOXES].reshape(ROWS, COLUMNS, BOXES, 5), image[..., 5 * BOXES :]
    candidates = []
    for row, column, box, label in np.ndindex(ROWS, COLUMNS, BOXES, CLASSES):
        y, x, root_height, root_width, confidence = cells[row, column, box]
        cy, cx, height, width = (row + y) / ROWS, (column + x) / COLUMNS, root_height**2, root_width**2
        corners = np.clip([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2], 0, 1)
        candidates.append((confidence * classes[row, column, label], label, corners))
    chosen = []
    for score, label, box in sorted(candidates, key=lambda each: -each[0]):
        overlaps = [iou(box, other) for _, kind, other in chosen if kind == label]
        if score >= task.score_threshold and all(overlap <= task.nms_threshold for overlap in overlaps):
            chosen.append((score, label, box))
    return chosen[: task.max_detections]


def iou(a, b):
    both = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


@pytest.mark.parametrize("fields", [{"score_threshold": 0.1, "nms_threshold": 0.3}, {"max_detections": 7}])
def test_predict_finds_what_a_search_finds(fields):
    batch, task = make_batch(), Detection(**fields)
    found = jax.device_get(jax.jit(lambda batch: task.predict(Identity(), {}, batch))(batch))
    for row, image in enumerate(batch["image"]):
        expected = find(image.astype(float), task)
        assert found["valid"][row].sum() == len(expected)
        assert found["valid"][row, : len(expected)].all()
        for index, (score, label, box) in enumerate(expected):
            assert found["classes"][row, index] == label
            np.testing.assert_allclose(found["scores"][row, index], score, rtol=1e-5)
            np.testing.assert_allclose(found["boxes"][row, index], box, atol=1e-5)


def test_nothing_is_found_where_numbers_are_none():
    image = np.full((1, ROWS, COLUMNS, 5 * BOXES + CLASSES), np.nan, np.float32)
    assert not Detection().predict(Identity(), {}, {"image": image})["valid"].any()


def test_the_task_is_measured_by_records():
    assert isinstance(tasks.create("detection", inclusive=True), RecordTask)
    assert not isinstance(tasks.create("classification"), RecordTask)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coordinates_weight": -1.0}, r"loss\.coordinates_weight=-1\.0 is no weight"),
        ({"no_object_weight": float("nan")}, r"loss\.no_object_weight=nan is no weight"),
        ({"nms_threshold": 1.5}, r"loss\.nms_threshold=1\.5 is no IoU"),
        ({"max_detections": 0}, r"loss\.max_detections=0 is out of range"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        tasks.create("detection", **fields)
