"""One run as it is, or several that differ in scalars as one compiled program over their stacked states."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from cnn_research.errors import UserError
from cnn_research.training import config as configs
from cnn_research.training.feed import Feed
from cnn_research.training.parallel import Jit
from cnn_research.training.program import TRACED, Program
from cnn_research.training.state import TrainState

SCALARS = ("seed", *TRACED)  # what runs of one program may differ in


def check_alike(several: Sequence[ConfigDict]) -> None:
    """Refuses configs that are no one program.

    Args:
      several: of the runs.

    Raises:
      UserError: naming a field.
    """
    first = several[0]
    for config in several[1:]:
        if others := [field for field in configs.differences(first, config) if field not in SCALARS]:
            raise UserError(f"runs of one program differ in {', '.join(SCALARS)} and nothing else, not {others[0]}")
    if len(several) > 1 and (first.parallel, first.shard_state) != ("jit", "off"):
        raise UserError("several runs are one program with parallel=jit and shard_state=off only")
    if len(several) > 1 and first.loss.get("training", "joint") != "joint":
        raise UserError("several runs are one program with loss.training=joint only")


class Alone:
    """A single run, with the interface of several."""

    def __init__(self, program: Program, feed: Feed, parallel: Jit):
        """Prepares the step.

        Args:
          program: of the run.
          feed: its batches.
          parallel: how a step runs on the devices.
        """
        self._feed, self._parallel = feed, parallel
        self._step = StepAlone(program, parallel)

    def stack(self, states: Sequence[TrainState]) -> Any:
        """Returns the states of the runs as the step takes them."""
        return self._parallel.spread(states[0])

    def part(self, state: Any, _: int) -> TrainState:
        """Returns the state of the run of an index, on every device."""
        return self._parallel.collect(state)

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Yields the batches of the steps from `start` to before `stop`, on the devices."""
        return self._feed(start, stop)

    def step(self, number: int, state: Any, batch: Any) -> tuple[Any, Any]:
        """Returns the next state, and the step's metrics: of each a value, or a row of the runs'."""
        return self._step(number, state, batch, self._feed.data)


class Stacked:
    """Several runs as one program; each keeps its own seed, and with that its own order of examples."""

    def __init__(self, programs: Sequence[Program], feeds: Sequence[Feed], parallel: Jit):
        """Prepares the step.

        Args:
          programs: of the runs.
          feeds: their batches, with the same resident data.
          parallel: how a step runs on the devices.
        """
        seeds = [program.config.seed for program in programs]
        self._feeds = dict(zip(seeds, feeds, strict=True))  # runs of one seed see the same batches
        self._data = feeds[0].data
        self._sharding = NamedSharding(parallel.mesh, PartitionSpec(None, *parallel.mesh.axis_names))
        fields = [configs.flatten(program.config) for program in programs]
        scalars = {
            name: np.array([field[name] for field in fields], np.float32) for name in TRACED if name in fields[0]
        }
        self._settings = parallel.replicate(
            scalars | {"feed": np.array([[*self._feeds].index(seed) for seed in seeds])}
        )

        def step(settings: dict[str, jax.Array], state: TrainState, batches: Any, data: Any) -> tuple[TrainState, Any]:
            batch = jax.tree.map(lambda x: x[settings["feed"]], batches)
            program = programs[0].with_scalars({name: settings[name] for name in scalars})
            return program.train_step()(state, batch, data)

        over_runs = side_by_side if parallel.mesh.devices.flat[0].platform == "cpu" else jax.vmap
        mapped = over_runs(step, in_axes=(0, 0, None, None))
        compiled = parallel.compile(lambda state, batch, data: mapped(data["settings"], state, batch, data["examples"]))
        self._step = compiled

    def stack(self, states: Sequence[TrainState]) -> Any:
        """Returns the states of the runs as the step takes them."""
        return jax.jit(lambda *states: jax.tree.map(lambda *x: jnp.stack(x), *states))(*states)

    def part(self, state: Any, index: int) -> TrainState:
        """Returns the state of the run of an index, on every device."""
        return _part(state, index)

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Yields the batches of the steps from `start` to before `stop`, on the devices."""
        for several in zip(*(feed.blocks(start, stop) for feed in self._feeds.values()), strict=True):
            yield jax.device_put(jax.tree.map(lambda *x: np.stack(x), *several), self._sharding)

    def step(self, number: int, state: Any, batch: Any) -> tuple[Any, Any]:
        """Returns the next state, and the step's metrics: of each a value, or a row of the runs'."""
        del number  # they have no stages
        return self._step(state, batch, {"settings": self._settings, "examples": self._data})


def join(programs: Sequence[Program], feeds: Sequence[Feed], parallel: Jit) -> Alone | Stacked:
    """Returns the one way or the other.

    Args:
      programs: of the runs.
      feeds: their batches, with the same resident data.
      parallel: how a step runs on the devices.
    """
    return Alone(programs[0], feeds[0], parallel) if len(programs) == 1 else Stacked(programs, feeds, parallel)


class StepAlone:
    """A run's own compiled step, or where it has stages that of each."""

    def __init__(self, program: Program, parallel: Jit):
        """Prepares what is compiled when it first runs.

        Args:
          program: of the run.
          parallel: how a step runs on the devices.
        """
        self._program, self._parallel = program, parallel
        self._layout = parallel.layout(program.abstract_state)
        self._steps = {
            part.start: parallel.compile(part.train_step(parallel.axis_name), self._layout) for part in program.parts
        }

    def __call__(self, number: int, state: Any, batch: Any, data: Any) -> tuple[Any, Any]:
        """Returns the next state and the metrics of the step.

        Args:
          number: updates done before it.
          state: that these have left, as the step takes it; its memory is reused.
          batch: of the step.
          data: the feed's.
        """
        start = self._program.at(number).start
        if start == number > 0:
            state = self._parallel.spread(self.enter(number, self._parallel.collect(state)))
        return self._steps[start](state, batch, data)

    def enter(self, number: int, state: TrainState) -> TrainState:
        """Returns the state before a step: another one than before where a stage begins with it.

        Args:
          number: updates done before it.
          state: that these have left, on every device; its memory is reused.
        """
        part = self._program.at(number)
        if not part.start == number > 0:
            return state
        return jax.jit(part.enter, donate_argnums=0, out_shardings=self._layout)(state)


def side_by_side(function: Callable[..., Any], in_axes: Sequence[int | None]) -> Callable[..., Any]:
    """Does what `jax.vmap` does, by a copy of the function for each of the runs.

    With `vmap` the convolutions of several kernels become grouped ones, which are slow on CPUs. Eight LeNet-5 of batch
    64 took 2.1 times as long as eight separate steps on two cores so, 4.0 times as a loop in the program
    (`jax.lax.map`), and 0.65 times as copies, which compile as long as eight separate programs.

    Args:
      function: of arrays.
      in_axes: 0 or None for each argument.
    """

    def copies(*arguments: Any) -> Any:
        runs = len(jax.tree.leaves(arguments[in_axes.index(0)])[0])
        outputs = [
            function(
                *(
                    argument if axis is None else jax.tree.map(lambda x: x[run], argument)  # noqa: B023
                    for argument, axis in zip(arguments, in_axes, strict=True)
                )
            )
            for run in range(runs)
        ]
        return jax.tree.map(lambda *x: jnp.stack(x), *outputs)

    return copies


@jax.jit
def _part(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], tree)
