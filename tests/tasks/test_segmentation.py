import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.metrics
from jax.test_util import check_grads

from cnn_research import tasks
from cnn_research.errors import UserError
from cnn_research.tasks.segmentation import Segmentation, border_weights

KEY = jax.random.key(0)
CLASSES = 4

compute_loss = jax.jit(Segmentation.loss, static_argnums=(0, 1, 5))


class Identity(nn.Module):
    """Its images are the logits, those `margin` from the border left out."""

    margin: int = 0

    @nn.compact
    def __call__(self, images, train):
        height, width = images.shape[1:3]
        return images[:, self.margin : height - self.margin, self.margin : width - self.margin]


class Deep(nn.Module):
    """A network with auxiliary classifiers, which leave what they say where training finds it."""

    @nn.compact
    def __call__(self, images, train):
        if train:
            Auxiliary(0.5, name="auxiliary_1")(2 * images)
            Auxiliary(0.25, name="auxiliary_2")(-images)
        return images


class Auxiliary(nn.Module):
    weight: float

    @nn.compact
    def __call__(self, logits):
        for name, value in (("logits", logits), ("weight", self.weight)):
            self.sow("auxiliary", name, value, reduce_fn=lambda _, last: last, init_fn=lambda: None)


def make_batch(height=5, width=6):
    """Three examples, the last of which is padding; some pixels are ignored."""
    rng = np.random.default_rng(0)
    masks = rng.choice([0, 1, 2, 3, 255], (3, height, width, 1), p=[0.4, 0.2, 0.1, 0.1, 0.2]).astype(np.uint8)
    return {
        "image": rng.normal(size=(3, height, width, CLASSES)).astype(np.float32),
        "segmentation_mask": masks,
        "border_distance": rng.choice([2, 5.5, 9, np.inf], masks.shape).astype(np.float16),
        "example_mask": np.array([True, True, False]),
    }


def pixels(batch):
    """Logits, classes and distances of the pixels that count, in one row."""
    known = (batch["segmentation_mask"][..., 0] != 255) & batch["example_mask"][:, None, None]
    distances = batch["border_distance"][..., 0][known].astype(float)
    return batch["image"][known].astype(float), batch["segmentation_mask"][..., 0][known], distances


def loss_of(task, batch, model=None, train=False):
    terms, aux = compute_loss(task, model or Identity(), {}, jax.tree.map(jnp.asarray, batch), KEY, train)
    return jax.device_get((terms, aux["metrics"]))


def test_cross_entropy_is_over_the_pixels_that_count():
    batch = make_batch()
    logits, classes, _ = pixels(batch)
    terms, shown = loss_of(Segmentation(), batch)
    expected = sklearn.metrics.log_loss(classes, scipy.special.softmax(logits, -1), labels=range(CLASSES))
    total, weight = terms["loss"]
    assert weight == len(classes) < 60
    assert total / weight == pytest.approx(expected, rel=1e-5)
    correct, count = shown["pixel_accuracy"]
    assert correct / count == pytest.approx(np.mean(logits.argmax(-1) == classes))


def test_what_does_not_count_has_no_loss_and_no_gradient():
    batch = make_batch()
    known = (batch["segmentation_mask"][..., 0] != 255) & batch["example_mask"][:, None, None]
    spoilt = batch | {"image": np.where(known[..., None], batch["image"], np.nan)}
    for criterion in ("cross_entropy", "dice"):
        task = Segmentation(criterion=criterion)

        def total(images, task=task):
            return task.loss(Identity(), {}, {**batch, "image": images}, KEY, False)[0]["loss"][0]

        value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(spoilt["image"]))
        assert value == pytest.approx(float(total(jnp.asarray(batch["image"]))), rel=1e-6)
        assert (np.asarray(gradient)[~known] == 0).all()
        assert (np.asarray(gradient)[known] != 0).all()


def test_pixels_are_weighed_by_class_and_by_the_objects_around():
    batch = make_batch()
    logits, classes, distances = pixels(batch)
    losses = scipy.special.logsumexp(logits, -1) - logits[np.arange(len(classes)), classes]
    weights = np.array([0.5, 1.0, 2.0, 0.0])
    terms, _ = loss_of(Segmentation(class_weights=tuple(weights)), batch)
    assert terms["loss"][0] == pytest.approx((weights[classes] * losses).sum(), rel=1e-5)
    assert terms["loss"][1] == len(classes)
    borders = 10 * np.exp(-(distances**2) / (2 * 3**2))
    terms, _ = loss_of(Segmentation(class_weights=tuple(weights), border_weight=10.0, border_sigma=3.0), batch)
    assert terms["loss"][0] == pytest.approx(((weights[classes] + borders) * losses).sum(), rel=1e-5)


def test_border_weights_are_the_papers():
    """Between two cells that touch but for one pixel d1 = d2 = 1; by default σ is 5 pixels."""
    found = border_weights(jnp.array([2.0, 10.0, jnp.inf], jnp.float16), 10.0, Segmentation().border_sigma)
    np.testing.assert_allclose(found, [10 * np.exp(-4 / 50), 10 * np.exp(-2), 0], rtol=1e-6)


def test_focal_loss_is_the_papers():
    batch = make_batch()
    logits, classes, _ = pixels(batch)
    p = scipy.special.softmax(logits, -1)[np.arange(len(classes)), classes]
    for gamma in (1.0, 2.5):
        terms, _ = loss_of(Segmentation(criterion="focal", gamma=gamma), batch)
        assert terms["loss"][0] == pytest.approx((-((1 - p) ** gamma) * np.log(p)).sum(), rel=1e-5)


def test_focal_loss_of_a_sure_pixel_has_a_gradient():
    batch = make_batch() | {"image": np.full((3, 5, 6, CLASSES), [1000.0, 0, 0, 0], np.float32)}
    task = Segmentation(criterion="focal", gamma=1.5)
    gradient = jax.grad(lambda images: task.loss(Identity(), {}, {**batch, "image": images}, KEY, False)[0]["loss"][0])
    assert np.isfinite(gradient(jnp.asarray(batch["image"]))).all()


def test_dice_is_the_papers_of_each_image():
    batch = make_batch()
    expected = []
    for logits, mask in zip(batch["image"][:2], batch["segmentation_mask"][:2, ..., 0], strict=True):
        known = mask != 255
        p, g = scipy.special.softmax(logits[known], -1), np.eye(CLASSES)[mask[known]]
        expected.append(1 - np.mean((2 * (p * g).sum(0) + 1) / ((p**2).sum(0) + (g**2).sum(0) + 1)))
    terms, _ = loss_of(Segmentation(criterion="dice"), batch)
    np.testing.assert_allclose(terms["loss"], (sum(expected), 2), rtol=1e-5)
    batch["segmentation_mask"][0] = 255
    np.testing.assert_allclose(loss_of(Segmentation(criterion="dice"), batch)[0]["loss"], (expected[1], 1), rtol=1e-5)


@pytest.mark.parametrize("criterion", ["cross_entropy", "dice", "focal"])
def test_gradients(criterion):
    batch = jax.tree.map(jnp.asarray, make_batch(2, 3))
    task = Segmentation(criterion=criterion)

    def total(images):
        return task.loss(Identity(), {}, {**batch, "image": images}, KEY, True)[0]["loss"][0]

    check_grads(jax.jit(total), (batch["image"],), 1, modes=("rev",), rtol=0.02)


def test_the_middle_is_compared_where_sizes_differ():
    batch = make_batch(8, 9)
    inner = {key: value[:, 2:-2, 2:-2] for key, value in batch.items() if key != "example_mask"}
    expected = loss_of(Segmentation(border_weight=3.0), inner | {"example_mask": batch["example_mask"]})
    for found in (
        loss_of(Segmentation(border_weight=3.0), batch, Identity(margin=2)),  # a network that labels the middle
        loss_of(
            Segmentation(border_weight=3.0), batch | {k: inner[k] for k in ("segmentation_mask", "border_distance")}
        ),
    ):
        for name in ("loss", "pixel_accuracy"):
            np.testing.assert_allclose((found[0] | found[1])[name], (expected[0] | expected[1])[name], rtol=1e-6)
    task = Segmentation()
    predictions = task.predict(Identity(margin=2), {}, batch)
    assert predictions["label"].shape == (3, 4, 5)
    np.testing.assert_array_equal(task.measure(predictions, batch)["confusion"].sum(), expected[0]["loss"][1])


def test_auxiliary_classifiers_have_the_same_targets():
    batch = make_batch()
    terms, _ = loss_of(Segmentation(), batch, Deep(), train=True)
    assert terms.keys() == {"main", "auxiliary_1", "auxiliary_2"}
    for name, factor, weight in (("main", 1, 1), ("auxiliary_1", 2, 0.5), ("auxiliary_2", -1, 0.25)):
        alone, _ = loss_of(Segmentation(), batch | {"image": factor * batch["image"]})
        np.testing.assert_allclose(terms[name], (weight * alone["loss"][0], alone["loss"][1]), rtol=1e-6)
    assert loss_of(Segmentation(), batch, Deep())[0].keys() == {"loss"}


def test_predictions_are_the_likeliest_classes():
    batch = make_batch()
    batch["image"][0, 1, 2, 0] = np.nan
    predictions = Segmentation().predict(Identity(), {}, batch)
    np.testing.assert_allclose(np.nansum(predictions["probabilities"], -1).ravel()[10:], 1, rtol=1e-6)
    expected = batch["image"].argmax(-1)
    expected[0, 1, 2] = -1
    np.testing.assert_array_equal(predictions["label"], expected)


def test_the_scores_are_of_the_whole_split():
    """However it is cut into batches; padding counts nowhere."""
    task, batch = Segmentation(class_weights=(1.0, 2.0, 3.0, 4.0)), make_batch()
    parts = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(3)]
    sums = [task.measure(task.predict(Identity(), {}, part), part) for part in parts]
    whole = task.measure(task.predict(Identity(), {}, batch), batch)
    added = jax.tree.map(lambda *x: sum(x), *sums)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), added, whole)
    found = task.summarize(jax.device_get(added))
    logits, classes, _ = pixels(batch)
    guess = logits.argmax(-1)
    assert found["mean_iou"] == pytest.approx(sklearn.metrics.jaccard_score(classes, guess, average="macro"))
    assert found["frequency_weighted_iou"] == pytest.approx(
        sklearn.metrics.jaccard_score(classes, guess, average="weighted")
    )
    assert found["pixel_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(classes, guess))
    assert found["mean_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(classes, guess))
    assert found["loss"] == pytest.approx(
        sklearn.metrics.log_loss(classes, scipy.special.softmax(logits, -1)), rel=1e-5
    )
    assert found["examples"] == 2
    assert task.primary_metric in found


def test_a_split_without_a_known_pixel_is_refused():
    batch = make_batch()
    batch["segmentation_mask"][:] = 255
    sums = Segmentation().measure(Segmentation().predict(Identity(), {}, batch), batch)
    with pytest.raises(UserError, match="no pixel with a class"):
        Segmentation().summarize(sums)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"criterion": "focus"}, "loss.criterion='focus' is unknown; did you mean 'focal'"),
        ({"class_weights": (1.0, -1.0)}, "loss.class_weights="),
        ({"border_weight": -1.0}, "loss.border_weight=-1.0 is no weight"),
        ({"border_sigma": 0.0}, "loss.border_sigma=0.0 is no distance"),
        ({"gamma": 0.5}, "loss.gamma=0.5 must be a number from 1"),
        ({"criterion": "dice", "border_weight": 1.0}, "weigh pixels, which loss.criterion=dice does not"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        tasks.create("segmentation", **fields)


def test_fields_at_their_limits_are_taken():
    tasks.create("segmentation", class_weights=(0.0,), border_sigma=0.1, gamma=1.0)


def test_every_class_needs_its_weight():
    with pytest.raises(UserError, match=r"loss\.class_weights has 2 numbers for 4 classes; give one for each"):
        Segmentation(class_weights=(1.0, 2.0)).loss(Identity(), {}, jax.tree.map(jnp.asarray, make_batch()), KEY, False)


def test_the_task_is_in_the_table():
    assert tasks.create("segmentation", class_weights=(1.0, 2.0)) == Segmentation(class_weights=(1.0, 2.0))
    assert tasks.config("segmentation").to_dict() == dataclasses.asdict(Segmentation())
    assert isinstance(Segmentation(), tasks.Task)
