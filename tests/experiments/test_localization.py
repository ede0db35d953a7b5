"""A run of localization, from its training to its pictures, by the scripts that a user starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cnn_research import analysis

REPOSITORY = Path(__file__).parents[2]


def run(module, *arguments):
    """Returns stdout of a script that ends well."""
    ended = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_run_from_training_to_pictures(tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out"
    printed = run(
        "train",
        "--config=experiments/configs/shapes_localization.py",
        "--config.data.name=shapes/32x24_train64_test20",
        "--config.data.image_size=(24,24)",
        "--config.model.body=mlp",
        "--config.model.norm=none",
        "--config.model.box_layer=fc2_dropout",
        "--config.model.box_per_class=True",
        "--config.duration=40",
        "--config.eval_every=40",
        f"--workdir={workdir}",
    )
    result = json.loads(printed.splitlines()[-1])
    assert analysis.load_run(workdir).class_names == ("ellipse", "rectangle", "triangle", "star")
    values = json.loads(run("evaluate", f"--workdir={workdir}").splitlines()[-1])
    for name in ("localization_accuracy", "accuracy", "box_accuracy", "mean_iou"):
        assert values[f"test/{name}"] == pytest.approx(result[f"test/{name}"])
    assert values["test/mean_iou"] > 0.2

    # Boxes come back to the images' own size, where they overlap as much.
    printed = run("predict", f"--workdir={workdir}", f"--out={out}", "--count=20")
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert np.mean([line["iou"] for line in lines]) == pytest.approx(values["test/mean_iou"], abs=1e-3)
    assert f"{round(20 * values['test/localization_accuracy'])} of 20 right" in printed
    green = np.array([0x4B, 0x7F, 0x1A])  # in OpenCV's order
    for line in lines:
        assert (np.abs(cv2.imread(str(out / line["picture"])).astype(int) - green).max(axis=-1) < 40).sum() > 20
    assert (out / "grid.png").exists()
