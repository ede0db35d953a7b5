"""The scripts as a user starts them: each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from cnn_research import analysis
from cnn_research.training.writers import read_records

REPOSITORY = Path(__file__).parents[2]
FLAGS = (
    "--config=experiments/configs/digits.py:lenet5_modern",
    "--config.model.norm=batch",
    "--config.model.dropout_rate=0.1",
    "--config.augmentation.pad_crop=2",
    "--config.duration=60",
    "--config.log_every=5",
    "--config.eval_every=30",
    "--config.checkpoint_every=10",
    "--config.ema=0.9",
)


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from a script and its flags to the exit code, stdout and stderr."""
    return lambda *command, devices=1: shell(*command, jax_num_cpu_devices=devices)


def start(module, *arguments, devices=1):
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
    )


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The directory of a run that nothing disturbed, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    code, out, err = run("train", *FLAGS, f"--workdir={workdir}")
    assert code == 0, err
    return workdir, out, err


def test_train_ends_with_its_result_and_what_to_do_next(finished):
    workdir, out, err = finished
    assert json.loads(out.splitlines()[-1]) == json.loads((workdir / "result.json").read_text())
    assert f"The run in {workdir} is complete: test/accuracy" in err
    assert [line.split("experiments.")[1].split()[0] for line in err.splitlines()[-3:]] == [
        "evaluate",
        "predict",
        "sweep",
    ]
    assert "images/s" in err
    assert "\r" not in err  # no bar where there is no terminal


def reaches(step):
    def condition(workdir):
        records = workdir / "metrics.jsonl"
        return records.exists() and any(record["step"] >= step for record in read_records(records))

    return condition


def writes_checkpoint(workdir):
    """An unfinished checkpoint lies in the directory."""
    return any("tmp" in path.name for path in workdir.glob("checkpoints/*"))


def test_killed_anywhere_gives_the_same_parameters(run, finished, tmp_path):
    """SIGKILL at several moments: after the first steps, while a checkpoint is written, at the end."""
    workdir = tmp_path / "run"
    for condition in (reaches(5), writes_checkpoint, reaches(60)):
        process = start("train", *FLAGS, f"--workdir={workdir}")
        deadline = time.monotonic() + 120
        while process.poll() is None and not condition(workdir) and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
    code, _, err = run("train", *FLAGS, f"--workdir={workdir}")
    assert code == 0, err
    ours, theirs = (analysis.load_run(path) for path in (workdir, finished[0]))
    assert ours.step == theirs.step == 60
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.variables, theirs.variables))
    steps = [record["step"] for record in read_records(workdir / "metrics.jsonl") if "train/loss" in record]
    assert steps == list(range(5, 65, 5))
    losses = [
        [record["train/loss"] for record in read_records(path / "metrics.jsonl") if "train/loss" in record]
        for path in (workdir, finished[0])
    ]
    assert losses[0] == losses[1]


def test_terminated_is_saved_and_wants_another_try(tmp_path):
    workdir = tmp_path / "run"
    process = start("train", *FLAGS, "--config.duration=100000", f"--workdir={workdir}")
    while process.poll() is None and not reaches(5)(workdir):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "stopped by SIGTERM after step" in err.splitlines()[-1]
    stopped = int(err.split("after step ")[-1].split(";")[0])
    assert analysis.load_run(workdir).step == stopped


def test_complete_run_is_left_alone(run, finished):
    workdir, out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    code, again, err = run("train", *FLAGS, f"--workdir={workdir}")
    assert code == 0
    assert again == out
    assert "was complete before" in err
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_evaluate_elsewhere_gives_the_same_numbers(run, finished):
    """Another process, another number of devices, no config file: the counts are equal to the last example."""
    workdir, out, _ = finished
    result = json.loads(out)
    code, out, err = run("evaluate", f"--workdir={workdir}", devices=4)
    assert code == 0, err
    metrics = json.loads(out.splitlines()[-1])
    assert metrics.pop("step") == 60
    for name in ("accuracy", "top5_accuracy", "examples"):
        assert metrics[f"test/{name}"] == result[f"test/{name}"]
    assert metrics["test/loss"] == pytest.approx(result["test/loss"], rel=1e-5)


def test_workdir_that_cannot_be_made(run):
    code, _, err = run("train", *FLAGS, "--workdir=/dev/null/run")
    assert code == 2
    assert err == "error: /dev/null/run: Not a directory\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step=7",), "has no checkpoint of step '7'; it has steps"),
        (("--split=trian",), "has no examples in split 'trian'; its splits are train (1437), test (360)"),
    ],
)
def test_evaluate_says_what_is_wrong(run, finished, arguments, message):
    code, _, err = run("evaluate", f"--workdir={finished[0]}", *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_predict_draws_what_it_says(run, finished, tmp_path):
    workdir, _, _ = finished
    code, out, err = run("predict", f"--workdir={workdir}", "--count=3", f"--out={tmp_path / 'split'}")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "split" / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert sum(line["label"] == line["true"] for line in lines) == int(out.split(", ")[1].split()[0])
    assert all(cv2.imread(str(tmp_path / "split" / line["picture"])) is not None for line in lines)
    assert cv2.imread(str(tmp_path / "split" / "grid.png")) is not None

    # The same images from files of any size and form; a folder that is called as a class tells the truth.
    batch = analysis.load_run(workdir).batch(0)
    for row, (image, label) in enumerate(zip(batch["image"][:3], batch["label"][:3], strict=True)):
        folder = tmp_path / "files" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{row}.png"), cv2.cvtColor(cv2.resize(image, (57, 40)), cv2.COLOR_GRAY2BGR))
    pattern = f"--images={tmp_path}/files/*/*.png"
    code, _, err = run("predict", f"--workdir={workdir}", pattern, f"--out={tmp_path / 'drawn'}")
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "drawn" / "predictions.jsonl").read_text().splitlines()]
    assert sorted(line["true"] for line in lines) == sorted(str(label) for label in batch["label"][:3])
    assert all(abs(sum(line["top5"].values()) - 1) < 0.5 for line in lines)
