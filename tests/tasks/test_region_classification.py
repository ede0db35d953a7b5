"""R-CNN's task: what regions are to be, and what is said of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models, tasks
from cnn_research.errors import UserError
from cnn_research.tasks.machines import fit_boxes, fit_machines

FIELDS = dict(
    body="mlp",
    region_size=6,
    context=1,
    machine_layer="fc1_activation",
    box_layer="fc1",
    num_classes=4,
    width=0.05,
    dropout_rate=0.0,
)
SIZE = np.tile(np.float32([20, 24]), 2)


def overlap(a, b):
    tall, wide = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return tall * wide / (sum(area) - tall * wide) if sum(area) else 0.0


@pytest.fixture(scope="module")
def batch():
    """Three images, the last of which fills the batch up; the third object of each is ignored, the fourth is none."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (3, 4, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.2, 0.5, low.shape)], axis=-1).astype(np.float32)
    boxes[:, 3] = 0
    near = np.clip(np.repeat(boxes[:, :3], 3, axis=1) + rng.normal(0, 0.04, (3, 9, 4)), 0, 1)
    proposals = np.concatenate([near, np.zeros((3, 2, 4))], axis=1).astype(np.float32)
    return {
        "image": jnp.float32(rng.normal(size=(3, 20, 24, 3))),
        "example_mask": np.array([True, True, False]),
        "objects/bbox": boxes,
        "objects/label": rng.integers(0, 3, (3, 4)).astype(np.int32),
        "objects/valid": np.tile([True, True, True, False], (3, 1)),
        "objects/ignored": np.tile([False, False, True, False], (3, 1)),
        "proposals": proposals,
    }


@pytest.fixture(scope="module")
def network(batch):
    module = models.create("rcnn", **FIELDS)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), batch["image"], train=False))
    rng = np.random.default_rng(1)
    return module, jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)


@partial(jax.jit, static_argnums=0)
def apply(module, variables, images, regions):
    return module.apply(variables, images, False, regions)


def test_what_phases_learn_is_that_of_loops(batch, network):
    module, variables = network
    task = tasks.create("region_classification", regions_at_once=7)
    sample = jax.jit(lambda phase, batch: task.sample(module, variables, batch, phase), static_argnums=0)
    machines, boxes = (jax.device_get(sample(phase, batch)) for phase in task.phases)
    assert machines["features"].shape == boxes["features"].shape == (3, 15, 15)
    # The features are the network's own, cut into parts or not, and the layers are linear in them.
    candidates = np.concatenate([batch["objects/bbox"] * [[[1], [1], [0], [0]]], batch["proposals"]], axis=1) * SIZE
    _, margins, offsets = apply(module, variables, batch["image"], jnp.float32(candidates))
    for sampled, name, expected in ((machines, "machines", margins), (boxes, "box", offsets.reshape(3, 15, -1))):
        layer = variables["params"][name]
        said = sampled["features"] @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(said, expected, rtol=1e-3, atol=1e-4)
    assert not machines["signs"][2].any()
    assert not boxes["labels"][2].any()
    for image in range(2):
        objects = [(candidates[image, k], int(batch["objects/label"][image, k])) for k in range(2)]
        for index, region in enumerate(candidates[image]):
            overlaps = [overlap(region, box) for box, _ in objects]
            there = region[2] > region[0]
            for label in range(3):
                ious = [each for each, (_, known) in zip(overlaps, objects, strict=True) if known == label]
                sign = -int(max(ious, default=0) < 0.3)
                if index < 2 and objects[index][1] == label:
                    sign = 1
                assert machines["signs"][image, index, label] == (sign if there else 0)
            best = int(np.argmax(overlaps))
            label = objects[best][1] + 1 if there and overlaps[best] >= 0.6 else 0
            assert boxes["labels"][image, index] == label
            if label:
                truth, sides = objects[best][0], region[2:] - region[:2]
                move = ((truth[:2] + truth[2:]) - (region[:2] + region[2:])) / 2 / sides
                grow = np.log((truth[2:] - truth[:2]) / sides)
                np.testing.assert_allclose(boxes["offsets"][image, index], [*move, *grow], atol=1e-5)


def test_layers_are_fitted_with_the_tasks_cost_and_ridge():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (2, 30))
    sample = {
        "features": rng.normal(size=(2, 30, 5)).astype(np.float32),
        "signs": np.where(labels[..., None] == [1, 2, 3], 1, -1),
        "labels": labels,
        "offsets": rng.normal(size=(2, 30, 4)).astype(np.float32),
    }
    task, module = tasks.create("region_classification", machine_cost=0.5, ridge=3.0), models.create("rcnn", **FIELDS)
    np.testing.assert_equal(task.fit(module, "machines", [sample]), fit_machines([sample], cost=0.5))
    np.testing.assert_equal(task.fit(module, "box", [sample]), fit_boxes([sample], classes=3, ridge=3.0))


def test_the_loss_is_that_of_all_regions_that_there_are(batch, network):
    """So many are drawn that nothing is left to chance."""
    module, variables = network
    task = tasks.create("region_classification", regions_drawn=30, positives=1.0)
    terms, aux = jax.jit(lambda batch: task.loss(module, variables, batch, jax.random.key(0), train=True))(batch)
    candidates = np.concatenate([batch["proposals"][:, :9], batch["objects/bbox"][:, :2]], axis=1) * SIZE
    logits = np.asarray(apply(module, variables, batch["image"], jnp.float32(candidates)).logits, np.float64)
    total, count = 0.0, 0
    for image in range(2):
        objects = [(batch["objects/bbox"][image, k] * SIZE, int(batch["objects/label"][image, k])) for k in range(2)]
        for region, each in zip(candidates[image], logits[image], strict=True):
            overlaps = [overlap(region, box) for box, _ in objects]
            label = objects[int(np.argmax(overlaps))][1] + 1 if max(overlaps) >= 0.5 else 0
            total += np.log(np.exp(each).sum()) - each[label]
            count += 1
    assert terms["class"][1] == count
    assert float(terms["class"][0]) == pytest.approx(total, rel=1e-4)
    assert aux["metrics"]["proposal_recall"][1] == 4
    assert aux["batch_stats"] == {}


def test_scores_are_the_softmaxs_until_machines_are_fitted(batch, network):
    module, variables = network
    task = tasks.create("region_classification", score_threshold=-100.0, max_detections=12)
    fresh = {"params": variables["params"] | jax.tree.map(np.zeros_like, {
        name: variables["params"][name] for name in task.phases})}  # fmt: skip
    predict = jax.jit(lambda variables: task.predict(module, variables, batch))
    before, after = predict(fresh), predict(variables)
    assert ((before["scores"] > 0) & (before["scores"] < 1))[before["valid"]].all()
    regions = (batch["proposals"][0, :9]).tolist()
    for box in before["boxes"][0][before["valid"][0]]:  # no box has moved
        assert np.abs(np.asarray(regions) - box).max(axis=1).min() < 1e-5
    assert (after["scores"] < 0).any()
    assert ((after["boxes"] >= 0) & (after["boxes"] <= 1)).all()
    for row in range(2):
        found = [tuple(np.asarray(after[name][row])[np.asarray(after["valid"][row])]) for name in ("boxes", "classes")]
        for i, (box, label) in enumerate(zip(*found, strict=True)):
            for other, other_label in [*zip(*found, strict=True)][:i]:
                assert label != other_label or overlap(box * SIZE, other * SIZE) <= 0.3 + 1e-5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"foreground": 1.5}, "loss.foreground=1.5 is no share"),
        ({"background": (0.5, 0.1)}, "is no range of IoUs"),
        ({"regions_at_once": 0}, "loss.regions_at_once=0 is out of range"),
        ({"ridge": 0.0}, "loss.ridge=0.0 is no weight"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        tasks.create("region_classification", **fields)
