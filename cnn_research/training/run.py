"""One run: where it is, what is written of it, and what is said when it fails."""

import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cnn_research.errors import UserError
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.evaluation import Evaluator
from cnn_research.training.feed import Feed
from cnn_research.training.initialize import initial_variables
from cnn_research.training.parallel import Jit
from cnn_research.training.phases import fit_phase
from cnn_research.training.postmortem import write_postmortem
from cnn_research.training.program import Program
from cnn_research.training.progress import describe
from cnn_research.training.state import TrainState
from cnn_research.training.together import StepAlone
from cnn_research.training.writers import Writer, write_text


def last_state(program: Program, parallel: Jit, checkpoints: Checkpoints) -> TrainState:
    """Returns the state of the last checkpoint, or the one to begin with, in the layout of `parallel`."""
    layout = parallel.layout(program.abstract_state)
    if checkpoints.steps:
        key = parallel.replicate(jax.random.key(program.config.seed))
        return checkpoints.restore(program.abstract_state, key, layout)
    variables = initial_variables(program, parallel)
    return jax.jit(program.init_state, out_shardings=layout)(variables)


class NotFiniteError(UserError):
    """A step's loss or gradient is NaN or infinite.

    Attributes:
      step: that one.
    """

    def __init__(self, step: int, values: dict[str, float]):
        """Says so, with the step's metrics."""
        super().__init__(f"not finite at step {step}: {describe(values)}")
        self.step = step


class Run:
    """A run that the loop takes from step to step.

    Attributes:
      workdir: its directory.
      program: what follows from its config.
      feed: its batches.
      evaluator: measures it.
      checkpoints: of its states.
      step: updates done when it was last noted.
      evaluated: the metrics of its last evaluation.
      outcome: its result once it is finished, or what is wrong with it.
    """

    def __init__(
        self,
        workdir: epath.Path,
        program: Program,
        feed: Feed,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        state: TrainState,
    ):
        """Takes up a run where its state is."""
        self.workdir, self.program, self.feed = workdir, program, feed
        self.evaluator, self.checkpoints = evaluator, checkpoints
        self.step = int(state.step)
        self.evaluated: dict[str, float] = {}
        self.outcome: dict[str, Any] | UserError = {}
        self._state: TrainState | None = state
        self._params = sum(x.size for x in jax.tree.leaves(state.params))
        self._writer = Writer(workdir, self.step, program.config.tensorboard)
        self._seconds = self._writer.latest("seconds")  # of all processes that worked on it, but for evaluation
        self._compiled: tuple[int, float] | None = None  # step and seconds at the first note, after compiling
        self._last: dict[str, float] = {}  # of training, for the result
        self._skipped = int(self._writer.latest("train/skipped"))  # examples of all steps that could not be decoded
        self._measured = -1  # step of the last evaluation

    @property
    def metric(self) -> str:
        """The task's primary metric."""
        return self.program.task.primary_metric

    def take_state(self) -> TrainState:
        """Returns the state that the run begins with, once: the loop's steps reuse its memory."""
        state, self._state = self._state, None
        assert state is not None
        return state

    def note(self, step: int, values: dict[str, np.ndarray], seconds: float) -> dict[str, float]:
        """Checks that the metrics of the last steps are finite, and writes and returns their means.

        Args:
          step: updates done.
          values: of each step since the last note.
          seconds: that these steps took.

        Raises:
          NotFiniteError: one is not finite.
        """
        count, config = len(values["loss"]), self.program.config
        self.step = step
        bad = ~np.isfinite(values["loss"]) | ~np.isfinite(values["gradient_norm"])
        if bad.any():
            first = int(np.argmax(bad))
            raise NotFiniteError(step - count + first, {name: float(value[first]) for name, value in values.items()})
        self._seconds += seconds
        self._compiled = self._compiled or (step, self._seconds)
        means = {f"train/{name}": float(value.mean()) for name, value in values.items()}
        means["train/learning_rate"] = float(values["learning_rate"][-1])
        self._last = {"train/loss": means["train/loss"]}
        if "skipped" in values:
            self._skipped += int(values["skipped"].sum())
            means["train/skipped"] = self._skipped
            self._last["train/skipped"] = self._skipped
        means["images_per_second"] = count * config.batch_size / seconds
        means["seconds"] = round(self._seconds, 3)
        self._writer.write(step, means)
        return means

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Measures the network on the whole test split, and writes and returns what comes out."""
        self._measured = int(state.step)
        twin = {"twin": state.twin} if self.program.sees_twins(self._measured) else {}
        values = self.evaluator(state.evaluated | twin)
        self.evaluated = {f"{self.program.config.data.test}/{name}": value for name, value in values.items()}
        self._writer.write(self._measured, self.evaluated)
        return self.evaluated

    def save(self, state: TrainState) -> None:
        """Begins to write a checkpoint, of a finite state only."""
        step = int(state.step)
        if not _all_finite(state.params):
            raise NotFiniteError(step, {"loss": math.nan})
        # The best checkpoint is of one network, which can be restored.
        measured = self._measured == step and not self.program.sees_twins(step)
        self.checkpoints.save(state, self.evaluated if measured else {})

    def fit(self, state: TrainState, phase: str) -> TrainState:
        """Returns the state with the layer of a phase fitted."""
        state = fit_phase(self.program, self.feed, state, phase)
        self.step = int(state.step)
        return state

    def finish(self) -> None:
        """Writes the result."""
        self.outcome = {
            "step": self.step,
            **self.evaluated,
            **self._last,
            "images_per_second": round(self._speed(), 1),
            "seconds": round(self._seconds, 2),
            "params": self._params,
        }
        self.checkpoints.wait()
        if jax.process_index() == 0:
            write_text(self.workdir / "result.json", json.dumps(self.outcome, indent=2) + "\n")

    def close(self) -> None:
        """Closes the files."""
        self._writer.close()

    def _speed(self) -> float:
        """Returns images/s from the first note on, saving included; 0 if there were no steps after it."""
        step, seconds = self._compiled or (self.step, 0.0)
        steps = self.step - step
        return steps * self.program.config.batch_size / (self._seconds - seconds) if steps else 0.0

    def examine(self, fault: NotFiniteError) -> UserError:
        """Writes the post-mortem of a step that was not finite, and returns what to say; the last checkpoint stays."""
        parallel = self.feed.parallel
        state = last_state(self.program, parallel, self.checkpoints)
        step_function = StepAlone(self.program, parallel)
        report = write_postmortem(self.workdir, self.program, self.feed, step_function, state, fault.step)
        first, steps = report["first"], self.checkpoints.steps
        kept = f"the checkpoint of step {steps[-1]} stays" if steps else "there is no checkpoint yet"
        return UserError(
            f"{fault}; first in the {first['kind']} of layer {first['layer']!r}; see {self.workdir / 'postmortem'};"
            f" {kept}"
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
