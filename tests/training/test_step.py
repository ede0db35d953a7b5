"""One step of training: against the same by hand, however the batch is cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cnn_research.data.augmentation import Augmentation
from cnn_research.tasks import Classification
from cnn_research.training.state import create_state
from cnn_research.training.step import Preprocessing, gather, make_eval_step, make_train_step, step_rngs

BATCH, CLASSES = 8, 3


class Net(nn.Module):
    """A convolution and a classifier."""

    norm: bool = False

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3), strides=2, name="conv1")(images)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm1")(x)
        return nn.Dense(CLASSES, name="head")(jnp.tanh(x).reshape(len(x), -1))


class TwoTerms(Classification):
    """A loss whose terms are means over different sets: all examples, and those of class 0."""

    def loss(self, model, variables, batch, rng, train):
        logits = model.apply(variables, batch["image"], train=train)
        mask = batch["example_mask"].astype(jnp.float32)
        chosen = mask * (batch["label"] == 0)
        terms = {
            "squares": ((mask[:, None] * logits**2).sum(), mask.sum()),
            "first": ((chosen * logits[:, 1]).sum(), chosen.sum()),
        }
        return terms, {"batch_stats": {}, "metrics": {"share": (chosen.sum(), mask.sum())}}


def make_batch(seed=0, mask=None):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (BATCH, 8, 8, 1), np.uint8),
        "label": rng.integers(0, CLASSES, BATCH).astype(np.int32),
        "example_mask": np.ones(BATCH, bool) if mask is None else np.array(mask),
    }


# Examples 0, 4 and 6 make up half of the first of two micro-batches, none of the second.
MASK = np.array([0, 1, 1, 1, 0, 1, 0, 1], bool)
PLAIN = Preprocessing(Augmentation(), (0.5,), (0.25,))
SGD = optax.sgd(0.1, momentum=0.9)


@pytest.fixture(scope="module")
def variables():
    return {norm: Net(norm).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False) for norm in (False, True)}


def make_step(norm=False, task=None, preprocessing=PLAIN, **options):
    schedule = optax.linear_schedule(0.1, 0.3, 2)
    return make_train_step(Net(norm), task or Classification(), SGD, schedule, preprocessing, **options)


def assert_close(tree, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), tree, expected)


def test_a_step_is_one_update_by_the_gradient_of_the_mean_loss(variables):
    batch = make_batch(mask=MASK)
    state = create_state(variables[False], SGD, seed=0)
    step = jax.jit(make_step())
    new, metrics = step(state, batch)

    images = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.25

    def loss(params):
        log_probabilities = jax.nn.log_softmax(Net().apply({"params": params}, images[MASK], train=True))
        return -log_probabilities[np.arange(MASK.sum()), batch["label"][MASK]].mean()

    value, gradients = jax.value_and_grad(loss)(state.params)
    assert_close(new.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradients))
    assert new.step == 1
    assert new.rng == state.rng
    logits = Net().apply(state.variables, images[MASK], train=False)
    assert_close(
        metrics,
        {
            "loss": value,
            "accuracy": (logits.argmax(-1) == batch["label"][MASK]).mean(),
            "gradient_norm": np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradients))),
            "learning_rate": 0.1,
        },
    )
    assert step(new, batch)[1]["learning_rate"] == pytest.approx(0.2)


@pytest.mark.parametrize("task", [Classification(label_smoothing=0.1), TwoTerms()])
def test_micro_batches_change_nothing(variables, task):
    step, step_in_parts = (jax.jit(make_step(task=task, accumulate=accumulate)) for accumulate in (1, 4))
    whole = cut = create_state(variables[False], SGD, seed=0)
    for seed, mask in enumerate((None, MASK, np.arange(BATCH) % 2 == 0)):
        batch = make_batch(seed, mask)
        whole, expected = step(whole, batch)
        cut, metrics = step_in_parts(cut, batch)
        assert_close(metrics, expected)
        assert_close((cut.params, cut.opt_state), (whole.params, whole.opt_state))


def test_every_term_of_a_loss_is_reported(variables):
    batch = make_batch(mask=MASK)
    _, metrics = jax.jit(make_step(task=TwoTerms()))(create_state(variables[False], SGD, seed=0), batch)
    images = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.25
    logits = np.asarray(Net().apply(variables[False], images, train=False))
    chosen = MASK & (batch["label"] == 0)
    squares, first = (logits[MASK] ** 2).sum() / MASK.sum(), logits[chosen, 1].mean()
    assert_close(metrics["squares"], squares)
    assert_close(metrics["first"], first)
    assert_close(metrics["loss"], squares + first)
    assert_close(metrics["share"], chosen.sum() / MASK.sum())


def test_nothing_to_learn_from_is_no_nan(variables):
    state = create_state(variables[False], SGD, seed=0)
    batch = make_batch(mask=np.zeros(BATCH, bool))
    for accumulate in (1, 2):
        new, metrics = jax.jit(make_step(accumulate=accumulate))(state, batch)
        assert metrics["loss"] == 0
        assert_close(new.params, state.params, rtol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replicas_together_make_the_step_of_the_whole_batch(variables, accumulate):
    batch = make_batch(mask=MASK)
    augmented = Preprocessing(Augmentation(flip=True, pad_crop=2, mixup=0.4), (0.5,), (0.25,))
    state = create_state(variables[False], SGD, seed=0)
    expected, expected_metrics = jax.jit(make_step(preprocessing=augmented))(state, batch)
    step = make_step(preprocessing=augmented, axis_name="replica", accumulate=accumulate)
    cut = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
    new, metrics = jax.jit(jax.vmap(step, in_axes=(None, 0), axis_name="replica"))(state, cut)
    for replica in range(2):
        found = jax.tree.map(lambda x, r=replica: x[r], (new.params, metrics))
        assert_close(found, (expected.params, expected_metrics))


def test_statistics_pass_from_one_micro_batch_to_the_next(variables):
    batch = make_batch()
    state = create_state(variables[True], SGD, seed=0)
    new, _ = jax.jit(make_step(norm=True, accumulate=2))(state, batch)
    images = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.25
    maps = nn.Conv(4, (3, 3), strides=2).apply({"params": state.params["conv1"]}, images)
    mean = np.zeros(4)
    for part in (0, 1):  # every second example
        mean = 0.5 * mean + 0.5 * maps[part::2].mean((0, 1, 2))
    assert_close(new.batch_stats["norm1"]["mean"], mean)


def test_the_average_follows_its_formula(variables):
    step = jax.jit(make_step(norm=True, ema=0.2))
    state = create_state(variables[True], SGD, seed=0, averaged=True)
    expected = state.variables
    for count in range(5):
        state, _ = step(state, make_batch(count))
        decay = min(0.2, (1 + count) / (10 + count))  # 0.1, 0.18, 0.2, 0.2, 0.2
        expected = jax.tree.map(lambda a, x, d=decay: d * a + (1 - d) * x, expected, state.variables)
        assert_close(state.average, expected)
    assert state.evaluated is state.average


def test_frozen_statistics_stay(variables):
    state = create_state(variables[True], SGD, seed=0)

    def frozen(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "mean", tree)

    new, _ = jax.jit(make_step(norm=True, frozen=frozen))(state, make_batch())
    free, _ = jax.jit(make_step(norm=True))(state, make_batch())
    old, still, moved = (tree.batch_stats["norm1"] for tree in (state, new, free))
    np.testing.assert_array_equal(still["mean"], old["mean"])
    np.testing.assert_array_equal(still["var"], moved["var"])
    assert not np.allclose(moved["mean"], old["mean"])
    assert not np.allclose(moved["var"], old["var"])


def test_each_step_draws_anew_and_the_same_again():
    rng = jax.random.key(0)
    drawn = [tuple(jax.random.key_data(step_rngs(rng, jnp.int32(step))).ravel().tolist()) for step in (0, 1, 2, 1)]
    assert drawn[1] == drawn[3]
    assert len(set(drawn)) == 3
    keys = step_rngs(rng, jnp.int32(0))
    assert keys[0] != keys[1]


def test_preprocessing_normalises_both_and_augments_for_training_alone():
    batch = jax.tree.map(jnp.asarray, make_batch())
    normalised = (np.asarray(batch["image"]) / 255 - 0.5) / 0.25
    flipping = Preprocessing(Augmentation(flip=True), (0.5,), (0.25,))
    rng = jax.random.key(0)
    assert_close(PLAIN.test(batch)["image"], normalised)
    assert_close(PLAIN.train(batch, rng)["image"], normalised)
    assert_close(flipping.test(batch)["image"], normalised)
    trained = np.asarray(flipping.train(batch, rng)["image"])
    flipped = np.array([not np.allclose(x, y, atol=1e-5) for x, y in zip(trained, normalised, strict=True)])
    assert 0 < flipped.sum() < BATCH
    assert_close(trained, np.where(flipped[:, None, None, None], normalised[:, :, ::-1], normalised))
    np.testing.assert_array_equal(flipping.train(batch, rng)["label"], batch["label"])


def test_preprocessing_takes_a_mean_for_each_channel():
    image = jnp.zeros((1, 2, 2, 3), jnp.uint8)
    normalised = Preprocessing(Augmentation(), (0.1, 0.2, 0.3), (0.5, 1.0, 0.1)).test({"image": image})["image"]
    assert_close(normalised[0, 0, 0], np.array([-0.2, -0.2, -3.0]))


def test_gather_takes_the_examples_from_the_resident_split():
    data = {"image": jnp.arange(20).reshape(10, 2), "label": jnp.arange(10)}
    mask = jnp.array([True, True, False])
    batch = gather({"index": jnp.array([7, 0, 0]), "example_mask": mask}, data)
    assert batch.keys() == {"image", "label", "example_mask"}
    assert batch["label"].tolist() == [7, 0, 0]
    assert batch["image"].tolist() == [[14, 15], [0, 1], [0, 1]]
    assert batch["example_mask"] is mask
    there = data | {"example_mask": jnp.arange(10) != 7}  # as where the seventh could not be decoded
    batch = gather({"index": jnp.array([7, 0, 0]), "example_mask": mask}, there)
    assert batch["example_mask"].tolist() == [False, True, False]


def test_gather_lets_a_streamed_batch_pass():
    batch = {"image": jnp.ones((2, 3)), "example_mask": jnp.ones(2, bool)}
    assert gather(batch, {}) is batch


def test_an_evaluation_step_counts_examples_and_not_padding(variables):
    batch = make_batch(mask=MASK)
    step = jax.jit(make_eval_step(Net(True), Classification(), PLAIN))
    sums = step(variables[True], batch, {})
    images = (batch["image"].astype(np.float32) / 255 - 0.5) / 0.25
    labels = Net(True).apply(variables[True], images, train=False).argmax(-1)
    assert sums["examples"] == MASK.sum()
    assert sums["correct"] == ((labels == batch["label"]) & MASK).sum()
    resident = {key: batch[key] for key in ("image", "label")}
    indices = {"index": np.arange(BATCH), "example_mask": MASK}
    jax.tree.map(np.testing.assert_array_equal, step(variables[True], indices, resident), sums)


def test_networks_that_label_pixels_are_tested_on_whole_images():
    batch = {key: jnp.asarray(value) for key, value in make_batch().items() if key != "label"}
    batch["segmentation_mask"] = batch["image"]
    for whole, size in ((True, 8), (False, 6)):
        preprocessing = Preprocessing(Augmentation(), (0.0,), (1.0,), (6, 6), whole, mirror=3)
        trained, tested = preprocessing.train(batch, jax.random.key(0)), preprocessing.test(batch)
        for found, inner in ((trained, 6), (tested, size)):
            assert found["image"].shape == (BATCH, inner + 6, inner + 6, 1)
            assert found["segmentation_mask"].shape == (BATCH, inner, inner, 1)
            seen = np.asarray(found["segmentation_mask"]) / np.float32(255)
            expected = np.pad(seen, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
            np.testing.assert_allclose(found["image"], expected, rtol=1e-6)
