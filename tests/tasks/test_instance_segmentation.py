import numpy as np
import pytest

from cnn_research.metrics.detection import encode_masks
from cnn_research.tasks.instance_segmentation import InstanceSegmentation

SIZE = np.array([12, 15])


def made(boxes, masks, **columns):
    return {"boxes": np.array(boxes, np.float32), "classes": np.zeros(len(boxes), int), "masks": masks, **columns}


def test_masks_are_scored_at_the_size_of_the_image():
    """Cells as large as pixels: of two objects one is found and half of the other, and a third counts neither way."""
    boxes = [[1, 2, 5, 8], [6, 3, 10, 9], [1, 9, 5, 15]]
    cells = np.full((3, 4, 6), 0.6, np.float32)
    cells[0, 0], cells[1, :2] = 0.4, 0.4  # a row, and two that are not in the masks
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 2:5, 2:8] = masks[1, 6:10, 3:9] = masks[2, 1:5, 9:15] = True
    truth = made(boxes, encode_masks(masks), ignored=np.array([False, False, True]), size=SIZE)
    task = InstanceSegmentation()
    measured = [task.record(made(boxes, cells, scores=np.array([0.8, 0.7, 0.9])), truth)]
    values = task.summarize(measured)
    # At an IoU of 0.5 precision is 1 at all of the 101 recalls, above at those of the first object, 51.
    assert values["mask_ap50"] == pytest.approx(1)
    assert values["mask_ap75"] == pytest.approx(51 / 101)
    assert values["mask_ap"] == values["mask_ap_small"] == pytest.approx((1 + 9 * 51 / 101) / 10)
    assert "mask_ap_large" not in values  # there are none
    assert values["coco_ap"] == 1
    assert (values["examples"], values["objects"]) == (1, 2)
    assert task.primary_metric in values
    assert task.by_class(measured)[0]["mask AP"] == values["mask_ap"]


def test_masks_are_measured():
    predictions = dict.fromkeys(("boxes", "classes", "scores", "valid", "masks", "logits"), np.zeros((2, 3)))
    assert InstanceSegmentation().measure(predictions, {}).keys() == predictions.keys() - {"logits"}
