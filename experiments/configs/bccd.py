"""BCCD, 364 photographs of blood under a microscope: red cells, white cells and platelets, each with its box.

python -m experiments.train --config=experiments/configs/bccd.py:yolo --workdir=runs/bccd_yolo

The set is any directory `bccd` of the form of TFDS's `voc` (`objects/` `bbox`, `label`, `is_difficult`) in one of the
folders that `CNN_RESEARCH_DATA_DIRS` lists, with splits train, val and test of 205, 87 and 72 photographs; training
takes the first two. The argument is a network that finds objects, in a body small enough for two CPU cores; all learn
from scratch.

`fast_rcnn` is given the regions of selective search, which are made once, in less than a minute; they cover 83% of the
objects:

python -m experiments.propose --dataset=bccd --split=train+val+test --width=320

Measured on 2 CPU cores, seed 0:

    yolo         88.1% AP50, 53.9% COCO's AP  6 min 37 s
    faster_rcnn  92.4% AP50, 61.4% COCO's AP  less than 23 min (other work ran beside it)
    fast_rcnn    84.3% AP50, 53.1% COCO's AP  less than 34 min (other work ran beside it)
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import training

CLASSES = ("RBC", "WBC", "Platelets")

# Cells of 8 pixels: the centres of two objects in 500 are in another's cell.
YOLO: dict[str, Any] = dict(num_classes=len(CLASSES), body="small", hidden=(), norm="batch", width=0.5, grid=(18, 24))
HEAD: dict[str, Any] = dict(
    num_classes=1 + len(CLASSES),
    body="resnet20_cifar",  # whose last maps have a place for each 4 x 4 pixels
    strides=(4,),
    norm="batch",
    region_pool="align",
    region_size=5,
    hidden=(128,),
    dropout_rate=0.0,
    kernel_init="he_normal",
)
# Half of the red cells are from 28 to 33 pixels wide, of the white ones from 45 to 65, of the platelets from 11 to 14.
PROPOSED: dict[str, Any] = dict(
    anchor_sizes=(13.0, 31.0, 56.0), rpn_features=64, candidates=(300, 300), proposals=(128, 64)
)
REGIONS = {"fast_rcnn": HEAD, "faster_rcnn": HEAD | PROPOSED}


def get_config(model: str = "yolo") -> ConfigDict:
    config = training.default_config(model, **REGIONS.get(model, YOLO))
    if model == "fast_rcnn":
        config.data.update(max_proposals=500, proposal_width=320)
    if model == "faster_rcnn":
        config.loss.anchors_drawn = 128
    if model in REGIONS:
        config.loss.regions_drawn = 64
    config.duration = "20ep" if model == "faster_rcnn" else "60ep"
    config.batch_size = 16
    config.eval_batch_size = 24
    config.eval_every = "10ep"
    config.checkpoint_every = "10ep"
    config.data.update(name="bccd", train="train+val", num_examples=292, image_size=(144, 192))
    config.data.update(mean=(0.7,), std=(0.2,), max_objects=40)
    config.loss.update(inclusive=True)  # the numbers of VOC's annotation
    config.augmentation.update(dihedral=True, scale_jitter=(0.8, 1.25), brightness=0.2, contrast=0.2, fill=(0.7,))
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
