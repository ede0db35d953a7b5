"""Targets, losses and detections of region networks, by hand and against loops."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.ops.boxes import iou
from cnn_research.tasks import region_loss as losses
from cnn_research.tasks.region_detection import RegionDetection
from cnn_research.tasks.region_loss import Drawn, Truth

KEY = jax.random.key(0)
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of Fast R-CNN's code


def random_boxes(rng, *shape, side=40.0, smallest=4.0):
    sizes = rng.uniform(smallest, side / 2, (*shape, 2))
    corners = rng.random((*shape, 2)) * (side - sizes)
    return np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32)


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def told(box, by):
    """Appendix C of R-CNN's paper."""
    height, width = by[2:] - by[:2]
    middle, other = (box[:2] + box[2:]) / 2, (by[:2] + by[2:]) / 2
    return np.array([*((middle - other) / [height, width]), *np.log((box[2:] - box[:2]) / [height, width])])


def smooth_l1(x, beta):
    x = np.abs(x)
    return np.where(x < beta, x**2 / (2 * beta), x - beta / 2).sum()


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def truths(rng, images, objects):
    """Some images without objects, some objects that only fill up."""
    valid = rng.random((images, objects)) < 0.6
    valid[0] = False
    labels = rng.integers(0, 3, (images, objects)).astype(np.int32)
    return Truth(random_boxes(rng, images, objects), labels, valid)


def test_anchor_loss_is_that_of_loops():
    rng = np.random.default_rng(0)
    images, count = 5, 90
    truth = truths(rng, images, 4)
    anchors = random_boxes(rng, count)
    anchors[:4] = truth.boxes[1] + 1  # some overlap much
    logits = rng.normal(size=(images, count)).astype(np.float32)
    offsets = rng.normal(size=(images, count, 4)).astype(np.float32)
    loss = partial(losses.anchor_loss, anchors=anchors, count=2 * count, beta=0.5)  # so many that all are drawn
    terms = jax.jit(jax.vmap(lambda *each: loss(KEY, *each[:2], truth=each[2])))(logits, offsets, truth)
    for image in range(images):
        there = [box for box, valid in zip(truth.boxes[image], truth.valid[image], strict=True) if valid]
        overlaps = np.array([[overlap(anchor, box) for box in there] for anchor in anchors]).reshape(count, -1)
        best = overlaps.max(axis=0, initial=0)
        entropy = distance = drawn = 0.0
        for index in range(count):
            largest = overlaps[index].max(initial=0)
            positive = largest >= 0.7 or any(0 < most == each for each, most in zip(overlaps[index], best, strict=True))
            if positive:
                wanted = told(there[overlaps[index].argmax()], anchors[index])
                distance += smooth_l1(offsets[image, index] - wanted, 0.5)
            if positive or largest < 0.3:
                drawn += 1
                entropy += np.logaddexp(0, -logits[image, index] if positive else logits[image, index])
        for term, expected in (("rpn_class", entropy), ("rpn_box", distance)):
            total, weight = (each[image] for each in terms[term])
            assert weight == drawn
            assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        (losses.anchor_loss, {"anchor_foreground": 0.7, "anchor_background": 0.3, "anchor_positives": 0.5}),
        (losses.anchor_loss, {"anchors_drawn": 256, "anchor_beta": 1 / 9}),
        (losses.draw_regions, {"foreground": 0.5, "background": (0.0, 0.5), "positives": 0.25, "regions_drawn": 128}),
        (losses.region_loss, {"beta": 1.0}),
        (losses.detect, {"score_threshold": 0.05, "nms_threshold": 0.5, "max_detections": 100}),
    ],
)
def test_functions_and_the_task_have_the_same_defaults(function, fields):
    task, theirs = RegionDetection(), inspect.signature(function).parameters
    names = {"positives": "positive_fraction", "nms_threshold": "iou_threshold"}
    names |= dict.fromkeys(("anchors_drawn", "regions_drawn", "max_detections"), "count")
    for field, value in fields.items():
        assert getattr(task, field) == value
        short = field.removeprefix("anchor_")
        assert theirs[names.get(short, short)].default == value


def test_anchor_loss_draws_some():
    """One object's anchor, and of the background those that are left."""
    anchors = np.concatenate([[[0, 0, 10, 10]], random_boxes(np.random.default_rng(0), 50) + 100]).astype(np.float32)
    truth = Truth(jnp.array([[0.0, 0, 10, 10]]), jnp.array([2]), jnp.array([True]))
    logits = np.zeros(51, np.float32)
    logits[0] = -np.log(3)  # probability 1/4
    loss = partial(losses.anchor_loss, anchors=anchors, count=16)
    terms = jax.jit(loss)(KEY, jnp.asarray(logits), jnp.zeros((51, 4)), truth=truth)
    total, weight = terms["rpn_class"]
    assert weight == 16
    assert total == pytest.approx(np.log(4) + 15 * np.log(2), rel=1e-5)
    assert terms["rpn_box"] == (0, 16)


def rows(drawn, image):
    """Returns all that is said of an image's regions, sorted."""
    columns = (drawn.boxes, drawn.labels[..., None], drawn.objects[..., None], drawn.offsets)
    table = np.concatenate([np.asarray(column)[image] for column in columns], axis=1)[drawn.valid[image]]
    table[table[:, 4] == 0, 5:] = 0
    return np.array(sorted(table.tolist()))


def test_regions_are_drawn_as_loops_say():
    rng = np.random.default_rng(1)
    images, count = 6, 40
    truth = truths(rng, images, 4)
    regions = random_boxes(rng, images, count)
    regions[:, :8] = np.tile(truth.boxes, (1, 2, 1)) + rng.normal(0, 1, (images, 8, 4))
    regions[:, -5:] = 0  # no regions
    rules = dict(foreground=0.6, background=(0.1, 0.4))
    draw = partial(losses.draw_regions, KEY, **rules, count=60, positive_fraction=1.0)
    drawn = jax.device_get(jax.jit(jax.vmap(draw))(regions, truth))
    few = jax.device_get(jax.jit(jax.vmap(partial(draw, count=8, positive_fraction=0.25)))(regions, truth))
    for image in range(images):
        there = np.flatnonzero(truth.valid[image])
        expected = []
        for box in [*regions[image, :-5], *truth.boxes[image][there]]:
            overlaps = np.array([overlap(box, truth.boxes[image][index]) for index in there])
            largest = overlaps.max(initial=0)
            if largest >= 0.6:
                index = there[overlaps.argmax()]
                offsets = told(truth.boxes[image][index], box) * BOX_WEIGHTS
                expected.append((*box, truth.labels[image][index] + 1, index, *offsets))
            elif 0.1 <= largest < 0.4:
                expected.append((*box, *np.zeros(6)))
        found = rows(drawn, image)
        np.testing.assert_allclose(found, sorted(expected), rtol=1e-3, atol=1e-3)
        assert all(np.abs(found - row).sum(axis=1).min() < 1e-3 for row in rows(few, image))
        objects = sum(row[4] > 0 for row in expected)
        labels = np.asarray(few.labels[image])
        assert (labels > 0).sum() == min(2, objects)
        assert (labels[: min(2, objects)] > 0).all()
        assert few.valid[image].sum() == min(8, min(2, objects) + len(expected) - objects)
        assert not drawn.boxes[image][~drawn.valid[image]].any()


def test_region_loss_by_hand():
    """An object of the second class, background, and one that fills up."""
    logits = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    offsets = jnp.zeros((3, 3, 4)).at[0, 2].set(jnp.array([0.5, 0.0, 3.0, -2.0])).at[0, 1].set(9)
    drawn = Drawn(
        jnp.zeros((3, 4)),
        jnp.array([2, 0, 0]),
        jnp.zeros(3, int),
        jnp.zeros((3, 4)).at[1:].set(7.0),
        jnp.array([True, True, False]),
    )
    terms = jax.jit(losses.region_loss)(logits, offsets, drawn)
    assert terms["class"] == (pytest.approx(-np.log(0.5) - np.log(0.7), rel=1e-5), 2)
    assert terms["box"] == (0.5**2 / 2 + 2.5 + 1.5, 2)
    loss = partial(losses.region_loss, logits, drawn=drawn, beta=2.0)
    gradient = jax.jit(jax.grad(lambda offsets: loss(offsets)["box"][0]))(offsets)
    expected = np.zeros((3, 3, 4))
    expected[0, 2] = [0.25, 0, 1, -1]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_mask_targets_by_hand():
    """The second object is what is not above the diagonal, and less."""
    instances = jnp.array([[2, 0, 1, 1], [2, 2, 1, 1], [2, 2, 2, 1], [2, 2, 2, 2]])
    boxes = jnp.array([[0.0, 0, 4, 4], [0, 0, 2, 2], [0, 2, 2, 4], [-4, 0, 4, 4]])
    masks = losses.mask_targets(instances, jnp.array([2, 2, 2, 2]), boxes, 4)
    np.testing.assert_array_equal(masks[0], instances == 2)
    # Twice as large: the mask's value between the centres of its pixels, and what is half is in it.
    np.testing.assert_array_equal(masks[1], [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    assert not masks[2].any()
    assert not masks[3, :2].any()
    assert losses.mask_targets(instances, jnp.array([1]), boxes[2:3], 4).all()


def test_mask_loss_is_that_of_the_true_class():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, 3, 3, 5)).astype(np.float32)
    masks, labels = rng.random((4, 3, 3)) < 0.5, np.array([3, 0, 1, 0])
    loss = partial(losses.mask_loss, labels=jnp.asarray(labels), masks=jnp.asarray(masks))
    (total, pixels), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    entropy = [
        np.logaddexp(0, np.where(masks[index], -1, 1) * logits[index, ..., labels[index]]).sum() for index in (0, 2)
    ]
    assert (total, pixels) == (pytest.approx(sum(entropy), rel=1e-5), 18)
    for region, label in np.ndindex(4, 5):
        assert gradient[region, ..., label].any() == (label > 0 and labels[region] == label)


def detections_by_hand(logits, offsets, regions, size, score_threshold, iou_threshold, count):
    """Each class on its own, one box after another; then the best of all classes."""
    found = []
    for label in range(1, logits.shape[-1]):
        candidates = []
        for row, by, to in zip(logits, regions, offsets[:, label], strict=True):
            score = softmax(row)[label]
            if score <= score_threshold or not np.prod(by[2:] - by[:2]):
                continue
            (dy, dx, dh, dw), sides = to / np.array(BOX_WEIGHTS), by[2:] - by[:2]
            middle = (by[:2] + by[2:]) / 2 + np.array([dy, dx]) * sides
            extent = sides * np.exp([dh, dw])
            box = np.clip(np.concatenate([middle - extent / 2, middle + extent / 2]), 0, [*size, *size])
            candidates.append((score, box))
        kept = []
        for score, box in sorted(candidates, key=lambda each: -each[0]):
            if all(overlap(box, other) <= iou_threshold for _, other, _ in kept):
                kept.append((score, box, label - 1))
        found += kept
    return sorted(found, key=lambda each: -each[0])[:count]


def test_detections_are_those_of_loops():
    rng = np.random.default_rng(3)
    images, regions, classes, size = 4, 40, 4, (40, 50)
    boxes = random_boxes(rng, images, regions)
    boxes[:, -3:] = 0
    logits = rng.normal(0, 2, (images, regions, classes)).astype(np.float32)
    offsets = rng.normal(0, 1, (images, regions, classes, 4)).astype(np.float32)
    for score_threshold, iou_threshold, count in ((0.05, 0.5, 100), (0.3, 0.2, 10)):
        rules = dict(score_threshold=score_threshold, iou_threshold=iou_threshold, count=count)
        detect = jax.jit(jax.vmap(partial(losses.detect, image_size=size, **rules)))
        found = jax.device_get(detect(logits, offsets, boxes))
        assert found.boxes.shape == (images, count, 4)
        for image in range(images):
            expected = detections_by_hand(logits[image], offsets[image], boxes[image], size, *rules.values())
            number = len(expected)
            np.testing.assert_array_equal(found.valid[image], np.arange(count) < number)
            scores, corners, labels = zip(*expected, strict=True)
            np.testing.assert_allclose(found.scores[image, :number], scores, rtol=1e-4)
            np.testing.assert_allclose(found.boxes[image, :number], corners, atol=1e-3)
            np.testing.assert_array_equal(found.labels[image, :number], labels)
            assert not found.boxes[image, number:].any()


def test_a_detections_mask_is_its_classs():
    logits = jnp.stack([jnp.full((2, 2), value) for value in (-9.0, 0.0, 9.0)], axis=-1)[None].repeat(2, axis=0)
    masks = losses.of_detections(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(masks[:, 0, 0], [0.5, jax.nn.sigmoid(9.0)])
    assert masks.shape == (2, 2, 2)


def test_perfect_offsets_find_the_truth():
    """What is drawn is what detections are made of: targets told as they are to be told."""
    rng = np.random.default_rng(4)
    truth = Truth(*(jnp.asarray(each) for each in (random_boxes(rng, 3), np.array([0, 1, 2]), np.ones(3, bool))))
    regions = jnp.asarray(np.concatenate([truth.boxes + 1, random_boxes(rng, 20)]))

    @jax.jit
    def find():
        drawn = losses.draw_regions(KEY, regions, truth, count=16)
        logits, offsets = 20 * jax.nn.one_hot(drawn.labels, 4), jnp.repeat(drawn.offsets[:, None], 4, axis=1)
        found = losses.detect(logits, offsets, drawn.boxes, (40, 40), count=3)
        return found, iou(found.boxes, truth.boxes)

    found, overlaps = find()
    assert found.valid.all()
    assert set(found.labels.tolist()) == {0, 1, 2}
    np.testing.assert_allclose(overlaps[np.arange(3), found.labels], 1, atol=1e-4)
