"""Shapes, 64x64, the embedded set of drawn scenes: each pixel is the ground, or one of four kinds of objects.

python -m experiments.train --config=experiments/configs/shapes_segmentation.py:unet --workdir=runs/shapes_unet

The argument is a network that labels pixels, in a body small enough for two CPU cores.

Measured on 2 CPU cores, seed 0:

    unet       91.9% mean IoU  about 9 min
    fcn8s      90.1% mean IoU  about 7 min
    deconvnet  84.0% mean IoU  4 min 40 s
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data.scenes import CLASSES

# By the beginning of the network's name; what it takes to learn the outlines.
DURATIONS = {"fcn": "3ep", "deconvnet": "2200"}
BODIES: dict[str, dict[str, Any]] = {
    "fcn": dict(body="resnet20_cifar", norm="batch", hidden=(), kernel_init="he_normal"),
    # Without the fully connected layers in the middle, with which it learns several times as slowly.
    "deconvnet": dict(configuration="B", stages=3, width=0.25, hidden=(), kernel_init="he_normal"),
    "unet": dict(padding="same", norm="batch", width=0.25, dropout_rate=0.0),
}


def sweep_networks() -> Iterator[dict[str, object]]:
    """All networks: what skips from finer maps bring."""
    for model in ("fcn32s", "fcn16s", "fcn8s", "deconvnet", "unet"):
        yield {"config": model}


def sweep_unpool() -> Iterator[dict[str, object]]:
    """Three ways back from a pooling (Noh et al. 2015): the maxima's own places, all places alike, interpolation."""
    for unpool in ("switches", "nearest", "bilinear"):
        yield {"config": "deconvnet", "model.unpool": unpool}


def sweep_skip() -> Iterator[dict[str, object]]:
    """U-Nets that hand their fine maps on beside the coarse ones, added to them, and not at all."""
    for skip in ("concat", "add", "none"):
        yield {"config": "unet", "model.skip": skip}


def sweep_up() -> Iterator[dict[str, object]]:
    """U-Nets with each way to finer maps."""
    for up in ("transposed", "bilinear", "unpool"):
        yield {"config": "unet", "model.up": up}


def sweep_criterion() -> Iterator[dict[str, object]]:
    """The three losses."""
    for criterion in ("cross_entropy", "focal", "dice"):
        yield {"loss.criterion": criterion}


def get_config(model: str = "unet") -> ConfigDict:
    fields = next((fields for name, fields in BODIES.items() if model.startswith(name)), {})
    config = training.default_config(model, task="segmentation", num_classes=1 + len(CLASSES), **fields)
    config.duration = next((steps for name, steps in DURATIONS.items() if model.startswith(name)), "4ep")
    config.batch_size = 16
    config.eval_batch_size = 100
    # Outlines are all that tells the classes: more of them teach more than the same ones again.
    config.data.update(name="shapes/64x64_train10000", num_examples=10_000)
    config.data.update(image_size=(64, 64), class_names=("ground", *CLASSES))
    config.augmentation.update(dihedral=True)
    # Muon reaches in 600 steps what AdamW at its best rate does not in 1,200.
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
