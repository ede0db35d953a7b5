"""A run of detection, from its training to its pictures."""

import json

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.errors import UserError
from experiments import command_line


def test_a_run_from_training_to_pictures(script, tmp_path, caplog):
    workdir, out = tmp_path / "run", tmp_path / "out"
    config = command_line.load_config("experiments/configs/shapes_detection.py:yolo")
    config.data.update(name="shapes/32x24_train64_test20", image_size=(32, 32), resize="pad")
    config.model.update(grid=(4, 4), width=0.25)
    config.update(duration="60", batch_size=16, eval_every="30", checkpoint_every="60", tensorboard=False)
    config.eval_batch_size = 8  # of 20 examples: the last batch is not full
    with jax.log_compiles(), caplog.at_level("WARNING"):
        result = training.train(config, workdir, jax.devices()[:1])
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    for step in ("traced", "step_and_facts"):  # of training, and of evaluation, which ran twice
        assert sum(f"jit({step})" in message for message in compiled) == 1, compiled
    run = analysis.load_run(workdir)
    assert run.class_names == ("ellipse", "rectangle", "triangle", "star")
    *_, last = [record for record in run.metrics if "train/loss" in record]
    terms = ("center", "size", "object", "no_object", "class")
    assert last["train/loss"] == pytest.approx(sum(last[f"train/{term}"] for term in terms), rel=1e-4)

    *table, _, printed = script("evaluate", f"--workdir={workdir}", f"--out={out}", "--worst=2").splitlines()
    assert (out / "per_class.md").read_text().splitlines() == table
    assert {path.name for path in out.iterdir()} == {"per_class.md", "curves.png", "worst.png"}
    values = json.loads(printed)
    assert values["test/examples"] == 20
    assert values["test/ap50"] > 0
    for name, value in values.items():
        assert result[name] == pytest.approx(value), name
    header, _, *classes, mean = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert header == ["class", "AP50", "AP by COCO", "objects"]
    assert [row[0] for row in classes] == list(run.class_names)
    assert sum(int(row[3]) for row in classes) == int(mean[3]) == values["test/objects"]
    assert mean[1:3] == [f"{values['test/ap50']:.1%}", f"{values['test/coco_ap']:.1%}"]

    # Boxes come back to the images' own size.
    printed = script("predict", f"--workdir={workdir}", f"--out={out}", "--count=5", "--score=0.02")
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    for line, record in zip(lines, run.measure(), strict=False):
        boxes = np.array([each["box"] for each in line["objects"]]).reshape(-1, 4) * [32, 24, 32, 24]
        np.testing.assert_allclose(boxes, record["found/boxes"], atol=0.01)
        assert [each["class"] for each in line["objects"]] == [run.class_names[k] for k in record["found/classes"]]
        assert (out / line["picture"]).exists()
    shown = sum(each["score"] >= 0.02 for line in lines for each in line["objects"])
    assert f"with {shown} objects" in printed
    assert (out / "grid.png").exists()


def test_a_data_set_without_objects_is_refused(tmp_path):
    config = command_line.load_config("experiments/configs/shapes_detection.py:yolo")
    config.data.update(name="digits")
    with pytest.raises(UserError, match="data set 'digits' has no feature 'objects'"):
        training.train(config, tmp_path / "run")
