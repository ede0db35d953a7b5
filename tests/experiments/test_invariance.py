"""The script that shifts images, on two small runs."""

import csv
from functools import partial

import jax
import pytest

from cnn_research import training
from experiments.runs import find_runs


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from flags to the exit code, stdout and stderr of the script."""
    return partial(shell, "invariance")


@pytest.fixture(scope="module")
def runs(digits_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for pool in ("max", "avg"):
        training.train(digits_config(pool=pool), folder / f"digits_{pool}", jax.devices()[:1])
    return folder


def test_curves_and_tables_of_several_runs(run, runs, tmp_path):
    code, out, err = run(f"--runs={runs}/*", "--max_shift=2", f"--out={tmp_path}")
    assert code == 0, err
    assert (tmp_path / "table.md").read_text().startswith(out)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(rows) == 2 * 3 * 3  # runs, directions, shifts
    assert {row["run"] for row in rows} == {"digits_avg", "digits_max"}
    assert all(float(row["consistency"]) == 1 for row in rows if row["shift"] == "0")
    moved = [float(row["consistency"]) for row in rows if row["shift"] == "2"]
    assert 0 < max(moved) < 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs=nowhere/*"], "--out is missing"),
        (["--runs=nowhere/*", "--out=x"], "no directory of a run with a checkpoint matches"),
        (["--runs=x", "--out=x", "--padding_mode=zero"], "did you mean 'zeros'"),
    ],
)
def test_faults_are_one_line(run, flags, message):
    code, out, err = run(*flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "run" / "config.json").write_text("{}")
    (tmp_path / "a" / "hog_svm").mkdir()
    (tmp_path / "a" / "hog_svm" / "config.json").write_text("{}")
    assert set(find_runs(f"{tmp_path}/*/run")) == {f"{tmp_path}/a/run", f"{tmp_path}/b/run"}
    assert set(find_runs(f"{tmp_path}/a/*")) == {"run"}
