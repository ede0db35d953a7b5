import warnings

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from cnn_research.tasks import machines


def parts(features, count, **columns):
    """Cuts examples into batches of images."""
    for index in np.array_split(np.arange(len(features)), count):
        yield {"features": features[index][None], **{name: x[index][None] for name, x in columns.items()}}


def test_mining_gives_the_machines_of_all_examples():
    """In parts, with hard negatives alone, and with examples that do not count in between."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(9000, 6)).astype(np.float32)
    signs = np.full((9000, 3), -1)
    for index in range(2):
        signs[np.flatnonzero(features[:, index] + 0.1 * rng.normal(size=9000) > 1.5), index] = 1
    signs[rng.random(9000) < 0.1, :2] = 0
    layer = machines.fit_machines(parts(features, 6, signs=signs), cost=0.1)
    counted = (signs != 0).any(axis=1)
    scale = machines.NORM / np.linalg.norm(features[counted][:1500], axis=1).mean()
    for index in range(2):
        chosen = signs[:, index] != 0
        reference = LinearSVC(
            C=0.1, loss="hinge", class_weight={1: 2}, intercept_scaling=10.0, random_state=0, max_iter=100_000
        ).fit(scale * features[chosen], signs[chosen, index])
        ours = features[chosen] @ layer["kernel"][:, index] + layer["bias"][index]
        theirs = reference.decision_function(scale * features[chosen])
        near = np.abs(theirs) < 1.5
        np.testing.assert_allclose(ours[near], theirs[near], atol=0.25)
        assert ((ours > 0) == (theirs > 0)).mean() > 0.995
    assert layer["bias"][2] == machines.NEVER  # it has no positives
    assert not layer["kernel"][:, 2].any()


def test_the_bias_is_the_weight_of_a_feature_of_10():
    """It is in the margin's width, as in R-CNN's code; and a positive counts twice."""
    rng = np.random.default_rng(0)
    signs = rng.choice([1, -1], 60)
    features = rng.normal(3 + 0.5 * signs[:, None], 1, (60, 2)).astype(np.float32)
    machine = machines.Machine(2, cost=0.01)
    machine.see(features, signs)
    machine.fit()
    wide = np.concatenate([features, np.full((60, 1), 10)], axis=1)
    twice = np.where(signs > 0, 2, 1)
    reference = LinearSVC(C=0.01, loss="hinge", fit_intercept=False, max_iter=100_000).fit(wide, signs, twice)
    *weights, bias = reference.coef_[0] * [1, 1, 10]
    np.testing.assert_allclose([*machine.weights, machine.bias], [*weights, bias], rtol=1e-3, atol=1e-4)


def test_a_machine_does_not_warn_that_it_is_not_at_its_end():
    rng = np.random.default_rng(0)
    machine = machines.Machine(2, cost=100.0)
    machine.see(100 * rng.normal(size=(400, 2)).astype(np.float32), rng.choice([1, -1], 400))
    with warnings.catch_warnings(action="error"):
        machine.fit()


def test_few_negatives_are_kept(monkeypatch):
    monkeypatch.setattr(machines, "NEW", 50)
    rng = np.random.default_rng(0)
    machine = machines.Machine(2, cost=1.0)
    for _ in range(20):
        for sign in (1, -1):
            machine.see(rng.normal((5 * sign, 0), 1, (40, 2)).astype(np.float32), np.full(40, sign))
    assert len(machine._positives) == 800
    assert len(machine._negatives) < 100


def test_boxes_are_ridge_regression_in_closed_form():
    rng = np.random.default_rng(0)
    features = rng.normal(1, 2, (200, 5)).astype(np.float32)
    labels = rng.integers(0, 3, 200)  # none of the third class
    offsets = rng.normal(size=(200, 4)).astype(np.float32)
    layer = machines.fit_boxes(parts(features, 3, labels=labels, offsets=offsets), classes=3, ridge=10.0)
    kernel, bias = layer["kernel"].reshape(5, 3, 4), layer["bias"].reshape(3, 4)
    scale = machines.NORM / np.linalg.norm(features[labels > 0], axis=1).mean()
    for index in range(2):
        x, y = scale * features[labels == index + 1].astype(np.float64), offsets[labels == index + 1]
        centered = x - x.mean(0)
        weights = np.linalg.solve(centered.T @ centered + 10 * np.eye(5), centered.T @ (y - y.mean(0)))
        np.testing.assert_allclose(kernel[:, index], scale * weights, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bias[index], y.mean(0) - x.mean(0) @ weights, rtol=1e-3, atol=1e-5)
    assert not kernel[:, 2].any()
    assert not bias[2].any()


@pytest.mark.parametrize("labels", [np.zeros(4, int)])
def test_without_objects_boxes_stay(labels):
    features = np.ones((4, 3), np.float32)
    layer = machines.fit_boxes(parts(features, 1, labels=labels, offsets=np.ones((4, 4))), classes=2, ridge=1.0)
    assert layer["kernel"].shape == (3, 8)
    assert not layer["kernel"].any()
