"""What is drawn and written of masks; other tasks' runs are drawn in their own tests."""

from types import SimpleNamespace

import cv2
import numpy as np
from ml_collections import ConfigDict
from pycocotools import mask as coco_mask

from cnn_research.analysis.overlays import COLOURS, TINT
from experiments import predict


def test_masks_are_drawn_and_written_at_the_size_of_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_IMAGES", SimpleNamespace(value="some/*.png"))
    monkeypatch.setattr(predict, "_SCORE", SimpleNamespace(value=0.5))
    found = {
        "boxes": np.array([[[0, 0, 0.5, 0.5], [0.5, 0.25, 1, 1], [0, 0, 0, 0]]], np.float32),
        "classes": np.array([[1, 0, 0]]),
        "scores": np.array([[0.9, 0.3, 0]], np.float32),
        "valid": np.array([[True, True, False]]),
        "masks": np.ones((1, 3, 4, 4), np.float32),
    }
    data = dict(image_size=(16, 16), channels=3, resize="stretch", max_objects=9, max_proposals=0, skip_corrupt=False)
    config = ConfigDict(dict(data=data, loss=dict(mask_threshold=0.5)))
    run = SimpleNamespace(config=config, class_names=("cell", "nucleus"), predict=lambda images: found)
    image = np.full((40, 60, 3), 255, np.uint8)
    [line], summary = predict.draw_detections(run, [("a.png", image, None)], tmp_path)
    assert summary == ", with 1 objects"
    assert [each["class"] for each in line["objects"]] == ["nucleus", "cell"]
    expected = np.zeros((2, 40, 60), bool)
    expected[0, :20, :30] = expected[1, 20:, 15:] = True
    for each, mask in zip(line["objects"], expected, strict=True):
        drawn = coco_mask.decode(each["mask"]) > 0
        assert (drawn & mask).sum() > 0.97 * (drawn | mask).sum()  # interpolation takes the corners
    # Of the one that is good enough; the other one's part of the picture stays white.
    picture = cv2.imread(str(tmp_path / line["picture"]))[..., ::-1]
    tinted = (np.abs(picture - ((1 - TINT) * 255 + TINT * COLOURS[0])) < 2).all(axis=2)
    height, width = tinted.shape
    assert tinted[: height // 2, : width // 2].mean() > 0.5
    assert not tinted[height // 2 :].any()
