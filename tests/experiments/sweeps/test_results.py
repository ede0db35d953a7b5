import json

import numpy as np
import pytest
from etils import epath

from experiments.sweeps.results import Run, best, group, is_better_low, pick, read_run

METRIC = "test/accuracy"


def make_run(name, fields, value):
    return Run(name, fields, "done", {METRIC: value, "seconds": 10.0 * fields.get("seed", 0)}, {})


def test_mean_and_sample_deviation_over_seeds():
    values = {norm: np.random.default_rng(7).normal(mean, 0.03, 4) for norm, mean in (("none", 0.8), ("batch", 0.9))}
    groups = group(
        [
            make_run(f"{norm}{seed}", {"model.norm": norm, "seed": seed}, float(value))
            for norm in values
            for seed, value in enumerate(values[norm])
        ],
        METRIC,
    )
    assert [each.fields for each in groups] == [{"model.norm": "none"}, {"model.norm": "batch"}]
    for each, expected in zip(groups, values.values(), strict=True):
        assert each.values == tuple(expected)
        np.testing.assert_allclose(each.mean, np.mean(expected), rtol=1e-12)
        np.testing.assert_allclose(each.deviation, np.sqrt(np.sum((expected - np.mean(expected)) ** 2) / 3), rtol=1e-12)
        assert each.average("seconds") == 15
        assert each.average("params") is None
    assert best(groups, METRIC) == groups[1].mean
    assert groups[1].label == "norm=batch"


def test_columns_are_the_fields_that_differ():
    groups = group(
        [
            make_run("a", {"size": (8, 8), "pool": "max", "rate": 0.1 * 3, "seed": 0}, 0.5),
            make_run("b", {"size": [9, 9], "pool": "max", "seed": 1}, 0.6),
        ],
        METRIC,
    )
    assert [each.fields for each in groups] == [{"size": "(8, 8)", "rate": "0.3"}, {"size": "(9, 9)", "rate": "-"}]


def test_seeds_alone_are_one_group():
    (each,) = group([make_run("a", {"seed": 0}, 0.5), make_run("b", {"seed": 1}, 0.7)], METRIC)
    assert (each.fields, each.label) == ({}, "all")
    assert each.mean == pytest.approx(0.6)


def test_diverged_runs_are_never_best():
    groups = group([make_run("a", {"lr": 9}, float("nan")), make_run("b", {"lr": 1}, 0.5)], METRIC)
    assert best(groups, METRIC) == 0.5
    assert best(groups[:1], METRIC) is None


def test_losses_and_errors_are_better_low():
    metrics = ["test/loss", "test/calibration_error", "test/accuracy", "test/mean_iou"]
    assert [is_better_low(metric) for metric in metrics] == [True, True, False, False]


def test_pick():
    values = {"train/accuracy": 0.1, "test[:50%]/accuracy": 0.9, "step": 3}
    assert pick(values, "test[:50%]/accuracy") == 0.9
    assert pick(values, "test/accuracy") == 0.9
    assert pick(values, "train/accuracy") == 0.1
    assert pick(values, "test/mean_iou") is None
    assert pick({**values, "test/top5_accuracy": 1.0}, "validation/accuracy") == 0.9
    assert pick({**values, "other/accuracy": 1.0}, "validation/accuracy") is None  # which?


def test_read_run(tmp_path):
    arm = {"name": "a", "fields": {"seed": 1}, "status": "waiting"}
    assert read_run(epath.Path(tmp_path), arm, METRIC) == Run("a", {"seed": 1}, "waiting", None, {})
    (tmp_path / "a").mkdir()
    records = [{"step": 5, "train/accuracy": 0.2}, {"step": 5, METRIC: 0.5}, {"step": 10, METRIC: 0.6}, {"step": 10}]
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "a" / "result.json").write_text(json.dumps({METRIC: 0.6}))
    run = read_run(epath.Path(tmp_path), arm, METRIC)
    assert (run.status, run.result, run.curve) == ("done", {METRIC: 0.6}, {5: 0.5, 10: 0.6})
