"""Cityscapes, 2,975 street scenes of 2048x1024 to train on and 500 to test: the 19 classes that are evaluated.

python -m experiments.prepare_data --dataset=cityscapes/semantic_segmentation --manual_dir=~/downloads
python -m experiments.train --config=experiments/configs/cityscapes.py:unet --workdir=runs/cityscapes_unet

The archives leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip are downloaded by hand. The argument is a network
that labels pixels; an FCN's body may start from a classifier's weights: `--config.init_from=vgg16.pth
--config.init_except='head|score'`.

Meant for an accelerator: 200 epochs of 512x1024 windows at the scenes' own scale. Published mean IoU (test): fcn8s
65.3% (Cordts et al. 2016, arXiv:1604.01685, table 4). Here it has not been measured; on 2 CPU cores it would take
about 200 days.
"""

from typing import Any

from ml_collections import ConfigDict

from cnn_research import training

# The classes that count, by the value that they have in the files (labelIds): all others are ignored.
CLASSES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip

FIELDS: dict[str, dict[str, Any]] = {
    "deconvnet": dict(hidden=(), norm="batch"),
    "unet": dict(padding="same", norm="batch"),
}


def get_config(model: str = "unet") -> ConfigDict:
    fields = next((fields for name, fields in FIELDS.items() if model.startswith(name)), {})
    config = training.default_config(model, task="segmentation", num_classes=len(CLASSES), **fields)
    config.duration = "200ep"
    config.batch_size = 16
    config.eval_batch_size = 4
    config.eval_every = config.checkpoint_every = "10ep"
    config.data.update(name="cityscapes/semantic_segmentation", test="validation", num_examples=2_975)
    config.data.update(image="image_left", mask="segmentation_label")
    config.data.update(class_names=tuple(CLASSES), mask_values=tuple(CLASSES.values()))
    config.data.update(image_size=(1024, 2048), crop_size=(512, 1024), crop_on="host", short_side=(1024, 1024))
    config.data.update(mean=(0.287, 0.325, 0.284), std=(0.187, 0.19, 0.187))
    config.augmentation.update(flip=True, brightness=0.2, contrast=0.2)
    config.optimizer.update(name="adamw", learning_rate=0.001, weight_decay=0.01)
    return config
