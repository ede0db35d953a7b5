"""COCO 2017, 118,287 photographs of everyday scenes: objects of 80 kinds with their boxes and masks.

python -m experiments.prepare_data --dataset=coco/2017
python -m experiments.prepare_data --dataset=coco_instances --manual_dir=FOLDER_OF_THE_ARCHIVES
python -m experiments.train --config=experiments/configs/coco.py:mask_rcnn --config.init_from=resnet50.pth \
    --config.init_except='head|box|rpn|fpn|mask|fc' --workdir=runs/coco_mask_rcnn

The argument is a network that finds objects: mask_rcnn takes `coco_instances`, the others the catalogue's `coco/2017`.
mask_rcnn and faster_rcnn have ResNet-50 with a feature pyramid, whose weights come from ImageNet.

Meant for accelerators, 16 photographs a step; not run here. Published for 90,000 such steps (Detectron2's model zoo,
"1x", 9 to 11 hours on 8 V100): faster_rcnn AP 37.9% of boxes; mask_rcnn 38.6%, and 35.2% of masks; their AP50 is about
20% more. Nobody has published YOLO v1 on COCO.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import models, training
from cnn_research.data.coco import CLASSES
from cnn_research.errors import UserError, nearest
from cnn_research.models.faster_rcnn import PYRAMID, RPN_FIELDS

NETWORKS: dict[str, dict[str, Any]] = {
    "fast_rcnn": {field: value for field, value in PYRAMID.items() if field not in RPN_FIELDS} | dict(anchor_sizes=()),
    "faster_rcnn": PYRAMID,
    "mask_rcnn": {},
    "yolo": {},
    "fast_yolo": {},
}


def get_config(model: str = "mask_rcnn") -> ConfigDict:
    if model not in NETWORKS:
        raise UserError(f"{model} finds no objects in COCO; {nearest(model, NETWORKS)}")
    by_regions = models.task(model) != "detection"
    config = training.default_config(model, num_classes=len(CLASSES) + by_regions, **NETWORKS[model])
    name = "coco_instances" if config.task == "instance_segmentation" else "coco/2017"
    config.data.update(name=name, test="validation", num_examples=118_287, max_objects=100, resize="fit")
    config.augmentation.update(flip=True)
    config.eval_every = config.checkpoint_every = "10%"
    if by_regions:
        # He et al. 2017, arXiv:1703.06870, appendix A, has a shorter side of 640 to 800 pixels and a longer one of
        # 1333 at most; in a square of fixed size photographs of 4 to 3 get 1024x768, and 0.8 to 1 times that.
        config.data.update(image_size=(1024, 1024), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        config.augmentation.update(scale_jitter=(0.8, 1.0), fill=(0.485, 0.456, 0.406))
        config.update(duration="90000", batch_size=16, eval_batch_size=16)
        config.loss.update(regions_drawn=512)  # with a feature pyramid (section 3.1)
        config.optimizer.update(learning_rate=0.02, schedule="step", milestones=("60000", "80000"), warmup="1000")
        config.optimizer.update(weight_decay=1e-4, freeze="^(conv1|stage1)/")
        return config
    # Redmon et al. 2015, arXiv:1506.02640, section 2.2.
    config.data.update(image_size=(448, 448), mean=(0.0,), std=(1.0,))
    config.augmentation.update(scale_jitter=(0.8, 1.2), brightness=0.5, saturation=0.5)
    config.update(duration="135ep", batch_size=64, eval_batch_size=64)
    config.optimizer.update(learning_rate=0.01, schedule="step", milestones=("75ep", "105ep"), warmup="3ep")
    return config
