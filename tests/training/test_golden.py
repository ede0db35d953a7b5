"""Golden curves: the losses of a network of each family over 20 steps, as they were when they were last looked at.

A curve that parts from its golden one says that something computes otherwise: an initializer, a layer, a loss, the
augmentation, the optimizer, or JAX. Where that is meant, write the curves again and let the commit say why:

WRITE_GOLDEN=1 python -m pytest tests/training/test_golden.py
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from cnn_research import models, training
from cnn_research.data.order import Shuffled
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import make_feed, train_spec
from cnn_research.training.parallel import make_parallel
from cnn_research.training.together import StepAlone

GOLDEN = Path(__file__).parent / "golden" / "curves.json"
COMMAND = "WRITE_GOLDEN=1 python -m pytest tests/training/test_golden.py"
STEPS = 20
# Relative, of each loss and norm. Between jax 0.10.2 on Python 3.11 and jax 0.12.0 on 3.12 losses are apart by 5e-7 at
# most (of LeNet-5, ResNet and AlexNet also with LLVM's optimizations and without), and norms by 3e-6 (YOLO's
# statistics); the rest is for other processors. One percent of an initializer's gain changes a loss of LeNet-5 by 7e-3,
# of ResNet by 1e-3.
TOLERANCE = 1e-5

SGD = dict(name="sgd", learning_rate=0.02)
ADAMW = dict(name="adamw", learning_rate=0.002, weight_decay=0.01)
MUON = dict(name="muon", learning_rate=0.001, weight_decay=0.01)

CLASSES = dict(num_classes=10, kernel_init="he_normal")
# A body of few channels; regions are cut out of its maps with a place for each 4 x 4 pixels.
BODY = dict(num_classes=5, body="vgg11", width=1 / 16, kernel_init="he_normal")
REGIONS = BODY | dict(strides=(4,), region_pool="align", region_size=3, hidden=(32,), dropout_rate=0.2)
PROPOSING = REGIONS | dict(anchor_sizes=(8.0, 16.0), rpn_features=16, candidates=(48, 24), proposals=(16, 8))

# A network of each family, with its fields and its optimizer: small, but with what makes the family what it is; and
# with weights that a signal comes through, where those of the paper are too small for so few channels. Where rounding
# grew in 20 steps, the rate is lower.
NETWORKS = {
    "lenet5": (dict(num_classes=10), ADAMW),
    "mlp": (dict(num_classes=10, features=(40, 20)), SGD),
    "alexnet": (CLASSES | dict(features=(8,) * 5, hidden=(32, 32), stem_kernel=3, stem_strides=2), SGD),
    "vgg11": (CLASSES | dict(width=1 / 16, hidden=(64,)), SGD),
    "nin_cifar": (CLASSES | dict(width=1 / 12), SGD),
    "googlenet": (CLASSES | dict(width=1 / 16, stem="3x3", lrn=False), SGD | dict(learning_rate=0.0002)),
    "resnet20_cifar": (dict(num_classes=10, stage_sizes=(1, 1), features=8), SGD | dict(learning_rate=0.005)),
    "fcn8s": (BODY | dict(hidden=(32,), hidden_kernel=3), SGD),
    "deconvnet": (
        dict(num_classes=5, configuration="A", stages=2, width=1 / 16, hidden=(32,), hidden_kernel=2)
        | dict(kernel_init="he_normal"),
        SGD,
    ),
    "unet": (dict(num_classes=5, depth=2, features=8, padding="same", norm="batch"), MUON),
    "localizer": (BODY | dict(num_classes=4, hidden=(32, 32), dropout_rate=0.2), SGD),
    "rcnn": (BODY | dict(region_size=32, context=2, hidden=(32, 32), dropout_rate=0.2), SGD),
    "fast_rcnn": (REGIONS, SGD),
    "faster_rcnn": (PROPOSING, SGD),
    "yolo": (
        dict(num_classes=4, grid=(4, 4), body="small", width=1 / 8, norm="batch", hidden=()),
        ADAMW | dict(learning_rate=0.0001),
    ),
    "mask_rcnn": (PROPOSING | dict(neck="none", mask_features=(16,), mask_size=4), SGD),
}
# The others take 140 s of a core, GoogLeNet 36 of them.
QUICK = ("lenet5", "mlp", "resnet20_cifar")


def make_config(name):
    fields, optimizer = NETWORKS[name]
    task = "localization" if name == "localizer" else ""
    config = training.default_config(name, task=task, **fields)
    config.update(duration=str(STEPS), batch_size=8)
    config.optimizer.update(warmup="0", **optimizer)
    if config.task == "classification":
        config.data.update(name="digits", channels=1, mean=(0.3,), std=(0.38,))
        config.augmentation.update(pad_crop=2)
    else:
        config.data.update(name="shapes/32x32_train64_test8")
        config.augmentation.update(dihedral=True)
    if config.data.max_proposals:
        config.data.max_proposals = 16
    if config.model.get("output") == "rbf":
        config.loss.criterion = "map"
    if "regions_drawn" in config.loss:
        config.loss.regions_drawn = 8
    if "anchors_drawn" in config.loss:
        config.loss.anchors_drawn = 16
    return config


def measure(config):
    """Returns the losses of the run's own steps, on one device, and how large its variables are after them."""
    parallel = make_parallel("jit", jax.devices()[:1])
    source = open_split(config, config.data.train)
    config.data.num_examples = len(source)
    program = training.make_program(config)
    order = Shuffled(len(source), config.batch_size, config.seed)
    feed = make_feed(source, order, config.data, parallel, train_spec(config))
    step = StepAlone(program, parallel)
    state = parallel.replicate(program.init_state(program.init_variables()))
    losses = []
    for number, batch in enumerate(feed(0, STEPS)):
        state, metrics = step(number, state, batch, feed.data)
        losses.append(metrics["loss"])
    # The momentum of a batch norm changes nothing in training's losses.
    norms = {name: optax.tree.norm(tree) for name, tree in state.variables.items()}
    return jax.tree.map(lambda x: float(f"{x:.7g}"), jax.device_get({"loss": losses, **norms}))


def parting(golden, found):
    """Returns where a curve parts from its golden one and by how much, "" where it does not."""
    faults = []
    expected, losses = np.array(golden["loss"]), np.array(found["loss"])
    apart = np.abs(losses - expected) / np.abs(expected)
    beyond = np.flatnonzero(~(apart <= TOLERANCE))
    if beyond.size:
        first, worst = beyond[0], np.argmax(np.nan_to_num(apart, nan=np.inf))
        faults.append(
            f"the loss parts at step {first}: {losses[first]:.7g} for {expected[first]:.7g}, by {apart[first]:.1e};"
            f" at most by {apart[worst]:.1e}, at step {worst}"
        )
    for name in sorted({*golden, *found} - {"loss", "jax"}):
        was, now = golden.get(name, np.nan), found.get(name, np.nan)
        if not abs(now - was) <= TOLERANCE * was:
            faults.append(f"the norm of {name} at the end is {now:.7g} for {was:.7g}, by {abs(now / was - 1):.1e}")
    return "; ".join(faults)


def read():
    return json.loads(GOLDEN.read_text())


def write(name, found):
    """Replaces a network's row."""
    curves = (read() if GOLDEN.exists() else {}) | {name: {"jax": jax.__version__, **found}}
    rows = ",\n".join(f'"{known}": {json.dumps(curves[known])}' for known in NETWORKS if known in curves)
    GOLDEN.write_text(f"{{\n{rows}\n}}\n")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_curve(name):
    found = measure(make_config(name))
    if os.environ.get("WRITE_GOLDEN"):
        write(name, found)
        pytest.skip(f"wrote the curve of {name} into {GOLDEN}")
    golden = read()[name]
    if fault := parting(golden, found):
        pytest.fail(
            f"{name} parts from its golden curve (bound {TOLERANCE:.0e}): {fault}. It was written with jax"
            f" {golden['jax']}, this is {jax.__version__}. Where that is meant: {COMMAND} -k {name}",
            pytrace=False,
        )


def test_every_family_has_a_curve():
    assert read().keys() == NETWORKS.keys()
    families = {models.create(name, **fields).__class__ for name, (fields, _) in NETWORKS.items()}
    assert families == {models.create(name).__class__ for name in models.names()}


def test_parting_says_where_and_by_how_much():
    golden = {"jax": "0", "loss": [2.0, 1.5, 1.0], "params": 3.0, "batch_stats": 1.0}
    assert parting(golden, golden) == ""
    assert parting(golden, golden | {"loss": [2.0, 1.5 * (1 + TOLERANCE / 2), 1.0]}) == ""
    found = parting(golden, golden | {"loss": [2.0, 1.503, 1.01]})
    assert found == "the loss parts at step 1: 1.503 for 1.5, by 2.0e-03; at most by 1.0e-02, at step 2"
    assert "at step 2: nan for 1" in parting(golden, golden | {"loss": [2.0, 1.5, np.nan]})
    assert parting(golden, golden | {"batch_stats": 1.01}).startswith("the norm of batch_stats at the end is 1.01 ")
    assert parting(golden, {key: golden[key] for key in ("loss", "params")}) != ""
