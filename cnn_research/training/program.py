"""A config becomes the objects of a run: network, task, optimizer, steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import linen as nn
from jaxtyping import Array
from ml_collections import ConfigDict

from cnn_research import models, tasks
from cnn_research.data.augmentation import Augmentation
from cnn_research.errors import UserError, nearest
from cnn_research.training.config import PRECISION, input_shape, validate
from cnn_research.training.durations import parse_steps
from cnn_research.training.optimizers import make_optimizer, make_schedule, matches
from cnn_research.training.state import TrainState, create_state, init_variables
from cnn_research.training.step import Preprocessing, gather, make_train_step

# Fields of the config that `Program.with_scalars` takes as arrays.
TRACED = ("optimizer.learning_rate", "optimizer.weight_decay", "loss.label_smoothing")


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything of a run that follows from its config alone.

    Attributes:
      config: the run's.
      model: the network, computing in the run's precision.
      task: its loss, predictions and metrics.
      preprocessing: of the images.
      schedule: learning rate by step.
      optimizer: updates the parameters.
      total_steps: of the whole run.
      steps_per_epoch: not rounded.
    """

    config: ConfigDict
    model: nn.Module
    task: tasks.Task
    preprocessing: Preprocessing
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    steps_per_epoch: float

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's input."""
        return input_shape(self.config.data)

    def steps(self, field: str) -> int:
        """Returns a duration of the config, such as `eval_every`, in steps: at least 1."""
        return max(1, parse_steps(self.config[field], self.steps_per_epoch, self.total_steps, field))

    def init_variables(self) -> dict[str, Any]:
        """Returns the network's fresh variables."""
        return init_variables(
            self.model, self.image_shape, jax.random.fold_in(jax.random.key(self.config.seed), 0x1217)
        )

    @functools.cached_property
    def abstract_variables(self) -> dict[str, Any]:
        """Shapes and dtypes of the network's variables."""
        images = jax.ShapeDtypeStruct((1, *self.image_shape), "float32")
        return jax.eval_shape(functools.partial(self.model.init, train=False), jax.random.key(0), images)

    def init_state(self, variables: dict[str, Any]) -> TrainState:
        """Returns the state before the first step."""
        return create_state(variables, self.optimizer, self.config.seed, averaged=self.config.ema > 0)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the training state."""
        return jax.eval_shape(self.init_state, self.abstract_variables)

    def with_scalars(self, values: Mapping[str, Array]) -> "Program":
        """Returns the program with scalars of its config given as arrays, which may be traced.

        Args:
          values: by the names of `TRACED`, all that the config has; checked before, as floats, in configs of their own.
        """
        options = self.config.optimizer
        unit = options.copy_and_resolve_references()
        unit.learning_rate = 1.0
        of_unit = make_schedule(unit, self.total_steps, self.steps_per_epoch)

        def schedule(step: Any) -> Any:
            return values["optimizer.learning_rate"] * of_unit(step)

        smoothing = {name: values[f"loss.{name}"] for name in ("label_smoothing",) if f"loss.{name}" in values}
        return dataclasses.replace(
            self,
            task=dataclasses.replace(self.task, **smoothing),  # type: ignore[type-var]
            schedule=schedule,
            optimizer=make_optimizer(options, schedule, values["optimizer.weight_decay"]),
        )

    def train_step(self, axis_name: str | None = None) -> Callable[[TrainState, Any, Any], tuple[TrainState, Any]]:
        """Returns `step(state, batch, data) -> (state, metrics)`, see `training.step` and `training.feed`."""
        freeze = self.config.optimizer.freeze
        train_step = make_train_step(
            self.model,
            self.task,
            self.optimizer,
            self.schedule,
            self.preprocessing,
            accumulate=self.config.accumulate,
            ema=self.config.ema,
            frozen=matches(freeze, "optimizer.freeze") if freeze else None,
            count_skipped=self.config.data.skip_corrupt,
            axis_name=axis_name,
        )
        return lambda state, batch, data: train_step(state, gather(batch, data))


def make_program(config: ConfigDict, platform: str = "") -> Program:
    """Builds a run's objects; `config.data.num_examples` must be known.

    Args:
      config: of the run.
      platform: cpu, gpu or tpu, which `precision=auto` goes by; that of this process unless given.

    Raises:
      UserError: the config is not right; the message names the field.
    """
    validate(config)
    data = config.data
    if data.num_examples < 1:
        raise UserError(f"data.num_examples={data.num_examples}: give the length of the training split")
    steps_per_epoch = data.num_examples / config.batch_size
    total_steps = parse_steps(config.duration, steps_per_epoch)
    if total_steps < 1:
        raise UserError(f"duration={config.duration!r} is less than one step of batch_size={config.batch_size}")
    schedule = make_schedule(config.optimizer, total_steps, steps_per_epoch)
    augmentation = make_augmentation(config.augmentation)
    if data.crop_on == "host":
        augmentation = dataclasses.replace(augmentation, random_resized_crop=(1.0, 1.0))
    return Program(
        config=config,
        model=models.create(**{**config.model.to_dict(), "dtype": compute_dtype(config, platform)}),
        task=tasks.create(config.task, **config.loss.to_dict()),
        preprocessing=Preprocessing(
            augmentation=augmentation,
            mean=tuple(data.mean),
            std=tuple(data.std),
            crop_size=tuple(data.crop_size),
            whole=bool(data.mask) or config.task == "region_detection",
            mirror=data.mirror,
        ),
        schedule=schedule,
        optimizer=make_optimizer(config.optimizer, schedule),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )


def make_augmentation(options: ConfigDict) -> Augmentation:
    """Returns what `config.augmentation` says.

    Raises:
      UserError: a field is not known or its value is out of its range.
    """
    known = {field.name for field in dataclasses.fields(Augmentation)}
    for name in set(options) - known:
        raise UserError(f"augmentation.{name} is no field; {nearest(name, known)}")
    return Augmentation(**options.to_dict())


def compute_dtype(config: ConfigDict, platform: str = "") -> str:
    """Returns the dtype that the network computes in.

    `precision=auto` is bfloat16 on TPU and GPU and float32 on CPU, unless `model.dtype` was set to something else than
    float32.

    Args:
      config: of the run.
      platform: cpu, gpu or tpu; that of this process unless given.

    Raises:
      UserError: `precision` and `model.dtype` contradict each other.
    """
    chosen = config.model.dtype
    if config.precision == "auto":
        accelerated = (platform or jax.default_backend()) in ("tpu", "gpu")
        return "bfloat16" if chosen == "float32" and accelerated else chosen
    wanted = PRECISION[config.precision]
    if chosen not in ("float32", wanted):
        raise UserError(f"precision={config.precision} and model.dtype={chosen} contradict each other; set one of them")
    return wanted
