"""ISBI 2012, the data of U-Net's paper: 30 slices of a fly's neural tissue, 512x512, of which cells and membranes.

python -m experiments.train --config=experiments/configs/isbi2012.py:unet --workdir=runs/isbi2012_unet
python -m experiments.evaluate --workdir=runs/isbi2012_unet --cells=1 --out=runs/isbi2012_unet/report

The data set is a directory that a TFDS builder prepared, with the features `image` and `segmentation_mask` (0 on
membranes, 1 in cells), and the splits train (24 slices) and val (6). The argument is a network that labels pixels, in a
body for two CPU cores; `unet,paper` is the published one, for an accelerator: valid convolutions on mirrored borders,
one tile a step, momentum 0.99.

Measured on 2 CPU cores, seed 0:

    unet  7.6% pixel error (1 - pixel_accuracy), Rand F-score 0.975, of the 6 slices  about 10 min

With the paper's weight of the pixels between cells (`--config.loss.border_weight=10`) membranes come out thicker: 9.8%,
but 0.977. `unet,paper`, which has that weight, has not been run.
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.errors import UserError, nearest

SMALL: dict[str, dict[str, Any]] = {
    "fcn": dict(body="resnet20_cifar", norm="batch", hidden=(), kernel_init="he_normal"),
    "deconvnet": dict(configuration="B", stages=4, width=0.25, hidden=(), kernel_init="he_normal"),
    "unet": dict(padding="same", norm="batch", width=0.25, dropout_rate=0.0),
}


def sweep_borders() -> Iterator[dict[str, object]]:
    """What the weight of pixels between cells brings."""
    for weight in (0.0, 5.0, 10.0):
        yield {"loss.border_weight": weight}


def sweep_elastic() -> Iterator[dict[str, object]]:
    """What elastic deformation brings."""
    for deviation in (0.0, 5.0, 10.0):
        yield {"augmentation.elastic": deviation}


def get_config(model: str = "unet") -> ConfigDict:
    name, _, recipe = model.partition(",")
    if recipe not in ("", "paper"):
        raise UserError(f"recipe {recipe!r} is not known; {nearest(recipe, ['paper'])}")
    if recipe and name != "unet":
        raise UserError(f"{name} has no recipe {recipe!r} on ISBI 2012; unet has")
    fields = {} if recipe else next((fields for family, fields in SMALL.items() if name.startswith(family)), {})
    config = training.default_config(name, task="segmentation", num_classes=2, **fields)
    config.duration = "1200"
    config.batch_size = 4
    config.eval_batch_size = 2
    config.log_every = 20
    config.eval_every = config.checkpoint_every = "200"
    config.data.update(name="isbi2012_em", test="val", num_examples=24, class_names=("membrane", "cell"))
    config.data.update(channels=1, mean=(0.491,), std=(0.171,), image_size=(512, 512), crop_size=(192, 192))
    config.augmentation.update(elastic=10.0, dihedral=True, brightness=0.2, contrast=0.2)
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    if recipe == "paper":
        config.loss.border_weight = 10.0
        config.batch_size = 1
        config.duration = "20000"
        # 572x572 pixels, of which 388x388 are labelled, in training; 700x700 and 516x516 in evaluation.
        config.data.update(crop_size=(384, 384), mirror=94)
        config.optimizer.update(name="sgd", learning_rate=0.001, momentum=0.99, weight_decay=0.0, schedule="constant")
    return config
