"""A run of segmentation, from its training to its pictures, by the scripts that a user starts."""

import json
from functools import partial

import cv2
import numpy as np
import pytest

from cnn_research import analysis
from cnn_research.data.images import decode, decode_mask
from cnn_research.data.sources import open_source
from cnn_research.metrics.segmentation import confusion_matrix, mean_iou
from cnn_research.training.feed import mask_spec


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from a script and its flags to the exit code, stdout and stderr."""
    return partial(shell, jax_disable_most_optimizations=True)


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A run of a few steps with all that moves masks; and what it printed."""
    workdir = tmp_path_factory.mktemp("segmentation") / "run"
    code, out, err = run(
        "train",
        "--config=experiments/configs/shapes_segmentation.py:unet",
        "--config.data.name=shapes/32x24_train64_test20",
        "--config.data.image_size=(24,24)",
        "--config.data.crop_size=(16,16)",
        "--config.model.depth=2",
        "--config.model.auxiliary_weights=(0.4,)",
        "--config.loss.class_weights=(0.5,2.,2.,2.,2.)",
        "--config.loss.border_weight=2",
        "--config.augmentation.elastic=1",
        "--config.optimizer.name=adamw",  # takes half the time of Muon to compile
        "--config.optimizer.learning_rate=0.003",
        "--config.duration=40",
        "--config.batch_size=16",
        "--config.eval_every=40",
        f"--workdir={workdir}",
    )
    assert code == 0, err
    return workdir, out, err


@pytest.fixture(scope="module")
def examples(trained):
    source, masks = open_source("shapes/32x24_train64_test20", "test"), mask_spec(analysis.load_run(trained[0]).config)
    return [
        (decode(example["image"], 3), decode_mask(example["segmentation_mask"], masks)[..., 0])
        for example in source.examples.__getitems__(list(range(20)))
    ]


def test_training_says_the_mean_iou(trained):
    workdir, out, err = trained
    result = json.loads(out.splitlines()[-1])
    assert f"is complete: test/mean_iou {result['test/mean_iou']:.4f} after 40 steps" in err
    assert result["test/pixel_accuracy"] > 0.5
    assert analysis.load_run(workdir).class_names == ("ground", "ellipse", "rectangle", "triangle", "star")


def test_predictions_are_of_the_images_own_size(trained, examples):
    loaded = analysis.load_run(trained[0])
    images, truths = zip(*examples, strict=True)
    maps = list(loaded.segment(images, batch_size=8))
    assert {each.shape for each in maps} == {(32, 24, 5)}
    np.testing.assert_allclose(np.stack(maps).sum(-1), 1, rtol=1e-5)
    predicted = np.stack(maps).argmax(-1)
    score = mean_iou(confusion_matrix(np.stack(truths), predicted, 5))
    assert score == pytest.approx(loaded.result["test/mean_iou"], abs=0.05)
    # As they are, and in tiles that overlap.
    tiles = [loaded.segment_tiles(image, (24, 24), margin=4, multiple=4) for image in images[:8]]
    assert {each.shape for each in tiles} == {(32, 24, 5)}
    assert (np.stack(tiles).argmax(-1) == predicted[:8]).mean() > 0.7


def test_evaluate_writes_a_row_a_class_and_the_worst_images(run, trained, tmp_path):
    workdir, out, _ = trained
    code, printed, err = run("evaluate", f"--workdir={workdir}", f"--out={tmp_path}", "--worst=3", "--cells=0")
    assert code == 0, err
    result, values = json.loads(out.splitlines()[-1]), json.loads(printed.splitlines()[-1])
    assert values["test/mean_iou"] == pytest.approx(result["test/mean_iou"])
    assert 0 < values["test/rand_f_score"] <= 1
    assert 0 <= values["test/warping_error"] <= 1
    table = (tmp_path / "per_class.md").read_text().splitlines()
    assert printed.startswith("\n".join(table))
    names = [line.split("|")[1].strip() for line in table]
    assert names[2:] == ["ground", "ellipse", "rectangle", "triangle", "star", "mean"]
    assert table[-1].split("|")[2].strip() == f"{values['test/mean_iou']:.1%}"
    assert cv2.imread(str(tmp_path / "worst.png")).shape[1] > 500


def test_predict_draws_pixels(run, trained, examples, tmp_path):
    code, out, err = run("predict", f"--workdir={trained[0]}", f"--out={tmp_path}", "--count=5")
    assert code == 0, err
    assert f"5 images drawn into {tmp_path}, " in out
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 5
    predicted = [cv2.imread(str(tmp_path / line["classes"]), cv2.IMREAD_UNCHANGED) for line in lines]
    right = np.mean([mask == truth for mask, (_, truth) in zip(predicted, examples, strict=False)])
    assert f"{right:.1%} of their pixels right" in out
    for mask, line in zip(predicted, lines, strict=True):
        assert mask.shape == (32, 24)
        assert line["shares"].get("ground", 0) == pytest.approx((mask == 0).mean(), abs=1e-5)
        assert (tmp_path / line["picture"]).exists()
    assert (tmp_path / "grid.png").exists()


def test_predict_draws_files_in_tiles(run, trained, examples, tmp_path):
    for index in range(2):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.tile(examples[index][0], (2, 2, 1)))
    flags = f"--images={tmp_path}/*.png", f"--out={tmp_path}/out", "--tile=24,24", "--margin=4", "--multiple=4"
    code, out, err = run("predict", f"--workdir={trained[0]}", *flags)
    assert code == 0, err
    assert "2 images drawn" in out
    assert "right" not in out
    assert cv2.imread(str(tmp_path / "out" / "00001_1_classes.png"), cv2.IMREAD_UNCHANGED).shape == (64, 48)
