"""Networks by name: the one table of names, and how a configuration becomes a module."""

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from flax import linen as nn
from ml_collections import ConfigDict

from cnn_research.errors import UserError, nearest
from cnn_research.models.classifiers import CLASSIFIERS
from cnn_research.models.deconvnet import DeconvNet
from cnn_research.models.faster_rcnn import RCNN
from cnn_research.models.faster_rcnn import VARIANTS as RCNNS
from cnn_research.models.fcn import FCN, VARIANTS
from cnn_research.models.localizer import Localizer
from cnn_research.models.rcnn import RegionClassifier
from cnn_research.models.unet import UNet
from cnn_research.models.yolo import VARIANTS as YOLOS
from cnn_research.models.yolo import YOLO

# What segments: a class for each pixel, logits [batch, height, width, classes].
SEGMENTERS: dict[str, partial[Any]] = {
    **{name: partial(FCN, **fields) for name, fields in VARIANTS.items()},
    "deconvnet": partial(DeconvNet),
    "unet": partial(UNet),
}

# What says where the main object is: a `localizer.Localization`.
LOCALIZERS: dict[str, partial[Any]] = {"localizer": partial(Localizer)}

# What finds objects: a `yolo.Grid`.
DETECTORS: dict[str, partial[Any]] = {name: partial(YOLO, **fields) for name, fields in YOLOS.items()}

# What finds them by regions: a `region_heads.Found`, without masks and with.
REGION_DETECTORS: dict[str, partial[Any]] = {
    name: partial(RCNN, **fields) for name, fields in RCNNS.items() if "mask_features" not in fields
}
INSTANCE_SEGMENTERS: dict[str, partial[Any]] = {
    name: partial(RCNN, **fields) for name, fields in RCNNS.items() if "mask_features" in fields
}

# What classifies regions: a `rcnn.Scored`.
REGION_CLASSIFIERS: dict[str, partial[Any]] = {"rcnn": partial(RegionClassifier)}

MODELS: dict[str, partial[Any]] = (
    CLASSIFIERS | DETECTORS | INSTANCE_SEGMENTERS | LOCALIZERS | REGION_CLASSIFIERS | REGION_DETECTORS | SEGMENTERS
)

# Height, width and channels of the papers' images, where they are not 224x224x3.
INPUT_SHAPES: dict[str, tuple[int, int, int]] = {
    **dict.fromkeys(("alexnet", "alexnet_ungrouped"), (227, 227, 3)),
    **dict.fromkeys(("lenet5", "lenet5_modern"), (32, 32, 1)),
    "mlp": (28, 28, 1),
    "unet": (572, 572, 1),
    **dict.fromkeys(YOLOS, (448, 448, 3)),
    **dict.fromkeys(VARIANTS, (500, 500, 3)),  # the largest of PASCAL VOC
    "rcnn": (375, 500, 3),
    **dict.fromkeys(REGION_DETECTORS, (600, 1000, 3)),
    **dict.fromkeys(INSTANCE_SEGMENTERS, (800, 1333, 3)),
    **{name: (32, 32, 3) for name in MODELS if name.endswith("_cifar")},
}

# Networks by their task, but for those that classify.
OTHERS = {
    "detection": DETECTORS,
    "instance_segmentation": INSTANCE_SEGMENTERS,
    "localization": LOCALIZERS,
    "region_classification": REGION_CLASSIFIERS,
    "region_detection": REGION_DETECTORS,
    "segmentation": SEGMENTERS,
}
TASKS = ("classification", *OTHERS)

__all__ = [
    "CLASSIFIERS",
    "DETECTORS",
    "INSTANCE_SEGMENTERS",
    "LOCALIZERS",
    "MODELS",
    "REGION_CLASSIFIERS",
    "REGION_DETECTORS",
    "SEGMENTERS",
    "config",
    "create",
    "input_shape",
    "names",
    "task",
]


def names(task: str = "") -> list[str]:
    """Returns the names of the networks of a task, sorted.

    Args:
      task: classification, detection, instance_segmentation, localization, region_classification, region_detection or
        segmentation; nothing: of every network.

    Raises:
      UserError: no network is for this task.
    """
    if task and task not in TASKS:
        raise UserError(f"no network is for the task {task!r}; {nearest(task, TASKS)}")
    return sorted(name for name in MODELS if task in ("", _task(name)))


def task(name: str) -> str:
    """Returns the task that a network is for: what it gives.

    Args:
      name: one of `names()`.

    Returns:
      `classification`, logits [batch, classes]; `detection`, boxes with classes; `localization`, logits and a box;
      `region_classification`, classes and boxes of regions that are given, by linear machines; `region_detection`,
      those of regions; `instance_segmentation`, their masks, too; or `segmentation`, logits [batch, height, width,
      classes].

    Raises:
      UserError: the name is not known.
    """
    _check_known(name)
    return _task(name)


def _task(name: str) -> str:
    return next((task for task, table in OTHERS.items() if name in table), "classification")


def _check_known(name: str) -> None:
    if name not in MODELS:
        raise UserError(f"model {name!r} is not known; {nearest(name, MODELS)}")


def _fits(value: Any, kind: Any) -> bool:
    """Tells whether a value is of the type of a field; a truth value is no number, a whole number is a float."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Callable:
        return callable(value)
    if origin is tuple and isinstance(value, tuple):
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if isinstance(value, bool):
        return origin is bool
    return isinstance(value, (int, float) if origin is float else origin)


def _tuples(value: Any) -> Any:
    """Returns lists, also nested ones, as tuples: JSON knows no tuples and modules take no lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _fields(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns all fields of a network, those given checked against their types."""
    _check_known(name)
    fields = {field.name: field for field in dataclasses.fields(cast(Any, MODELS[name].func))}
    for linens_own in ("parent", "name"):
        del fields[linens_own]
    values = {field.name: field.default for field in fields.values()} | MODELS[name].keywords
    for field, value in given.items():
        if field not in fields:
            raise UserError(f"{name} has no field {field!r}; {nearest(field, fields)}")
        value = _tuples(value)
        if not _fits(value, fields[field].type):
            raise UserError(f"{field}={value!r} is of the wrong type; a right one is {values[field]!r}")
        values[field] = float(value) if fields[field].type is float else value
    return values


def create(name: str, **fields: Any) -> nn.Module:
    """Creates a network.

    Args:
      name: one of `names()`.
      **fields: fields that differ from the network's defaults.

    Raises:
      UserError: the name, a field or its value is not known.
    """
    values = _fields(name, fields)
    return MODELS[name].func(**values)


def config(name: str, **fields: Any) -> ConfigDict:
    """Returns a network's configuration: `create(**config(name))` creates the network.

    Args:
      name: one of `names()`.
      **fields: fields that differ from the network's defaults.

    Returns:
      The name and all fields, by name.

    Raises:
      UserError: the name, a field or its value is not known, or a value is a function, which no file can hold.
    """
    values = _fields(name, fields)
    for field, value in values.items():
        if callable(value):
            raise UserError(
                f"{field} is a function; a configuration holds a name, such as {MODELS[name]().activation!r}"
            )
    create(name, **values)
    return ConfigDict({"name": name, **values})


def input_shape(name: str) -> tuple[int, int, int]:
    """Returns height, width and channels of the images that a network was made for.

    Args:
      name: one of `names()`.

    Raises:
      UserError: the name is not known.
    """
    _check_known(name)
    return INPUT_SHAPES.get(name, (224, 224, 3))
