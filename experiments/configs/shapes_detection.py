"""Shapes, 64x64, the embedded set of drawn scenes: one to four objects of four kinds, each with its box.

python -m experiments.train --config=experiments/configs/shapes_detection.py:yolo --workdir=runs/shapes_yolo

The argument is a network that finds objects, in a body small enough for two CPU cores. AP50 is PASCAL VOC's average
precision at an IoU of 0.5.

Measured on 2 CPU cores, seed 0:

    yolo         95.7% AP50, 68.0% COCO's AP  about 8 min
    faster_rcnn  91.8% AP50, 70.1% COCO's AP  2 min 26 s
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data.scenes import CLASSES

YOLO = dict(num_classes=len(CLASSES), grid=(8, 8), body="small", hidden=(), norm="batch", width=0.5)
# A ResNet-20, whose last maps have a place for each 4 x 4 pixels.
REGIONS: dict[str, Any] = dict(
    num_classes=1 + len(CLASSES),
    body="resnet20_cifar",
    strides=(4,),
    norm="batch",
    anchor_sizes=(10.0, 20.0, 36.0),
    rpn_features=64,
    candidates=(128, 96),
    proposals=(64, 32),
    region_pool="align",
    region_size=5,
    hidden=(128,),
    dropout_rate=0.0,
    kernel_init="he_normal",
)


def sweep_boxes() -> Iterator[dict[str, object]]:
    """Cells that predict one box, two or three."""
    for boxes in (1, 2, 3):
        yield {"model.boxes": boxes}


def sweep_weights() -> Iterator[dict[str, object]]:
    """The weights of the loss: the paper's, all alike, and either alone."""
    for coordinates in (5.0, 1.0):
        for no_object in (0.5, 1.0):
            yield {"loss.coordinates_weight": coordinates, "loss.no_object_weight": no_object}


def sweep_region_pool() -> Iterator[dict[str, object]]:
    """RoIAlign, and RoI pooling, which rounds regions to whole places of the map."""
    for pool in ("align", "max"):
        yield {"config": "faster_rcnn", "model.region_pool": pool}


def get_config(model: str = "yolo") -> ConfigDict:
    by_regions = model == "faster_rcnn"
    config = training.default_config(model, **(REGIONS if by_regions else YOLO))
    if by_regions:
        config.loss.update(anchors_drawn=64, regions_drawn=32)
    config.duration = "700" if by_regions else "12ep"
    config.batch_size = 16 if by_regions else 32
    config.eval_batch_size = 100
    config.eval_every = "2ep"
    config.data.update(name="shapes/64x64_train10000", num_examples=10_000, image_size=(64, 64), max_objects=4)
    config.augmentation.update(dihedral=True)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
