"""CIFAR-10, 50,000 colour photographs, 32x32, with pad-and-crop and flip.

python -m experiments.train --config=experiments/configs/cifar10.py:resnet20_cifar --workdir=runs/cifar10_resnet20

The argument is a network, and after a comma its recipe: `short` (if none is given) is made for two CPU cores, `small`
for comparisons there (a fifth of the examples, at 16x16 where the network allows), `paper` is the published one, for
an accelerator: `cifar10.py:resnet110_cifar,paper`. The sweeps take their recipe from the argument too:

python -m experiments.sweep --config=experiments/configs/cifar10.py --sweep=skips --workdir=runs/skips
python -m experiments.sweep --config=experiments/configs/cifar10.py:resnet110_cifar,paper --sweep=skips --workdir=runs/b

Measured on 2 CPU cores, seed 0:

    lenet5_modern   66.6% accuracy  about 6 min
    vgg11           81.3% accuracy  about 12 min
    nin_cifar       73.0% accuracy  about 20 min
    resnet20_cifar  84.3% accuracy  33 min
"""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.errors import UserError, nearest
from cnn_research.layers import ACTIVATIONS
from cnn_research.models.resnet import SHORTCUTS, SKIPS
from cnn_research.ops import padding

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)

ADAMW = dict(name="adamw", learning_rate=0.003, schedule="cosine", warmup="5%", weight_decay=0.01)
NESTEROV = dict(name="nesterov", learning_rate=0.2, schedule="linear", warmup="20%", weight_decay=5e-4)

# What two cores can train, by the beginning of the network's name: (fields of the network, duration, optimizer).
# Grouped convolutions are slow to train on a CPU.
SHORT: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "alexnet": (
        dict(
            stem_kernel=5,
            stem_strides=1,
            stem_padding=2,
            groups=1,
            width=0.25,
            hidden=(1024, 1024),
            kernel_init="he_normal",
            initial_bias=0.0,
        ),
        "10ep",
        ADAMW | dict(learning_rate=0.001),
    ),
    "googlenet": (dict(width=0.25, norm="batch"), "10ep", NESTEROV),
    "lenet": ({}, "20ep", ADAMW),
    "mlp": (dict(activation="relu", kernel_init="he_normal"), "20ep", ADAMW | dict(learning_rate=0.001)),
    "nin": (dict(width=0.5, norm="batch", activate_last=False), "5ep", NESTEROV | dict(learning_rate=0.1)),
    "resnet": ({}, "10ep", NESTEROV),
    "vgg": (dict(width=0.5, norm="batch", hidden=()), "6ep", NESTEROV | dict(learning_rate=0.1)),
}
# Halvings of the image before the last stage are too many for 16x16.
FULL_SIZE = ("lenet", "vgg")

STEPS = dict(name="sgd", learning_rate=0.1, schedule="step", factor=0.1, weight_decay=1e-4)
PAPER: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    # The authors' published definition. The paper whitens the images, which this does not.
    "nin": ({}, "120000", STEPS | dict(warmup="0", milestones=("100000", "110000"))),
    # He et al. 2015, section 4.2. ResNet-110 there starts with a rate of 0.01 for 400 steps; here the rate rises.
    "resnet": ({}, "64000", STEPS | dict(warmup="400", milestones=("32000", "48000"))),
}


def sweep_skips(argument: str = "resnet20_cifar,small") -> Iterator[dict[str, object]]:
    """The five orders of a residual block's layers ("Identity mappings", table 2)."""
    for skip in SKIPS:
        yield {"config": argument, "model.skip": skip}


def sweep_shortcuts(argument: str = "resnet20_cifar,small") -> Iterator[dict[str, object]]:
    """All kinds of shortcuts ("Identity mappings", table 1; He et al. 2015, table 3)."""
    for shortcut in SHORTCUTS:
        yield {"config": argument, "model.shortcut": shortcut}


def sweep_depth(argument: str = "resnet20_cifar,small") -> Iterator[dict[str, object]]:
    """Deeper and deeper, plain and residual (He et al. 2015, figure 6)."""
    for depth in (20, 32, 44, 56, 110):
        for shortcut in ("none", "A"):
            yield {"config": f"resnet{depth}_cifar,{_recipe(argument)}", "model.shortcut": shortcut}


def sweep_vgg(argument: str = "vgg11,small") -> Iterator[dict[str, object]]:
    """Configurations A to E (Simonyan & Zisserman 2014, table 3)."""
    for name in ("vgg11", "vgg11_lrn", "vgg13", "vgg16_1x1", "vgg16", "vgg19"):
        yield {"config": f"{name},{_recipe(argument)}"}


def sweep_kernel(argument: str = "vgg13,small") -> Iterator[dict[str, object]]:
    """One 5x5 convolution against two of 3x3 (Simonyan & Zisserman 2014, sections 2.3 and 4.1)."""
    for kernel in (3, 5):
        yield {"config": argument, "model.kernel": kernel}


def sweep_reduction(argument: str = "googlenet_cifar,small") -> Iterator[dict[str, object]]:
    """Inception modules with 1x1 convolutions that reduce channels, and naive ones."""
    for reduction in (True, False):
        yield {"config": argument, "model.reduction": reduction}


def sweep_mlpconv(argument: str = "nin_cifar,small") -> Iterator[dict[str, object]]:
    """A perceptron as a filter against a linear one (Lin et al. 2013)."""
    for mlpconv in ("mlp", "linear"):
        yield {"config": argument, "model.mlpconv": mlpconv}


def sweep_lrn(argument: str = "alexnet,small") -> Iterator[dict[str, object]]:
    """With and without local response normalization (Krizhevsky et al. 2012, section 3.3)."""
    for lrn in (True, False):
        yield {"config": argument, "model.lrn": lrn}


def sweep_dropout(argument: str = "alexnet,small") -> Iterator[dict[str, object]]:
    """How much training drops of the hidden layers (Krizhevsky et al. 2012, section 4.2)."""
    for rate in (0.0, 0.25, 0.5, 0.75):
        yield {"config": argument, "model.dropout_rate": rate}


def sweep_pool(argument: str = "alexnet,small") -> Iterator[dict[str, object]]:
    """Maxima against means, with windows that overlap and that do not (Krizhevsky et al. 2012, section 3.4)."""
    for pool in ("max", "avg"):
        for window in (3, 2):
            yield {"config": argument, "model.pool": pool, "model.pool_window": window}


def sweep_padding(argument: str = "resnet20_cifar,small") -> Iterator[dict[str, object]]:
    """What lies beyond the border."""
    for mode in padding.MODES:
        yield {"config": argument, "model.padding_mode": mode}


def sweep_activation(argument: str = "resnet20_cifar,small") -> Iterator[dict[str, object]]:
    """All activations."""
    for activation in ACTIVATIONS:
        yield {"config": argument, "model.activation": activation}


def _recipe(argument: str) -> str:
    return argument.partition(",")[2] or "short"


def get_config(model: str = "lenet5_modern") -> ConfigDict:
    name, recipe = model.partition(",")[0], _recipe(model)
    recipes = {"short": SHORT, "small": SHORT, "paper": PAPER}
    if recipe not in recipes:
        raise UserError(f"recipe {recipe!r} is not known; {nearest(recipe, recipes)}")
    family = next((family for family in recipes[recipe] if name.startswith(family)), None)
    if family is None and name.startswith(tuple(SHORT)):
        raise UserError(f"{name} has no recipe {recipe!r} on CIFAR-10; {' and '.join(PAPER)}* have")
    fields, duration, optimizer = recipes[recipe][family] if family else ({}, "10ep", ADAMW)
    config = training.default_config(name, num_classes=10, **fields)
    config.duration = duration
    config.log_every = 100
    config.data.update(name="cifar10", num_examples=50_000, channels=3, mean=MEAN, std=STD)
    config.augmentation.update(pad_crop=4, flip=True)
    config.optimizer.update(optimizer)
    if config.model.get("output") == "rbf":
        config.loss.criterion = "map"
    if recipe == "paper":
        config.augmentation.fill = MEAN  # zeros when normalized
    if recipe == "small":
        config.duration = "500"
        config.data.update(train="train[:20%]", num_examples=10_000)
        config.eval_every = config.checkpoint_every = "250"
        if family not in FULL_SIZE:
            config.data.image_size = (16, 16)
            config.augmentation.pad_crop = 2
    return config
