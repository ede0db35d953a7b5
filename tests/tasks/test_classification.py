import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from cnn_research.data.augmentation import Augmentation
from cnn_research.errors import UserError
from cnn_research.metrics.classification import calibration_bins, calibration_error
from cnn_research.tasks.classification import Classification
from cnn_research.training.state import create_state
from cnn_research.training.step import Preprocessing, make_train_step

KEY = jax.random.key(0)
NAN = float("nan")


# The loop, too, calls these compiled.
compute_loss = jax.jit(Classification.loss, static_argnums=(0, 1, 5))
predict = jax.jit(Classification.predict, static_argnums=(0, 1))
init = jax.jit(lambda model, batch: model.init(KEY, batch["image"], train=False), static_argnums=0)


class Identity(nn.Module):
    """Its images are the logits."""

    @nn.compact
    def __call__(self, images, train):
        return images


class Linear(nn.Module):
    num_classes: int = 3
    dropout_rate: float = 0.0
    norm: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images, train):
        x = images
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


class Halfway(nn.Module):
    """A classifier, and auxiliary ones, which leave what they say where training finds it."""

    weights: tuple[float, ...]

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(4, name="hidden")(images.reshape(len(images), -1))
        for index, weight in enumerate(self.weights, start=1):
            if train or self.is_initializing():
                Auxiliary(weight, name=f"auxiliary_{index}")(x)
        return nn.Dense(3, name="head")(jnp.tanh(x))


class Auxiliary(nn.Module):
    weight: float

    @nn.compact
    def __call__(self, x):
        logits = nn.Dense(3, name="head")(x)
        if not self.is_initializing():
            for name, value in (("logits", logits), ("weight", self.weight)):
                self.sow("auxiliary", name, value, reduce_fn=lambda _, last: last, init_fn=lambda: None)


def make_batch(logits, labels):
    logits = jnp.asarray(logits, jnp.float32)
    mask = jnp.ones(len(logits), bool)
    return {"image": logits, "label": jnp.asarray(labels, jnp.int32), "example_mask": mask}


def random_batch(examples=12, classes=7):
    rng = np.random.default_rng(0)
    return make_batch(2 * rng.normal(size=(examples, classes)), rng.integers(0, classes, examples))


@partial(jax.jit, static_argnums=0)
def loss_of(task, batch):
    """The sum of the criterion over images that are logits."""
    terms, _ = task.loss(Identity(), {}, batch, KEY, train=True)
    return terms["loss"][0]


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    terms, aux = compute_loss(Classification(), Identity(), {}, make_batch(np.zeros((4, 10)), range(4)), KEY, True)
    total, weight = terms["loss"]
    assert (float(total / weight), float(weight)) == (pytest.approx(math.log(10)), 4)
    # The first of equal logits is the prediction.
    assert [float(part) for part in aux["metrics"]["accuracy"]] == [1, 4]
    assert aux["batch_stats"] == {}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_agrees_with_optax(smoothing):
    batch = random_batch()
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], 7), smoothing)
    expected = float(optax.softmax_cross_entropy(batch["image"], targets).sum())
    assert loss_of(Classification(label_smoothing=smoothing), batch) == pytest.approx(expected, rel=1e-5)


def test_map_criterion_by_hand():
    penalties, j = [2.0, 5.0, 1.0], 3.0
    # LeCun et al. 1998, eq. 9, with the second class desired.
    expected = 5 + math.log(math.exp(-j) + math.exp(-2) + math.exp(-5) + math.exp(-1))
    batch = make_batch([[-penalty for penalty in penalties]], [1])
    assert loss_of(Classification(criterion="map", rubbish_penalty=j), batch) == pytest.approx(expected, rel=1e-6)


def test_map_criterion_lies_between_the_distance_and_the_cross_entropy():
    batch = random_batch() | {"image": -40 - 20 * jax.random.uniform(KEY, (12, 7))}
    near_eq_8 = jax.grad(lambda x: loss_of(Classification(criterion="map", rubbish_penalty=1.0), batch | {"image": x}))
    np.testing.assert_allclose(near_eq_8(batch["image"]), -jax.nn.one_hot(batch["label"], 7), atol=1e-6)
    without_rubbish = loss_of(Classification(criterion="map", rubbish_penalty=1e4), batch)
    assert without_rubbish == pytest.approx(float(loss_of(Classification(), batch)), rel=1e-5)


@pytest.mark.parametrize(
    "task",
    [
        Classification(),
        Classification(label_smoothing=0.2),
        Classification(criterion="map", rubbish_penalty=1.5),
        Classification(criterion="map", label_smoothing=0.1),
    ],
)
def test_gradients_agree_with_finite_differences(task):
    others = {"label_other": jnp.array([0, 1, 2, 3]), "label_weight": jnp.array([0.1, 0.5, 1.0, 0.0])}
    batch = random_batch(4) | others
    check_grads(lambda x: loss_of(task, batch | {"image": x}), (batch["image"],), order=1, modes=["rev"], rtol=1e-2)


def test_a_class_of_probability_zero_does_not_spoil_the_loss():
    batch = make_batch([[0, 0, -math.inf]], [1])
    assert loss_of(Classification(), batch) == pytest.approx(math.log(2))


def test_mixed_targets_weigh_both_labels():
    batch = make_batch([[3, 0, 1], [0, 2, 1]], [0, 0])
    mixed = batch | {"label_other": jnp.array([2, 1]), "label_weight": jnp.array([0.3, 0.9])}
    task = Classification(label_smoothing=0.1)
    terms, aux = compute_loss(task, Identity(), {}, mixed, KEY, True)

    def single(example, label):
        return loss_of(task, {name: part[example : example + 1] for name, part in batch.items()} | {"label": label})

    first = 0.3 * single(0, jnp.array([0])) + 0.7 * single(0, jnp.array([2]))
    second = 0.9 * single(1, jnp.array([0])) + 0.1 * single(1, jnp.array([1]))
    assert terms["loss"][0] == pytest.approx(float(first + second), rel=1e-5)
    assert terms["loss"][1] == 2
    assert aux["metrics"]["accuracy"][0] == pytest.approx(0.3 + 0.1)


def test_auxiliary_classifiers_add_their_weighted_losses_in_training():
    task, model = Classification(label_smoothing=0.1), Halfway((0.3, 2.0))
    batch = random_batch(6, 3) | {"example_mask": jnp.array([1, 1, 0, 1, 1, 0], bool)}
    batch |= {"label_other": jnp.array([2, 0, 1, 1, 0, 2]), "label_weight": jnp.linspace(0, 1, 6)}
    variables = init(model, batch)
    terms, aux = compute_loss(task, model, variables, batch, KEY, True)

    params = variables["params"]
    hidden = batch["image"] @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    heads = {name: params[name]["head"] for name in ("auxiliary_1", "auxiliary_2")}
    logits = {name: hidden @ head["kernel"] + head["bias"] for name, head in heads.items()}
    logits["main"] = jnp.tanh(hidden) @ params["head"]["kernel"] + params["head"]["bias"]
    expected = {name: loss_of(task, batch | {"image": each}) for name, each in logits.items()}
    factors = {"main": 1, "auxiliary_1": 0.3, "auxiliary_2": 2}
    assert terms.keys() == factors.keys()
    for name, (total, weight) in terms.items():
        assert float(total) == pytest.approx(factors[name] * float(expected[name]), rel=1e-5)
        assert weight == 4
    assert aux["metrics"].keys() == {"accuracy"}
    assert aux["batch_stats"] == {}

    terms, _ = compute_loss(task, model, variables, batch, KEY, False)
    assert terms.keys() == {"loss"}
    assert terms["loss"][0] == pytest.approx(float(expected["main"]), rel=1e-5)


def test_a_weight_of_zero_gives_an_auxiliary_classifier_no_gradient():
    task, batch = Classification(), random_batch(6, 3)
    variables = init(Halfway((0.0, 1.0)), batch)

    @partial(jax.jit, static_argnums=0)
    def gradients(model):
        def objective(params):
            terms, _ = task.loss(model, {"params": params}, batch, KEY, train=True)
            return sum(total for total, _ in terms.values())

        return jax.grad(objective)(variables["params"])

    mute, loud = gradients(Halfway((0.0, 1.0))), gradients(Halfway((1.0, 1.0)))
    assert not any(jax.tree.leaves(jax.tree.map(jnp.any, mute["auxiliary_1"])))
    assert all(jax.tree.leaves(jax.tree.map(jnp.any, (mute["auxiliary_2"], loud))))
    alone = gradients(Halfway((0.0, 0.0)))["hidden"]["kernel"]
    first, second = (gradients(Halfway(weights))["hidden"]["kernel"] for weights in ((1.0, 0.0), (0.0, 1.0)))
    both = loud["hidden"]["kernel"]
    np.testing.assert_allclose(both, first + second - alone, rtol=1e-4, atol=1e-5)


def test_a_step_reports_the_total_and_its_parts_however_the_batch_is_cut():
    model, batch, optimizer = Halfway((0.3, 0.3)), random_batch(8, 3), optax.sgd(0.1)
    images = np.random.default_rng(1).integers(0, 256, (8, 2, 2, 1), np.uint8)
    batch |= {"image": jnp.asarray(images), "example_mask": jnp.array([1, 0, 1, 1, 1, 1, 0, 0], bool)}
    variables = init(model, batch | {"image": jnp.zeros((8, 2, 2, 1))})
    preprocessing = Preprocessing(Augmentation(), (0.5,), (0.25,))
    results = []
    for accumulate in (1, 2):
        step = make_train_step(
            model, Classification(), optimizer, optax.constant_schedule(0.1), preprocessing, accumulate=accumulate
        )
        state, metrics = jax.jit(step)(create_state(variables, optimizer, seed=0), batch)
        results.append((state.params, metrics))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)
    parts = [metrics[name] for name in ("main", "auxiliary_1", "auxiliary_2")]
    assert metrics["loss"] == pytest.approx(float(sum(parts)), rel=1e-5)
    assert all(part > 0 for part in parts)


@partial(jax.jit, static_argnums=0)
def measure(task, batch):
    """The sums of the metrics of images that are logits."""
    return task.measure(task.predict(Identity(), {}, batch), batch)


@partial(jax.jit, static_argnums=0)
def everything(task, batch):
    """The loss with all that stands beside it, its gradient, and the sums of the metrics."""

    def objective(images):
        terms, aux = task.loss(Identity(), {}, batch | {"image": images}, KEY, train=True)
        return terms["loss"][0], (terms["loss"][1], aux["metrics"])

    return *jax.value_and_grad(objective, has_aux=True)(batch["image"]), measure(task, batch)


JUNK = st.lists(st.sampled_from([NAN, math.inf, -math.inf, 1e30, 0.0]), min_size=14, max_size=14)


@pytest.mark.parametrize(("criterion", "mixed"), [("cross_entropy", False), ("map", True)])
@settings(max_examples=15, deadline=None)
@given(junk=JUNK)
def test_padded_examples_change_nothing(criterion, mixed, junk):
    task, batch = Classification(criterion=criterion, label_smoothing=0.1), random_batch(5)
    if mixed:
        batch |= {"label_other": jnp.array([3, 1, 0, 0, 6]), "label_weight": jnp.linspace(0, 1, 5)}
    padding = {
        "image": np.reshape(junk, (2, 7)),
        "label": [99, -3],
        "label_other": [-1, 7],
        "label_weight": junk[:2],
        "example_mask": [False, False],
    }
    padded = {name: jnp.concatenate([part, jnp.array(padding[name], part.dtype)]) for name, part in batch.items()}
    loss, gradient, sums = everything(task, batch)
    padded_loss, padded_gradient, padded_sums = everything(task, padded)
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    jax.tree.map(close, (padded_loss, padded_gradient[:5], padded_sums), (loss, gradient, sums))
    assert not padded_gradient[5:].any()


def test_the_loss_is_float32_whatever_the_logits_are():
    model, batch = Linear(dtype=jnp.bfloat16), random_batch(6, 3)
    variables = init(model, batch)
    logits = model.apply(variables, batch["image"], train=False)
    assert logits.dtype == jnp.bfloat16
    task = Classification()
    terms, _ = compute_loss(task, model, variables, batch, KEY, True)
    assert terms["loss"][0].dtype == jnp.float32
    exact = loss_of(task, batch | {"image": logits.astype(jnp.float32)})
    assert terms["loss"][0] == pytest.approx(float(exact), rel=1e-6)
    predictions = predict(task, model, variables, batch)
    assert predictions["logits"].dtype == predictions["probabilities"].dtype == jnp.float32


def test_train_switches_dropout_and_the_updates_of_batch_norm():
    model, batch, task = Linear(dropout_rate=0.5, norm=True), random_batch(8, 3), Classification()
    variables = init(model, batch)

    def run(train, key):
        terms, aux = compute_loss(task, model, variables, batch, key, train)
        return float(terms["loss"][0]), aux["batch_stats"]["BatchNorm_0"]["mean"]

    other = jax.random.key(1)
    assert run(True, KEY)[0] != run(True, other)[0]
    assert run(False, KEY)[0] == run(False, other)[0]
    np.testing.assert_allclose(run(True, KEY)[1], 0.5 * batch["image"].mean(axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(run(False, KEY)[1], variables["batch_stats"]["BatchNorm_0"]["mean"])


def test_predictions_name_the_likeliest_class():
    batch = make_batch([[0, 2, 1], [1, 1, 0], [NAN, 5, 0]], [1, 0, 1])
    predictions = predict(Classification(), Identity(), {}, batch)
    np.testing.assert_array_equal(predictions["label"], [1, 0, -1])
    assert predictions["label"].dtype == jnp.int32
    e = math.e
    np.testing.assert_allclose(predictions["probabilities"][1], np.array([e, e, 1]) / (2 * e + 1), rtol=1e-6)


def test_a_nan_counts_as_an_error_and_stands_in_no_cell():
    batch, task = make_batch([[NAN, 5], [0, 5]], [0, 1]), Classification()
    sums = jax.device_get(measure(task, batch))
    assert (sums["correct"], sums["correct_top5"], sums["examples"]) == (1, 1, 2)
    np.testing.assert_array_equal(sums["confusion"], [[0, 0], [0, 1]])


def test_sums_of_parts_add_up_to_the_whole():
    task, batch = Classification(), random_batch(10)
    parts = [{name: part[cut] for name, part in batch.items()} for cut in (slice(5), slice(5, 10))]
    total = jax.tree.map(jnp.add, *(measure(task, part) for part in parts))
    whole = measure(task, batch)
    for name in ("examples", "correct", "correct_top5", "confusion"):
        assert whole[name].dtype == jnp.int32
        np.testing.assert_array_equal(total[name], whole[name])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total, whole)


@pytest.mark.parametrize("criterion", ["cross_entropy", "map"])
def test_the_summary_agrees_with_scikit_learn(criterion):
    batch = random_batch(50)
    # Smoothing belongs to training: the reported loss has none.
    task = Classification(criterion=criterion, rubbish_penalty=1.0, label_smoothing=0.3)
    sums = measure(task, batch)
    summary = task.summarize(jax.device_get(sums))
    logits, labels = np.array(batch["image"]), np.array(batch["label"])
    probabilities = np.array(jax.nn.softmax(batch["image"]))
    accuracy = sklearn.metrics.accuracy_score(labels, logits.argmax(axis=1))
    bins = calibration_bins(probabilities, labels, np.ones(50, bool))
    expected = {
        "accuracy": accuracy,
        "top5_accuracy": sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(7)),
        "error": 1 - accuracy,
        "loss": float(loss_of(dataclasses.replace(task, label_smoothing=0.0), batch)) / 50,
        "calibration_error": calibration_error(bins),
        "examples": 50,
    }
    if criterion == "cross_entropy":
        assert expected["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities, labels=range(7)))
    assert summary == pytest.approx(expected, rel=1e-5)
    assert isinstance(summary["examples"], int)
    assert Classification.primary_metric in summary
    expected_confusion = sklearn.metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=range(7))
    np.testing.assert_array_equal(sums["confusion"], expected_confusion)


def test_a_split_without_examples_has_no_summary():
    batch, task = random_batch(2) | {"example_mask": jnp.zeros(2, bool)}, Classification()
    with pytest.raises(UserError, match="no examples"):
        task.summarize(measure(task, batch))
