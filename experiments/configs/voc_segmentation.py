"""PASCAL VOC 2012's semantic segmentation, 1,464 photographs to train on and 1,449 to test: 20 classes and the ground.

python -m experiments.prepare_data --dataset=voc_segmentation --manual_dir=VOCdevkit/VOC2012
python -m experiments.train --config=experiments/configs/voc_segmentation.py:fcn8s --config.init_from=vgg16.pth \
    --config.init_except='head|score' --workdir=runs/voc_fcn8s

The argument is a network that labels pixels. An FCN's body starts from a classifier's weights, torchvision's or a run's
of our own: `--config.model.body=resnet50 --config.init_from=runs/imagenet_resnet50`.

Meant for an accelerator: 50 epochs of 320x320 windows; published mean IoU (2011's val) of fcn32s, fcn16s, fcn8s: 63.6%,
65.0%, 65.5% (Shelhamer et al. 2016, arXiv:1605.06211, table 2), with the masks of `--config.data.train=trainaug`. Here
it has not been measured; on 2 CPU cores it would take about 4 days.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data.voc_segmentation import CLASSES

FIELDS: dict[str, dict[str, Any]] = {
    "deconvnet": dict(norm="batch"),
    "unet": dict(padding="same", norm="batch"),
}


def get_config(model: str = "fcn8s") -> ConfigDict:
    fields = next((fields for name, fields in FIELDS.items() if model.startswith(name)), {})
    config = training.default_config(model, task="segmentation", num_classes=len(CLASSES), **fields)
    config.duration = "50ep"
    config.batch_size = 16
    config.eval_batch_size = 16
    config.eval_every = config.checkpoint_every = "5ep"
    config.data.update(name="voc_segmentation", test="val", num_examples=1_464, class_names=CLASSES)
    config.data.update(image_size=(512, 512), resize="pad", crop_size=(320, 320), crop_on="host")
    config.data.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.augmentation.update(flip=True, random_resized_crop=(0.25, 1.0), brightness=0.2, contrast=0.2)
    config.optimizer.update(learning_rate=0.01, weight_decay=5e-4, clip_norm=10.0)
    return config
