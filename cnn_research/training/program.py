"""A config becomes the objects of a run: network, task, optimizer, steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array
from ml_collections import ConfigDict

from cnn_research import models, tasks
from cnn_research.data.augmentation import Augmentation
from cnn_research.errors import UserError, nearest
from cnn_research.tasks import Stage, StagedTask
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
      stage: the first of the task's stages; None where all steps are alike. `schedule` and `optimizer` are its own.
      start: its first step.
      later: the programs of the stages after it.
    """

    config: ConfigDict
    model: nn.Module
    task: tasks.Task
    preprocessing: Preprocessing
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    total_steps: int
    steps_per_epoch: float
    stage: Stage | None = None
    start: int = 0
    later: tuple["Program", ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the network's input."""
        return input_shape(self.config.data)

    @property
    def parts(self) -> tuple["Program", ...]:
        """The programs of the stages, in order; this one alone where all steps are alike."""
        return (self, *self.later)

    def at(self, step: int) -> "Program":
        """Returns the program of a step's stage.

        Args:
          step: updates done before it.
        """
        return next(part for part in reversed(self.parts) if part.start <= step)

    def sees_twins(self, step: int) -> bool:
        """Returns whether the network is one of two bodies, after so many updates.

        Args:
          step: updates done.
        """
        stage = self.at(max(0, step - 1)).stage
        return bool(stage and stage.sees_twins)

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
        task, averaged = self.task, self.config.ema > 0
        has_twin = functools.partial(task.has_twin, self.model) if self.stage and isinstance(task, StagedTask) else None
        return create_state(variables, self.optimizer, self.config.seed, averaged, has_twin)

    def enter(self, state: TrainState) -> TrainState:
        """Returns the state with which the stage begins.

        Args:
          state: that the stage before it has left.
        """
        variables, twin = state.variables, state.twin
        if self.stage and self.stage.swaps:
            changed = {name: tree | twin.get(name, {}) for name, tree in variables.items()}
            twin = {name: {layer: variables[name][layer] for layer in tree} for name, tree in twin.items()}
            variables = changed
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        opt_state = self.optimizer.init(params)
        return dataclasses.replace(state, params=params, batch_stats=batch_stats, opt_state=opt_state, twin=twin)

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
        marks = [matches(freeze, "optimizer.freeze")] if freeze else []
        marks += [_staying(self.stage)] if self.stage else []

        def frozen(tree: Any) -> Any:
            return jax.tree.map(lambda *marked: any(marked), *(mark(tree) for mark in marks))

        train_step = make_train_step(
            self.model,
            self.stage or self.task,
            self.optimizer,
            self.schedule,
            self.preprocessing,
            accumulate=self.config.accumulate,
            ema=self.config.ema,
            frozen=frozen if marks else None,
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
    augmentation = make_augmentation(config.augmentation)
    if data.crop_on == "host":
        augmentation = dataclasses.replace(augmentation, random_resized_crop=(1.0, 1.0))
    model = models.create(**{**config.model.to_dict(), "dtype": compute_dtype(config, platform)})
    task = tasks.create(config.task, **config.loss.to_dict())
    program = Program(
        config=config,
        model=model,
        task=task,
        preprocessing=Preprocessing(
            augmentation=augmentation,
            mean=tuple(data.mean),
            std=tuple(data.std),
            crop_size=tuple(data.crop_size),
            whole=bool(data.mask) or config.task == "region_detection",
            mirror=data.mirror,
        ),
        **_of_steps(config, total_steps, steps_per_epoch),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
    )
    stages = task.stages(model) if isinstance(task, StagedTask) else ()
    return _with_stages(program, stages) if stages else program


def _of_steps(config: ConfigDict, steps: int, steps_per_epoch: float, stage: Stage | None = None) -> dict[str, Any]:
    """Returns the schedule and the optimizer of a run's steps, or of those of a stage."""
    schedule = make_schedule(config.optimizer, steps, steps_per_epoch)
    stays = _staying(stage) if stage else None
    return {"schedule": schedule, "optimizer": make_optimizer(config.optimizer, schedule, stays=stays)}


def _staying(stage: Stage) -> Callable[[Any], Any]:
    """Returns a function from a tree of layers to booleans: what stays as it is in a stage."""
    return lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: not stage.learns(path[0].key), tree)


def _with_stages(program: Program, stages: Sequence[Stage]) -> Program:
    """Returns the program of the first stage, with those of the others.

    Raises:
      UserError: a stage is left without steps, or the run averages its variables.
    """
    config, total = program.config, program.total_steps
    if config.ema:
        raise UserError(f"ema={config.ema} averages over steps that are alike; use ema=0 with stages of training")
    shares = np.cumsum([stage.share for stage in stages])
    ends = [round(total * share / shares[-1]) for share in shares.tolist()]
    starts = [0, *ends[:-1]]
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise UserError(f"duration={config.duration!r}, {total} steps, leaves a stage of training none; give more")

    def part(stage: Stage, start: int, end: int) -> Program:
        fields = _of_steps(config, end - start, program.steps_per_epoch, stage)
        own = fields["schedule"]
        return dataclasses.replace(
            program, **fields | {"schedule": lambda step: own(step - start)}, stage=stage, start=start
        )

    first, *later = map(part, stages, starts, ends)
    return dataclasses.replace(first, later=tuple(later))


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
