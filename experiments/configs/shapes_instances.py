"""Shapes, 64x64, the embedded set of drawn scenes: one to four objects of four kinds, each with its mask.

python -m experiments.train --config=experiments/configs/shapes_instances.py:mask_rcnn --workdir=runs/shapes_mask_rcnn

The body is a ResNet-20, small enough for two CPU cores. AP50 is COCO's average precision at an IoU of 0.5, and AP its
mean over thresholds.

Measured on 2 CPU cores, seed 0:

    mask_rcnn  masks: 90.4% AP50, 73.3% AP; boxes: 92.0% AP50, 70.3% AP  3 min 33 s
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data.scenes import CLASSES


def sweep_masks() -> Iterator[dict[str, object]]:
    """Mask heads of one, two and four convolutions."""
    for depth in (1, 2, 4):
        yield {"model.mask_features": (64,) * depth}


def get_config(model: str = "mask_rcnn") -> ConfigDict:
    config = training.default_config(
        model,
        num_classes=1 + len(CLASSES),
        body="resnet20_cifar",
        strides=(4,),
        neck="none",
        norm="batch",
        anchor_sizes=(10.0, 20.0, 36.0),
        rpn_features=64,
        candidates=(128, 96),
        proposals=(64, 32),
        region_size=5,
        hidden=(128,),
        mask_features=(64, 64),
        mask_size=10,
    )
    config.duration = "700"
    config.batch_size = 16
    config.eval_batch_size = 50
    config.eval_every = "2ep"
    config.data.update(name="shapes/64x64_train10000", num_examples=10_000, image_size=(64, 64), max_objects=4)
    config.augmentation.update(dihedral=True)
    config.loss.update(anchors_drawn=64, regions_drawn=32, max_detections=20)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
