"""Runs of region networks, from their training to what is said of new images."""

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.data.images import decode_mask
from cnn_research.metrics import records
from cnn_research.metrics.detection import encode_masks
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import mask_spec
from experiments import command_line


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["shapes_instances.py:mask_rcnn", "shapes_detection.py:faster_rcnn"])
def test_a_run(recipe, tmp_path):
    config = command_line.load_config(f"experiments/configs/{recipe}")
    config.data.update(name="shapes/32x24_train32_test6", image_size=(32, 32), resize="pad")
    config.update(duration="4", batch_size=8, eval_batch_size=4, eval_every="4", checkpoint_every="4")
    config.update(tensorboard=False, log_every=2)
    config.model.update(body="vgg11", norm="none", width=0.125, proposals=(16, 8))  # few layers to compile
    result = training.train(config, tmp_path, jax.devices()[:1])
    run = analysis.load_run(tmp_path)
    assert run.class_names == ("ellipse", "rectangle", "triangle", "star")
    *_, last = [record for record in run.metrics if "train/loss" in record]
    terms = ["rpn_class", "rpn_box", "class", "box"] + ["mask"] * ("instances" in recipe)
    assert last["train/loss"] == pytest.approx(sum(last[f"train/{term}"] for term in terms), rel=1e-4)
    assert 0 <= result["test/ap50"] <= 1

    measured = run.measure("test")
    values = run.task.summarize(measured)
    assert {f"test/{name}" for name in values} <= result.keys()
    for name, value in values.items():
        assert result[f"test/{name}"] == pytest.approx(value), name
    if "instances" not in recipe:
        images = [np.zeros((24, 32, 3), np.uint8)] * 3
        assert run.predict(images)["boxes"].shape == (3, config.loss.max_detections, 4)
        return

    # The truth is the data set's own masks, and finding that is perfect.
    source, masks = open_split(config, "test"), mask_spec(config)
    for record, example in zip(measured, source.read(range(len(source)), masks.feature, True), strict=True):
        instances = decode_mask(example[masks.feature], masks)[..., 0]
        expected = instances == np.arange(1, len(record["true/masks"]) + 1)[:, None, None]
        np.testing.assert_array_equal(record["true/masks"], encode_masks(expected))
        assert record["found/masks"].shape == record["found/scores"].shape
    _, truth = records.split(measured)
    perfect = [records.join(each | {"scores": np.ones(len(each["boxes"]))}, each) for each in truth]
    scores = run.task.summarize(perfect)
    assert scores["mask_ap"] == pytest.approx(1)
    assert scores["ap50"] == pytest.approx(1)
