"""How a batch becomes a loss, outputs become predictions and predictions become metrics; and the table of the tasks."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from cnn_research.errors import UserError, nearest
from cnn_research.tasks.classification import Classification
from cnn_research.tasks.detection import Detection
from cnn_research.tasks.instance_segmentation import InstanceSegmentation
from cnn_research.tasks.localization import Localization
from cnn_research.tasks.region_classification import RegionClassification
from cnn_research.tasks.region_detection import RegionDetection
from cnn_research.tasks.segmentation import Segmentation
from cnn_research.tasks.task import PhasedTask, RecordTask, Stage, StagedTask, Task

__all__ = ["PhasedTask", "RecordTask", "Stage", "StagedTask", "Task", "config", "create", "names"]

TASKS: dict[str, Any] = {
    "classification": Classification,
    "detection": Detection,
    "instance_segmentation": InstanceSegmentation,
    "localization": Localization,
    "region_classification": RegionClassification,
    "region_detection": RegionDetection,
    "segmentation": Segmentation,
}


def names() -> list[str]:
    """Returns the name of every task, sorted."""
    return sorted(TASKS)


def create(name: str, **fields: Any) -> Task:
    """Builds a task.

    Args:
      name: one of `names()`.
      **fields: the task's fields that differ from their defaults.

    Raises:
      UserError: the name or a field is unknown, or a field's value is of the wrong type or out of its range.
    """
    if name not in TASKS:
        raise UserError(f"task {name!r} is unknown; {nearest(name, TASKS)}")
    defaults = {field.name: field.default for field in dataclasses.fields(TASKS[name])}
    return TASKS[name](**{field: _checked(name, field, value, defaults) for field, value in fields.items()})


def config(name: str, **fields: Any) -> ConfigDict:
    """Returns all fields of a task, so that every one can be a flag.

    Args:
      name: one of `names()`.
      **fields: the task's fields that differ from their defaults.

    Raises:
      UserError: as `create` does.
    """
    return ConfigDict(dataclasses.asdict(create(name, **fields)))  # type: ignore[call-overload]


def _checked(name: str, field: str, value: Any, defaults: dict[str, Any]) -> Any:
    if field not in defaults:
        raise UserError(f"loss.{field} is no field of task {name!r}; {nearest(field, defaults)}")
    expected = type(defaults[field])
    if expected is float and type(value) is int:
        return float(value)
    if not isinstance(value, expected):
        raise UserError(
            f"loss.{field}={value!r} is of the wrong type; give a {expected.__name__} such as {defaults[field]!r}"
        )
    return value
