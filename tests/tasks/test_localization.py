import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from cnn_research import tasks
from cnn_research.errors import UserError
from cnn_research.models.localizer import Localization as Output
from cnn_research.tasks.localization import Localization

KEY = jax.random.key(0)
CLASSES, KNOWN = 3, 4  # the examples after these are padding, or have no object


class Identity(nn.Module):
    """Its images are the logits and the boxes."""

    kinds: int = 1

    @nn.compact
    def __call__(self, images, train):
        rows = images.reshape(len(images), -1)
        return Output(rows[:, :CLASSES], rows[:, CLASSES:].reshape(-1, self.kinds, 4))


def random_boxes(rng, *shape):
    corners = np.sort(rng.random((*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)


def make_batch(kinds=1):
    """Six examples, the last of which is padding, and the one before has no object."""
    rng = np.random.default_rng(0)
    truth = random_boxes(rng, 6, 2)
    guesses = np.clip(truth[:, :1] + rng.normal(0, 0.07, (6, kinds, 4)), -0.1, 1.1).astype(np.float32)
    logits = rng.normal(size=(6, CLASSES)).astype(np.float32)
    valid = np.ones((6, 2), bool)
    valid[4] = False
    return {
        "image": np.concatenate([logits, guesses.reshape(6, -1)], 1)[:, None, None],
        "objects/bbox": truth,
        "objects/label": rng.integers(0, CLASSES, (6, 2)).astype(np.int32),
        "objects/valid": valid,
        "example_mask": np.arange(6) < 5,
    }


def parts(batch, kinds=1):
    """Logits, the boxes of the true classes, true boxes and labels of the examples that count."""
    rows = batch["image"][:KNOWN, 0, 0].astype(float)
    labels = batch["objects/label"][:KNOWN, 0]
    boxes = rows[:, CLASSES:].reshape(KNOWN, kinds, 4)
    boxes = boxes[np.arange(KNOWN), labels if kinds > 1 else 0]
    return rows[:, :CLASSES], boxes, batch["objects/bbox"][:KNOWN, 0].astype(float), labels


def overlaps(box, other):
    """IoU and GIoU of two boxes, one by one."""

    def area(ymin, xmin, ymax, xmax):
        return max(ymax - ymin, 0) * max(xmax - xmin, 0)

    common = area(*np.maximum(box[:2], other[:2]), *np.minimum(box[2:], other[2:]))
    around = area(*np.minimum(box[:2], other[:2]), *np.maximum(box[2:], other[2:]))
    union = area(*box) + area(*other) - common
    return common / union, common / union - (around - union) / around


def expected_box_loss(criterion, box, truth, beta=0.1):
    if criterion == "giou":
        return 1 - overlaps(box, truth)[1]
    told = [[(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]] for b in (box, truth)]
    errors = np.abs(np.subtract(*told))
    if criterion == "l2":
        return (errors**2).sum()
    return sum(error**2 / (2 * beta) if error < beta else error - beta / 2 for error in errors)


@pytest.mark.parametrize("kinds", [1, CLASSES])
@pytest.mark.parametrize("criterion", ["giou", "l2", "smooth_l1"])
def test_the_loss_is_that_of_the_main_objects(criterion, kinds):
    batch = make_batch(kinds)
    logits, boxes, truths, labels = parts(batch, kinds)
    task = Localization(criterion=criterion, box_weight=3.0)
    terms, aux = jax.device_get(task.loss(Identity(kinds), {}, batch, KEY, train=False))
    losses = scipy.special.logsumexp(logits, -1) - logits[np.arange(KNOWN), labels]
    expected = sum(expected_box_loss(criterion, *pair) for pair in zip(boxes, truths, strict=True))
    np.testing.assert_allclose(terms["class"], (losses.sum(), KNOWN), rtol=1e-5)
    np.testing.assert_allclose(terms["box"], (3 * expected, KNOWN), rtol=1e-4)
    shares = [overlaps(*pair)[0] for pair in zip(boxes, truths, strict=True)]
    np.testing.assert_allclose(aux["metrics"]["mean_iou"], (sum(shares), KNOWN), rtol=1e-5)
    np.testing.assert_allclose(aux["metrics"]["accuracy"], ((logits.argmax(-1) == labels).sum(), KNOWN))


@pytest.mark.parametrize("criterion", ["giou", "l2", "smooth_l1"])
def test_gradients_are_right_and_what_does_not_count_has_none(criterion):
    batch = jax.tree.map(jnp.asarray, make_batch())
    task = Localization(criterion=criterion)

    def total(images):
        terms, _ = task.loss(Identity(), {}, {**batch, "image": images}, KEY, train=False)
        return terms["class"][0] + terms["box"][0]

    total = jax.jit(total)
    check_grads(total, (batch["image"],), 1, modes=("rev",), eps=1e-3, rtol=0.05)
    gradient = jax.grad(total)(batch["image"].at[KNOWN:].set(jnp.nan))
    assert not gradient[KNOWN:].any()
    assert gradient[:KNOWN].all(axis=(1, 2)).sum() > 2 * CLASSES


@pytest.mark.parametrize("kinds", [1, CLASSES])
def test_metrics_are_over_all_examples_whatever_the_batches(kinds):
    batch, task, model = make_batch(kinds), Localization(), Identity(kinds)
    rows = batch["image"][:KNOWN, 0, 0]
    guesses = rows[:, :CLASSES].argmax(-1)
    # Two boxes and their classes are made right, one class alone.
    for row in (0, 1, 2):
        batch["objects/label"][row, 0] = guesses[row]
    batch["objects/label"][3, 0] = (guesses[3] + 1) % CLASSES
    batch["image"][2, 0, 0, CLASSES:] = 0
    boxes = rows[:, CLASSES:].reshape(KNOWN, kinds, 4)[np.arange(KNOWN), guesses if kinds > 1 else 0]
    shares = np.array([overlaps(*pair)[0] for pair in zip(np.clip(boxes, 0, 1), parts(batch, kinds)[2], strict=True)])
    assert shares[2] == 0
    sums = [
        task.measure(task.predict(model, {}, part), part)
        for part in ({key: value[rows] for key, value in batch.items()} for rows in (slice(0, 2), slice(2, 6)))
    ]
    metrics = task.summarize(jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), *sums))
    assert metrics["examples"] == KNOWN
    assert metrics["accuracy"] == 0.75
    assert metrics["box_accuracy"] == (shares >= 0.5).mean() > 0
    assert metrics["localization_accuracy"] == (shares[:3] >= 0.5).sum() / KNOWN
    assert metrics["mean_iou"] == pytest.approx(shares.mean(), rel=1e-5)
    logits, _, _, labels = parts(batch, kinds)
    losses = scipy.special.logsumexp(logits, -1) - logits[np.arange(KNOWN), labels]
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_predictions_stay_in_the_image_and_a_nan_is_none():
    batch = make_batch()
    batch["image"][0, 0, 0, CLASSES:] = [-1, 0.25, 2, 0.5]
    batch["image"][1] = np.nan
    found = Localization().predict(Identity(), {}, batch)
    np.testing.assert_array_equal(found["box"][:2], [[0, 0.25, 1, 0.5], [0, 0, 0, 0]])
    assert found["label"][1] == -1
    np.testing.assert_allclose(found["probabilities"][2:].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"criterion": "iou"}, "loss.criterion='iou' is unknown; did you mean 'giou'"),
        ({"box_weight": -1.0}, "loss.box_weight=-1.0"),
        ({"box_weight": float("inf")}, "loss.box_weight=inf"),
        ({"beta": 0.0}, "loss.beta=0.0"),
    ],
)
def test_faults_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        tasks.create("localization", **fields)


def test_a_split_without_objects_is_refused():
    with pytest.raises(UserError, match="holds no image with an object"):
        Localization().summarize({"examples": 0})
