"""Every field of every network is turned, and the parameters or the outputs must change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from cnn_research import models
from cnn_research.layers import DEVICE_AXIS


@dataclasses.dataclass(frozen=True)
class Case:
    """How a network's fields are turned."""

    base: dict[str, Any]  # without these some fields could do nothing
    turned: dict[str, Any]  # its own fields, and other values of shared ones
    shape: Callable[[dict[str, Any]], tuple[int, ...]]  # of the images, by the fields


# Among one device `bn_group` would do nothing.
TWO_DEVICES = AbstractMesh((2,), (DEVICE_AXIS,), (AxisType.Auto,))

# What the shared fields are turned to.
SHARED = {
    "activation": "elu",
    "bn_epsilon": 0.1,
    "bn_group": 1,
    "bn_momentum": 0.5,
    "dropout_rate": 0.5,
    "dtype": "bfloat16",
    "kernel_init": "glorot_uniform",
    "norm": "group",
    "padding_mode": "reflect",
    "param_dtype": "bfloat16",
    "pool": "avg",
    "width": 2.0,
}

# Fields that do something with others alone; these are set in what they are compared with too.
NEEDS = {
    "block": {"stride_in": "3x3"},
    "bn_epsilon": {"norm": "batch"},
    "bn_group": {"norm": "batch"},
    "bn_momentum": {"norm": "batch"},
    "gate_bias": {"shortcut": "shortcut_gating"},
    "residual_scale": {"shortcut": "constant"},
    "shortcut_dropout_rate": {"shortcut": "dropout"},
    "shortcut_scale": {"shortcut": "constant"},
    "stride_in": {"block": "bottleneck"},
    "zero_init_last_norm": {"skip": "original"},
}


def lenet_images(fields):
    size = 32 - 2 * fields["padding"]
    return 2, size, size, 1


def resnet(block, **turned):
    own = {
        "block": block,
        "features": 6,
        "gate_bias": 0.0,
        "global_pool": "max",
        "num_classes": 7,
        "residual_scale": 1.0,
        "shortcut": "A",
        "shortcut_dropout_rate": 0.1,
        "shortcut_scale": 1.0,
        "skip": "full_preactivation",
        "stage_sizes": (2, 1),
        "stem_kernel": 5,
        "stem_strides": 3,
        "stride_in": "1x1",
        "zero_init_last_norm": True,
    }
    return Case({"stage_sizes": (1, 1), "features": 4}, own | turned, lambda fields: (2, 17, 17, 3))


CASES = {
    **dict.fromkeys(("resnet18", "resnet34"), resnet("bottleneck")),
    **dict.fromkeys(("resnet50", "resnet101", "resnet152"), resnet("basic")),
    **{f"resnet{depth}_cifar": resnet("bottleneck", shortcut="B") for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"resnet{depth}_cifar": resnet("basic", skip="original", stride_in="3x3") for depth in (164, 1001)},
    "lenet5": Case({"padding": 2}, {"c3": "dense", "num_classes": 7, "output": "softmax", "padding": 1}, lenet_images),
    "lenet5_modern": Case(
        {"padding": 2}, {"c3": "partial", "num_classes": 11, "output": "rbf", "padding": 1}, lenet_images
    ),
}

# Of networks that are one and the same with the fields of their bases, the first stands for all.
DISTINCT = {models.create(name, **CASES[name].base): name for name in reversed(models.names())}.values()

FIELDS = [
    (name, field.name)
    for name in sorted(DISTINCT)
    for field in dataclasses.fields(models.create(name))
    if field.name not in ("parent", "name")
]


def start(name, fields):
    """Returns a network, images for it, and how it starts."""
    module = models.create(name, **fields)
    images = jax.random.normal(jax.random.key(0), CASES[name].shape(fields))
    return module, images, lambda key: module.init(key, images, train=False)


def filled(shapes):
    """Returns variables of these shapes, the same at each call and sooner than an initializer draws them."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables.get("batch_stats", {}))
    return variables


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def changed(name, fields, others):
    """Tells whether two networks differ in their variables, in a training pass or in how they start."""
    key = jax.random.key(0)
    pairs = [start(name, each) for each in (fields, others)]
    shapes, other_shapes = (jax.eval_shape(init, key) for _, _, init in pairs)
    if shapes != other_shapes:
        return True
    with jax.sharding.use_abstract_mesh(TWO_DEVICES):
        outputs = [
            module.apply(filled(shapes), images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
            for module, images, _ in pairs
        ]
    return not equal(*outputs) or not equal(*(init(key) for _, _, init in pairs))


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_turning_the_field_changes_the_network(name, field):
    case = CASES[name]
    base = case.base | NEEDS.get(field, {})
    assert changed(name, base, base | {field: (SHARED | case.turned)[field]})


def test_the_same_fields_give_the_same_network():
    assert not changed("lenet5", CASES["lenet5"].base, dict(CASES["lenet5"].base))
