"""A run of localization, from its training to its pictures."""

import json

import cv2
import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from experiments import command_line


@pytest.mark.slow
def test_a_run_from_training_to_pictures(script, tmp_path):
    workdir, out = tmp_path / "run", tmp_path / "out"
    config = command_line.load_config("experiments/configs/shapes_localization.py")
    config.data.update(name="shapes/32x24_train64_test20", image_size=(24, 24))
    config.model.update(body="mlp", norm="none", box_layer="fc2_dropout", box_per_class=True)
    config.update(duration="40", eval_every="40", checkpoint_every="40", tensorboard=False)
    result = training.train(config, workdir, jax.devices()[:1])
    run = analysis.load_run(workdir)
    assert run.class_names == ("ellipse", "rectangle", "triangle", "star")
    values = run.evaluate()
    for name in ("localization_accuracy", "accuracy", "box_accuracy", "mean_iou"):
        assert values[name] == pytest.approx(result[f"test/{name}"])
    assert values["mean_iou"] > 0.2

    # Boxes come back to the images' own size, where they overlap as much.
    printed = script("predict", f"--workdir={workdir}", f"--out={out}", "--count=20")
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert np.mean([line["iou"] for line in lines]) == pytest.approx(values["mean_iou"], abs=1e-3)
    assert f"{round(20 * values['localization_accuracy'])} of 20 right" in printed
    green = np.array([0x4B, 0x7F, 0x1A])  # in OpenCV's order
    for line in lines:
        assert (np.abs(cv2.imread(str(out / line["picture"])).astype(int) - green).max(axis=-1) < 40).sum() > 20
    assert (out / "grid.png").exists()
