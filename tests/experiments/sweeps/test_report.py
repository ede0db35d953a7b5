import csv
import io
import json

import numpy as np
import pytest
import scipy.stats

from cnn_research.errors import UserError
from experiments.sweeps import report
from experiments.sweeps.report import draw_curves, table_csv, table_text
from experiments.sweeps.results import Run, difference, group

METRIC = "test/accuracy"


def make_run(name, fields, value=None, status="done", **result):
    done = None if value is None else {METRIC: value, "seconds": 10.0, "params": 61_706, **result}
    curve = {} if value is None else {0: 0.1, 50: value - 0.1, 100: value}
    return Run(name, fields, status if done is None else "done", done, curve)


@pytest.fixture
def values():
    return {(norm, seed): float(np.random.default_rng(seed).normal(0.9, 0.03)) + 0.02 * (norm == "batch")
            for norm in ("none", "batch") for seed in range(4)}  # fmt: skip


@pytest.fixture
def runs(values):
    return [
        make_run(f"{norm}{seed}", {"model.norm": norm, "seed": seed}, value) for (norm, seed), value in values.items()
    ]


def write_sweep(workdir, runs, metric=METRIC):
    """Writes the files of a sweep that these runs would have left."""
    arms = [{"name": run.name, "fields": run.fields, "status": run.status} for run in runs]
    (workdir / "sweep.json").write_text(json.dumps({"metric": metric, "arms": arms}))
    for run in runs:
        (workdir / run.name).mkdir()
        lines = [{"step": step, METRIC: value} for step, value in run.curve.items()]
        lines.insert(1, {"step": 25, "train/loss": 1.0, "train/accuracy": 0.3})
        (workdir / run.name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if run.result:
            (workdir / run.name / "result.json").write_text(json.dumps(run.result))


def test_table(runs, values):
    text = table_text(group(runs, METRIC), METRIC)
    heading, rule, none, batch, *notes = text.splitlines()
    assert [cell.strip() for cell in heading.strip("|").split("|")] == [
        *("norm", "n", METRIC),
        *("difference", "seconds", "params"),
    ]
    assert set(rule) == set("|:-")
    assert len({len(line) for line in (heading, rule, none, batch)}) == 1  # aligned
    those = [value for (norm, _), value in values.items() if norm == "batch"]
    assert f"**{np.mean(those):.4f} ± {np.std(those, ddof=1):.4f}**" in batch
    assert "**" not in none
    assert "| 4 |" in batch
    assert "| 10 |" in " ".join(batch.split())
    assert "61,706" in batch
    assert "Missing" not in "".join(notes)


def test_differences_are_paired_by_seed(runs, values):
    """What both have of a seed cancels out: SciPy's paired test says the same."""
    for run in runs[4:]:
        run.result[METRIC] += 0.001 * run.fields["seed"]
    none, batch = group(runs, METRIC)
    shift = np.array([0.02 + 0.001 * seed for seed in range(4)])
    interval = scipy.stats.ttest_1samp(shift, 0).confidence_interval(0.95)
    found = difference(batch, none, METRIC)
    np.testing.assert_allclose([found.mean - found.margin, found.mean + found.margin], interval, rtol=1e-9)
    text = table_text([none, batch], METRIC)
    assert f"| {shift.mean():+.4f} ± {found.margin:.4f} |" in " ".join(text.split())
    assert "paired by seed" in text
    one = group([run for run in runs if run.fields["seed"] == 0], METRIC)
    assert difference(*one, METRIC) is None
    assert "difference" not in table_text(one, METRIC).lower()


def test_csv_holds_every_digit(runs):
    groups = group(runs, METRIC)
    rows = list(csv.DictReader(io.StringIO(table_csv(groups, METRIC))))
    for each, row in zip(groups, rows, strict=True):
        assert row["model.norm"] == each.fields["model.norm"]
        assert float(row["test/accuracy mean"]) == each.mean
        assert float(row["test/accuracy sd"]) == each.deviation
        assert (row["arms"], row["n"], float(row["seconds"]), float(row["params"])) == ("4", "4", 10.0, 61_706.0)


def test_one_seed_has_no_deviation():
    groups = group([make_run("a", {"lr": 0.1}, 0.9), make_run("b", {"lr": 0.2}, 0.8)], METRIC)
    assert [each.deviation for each in groups] == [None, None]
    assert "±" not in table_text(groups, METRIC).splitlines()[2]
    assert "**0.9000** |" in table_text(groups, METRIC)


def test_missing_arms_are_marked():
    runs = [
        make_run("a0", {"lr": 0.1, "seed": 0}, 0.9),
        make_run("a1", {"lr": 0.1, "seed": 1}, status="failed"),
        make_run("b0", {"lr": 0.2, "seed": 0}, status="waiting"),
    ]
    text = table_text(group(runs, METRIC), METRIC)
    assert "| 1 of 2 |" in text
    assert "| 0 of 1 |" in text
    assert "Missing: a1 (failed); b0 (waiting)." in text


def test_less_of_a_loss_is_better():
    runs = [
        make_run(name, {"name": name}, **{"value": 0.0, "test/loss": loss}) for name, loss in (("a", 2.0), ("b", 1e-5))
    ]
    groups = group(runs, "test/loss")
    assert "**1e-05**" in table_text(groups, "test/loss")


def test_curves(runs):
    figure = draw_curves(group(runs, METRIC), METRIC)
    lines = figure.axes[0].get_lines()
    means = [line for line in lines if line.get_gid() == "mean"]
    assert len([line for line in lines if line.get_gid() == "seed"]) == 8
    assert len({line.get_color() for line in means}) == len({line.get_color() for line in lines}) == 2
    none = [list(run.curve.values()) for run in runs if run.fields["model.norm"] == "none"]
    np.testing.assert_allclose(means[0].get_ydata(), np.mean(none, axis=0))
    np.testing.assert_array_equal(means[0].get_xdata(), [0, 50, 100])
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.split("   ")[0] for text in legend] == ["norm=none", "norm=batch"]


def test_many_groups_have_many_colours():
    groups = group([make_run(str(i), {"width": i}, 0.5 + i / 100) for i in range(12)], METRIC)
    assert len({tuple(line.get_color()) for line in draw_curves(groups, METRIC).axes[0].get_lines()}) == 12


def test_write(tmp_path, runs):
    failed = make_run("failed", {"model.norm": "group", "seed": 0}, status="failed")
    write_sweep(tmp_path, [*runs, failed])
    text, summary = report.write(tmp_path)
    assert summary == {"arms": 9, "done": 8, "failed": ["failed"], "table": str(tmp_path / "table.md")}
    assert (tmp_path / "table.md").read_text() == text + "\n![curves](curves.png)\n"
    assert text == table_text(group([*runs, failed], METRIC), METRIC)
    assert (tmp_path / "table.csv").read_text().startswith("model.norm,arms,n,")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_write_before_any_arm_is_done(tmp_path):
    write_sweep(tmp_path, [make_run("a", {"lr": 1}, status="waiting")])
    _, summary = report.write(tmp_path)
    assert summary["done"] == 0
    assert not (tmp_path / "curves.png").exists()


def test_faults(tmp_path, runs):
    with pytest.raises(UserError, match="holds no sweep"):
        report.write(tmp_path)
    write_sweep(tmp_path, runs)
    with pytest.raises(UserError, match="no result holds 'test/acuracy'; did you mean 'test/accuracy'"):
        report.write(tmp_path, "test/acuracy")


def test_text_that_is_markup_elsewhere():
    runs = [make_run("a", {"decay": "a|$b$_{"}, 0.5), make_run("b", {"decay": "c"}, float("nan"))]
    groups = group(runs, METRIC)
    assert r"| a\|$b$_{ |" in table_text(groups, METRIC)
    draw_curves(groups, METRIC).savefig(io.BytesIO())
