"""The tasks of region networks: sums that do not depend on how a batch was cut, and what is found."""

from functools import partial

import jax
import numpy as np
import pytest

from cnn_research import models, tasks
from cnn_research.errors import UserError
from cnn_research.tasks import region_detection
from cnn_research.tasks.region_detection import region_metrics
from cnn_research.tasks.region_loss import Drawn, Truth

TINY = dict(
    body="resnet20_cifar",
    strides=(4,),
    norm="frozen",
    width=0.25,
    anchor_sizes=(6.0, 12.0),
    anchor_ratios=(1.0,),
    rpn_features=8,
    candidates=(30, 20),
    proposals=(12, 8),
    region_pool="align",
    region_size=2,
    hidden=(8,),
    dropout_rate=0.0,
    num_classes=4,
)
# So many that all are drawn, and nothing is left to chance.
ALL = dict(anchors_drawn=300, anchor_positives=1.0, regions_drawn=40, positives=1.0, score_threshold=0.01)


def random_batch(count):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.5, (count, 3, 2))
    return {
        "image": rng.normal(size=(count, 32, 32, 3)).astype(np.float32),
        "example_mask": np.ones(count, bool),
        "objects/bbox": np.concatenate([low, low + rng.uniform(0.2, 0.5, (count, 3, 2))], axis=-1).astype(np.float32),
        "objects/label": rng.integers(0, 3, (count, 3)).astype(np.int32),
        "objects/valid": rng.random((count, 3)) < 0.7,
        "objects/ignored": np.zeros((count, 3), bool),
        "objects/number": np.tile(np.arange(1, 4, dtype=np.int32), (count, 1)),
        "segmentation_mask": rng.integers(0, 4, (count, 32, 32, 1)).astype(np.uint8),
    }


def start(module, images):
    """Returns the variables that a network starts with, and which say a little of everything."""
    return jax.jit(lambda images: module.init(jax.random.key(0), images, train=False))(images)


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


@pytest.fixture(scope="module", params=["region_detection", "instance_segmentation"])
def measured(request):
    """A task's loss as a compiled function of batches of two, and a network with variables."""
    task = tasks.create(request.param, **ALL)
    fields = TINY | (dict(mask_features=(4,), mask_size=3) if request.param == "instance_segmentation" else {})
    module = models.create("faster_rcnn", **fields)
    batch = random_batch(4)
    variables = start(module, batch["image"])
    loss = jax.jit(lambda batch: task.loss(module, variables, batch, jax.random.key(0), train=True))
    return task, module, variables, batch, lambda batch: jax.device_get(loss(batch))


def test_sums_do_not_depend_on_how_a_batch_is_cut(measured):
    *_, batch, loss = measured
    first, second = (loss(part(batch, rows)) for rows in (slice(2), slice(2, 4)))
    crossed = [loss(part(batch, rows)) for rows in ([0, 3], [2, 1])]
    assert first[0].keys() >= {"rpn_class", "rpn_box", "class", "box"}
    for kind in range(2):
        sums, other = (jax.tree.map(np.add, *pair) for pair in ((first, second), crossed))
        ratios, others = ((each[0], each[1]["metrics"])[kind] for each in (sums, other))
        for name, (total, weight) in ratios.items():
            assert weight == others[name][1] > 0, name
            assert total == pytest.approx(others[name][0], rel=1e-4), name


def test_padded_examples_count_nowhere(measured):
    *_, batch, loss = measured
    pair = part(batch, [0, 1])
    alone = loss(pair | {"example_mask": np.array([True, False])})
    broken = pair["image"].copy()
    broken[1] = np.nan
    other = loss(pair | {"image": broken, "example_mask": np.array([True, False])})
    for one, another in zip(*(jax.tree.leaves((each[0], each[1]["metrics"])) for each in (alone, other)), strict=True):
        assert one == another
    assert alone[0]["class"][1] < loss(pair)[0]["class"][1]


def test_ignored_objects_are_background(measured):
    *_, batch, loss = measured
    pair = part(batch, [0, 1])
    ignored = loss(pair | {"objects/ignored": np.ones((2, 3), bool)})
    without = loss(pair | {"objects/valid": np.zeros((2, 3), bool)})
    assert jax.tree.map(float, ignored[0]) == jax.tree.map(float, without[0])
    assert ignored[0]["box"][0] == 0 < loss(pair)[0]["box"][0]


def test_what_is_found_lies_in_the_image(measured):
    task, module, variables, batch, _ = measured
    found = jax.device_get(jax.jit(lambda batch: task.predict(module, variables, batch))(part(batch, slice(2))))
    assert found["boxes"].shape == (2, 100, 4)
    assert found["valid"][:, 0].all()
    assert (found["boxes"] >= 0).all()
    assert (found["boxes"] <= 1).all()
    scores = np.where(found["valid"], found["scores"], 0)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    assert (scores[found["valid"]] > task.score_threshold).all()
    assert set(np.unique(found["classes"][found["valid"]])) <= {0, 1, 2}
    if "masks" in found:
        assert found["masks"].shape == (2, 100, 6, 6)
    assert task.measure(found, batch).keys() == found.keys()


def test_given_regions():
    """A network that proposes none looks at the batch's, of which some only fill up."""
    task = tasks.create("region_detection", **ALL)
    fields = {name: value for name, value in TINY.items() if name not in ("anchor_ratios", "rpn_features")}
    module = models.create(
        "fast_rcnn", **{**fields, "anchor_sizes": ()} | dict(candidates=(12_000, 6000), proposals=(2000, 300))
    )
    batch = random_batch(2)
    variables = start(module, batch["image"])

    @jax.jit
    def loss(batch):
        return task.loss(module, variables, batch, jax.random.key(0), train=False)

    with pytest.raises(UserError, match="the batch has none"):
        loss(batch)
    batch["proposals"] = np.zeros((2, 5, 4), np.float32)
    batch["proposals"][:, :2] = [0.1, 0.2, 0.6, 0.9]
    terms, aux = loss(batch)
    assert terms.keys() == {"class", "box"}
    assert terms["class"][1] == 4 + batch["objects/valid"].sum()
    assert aux["batch_stats"].keys() == variables["batch_stats"].keys()
    found = jax.jit(lambda batch: task.predict(module, variables, batch))(batch)
    assert (found["valid"].sum(axis=1) <= 6).all()  # the two are the same, and there are three classes


def test_metrics_of_regions_by_hand():
    """Of two objects the first is covered; of two regions the first has its class; the third of each is none."""
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]]], np.float32)
    there = np.array([[True, True, False]])
    regions = np.array([[[0, 0, 10, 5], [20, 20, 30, 24]]], np.float32)  # IoU 0.5 and 0.4
    drawn = Drawn(boxes, np.array([[1, 0, 2]]), np.zeros((1, 3), int), boxes, there)
    logits = np.eye(3, dtype=np.float32)[np.array([[1, 2, 2]])]
    metrics = jax.jit(region_metrics)(logits, drawn, regions, Truth(boxes, np.zeros((1, 3), int), there))
    assert metrics == {"region_accuracy": (1, 2), "proposal_recall": (1, 2)}


def test_training_returns_new_batch_statistics_and_every_field_is_used(monkeypatch):
    expected = {
        "anchor_loss": dict(foreground=0.8, background=0.2, count=30, positive_fraction=0.45, beta=0.15),
        "draw_regions": dict(foreground=0.6, background=(0.1, 0.4), count=20, positive_fraction=0.35),
        "region_loss": dict(beta=1.5),
        "detect": dict(score_threshold=0.25, iou_threshold=0.65, count=7),
    }
    task = tasks.create(
        "region_detection",
        **dict(anchor_foreground=0.8, anchor_background=0.2, anchors_drawn=30, anchor_positives=0.45, anchor_beta=0.15),
        **dict(foreground=0.6, background=(0.1, 0.4), regions_drawn=20, positives=0.35, beta=1.5),
        **dict(score_threshold=0.25, nms_threshold=0.65, max_detections=7),
    )
    module = models.create("faster_rcnn", **TINY | dict(norm="batch"))
    used = {}

    def watched(function, *args, **options):
        used[function.__name__] = options
        return function(*args, **options)

    for name in expected:
        monkeypatch.setattr(region_detection, name, partial(watched, getattr(region_detection, name)))

    def every(batch):
        variables = module.init(jax.random.key(0), batch["image"], train=False)
        _, aux = task.loss(module, variables, batch, jax.random.key(0), train=True)
        return variables["batch_stats"], aux["batch_stats"], task.predict(module, variables, batch)

    before, after, _ = jax.eval_shape(every, random_batch(2))
    assert before == after
    assert used == expected


def test_fields_at_their_limits_are_taken():
    tasks.create("region_detection", foreground=1.0, positives=0.0, background=(0.0, 1.0), regions_drawn=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"foreground": 1.5}, "loss.foreground=1.5 is no share"),
        ({"nms_threshold": -0.1}, "loss.nms_threshold=-0.1 is no share"),
        ({"background": (0.5, 0.1)}, "is no range of IoUs"),
        ({"background": (0.5,)}, "is no range of IoUs"),
        ({"regions_drawn": 0}, "loss.regions_drawn=0 is out of range"),
        ({"beta": 0.0}, "loss.beta=0.0 is no distance"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        tasks.create("region_detection", **fields)
