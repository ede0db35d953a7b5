"""CamVid, 701 frames of road scenes, 480x360, at half their size: 11 classes, and 255 where there is none.

python -m experiments.train --config=experiments/configs/camvid.py:unet --workdir=runs/camvid_unet

The data set is a directory that a TFDS builder prepared, with the features `image` and `segmentation_mask`, and the
splits train (367), val (101) and test (233). The argument is a network that labels pixels, in a body for two CPU cores;
after a comma `full` takes the network as published, at the frames' own size, for an accelerator: `camvid.py:unet,full`.
There an FCN may start from a classifier's weights: `--config.init_from=vgg16.pth --config.init_except='head|score'`.

`full` has not been run.

Measured on 2 CPU cores, seed 0:

    unet  53.1% mean IoU (11 classes)  19 min
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.errors import UserError, nearest

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign_symbol", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
# Median frequency balancing (Eigen & Fergus 2015) on the training split: a class's frequency is its share of the pixels
# of the frames that show it.
MEDIAN_FREQUENCY = (0.279, 0.202, 4.789, 0.149, 1.0, 0.424, 3.846, 1.98, 0.789, 6.385, 8.819)

SMALL: dict[str, dict[str, Any]] = {
    "fcn": dict(body="resnet20_cifar", norm="batch", hidden=(), kernel_init="he_normal"),
    "deconvnet": dict(configuration="B", width=0.25, hidden=(), kernel_init="he_normal"),
    "unet": dict(padding="same", norm="batch", width=0.25, dropout_rate=0.0),
}
FULL: dict[str, dict[str, Any]] = {"deconvnet": dict(hidden=()), "unet": dict(padding="same", norm="batch")}


def sweep_weights() -> Iterator[dict[str, object]]:
    """What rare classes gain, and frequent ones lose, by median frequency balancing."""
    for weights in ((), MEDIAN_FREQUENCY):
        yield {"loss.class_weights": weights}


def sweep_criterion() -> Iterator[dict[str, object]]:
    """The three losses."""
    for criterion in ("cross_entropy", "focal", "dice"):
        yield {"loss.criterion": criterion}


def get_config(model: str = "unet") -> ConfigDict:
    name, _, recipe = model.partition(",")
    recipes = {"": SMALL, "full": FULL}
    if recipe not in recipes:
        raise UserError(f"recipe {recipe!r} is not known; {nearest(recipe, ['full'])}")
    fields = next((fields for family, fields in recipes[recipe].items() if name.startswith(family)), {})
    config = training.default_config(name, task="segmentation", num_classes=len(CLASSES), **fields)
    config.duration = "40ep"
    config.batch_size = 8
    config.eval_batch_size = 16
    config.log_every = 20
    config.eval_every = config.checkpoint_every = "5ep"
    config.data.update(name="camvid", num_examples=367, image_size=(180, 240), crop_size=(128, 160))
    config.data.update(class_names=CLASSES, mean=(0.412, 0.425, 0.432), std=(0.307, 0.311, 0.307))
    config.augmentation.update(flip=True, brightness=0.2, contrast=0.2)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    if recipe == "full":
        config.duration = "200ep"
        config.data.update(image_size=(360, 480), crop_size=(256, 320))
        config.optimizer.update(learning_rate=0.001)
    return config
