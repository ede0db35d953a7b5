"""What holds for every network: each field turns something, each parameter learns, images do not see each other."""

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
from cnn_research.tasks import Classification


@dataclasses.dataclass(frozen=True)
class Case:
    """How a network's fields are turned."""

    base: dict[str, Any]  # without these some fields could do nothing
    turned: dict[str, Any]  # its own fields, and other values of shared ones
    shape: Callable[[dict[str, Any]], tuple[int, ...]]  # of the images, by the fields
    scale: float = 1.0  # of the images
    needs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)  # besides `NEEDS`


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
    "auxiliary_dropout_rate": {"auxiliary_weights": (0.3, 0.3)},
    "auxiliary_pool": {"auxiliary_weights": (0.3, 0.3)},
    "block": {"stride_in": "3x3"},
    "bn_epsilon": {"norm": "batch"},
    "bn_group": {"norm": "batch"},
    "bn_momentum": {"norm": "batch"},
    "gate_bias": {"shortcut": "shortcut_gating"},
    "head_dropout_rate": {"head": "dense"},
    "residual_scale": {"shortcut": "constant"},
    "sharing": {"c3": "dense"},
    "shortcut_dropout_rate": {"shortcut": "dropout"},
    "shortcut_scale": {"shortcut": "constant"},
    "stem": {"lrn": False},
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


# The bases hold all that the family's variants differ in: one stands for all.
ALEXNET = Case(
    {
        "adaptive_size": 0,
        "dropout_at": "outputs",
        "features": (4, 4, 4, 4, 4),
        "groups": 2,
        "hidden": (4, 4),
        "lrn": True,
        "stem_kernel": 3,
        "stem_padding": 0,
        "stem_strides": 2,
    },
    {
        "adaptive_size": 2,
        "dropout_at": "inputs",
        "dropout_rate": 0.25,
        "features": (4, 4, 4, 4, 6),
        "groups": 1,
        "hidden": (4,),
        "initial_bias": 0.5,
        "lrn": False,
        "num_classes": 7,
        "pool_window": 2,
        "stem_kernel": 2,
        "stem_padding": 1,
        "stem_strides": 1,
    },
    lambda fields: (2, 31, 31, 3),
)

VGG = Case(
    # Leaky, so that a signal comes through this few channels.
    {"activation": "leaky_relu", "configuration": "A", "hidden": (2048, 2048), "width": 1 / 256},
    {
        "configuration": "C",
        "dropout_rate": 0.25,
        "hidden": (),
        "kernel": 5,
        "kernel_init": "he_normal",
        "num_classes": 7,
    },
    lambda fields: (2, 32, 32, 3),
)


NIN = Case(
    {
        "dropout_after": (1, 2),
        "features": (4, 3, 3, 4, 4),
        "kernel_sizes": (5, 5, 3),
        "last_pool": "avg",
        "num_classes": 5,
        "stem_padding": "same",
        "stem_strides": 1,
    },
    {
        "activate_last": False,
        "dropout_after": (2,),
        "dropout_rate": 0.25,
        "features": (4, 3, 4, 4, 4),
        "head": "dense",
        "head_dropout_rate": 0.25,
        "kernel_sizes": (5, 5, 5),
        "last_pool": "max",
        "mlpconv": "linear",
        "num_classes": 7,
        "stem_padding": "valid",
        "stem_strides": 2,
    },
    lambda fields: (2, 15, 14, 3),
)


GOOGLENET = Case(
    {
        # Leaky, so that a signal comes through this few channels.
        "activation": "leaky_relu",
        "auxiliary_pool": "5x5",
        "dropout_rate": 0.4,
        "large_kernel": 5,
        "lrn": True,
        "norm": "none",
        "num_classes": 5,
        "pool4_window": 3,
        "stem": "7x7",
        "width": 1 / 128,
    },
    {
        "auxiliary_dropout_rate": 0.2,
        "auxiliary_pool": "adaptive",
        "auxiliary_weights": (0.3, 0.3),
        "initial_bias": 0.5,
        "large_kernel": 3,
        "lrn": False,
        "num_classes": 7,
        "pool4_window": 2,
        "reduction": False,
        "stem": "3x3",
    },
    lambda fields: (2, 96, 96, 3),
    scale=100.0,  # so that its LRN does something
)


FCN = Case(
    {
        "activation": "leaky_relu",
        "body": "nin_cifar",
        "hidden": (64,),
        "hidden_kernel": 3,
        "num_classes": 5,
        "skips": 1,
        "width": 1 / 32,
    },
    {
        "body": "resnet20_cifar",
        "border": "image",
        "dropout_rate": 0.25,
        "hidden": (32,),
        "hidden_kernel": 5,
        "kernel_init": "he_normal",
        "learned": "all",
        "num_classes": 7,
        "skips": 0,
    },
    lambda fields: (2, 17, 14, 3),
)


LOCALIZER = Case(
    {
        "activation": "leaky_relu",
        "body": "vgg11",
        "box_hidden": (8,),
        "hidden": (64, 64),
        "num_classes": 5,
        "width": 1 / 16,
    },
    {
        "body": "vgg13",
        "box_hidden": (),
        "box_layer": "pool5",
        "box_per_class": True,
        "dropout_rate": 0.25,
        "hidden": (64, 32),
        "kernel_init": "he_normal",
        "num_classes": 7,
    },
    lambda fields: (2, 32, 32, 3),
)


WARPED = Case(
    {
        "activation": "leaky_relu",
        "body": "vgg11",
        "context": 2,
        "hidden": (64, 64),
        "num_classes": 5,
        "region_size": 32,
        "width": 1 / 16,
    },
    {
        "body": "vgg13",
        "box_layer": "pool4",
        "context": 4,
        "dropout_rate": 0.25,
        "hidden": (64, 32),
        "machine_layer": "fc6_activation",
        "num_classes": 7,
        "region_size": 64,
        "sampling_ratio": 2,
    },
    lambda fields: (2, 40, 36, 3),
)


REGIONS = Case(
    {
        "activation": "leaky_relu",
        "anchor_ratios": (0.5, 2.0),
        "anchor_sizes": (8.0, 16.0),
        "body": "vgg11",
        "candidates": (10, 5),
        "dropout_rate": 0.5,
        "hidden": (64,),
        "kernel_init": "glorot_uniform",
        "mask_features": (64,),
        "mask_size": 2,
        "neck": "none",
        "norm": "none",
        "num_classes": 5,
        "proposals": (8, 4),
        "region_pool": "align",
        "region_size": 3,
        "rpn_features": 128,
        "strides": (2,),
        "width": 1 / 32,
    },
    {
        "anchor_ratios": (1.0, 2.0),
        "anchor_sizes": (8.0, 12.0),
        "body": "vgg13",
        "candidates": (4, 5),
        "dropout_rate": 0.25,
        "fpn_features": 128,
        "hidden": (128,),
        "kernel_init": "he_normal",
        "mask_features": (128,),
        "mask_size": 3,
        "neck": "fpn",
        "num_classes": 7,
        "proposal_overlap": 0.1,
        "proposals": (5, 4),
        "region_pool": "max",
        "region_size": 2,
        "rpn_features": 64,
        "sampling_ratio": 1,
        "strides": (1,),
    },
    lambda fields: (2, 32, 32, 3),
    scale=0.3,  # few layers and small images, so that boxes lie in the image
    needs={"fpn_features": {"neck": "fpn"}},
)


YOLO = Case(
    {
        "activation": "leaky_relu",
        "body": "small",
        "boxes": 2,
        "grid": (2, 2),
        "hidden": (64,),
        "num_classes": 5,
        "width": 1 / 16,
    },
    {
        "body": "fast",
        "body_layer": "pool3",
        "boxes": 1,
        "dropout_rate": 0.25,
        "grid": (3, 2),
        "hidden": (32,),
        "kernel_init": "glorot_uniform",
        "num_classes": 7,
    },
    lambda fields: (2, 64, 64, 3),
    needs={"body_layer": {"body": "vgg11", "body_layer": "pool2"}},
)


DECONVNET = Case(
    {
        "activation": "leaky_relu",
        "configuration": "A",
        "hidden": (64, 64),
        "hidden_kernel": 2,
        "norm": "none",
        "num_classes": 5,
        "stages": 2,
        "width": 1 / 16,
    },
    {
        "configuration": "B",
        "hidden": (64,),
        "hidden_kernel": 1,
        "num_classes": 7,
        "stages": 1,
        "unpool": "nearest",
    },
    lambda fields: (2, 9, 10, 3),
    needs={"pool": {"unpool": "nearest"}},
)


UNET = Case(
    {"activation": "leaky_relu", "depth": 2, "features": 2, "num_classes": 5, "padding": "same"},
    {
        "auxiliary_weights": (0.3,),
        "depth": 1,
        "dropout_rate": 0.25,
        "features": 3,
        "num_classes": 7,
        "padding": "valid",
        "skip": "none",
        "up": "bilinear",
    },
    lambda fields: (2, 9, 10, 3) if fields["padding"] == "same" else (2, 44, 44, 3),
)


CASES = {
    **dict.fromkeys(("fcn8s", "fcn16s", "fcn32s"), FCN),
    "deconvnet": DECONVNET,
    "localizer": LOCALIZER,
    "rcnn": WARPED,
    **dict.fromkeys(("fast_rcnn", "faster_rcnn", "mask_rcnn"), REGIONS),
    "unet": UNET,
    **dict.fromkeys(("fast_yolo", "yolo"), YOLO),
    **dict.fromkeys(("nin_cifar", "nin_imagenet"), NIN),
    **dict.fromkeys(("googlenet", "googlenet_bn", "googlenet_cifar"), GOOGLENET),
    **dict.fromkeys(("alexnet", "alexnet_owt", "alexnet_ungrouped"), ALEXNET),
    **dict.fromkeys(("vgg11", "vgg11_lrn", "vgg13", "vgg16_1x1", "vgg16", "vgg19"), VGG),
    **dict.fromkeys(("resnet18", "resnet34"), resnet("bottleneck")),
    **dict.fromkeys(("resnet50", "resnet101", "resnet152"), resnet("basic")),
    **{f"resnet{depth}_cifar": resnet("bottleneck", shortcut="B") for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"resnet{depth}_cifar": resnet("basic", skip="original", stride_in="3x3") for depth in (164, 1001)},
    "lenet5": Case(
        {"padding": 2},
        {"c3": "dense", "num_classes": 7, "output": "softmax", "padding": 1, "sharing": "local"},
        lenet_images,
    ),
    "lenet5_modern": Case(
        {"padding": 2},
        {"c3": "partial", "num_classes": 11, "output": "rbf", "padding": 1, "sharing": "dense"},
        lenet_images,
    ),
    "mlp": Case({"features": (6, 5)}, {"features": (6,), "num_classes": 7}, lambda fields: (2, 8, 7, 3)),
}

# Of networks that are one and the same with the fields of their bases, the first stands for all.
DISTINCT = {models.create(name, **CASES[name].base): name for name in reversed(models.names())}.values()

# In half precision the others' steps are among the long tests.
QUICK = ("lenet5_modern", "vgg11", "resnet20_cifar", "unet")

# What all networks share is among the long tests for those that take long.
LARGE = (
    *("alexnet", "deconvnet", "fast_rcnn", "fast_yolo", "fcn16s", "googlenet", "localizer", "nin_cifar"),
    *("rcnn", "resnet101", "resnet110_cifar", "resnet1001_cifar", "unet"),
)
# Whose own fields another one has, too.
COVERED = ("fast_rcnn", "resnet1001_cifar")

FIELDS = [
    pytest.param(
        name,
        field.name,
        marks=pytest.mark.slow if name in COVERED or (name in LARGE and field.name in SHARED) else (),
    )
    for name in sorted(DISTINCT)
    for field in dataclasses.fields(models.create(name))
    if field.name not in ("parent", "name")
]


def start(name, fields):
    """Returns a network, images for it, and how it starts."""
    module = models.create(name, **fields)
    images = CASES[name].scale * jax.random.normal(jax.random.key(0), CASES[name].shape(fields))
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
        passed = {"train": True, "mutable": ["auxiliary", "batch_stats"], "rngs": {"dropout": key}}
        outputs = [module.apply(filled(shapes), images, **passed) for module, images, _ in pairs]
    return not equal(*outputs) or not equal(*(init(key) for _, _, init in pairs))


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_turning_the_field_changes_the_network(name, field):
    case = CASES[name]
    base = case.base | NEEDS.get(field, {}) | case.needs.get(field, {})
    assert changed(name, base, base | {field: (SHARED | case.turned)[field]})


def test_the_same_fields_give_the_same_network():
    assert not changed("lenet5", CASES["lenet5"].base, dict(CASES["lenet5"].base))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        # GoogLeNet has a test of its own, ResNet-101 two.
        *(
            pytest.param(
                name,
                "float32",
                marks=pytest.mark.slow if name in ("fast_rcnn", "fast_yolo", "googlenet", "resnet101") else (),
            )
            for name in DISTINCT
        ),
        *(pytest.param(name, "bfloat16", marks=() if name in QUICK else pytest.mark.slow) for name in DISTINCT),
    ],
)
def test_gradients_reach_every_parameter_and_a_step_goes_well(name, dtype):
    """All is finite in both precisions; auxiliary classifiers with the rest."""
    fields = CASES[name].base | {"activation": "leaky_relu", "dtype": dtype}  # so few ReLUs may all be silent
    if "auxiliary_weights" in models.config(name):
        fields["auxiliary_weights"] = CASES[name].turned["auxiliary_weights"]
    module, images, init = start(name, fields)
    variables = filled(jax.eval_shape(init, jax.random.key(0)))
    batch = {"image": images, "label": jnp.arange(len(images)), "example_mask": jnp.ones(len(images), bool)}
    rng = jax.random.key(1)

    def loss(params):
        given = variables | {"params": params}
        if models.task(name) == "classification":
            terms, _ = Classification().loss(module, given, batch, rng, train=True)
            return sum(total for total, _ in terms.values())
        passed = {"train": True, "mutable": ["auxiliary", "batch_stats"], "rngs": {"dropout": rng}}
        outputs, updated = module.apply(given, images, **passed)
        heads = [head["logits"] for head in updated.get("auxiliary", {}).values()]
        return -sum(jax.nn.log_softmax(each)[..., 0].mean() for each in jax.tree.leaves((outputs, heads)))

    # Run once: what counts is the time to compile.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compute = jax.jit(jax.value_and_grad(loss), compiler_options=quick)
    value, gradients = compute(variables["params"])
    assert np.isfinite(value)
    stepped = jax.tree.map(lambda value, gradient: value - 0.01 * gradient, variables["params"], gradients)
    assert np.isfinite(compute(stepped)[0])
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert gradient.any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("deconvnet", *COVERED) else ()) for name in DISTINCT]
)
def test_evaluation_does_not_depend_on_the_other_images(name):
    module, images, init = start(name, CASES[name].base)
    variables = filled(jax.eval_shape(init, jax.random.key(0)))
    outputs, turned = (jax.tree.leaves(module.apply(variables, each, train=False)) for each in (images, images[::-1]))
    for output, other in zip(outputs, turned, strict=True):
        np.testing.assert_allclose(output, other[::-1], rtol=1e-4, atol=1e-4 * np.abs(output).max())
        assert not np.array_equal(output[0], output[1])
