"""Detectors over real photographs of VOC, where `CNN_RESEARCH_DATA_DIRS` names a folder that has them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.errors import UserError
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import proposals_of, watch_search
from experiments import command_line, predict

RECIPE = "experiments/configs/voc.py"
SPLITS = dict(train="train", test="validation")
REGIONS = dict(max_proposals=100, proposal_width=160)  # few, and small photographs to search for them


@pytest.fixture(scope="module")
def regions(real_data, tmp_path_factory):
    """The folder with the regions that a search finds in the photographs."""
    config = command_line.load_config(f"{RECIPE}:rcnn,overfit")
    config.data.update(REGIONS, proposal_dir=str(tmp_path_factory.mktemp("regions")), **SPLITS)
    for split in SPLITS.values():
        watch_search(open_split(config, split), proposals_of(config.data))
    return config.data.proposal_dir


@pytest.mark.slow
@pytest.mark.parametrize("name", ["localizer", "yolo", "fast_yolo", "faster_rcnn", "fast_rcnn", "rcnn"])
def test_every_detector_runs_from_end_to_end(name, regions, tmp_path, monkeypatch):
    """Trains some steps, and says something of every photograph of both splits."""
    config = command_line.load_config(f"{RECIPE}:{name},overfit")
    config.data.update(SPLITS)
    if config.data.max_proposals:
        config.data.update(REGIONS, proposal_dir=regions)
    config.update(duration="12", eval_every="12", checkpoint_every="12", tensorboard=False)
    result = training.train(config, tmp_path / "run", jax.devices()[:1])
    run = analysis.load_run(tmp_path / "run")
    first, *_, last = [record["train/loss"] for record in run.metrics if "train/loss" in record]
    assert last < first
    assert result["validation/examples"] == 30
    metrics = run.evaluate("train")
    assert metrics["examples"] == 70
    assert 0 <= metrics[run.task.primary_metric] <= 1

    monkeypatch.setattr(predict, "_IMAGES", SimpleNamespace(value=""))
    monkeypatch.setattr(predict, "_SCORE", SimpleNamespace(value=0.1))
    examples = list(predict.from_split(run, "validation", 3))
    draw = predict.draw_boxes if name == "localizer" else predict.draw_detections
    lines, _ = draw(run, examples, tmp_path)
    assert len(lines) == 3
    for line in lines:
        assert (tmp_path / line["picture"]).exists()
        boxes = np.reshape([each["box"] for each in line.get("objects", [line])], (-1, 4))
        assert ((boxes >= 0) & (boxes <= 1)).all()


def test_recipes_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"recipe 'small' is not known; .*overfit"):
        command_line.load_config(f"{RECIPE}:yolo,small")
    with pytest.raises(UserError, match="unet finds no boxes in VOC; "):
        command_line.load_config(f"{RECIPE}:unet")
    with pytest.raises(UserError, match="localizer finds no objects in COCO; "):
        command_line.load_config("experiments/configs/coco.py:localizer")
