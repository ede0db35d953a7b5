"""The form of what the suite `detect` measures, and that both sides choose alike; not its figures."""

import jax
import numpy as np
import pytest

from cnn_research.ops.boxes import nms
from experiments.suites import detect, timing


def test_rows(monkeypatch):
    monkeypatch.setattr(timing, "seconds", lambda function, *_: function() is None or 2.0)
    monkeypatch.setattr(detect, "detector", lambda name, full: (jax.jit(lambda batch: batch["image"] + 1), BATCH))
    monkeypatch.setattr(detect, "_FULL", type("Flag", (), {"value": False}))
    detection, suppression = detect.rows(2, ["yolo", "nms 1000"])
    assert detection == {
        **{"model": "yolo", "image_size": "6x4", "batch_size": 3},
        **{"batch_images_per_s": 1.5, "loop_images_per_s": 1.5, "ratio": 1.0, "ratios": [1.0, 1.0]},
    }
    assert suppression["model"] == "nms 1000"
    assert suppression["ours_ms"] == suppression["opencv_ms"] == 2000


BATCH = {"image": np.zeros((3, 6, 4, 3), np.uint8)}


@pytest.mark.parametrize("count", detect.NMS.values())
def test_both_sides_choose_the_same(count):
    places, scores = detect.boxes(count)
    chosen, valid = nms(places, scores, detect.OVERLAP, detect.CHOSEN)
    np.testing.assert_array_equal(np.asarray(chosen)[np.asarray(valid)], detect.by_opencv(places, scores))
    assert 20 < valid.sum() < min(count, detect.CHOSEN)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", detect.DETECTORS)
def test_every_detector_finds_something_in_every_image(name, full):
    find, batch = detect.detector(name, full)
    found = jax.eval_shape(find, batch) if full else find(batch)
    boxes = found.get("boxes", found.get("box"))
    assert boxes.shape[0] == len(batch["image"])
    assert boxes.shape[-1] == 4
