"""Shapes, 64x64, the embedded set of drawn scenes, one object in each: which of four kinds it is, and its box.

python -m experiments.train --config=experiments/configs/shapes_localization.py --workdir=runs/shapes_localizer

The body is a ResNet-18 of half the width, small enough for two CPU cores. Localization accuracy asks for the class and
an IoU of at least 0.5.

Measured on 2 CPU cores, seed 0:

    localizer  99.0% localization accuracy, mean IoU 0.89  about 8 min
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data.scenes import CLASSES


def sweep_box_layer() -> Iterator[dict[str, object]]:
    """Boxes told by maps that know where, and by their mean over all pixels."""
    for layer in ("stage4", "head_pool"):
        yield {"model.box_layer": layer}


def sweep_criterion() -> Iterator[dict[str, object]]:
    """The three losses of boxes, each with a weight that makes it about as large as the class's."""
    for criterion, weight in (("l2", 10.0), ("smooth_l1", 5.0), ("giou", 1.0)):
        yield {"loss.criterion": criterion, "loss.box_weight": weight}


def sweep_box_per_class() -> Iterator[dict[str, object]]:
    """One box for all classes, or one for each (VGG's SCR and PCR)."""
    for per_class in (False, True):
        yield {"model.box_per_class": per_class}


def get_config(model: str = "localizer") -> ConfigDict:
    # Told by 2x2 places: by 16x16 of a ResNet for CIFAR each step of Muon would throw the box about.
    body = dict(body="resnet18", box_layer="stage4", width=0.5, norm="batch", dropout_rate=0.0)
    config = training.default_config(model, task="localization", num_classes=len(CLASSES), **body)
    config.duration = "3000"
    config.batch_size = 32
    config.eval_batch_size = 100
    config.data.update(name="shapes/64x64_train10000_objects1-1", num_examples=10_000, image_size=(64, 64))
    config.augmentation.update(dihedral=True)
    config.loss.update(criterion="giou")
    config.optimizer.update(name="muon", learning_rate=0.02, weight_decay=0.01)
    return config
