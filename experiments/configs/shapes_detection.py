"""Shapes, 64x64, the embedded set of drawn scenes: one to four objects of four kinds, each with its box.

python -m experiments.train --config=experiments/configs/shapes_detection.py:yolo --workdir=runs/shapes_yolo

The argument is a network that finds objects, in a body small enough for two CPU cores. AP50 is PASCAL VOC's average
precision at an IoU of 0.5. `fast_rcnn` and `rcnn` are given the regions of selective search, which are made first, at
about 20 ms an image and core (not in the times below); 98% of the objects have one with an IoU of at least 0.5.
R-CNN's last two steps are its phases: the machines, then the boxes.

With `--config.loss.training=alternating` Faster R-CNN learns in the paper's four stages, here for 70, 420, 70 and 140
steps: in as many as jointly it comes to 86.1% AP50 and 61.7% COCO's AP. Bodies begin from scratch, and the one that
stays has learnt in the second stage alone; with the shares of the authors' code, for bodies that have been trained,
that is 117 steps, and it comes to 54.4% and 32.2%.

Measured on 2 CPU cores, seed 0:

    yolo         95.7% AP50, 68.0% COCO's AP  about 8 min
    fast_rcnn    91.9% AP50, 69.7% COCO's AP  2 min 18 s
    faster_rcnn  91.8% AP50, 70.1% COCO's AP  2 min 26 s
    rcnn         84.5% AP50, 62.0% COCO's AP  3 min 39 s
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data.scenes import CLASSES

# A ResNet-20, whose last maps have a place for each 4 x 4 pixels.
REGIONS: dict[str, Any] = dict(
    num_classes=1 + len(CLASSES),
    body="resnet20_cifar",
    strides=(4,),
    norm="batch",
    region_pool="align",
    region_size=5,
    hidden=(128,),
    dropout_rate=0.0,
    kernel_init="he_normal",
)
FIELDS: dict[str, dict[str, Any]] = {
    "fast_rcnn": REGIONS,
    "faster_rcnn": REGIONS
    | dict(anchor_sizes=(10.0, 20.0, 36.0), rpn_features=64, candidates=(128, 96), proposals=(64, 32)),
    # Half as wide on regions, each of 32 x 32 pixels.
    "rcnn": dict(
        num_classes=1 + len(CLASSES),
        body="resnet20_cifar",
        width=0.5,
        region_size=32,
        context=2,
        machine_layer="stage3",
        box_layer="stage3",
        norm="batch",
        dropout_rate=0.0,
    ),
}
YOLO = dict(num_classes=len(CLASSES), grid=(8, 8), body="small", hidden=(), norm="batch", width=0.5)


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


def sweep_training() -> Iterator[dict[str, object]]:
    """All layers of Faster R-CNN at once, and the paper's four stages."""
    for how in ("joint", "alternating"):
        yield {"config": "faster_rcnn", "loss.training": how}


def sweep_machines() -> Iterator[dict[str, object]]:
    """R-CNN's machines at other weights of their losses; the softmax's scores are those before the phases."""
    for cost in (1e-4, 1e-3, 1e-2):
        yield {"config": "rcnn", "loss.machine_cost": cost}


def get_config(model: str = "yolo") -> ConfigDict:
    by_regions = model in FIELDS
    config = training.default_config(model, **FIELDS.get(model, YOLO))
    config.duration = "700" if by_regions else "12ep"
    config.batch_size = 16 if by_regions else 32
    config.eval_batch_size = 100
    config.eval_every = "2ep"
    config.data.update(name="shapes/64x64_train10000", num_examples=10_000, image_size=(64, 64), max_objects=4)
    if by_regions:
        config.loss.regions_drawn = 32
    if model == "faster_rcnn":
        config.loss.update(anchors_drawn=64, stage_shares=(1.0, 6.0, 1.0, 2.0))
    else:
        config.data.max_proposals = 64 * by_regions  # an image has 34 in the mean
    if model == "rcnn":
        config.data.update(train="train[:3000]", num_examples=3000)
        config.loss.regions_drawn = 12
        config.eval_batch_size = 20
        config.eval_every = "100%"
    config.augmentation.update(dihedral=True)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
