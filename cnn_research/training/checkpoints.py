"""Checkpoints: all of Orbax that the project uses.

A checkpoint has up to three items, so that analysis reads no more than it needs: `variables`, their `average` where one
is kept, and `training` (the optimizer's state and the step, which is also the position in the data). Orbax writes them
in the background under a name of its own and renames the directory when all is there: what carries a step's number is
whole.
"""

import dataclasses
from typing import Any

import jax
from etils import epath
from jax.sharding import Sharding
from jaxtyping import Array, Key
from orbax.checkpoint import v1 as ocp

from cnn_research.errors import UserError
from cnn_research.training.state import TrainState


def _items(state: TrainState) -> dict[str, Any]:
    items = {"variables": state.variables, "training": {"step": state.step, "opt_state": state.opt_state}}
    return items | ({"average": state.average} if state.average else {})


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints/<step>`."""

    def __init__(
        self, workdir: epath.PathLike, keep_last: int = 1, keep_best: int = 0, metric: str = "", read_only: bool = False
    ):
        """Opens the run's checkpoints.

        Args:
          workdir: the run's directory.
          keep_last: how many of the latest to keep.
          keep_best: how many of the best to keep besides.
          metric: what the best have most of, such as `test/accuracy`.
          read_only: never make or remove anything.

        Raises:
          UserError: there are none to read.
        """
        directory = epath.Path(workdir).expanduser().resolve() / "checkpoints"
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_last)]
        if keep_best:
            best = policies.BestN(
                get_metric_fn=lambda values: values[metric], n=keep_best, keep_checkpoints_without_metrics=False
            )
            keep.append(best)
        if read_only and not directory.exists():  # which Orbax would make
            raise UserError(f"{workdir} has no checkpoint yet")
        self._metric = metric
        self._checkpointer = ocp.training.Checkpointer(
            directory,
            preservation_policy=policies.PreserveAll() if read_only else policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until what was begun is written."""
        self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def best(self) -> int | None:
        """The step with most of the metric; of equals the latest. None where no checkpoint has metrics."""
        measured = [c for c in self._checkpointer.checkpoints if c.metrics and self._metric in c.metrics]
        return max(measured, key=lambda c: (c.metrics[self._metric], c.step)).step if measured else None

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Begins to write a checkpoint; returns when the state has been copied and may be donated.

        Args:
          state: replicated or sharded over all devices.
          metrics: of this step; {} if it was not evaluated.
        """
        step = int(state.step)
        if step not in self.steps:
            self._checkpointer.save_checkpointables_async(step, _items(state), force=True, metrics=metrics or None)

    def restore(self, abstract: TrainState, rng: Key[Array, ""], sharding: Sharding) -> TrainState:
        """Returns the latest state.

        Args:
          abstract: a state of the same shapes.
          rng: key of the run, which is not saved since the seed gives it.
          sharding: where to put the arrays.
        """
        loaded = self._load(self.steps[-1], _items(abstract), sharding)
        variables, training = loaded["variables"], loaded["training"]
        return dataclasses.replace(
            abstract,
            step=training["step"],
            rng=jax.device_put(rng, sharding),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=training["opt_state"],
            average=loaded.get("average", {}),
        )

    def restore_variables(
        self, step: int, abstract: dict[str, Any], averaged: bool, sharding: Sharding
    ) -> dict[str, Any]:
        """Returns the variables of a step, whatever devices wrote them.

        Args:
          step: one of `steps`.
          abstract: variables of the same shapes.
          averaged: whether to take the averaged ones.
          sharding: where to put the arrays.
        """
        item = "average" if averaged else "variables"
        return self._load(step, {item: abstract}, sharding)[item]

    def _load(self, step: int, items: dict[str, Any], sharding: Sharding) -> dict[str, Any]:
        self._checkpointer.wait()  # for what is being written
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), items)
        return self._checkpointer.load_checkpointables(step, abstract)


def find_step(checkpoints: Checkpoints, step: int | str | None, workdir: epath.PathLike) -> int:
    """Returns a step that has a checkpoint.

    Args:
      checkpoints: of the run.
      step: a step, `latest` (or None) or `best`.
      workdir: for messages.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not checkpoints.steps:
        raise UserError(f"{workdir} has no checkpoint yet")
    known = ", ".join(map(str, checkpoints.steps))
    if step in (None, "", "latest"):
        return checkpoints.steps[-1]
    if step == "best":
        if checkpoints.best is None:
            raise UserError(f"no checkpoint in {workdir} was evaluated, so none is the best; it has steps {known}")
        return checkpoints.best
    if not str(step).isdigit() or int(step) not in checkpoints.steps:
        raise UserError(
            f"{workdir} has no checkpoint of step {step!r}; it has steps {known}, and the words latest and best"
        )
    return int(step)
