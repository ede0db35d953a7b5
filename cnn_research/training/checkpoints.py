"""Checkpoints: all of Orbax that the project uses.

A checkpoint has up to four items, so that analysis reads no more than it needs: `variables`, their `average` where one
is kept, the `twin` of some layers where a task has one, and `training` (the optimizer's state and the step, which is
also the position in the data). Orbax writes them
in the background under a name of its own and renames the directory when all is there: what carries a step's number was
whole once. What a disk does to it later shows in a checksum of each item; a damaged checkpoint is set aside, and the
one before it is used.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Array, Key, UInt32
from orbax.checkpoint import v1 as ocp

from cnn_research.errors import UserError
from cnn_research.training.state import TrainState


def _items(state: TrainState) -> dict[str, Any]:
    items = {"variables": state.variables, "training": {"step": state.step, "opt_state": state.opt_state}}
    return items | {name: tree for name in ("average", "twin") if (tree := getattr(state, name))}


@jax.jit
def checksums(items: dict[str, Any]) -> dict[str, UInt32[Array, ""]]:
    """Returns a number for each tree that changes with any one value in it, however its arrays are spread out.

    Args:
      items: trees of arrays by name.
    """
    return {name: sum(map(_checksum, jax.tree.leaves(tree)), jnp.uint32(0)) for name, tree in items.items()}


def _checksum(x: Array) -> UInt32[Array, ""]:
    """The sum of the bits times odd numbers that depend on the place, modulo 2³²: integers, so in any order."""
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    x = x.astype(word) if x.dtype == bool else x  # whose bits JAX does not show
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    place = jnp.uint32(x.size)
    for axis in range(bits.ndim):
        # Knuth's multiplicative hash; another factor for each axis.
        factor = jnp.uint32(2_654_435_761 * (2 * axis + 1) % 2**32)
        place += factor * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    place = (place ^ place >> 16) * jnp.uint32(0x45D9F3B)  # places in a line get numbers that are not
    return (bits * (2 * place + 1)).sum(dtype=jnp.uint32)


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
        self._directory = epath.Path(workdir).expanduser().resolve() / "checkpoints"
        policies = ocp.training.preservation_policies
        keep = [policies.LatestN(keep_last)]
        if keep_best:
            best = policies.BestN(
                get_metric_fn=lambda values: values[metric], n=keep_best, keep_checkpoints_without_metrics=False
            )
            keep.append(best)
        if read_only and not self._directory.exists():  # which Orbax would make
            raise UserError(f"{workdir} has no checkpoint yet")
        self._metric = metric
        self._preservation = policies.PreserveAll() if read_only else policies.AnyPreservationPolicy(keep)
        self._read_only = read_only
        self._check_metrics()
        self._checkpointer = self._open()
        self._begun: ocp.AsyncResponse[bool] | None = None  # what writes in the background

    def _open(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._directory,
            preservation_policy=self._preservation,
            cleanup_tmp_directories=not self._read_only,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits until what was begun is written."""
        try:
            with self._writing(), contextlib.closing(self._checkpointer):
                self._finish()
        except UserError:
            if kind is None:  # else that was first
                raise

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
        if step in self.steps:
            return
        items = _items(state)
        sums = {name: int(value) for name, value in jax.device_get(checksums(items)).items()}
        with self._writing():
            self._finish()
            self._begun = self._checkpointer.save_checkpointables_async(
                step, items, force=True, metrics=metrics or None, custom_metadata={"checksums": sums}
            )

    def restore(self, abstract: TrainState, rng: Key[Array, ""], shardings: TrainState) -> TrainState:
        """Returns the latest state that is whole; damaged ones after it are set aside, with a line on stderr.

        Args:
          abstract: a state of the same shapes.
          rng: key of the run, on the devices, which is not saved since the seed gives it.
          shardings: where to put the arrays.

        Raises:
          UserError: no checkpoint can be read.
        """
        faults: dict[int, str] = {}
        for step in reversed(self.steps):
            loaded, fault = self._try(step, _items(abstract), _items(shardings))
            if not fault:
                break
            faults[step] = fault
        else:
            raise UserError(f"no checkpoint in {self._directory} can be read: {_listed(faults)}")
        if faults:
            self._set_aside(faults)
            self._checkpointer.close()
            self._checkpointer = self._open()
        variables, training = loaded["variables"], loaded["training"]
        return dataclasses.replace(
            abstract,
            step=training["step"],
            rng=rng,
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=training["opt_state"],
            average=loaded.get("average", {}),
            twin=loaded.get("twin", {}),
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

        Raises:
          UserError: the checkpoint is damaged.
        """
        item = "average" if averaged else "variables"
        loaded, fault = self._try(step, {item: abstract}, {item: jax.tree.map(lambda _: sharding, abstract)})
        if fault:
            others = ", ".join(str(other) for other in self.steps if other != step)
            raise UserError(
                f"the checkpoint of step {step} in {self._directory} is damaged: {fault}; "
                + (f"there are those of steps {others}" if others else "there is no other")
            )
        return loaded[item]

    def _try(self, step: int, items: dict[str, Any], shardings: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Returns what a checkpoint holds, and why it is damaged, "" if it is whole: the same in all processes."""
        self.wait()  # for what is being written
        loaded: dict[str, Any] = {}
        fault = ""
        with _quietly():
            try:
                loaded = self._load(step, items, shardings)
            except Exception as error:  # TensorStore's and Orbax's are of many kinds
                fault = _cause(error)
            if fault:
                gc.collect()  # what Orbax's tasks say of themselves, they say when they are dropped
        if fault:
            _pass_over_late_reads()
        if jax.process_count() > 1 and multihost_utils.process_allgather(np.bool_(fault)).any():
            fault = fault or "another process cannot read it"
        return loaded, fault

    def _load(self, step: int, items: dict[str, Any], shardings: dict[str, Any]) -> dict[str, Any]:
        abstract = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), items, shardings)
        loaded = self._checkpointer.load_checkpointables(step, abstract)
        written = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
        for name, value in jax.device_get(checksums({name: loaded[name] for name in items})).items():
            if int(value) != written.get("checksums", {}).get(name, int(value)):  # older ones have none
                raise ValueError(f"the values of {name} are not those that were written")
        return loaded

    def wait(self) -> None:
        """Waits until what was begun is written.

        Raises:
          UserError: it cannot be.
        """
        with self._writing():
            self._finish()

    def _finish(self) -> None:
        """Waits; Orbax only ends the thread and the event loop that each checkpoint gets when asked how it went."""
        begun, self._begun = self._begun, None
        if begun:
            begun.result()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns the faults of disks and buckets, which may be those of an earlier step, into one line."""
        try:
            yield
        except jax.errors.JaxRuntimeError:  # no disk's fault: another process is gone, say
            raise
        except Exception as error:
            kept = self._on_disk()
            stays = f"the checkpoint of step {kept[-1]} stays" if kept else "there is no checkpoint yet"
            raise UserError(f"cannot write a checkpoint to {self._directory}: {_cause(error)}; {stays}") from error

    def _check_metrics(self) -> None:
        """Sets checkpoints aside whose metrics cannot be read, since Orbax reads those of all to know the best."""
        faults = {}
        for step in self._on_disk():
            try:
                json.loads((self._directory / str(step) / "metrics" / "metrics").read_text())
            except FileNotFoundError:  # a step that was not evaluated
                continue
            except ValueError as error:
                faults[step] = f"metrics: {error}"
        if faults and (self._read_only or len(faults) == len(self._on_disk())):
            raise UserError(f"damaged in {self._directory}: {_listed(faults)}")
        if jax.process_count() > 1 and not self._read_only:
            multihost_utils.sync_global_devices("all know which checkpoints are damaged")
        if faults:
            self._set_aside(faults)

    def _on_disk(self) -> list[int]:
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdigit())

    def _set_aside(self, faults: dict[int, str]) -> None:
        """Renames damaged checkpoints, and says so."""
        if jax.process_index() == 0:
            print(f"damaged in {self._directory}, and set aside: {_listed(faults)}", file=sys.stderr)
            for step in faults:
                aside = self._directory / f"damaged_{step}"
                if aside.exists():
                    aside.rmtree()
                (self._directory / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def _listed(faults: dict[int, str]) -> str:
    return "; ".join(f"the checkpoint of step {step} ({fault})" for step, fault in faults.items())


def _cause(error: BaseException) -> str:
    """Returns the beginning of what the first of a chain of exceptions says, in one line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    words = " ".join(f"{error}".split())[:500]
    return words if " " in words else f"{type(error).__name__} {words}".rstrip()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Drops what Orbax's tasks say of themselves once one of them has failed."""
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        sys.unraisablehook = lambda _: None
        try:
            yield
        finally:
            logger.setLevel(level)
            sys.unraisablehook = hook


def _pass_over_late_reads() -> None:
    """Drops, from now on, what TensorStore's threads say where a read ends that Orbax no longer waits for.

    Orbax gives up at the first fault, and closes the event loop that the other reads report to.
    """
    hook = sys.unraisablehook

    def others(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "loop is closed" in str(unraisable.exc_value)):
            hook(unraisable)

    sys.unraisablehook = others


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
