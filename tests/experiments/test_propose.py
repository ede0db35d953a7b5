"""Regions from files: searched by the script or by training, for runs of the networks that are given them."""

import json
import shutil

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.data.images import decode
from cnn_research.errors import UserError
from cnn_research.training.evaluation import open_split
from experiments import command_line


@pytest.fixture
def make_config(tmp_path):
    def make(model, **fields):
        config = command_line.load_config(f"experiments/configs/shapes_detection.py:{model}")
        config.data.update(name="shapes/32x24_train32_test6", image_size=(32, 32), resize="pad", max_proposals=12)
        config.data.update(train="train", proposal_dir=str(tmp_path / "proposals"))
        config.update(duration="4", batch_size=8, eval_batch_size=4, eval_every="4", checkpoint_every="4")
        config.update(tensorboard=False, log_every=2)
        config.model.update(fields)
        return config

    return make


SMALL = dict(body="mlp", region_size=8, machine_layer="fc1_activation", box_layer="fc1", norm="none", width=0.1)


def check(config, workdir, result):
    """What a run says of images that lie in files is what it says of them in a split."""
    run = analysis.load_run(workdir)
    assert run.class_names == ("ellipse", "rectangle", "triangle", "star")
    measured = run.measure("test")
    for name, value in run.task.summarize(measured).items():
        assert result[f"test/{name}"] == pytest.approx(value), name
    source = open_split(config, "test")
    images = [decode(example["image"], 3) for example in source.read(range(len(source)))]
    predictions = run.predict(images, batch_size=4)
    assert predictions["boxes"].shape == (6, config.loss.max_detections, 4)
    for record, scores, valid in zip(measured, predictions["scores"], predictions["valid"], strict=True):
        np.testing.assert_allclose(record["found/scores"], scores[valid], atol=1e-5)


def test_a_run_of_rcnn_with_its_phases(make_config, tmp_path):
    """Each is a step with an evaluation and a checkpoint, after which an interrupted run goes on."""
    config, workdir = make_config("rcnn", **SMALL), tmp_path / "run"
    result = training.train(config, workdir, jax.devices()[:1])
    assert result["step"] == 6
    run = analysis.load_run(workdir)
    assert [record["step"] for record in run.metrics if "test/ap50" in record] == [4, 5, 6]
    fitted = run.variables["params"]
    assert all(np.asarray(fitted[name]["kernel"]).any() for name in ("machines", "box"))
    machines, _ = (analysis.load_run(workdir, step).variables["params"]["box"]["kernel"] for step in (5, 6))
    assert not np.asarray(machines).any()
    check(config, workdir, result)

    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "6")
    again = training.train(config, workdir, jax.devices()[:1])
    assert again["step"] == 6
    for name in result:
        if name.startswith("test/"):
            assert again[name] == pytest.approx(result[name]), name
    resumed = analysis.load_run(workdir, 6).variables["params"]
    jax.tree.map(np.testing.assert_array_equal, resumed, fitted)


@pytest.mark.slow
def test_a_run_of_fast_rcnn(make_config, tmp_path):
    config = make_config("fast_rcnn", body="vgg11", norm="none", width=0.125)
    check(config, tmp_path / "run", training.train(config, tmp_path / "run", jax.devices()[:1]))


def test_a_network_takes_regions_or_proposes_them(make_config):
    config = make_config("rcnn", **SMALL)
    config.data.max_proposals = 0
    with pytest.raises(UserError, match=r"rcnn takes 1 or more as data.max_proposals; it is 0"):
        training.make_program(config)
    other = command_line.load_config("experiments/configs/shapes_detection.py:faster_rcnn")
    other.data.max_proposals = 5
    with pytest.raises(UserError, match=r"faster_rcnn takes 0 as data.max_proposals; it is 5"):
        training.make_program(other)


def test_the_script(shell, tmp_path):
    flags = dict(dataset="shapes/32x24_train32_test6", split="train[:4]+test", out=str(tmp_path), max=8, workers=1)
    command = ["propose", *(f"--{name}={value}" for name, value in flags.items())]
    code, out, err = shell(*command, "--shard=1/2")
    assert code == 0, err
    printed = json.loads(out)
    assert printed["images"] == 5
    assert 0.3 < printed["recall"] <= 1
    assert 1 <= printed["proposals"] <= 8
    for shard, message in (("2/2", "give which part of how many"), ("10/20", "the split has 10 images")):
        code, out, err = shell(*command, f"--shard={shard}")
        assert (code, out) == (2, "")
        assert message in err
