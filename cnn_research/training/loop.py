"""The loop: one for every task. Resuming, stopping, NaN and the writing of all files happen here."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cnn_research.data.order import Shuffled
from cnn_research.data.sources import Source
from cnn_research.errors import UserError
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.evaluation import Evaluator, check_classes, class_names, open_split
from cnn_research.training.feed import Feed, make_feed, train_spec
from cnn_research.training.initialize import initial_variables
from cnn_research.training.parallel import Jit, make_parallel
from cnn_research.training.postmortem import write_postmortem
from cnn_research.training.program import Program, make_program
from cnn_research.training.progress import Progress, describe
from cnn_research.training.signals import Stopped, agreed_stop
from cnn_research.training.state import TrainState
from cnn_research.training.writers import Writer, environment, write_text


def train(config: ConfigDict, workdir: epath.PathLike, devices: Sequence[jax.Device] = ()) -> dict[str, Any]:
    """Trains a network and returns the run's result; goes on where an earlier call stopped.

    Args:
      config: of the run, see `training.config`.
      workdir: the run's directory; made if it is not there.
      devices: to train on, with `jit`; all there are unless given.

    Returns:
      What `result.json` holds: `step`, `test/accuracy` and the other final metrics, `images_per_second`, `seconds`,
      `params`.

    Raises:
      UserError: the config, the data or the directory is not right, or the loss stopped being finite.
      Stopped: a signal asked to stop; the run is saved.
    """
    workdir = epath.Path(workdir).expanduser()
    train_source, test_source = (open_split(config, config.data[split]) for split in ("train", "test"))
    config = _with_facts(config, len(train_source), class_names(train_source, config))
    check_classes(train_source, config)
    program = make_program(config)
    parallel = make_parallel(config.parallel, devices, config.get("shard_state", "off"))
    parallel.block(config.batch_size, config.accumulate)  # refuses what does not divide, before anything is written
    _check_directory(config, workdir)
    if (workdir / "result.json").exists():
        return json.loads((workdir / "result.json").read_text())

    with _locked(workdir):
        result = _train(program, parallel, train_source, test_source, workdir)
        if jax.process_index() == 0:
            write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def _train(
    program: Program, parallel: Jit, train_source: Source, test_source: Source, workdir: epath.Path
) -> dict[str, Any]:
    config = program.config
    order = Shuffled(len(train_source), config.batch_size, config.seed)
    feed = make_feed(train_source, order, config.data, parallel, train_spec(config))
    evaluator = Evaluator(program.model, program.task, program.preprocessing, test_source, config, Jit(parallel.mesh))
    if jax.process_index() == 0:
        write_text(workdir / "config.json", configs.to_json(config))
        write_text(workdir / "environment.json", json.dumps(environment(), indent=2) + "\n")

    metric = f"{config.data.test}/{program.task.primary_metric}"
    with Checkpoints(workdir, config.keep_last, config.keep_best, metric) as checkpoints:
        state = _last_state(program, parallel, checkpoints)
        return _Loop(workdir, program, parallel, feed, evaluator, checkpoints, state).run()


@contextlib.contextmanager
def _locked(workdir: epath.Path) -> Iterator[None]:
    """Makes the run's directory, and keeps another command out of it; buckets have no locks.

    Raises:
      UserError: another process is training there.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() or "://" in os.fspath(workdir):
        yield
        return
    # The lock goes with its process, however that ends.
    lock = filelock.FileLock(workdir / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another process is training in {workdir}; wait for it, or give another directory") from None
    with lock:
        yield


def _with_facts(config: ConfigDict, num_examples: int, names: tuple[str, ...]) -> ConfigDict:
    """Returns the config with what the data set says of itself."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_examples, config.data.class_names = num_examples, names
    return config


def _check_directory(config: ConfigDict, workdir: epath.Path) -> None:
    """Refuses a directory that holds a run of another config, or something else altogether.

    Raises:
      UserError: naming the fields that differ.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; give a directory")
    if not (workdir / "config.json").exists():
        if (workdir / "checkpoints").exists():
            raise UserError(f"workdir {workdir} has checkpoints but no config.json; give another directory")
        return
    changed = configs.differences(configs.load(workdir), config)
    if changed:
        listed = ", ".join(f"{field}: {old!r} there, {new!r} here" for field, (old, new) in list(changed.items())[:6])
        raise UserError(f"workdir {workdir} holds a run of another config ({listed}); give another directory")


def _last_state(program: Program, parallel: Jit, checkpoints: Checkpoints) -> TrainState:
    """Returns the state of the last checkpoint, or the one to begin with, in the layout of `parallel`."""
    layout = parallel.layout(program.abstract_state)
    if checkpoints.steps:
        key = parallel.replicate(jax.random.key(program.config.seed))
        return checkpoints.restore(program.abstract_state, key, layout)
    variables = initial_variables(program, parallel)
    return jax.jit(program.init_state, out_shardings=layout)(variables)


class _Loop:
    """The steps from the state's to the last, and what happens between them."""

    def __init__(
        self,
        workdir: epath.Path,
        program: Program,
        parallel: Jit,
        feed: Feed,
        evaluator: Evaluator,
        checkpoints: Checkpoints,
        state: TrainState,
    ):
        self.workdir, self.program, self.config = workdir, program, program.config
        self.parallel, self.feed, self.evaluator, self.checkpoints = parallel, feed, evaluator, checkpoints
        self.step = int(state.step)
        self.metric = program.task.primary_metric
        self.params = sum(x.size for x in jax.tree.leaves(state.params))
        self.state = parallel.spread(state)
        layout = parallel.layout(program.abstract_state)
        self.step_function = parallel.compile(program.train_step(parallel.axis_name), layout)
        self.writer = Writer(workdir, self.step, self.config.tensorboard)
        self.progress = Progress(self.step, program.total_steps)
        self.pending: list[dict[str, jax.Array]] = []  # metrics on the device, of the steps since the last flush
        self.seconds = self.writer.latest("seconds")  # of all processes that worked on the run, but for evaluation
        self.compiled: tuple[int, float] | None = None  # step and seconds at the first flush, which compiling is before
        self.latest: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        total, eval_every, checkpoint_every = (
            self.program.total_steps,
            self.program.steps("eval_every"),
            self.program.steps("checkpoint_every"),
        )
        if self.step:
            self.progress.say(f"goes on from step {self.step} of {total}")
        evaluated: dict[str, float] = {}
        self.clock = time.perf_counter()
        profiler = _Profiler(self.config.profile, self.workdir)
        closing = contextlib.closing
        with agreed_stop(self.step) as asked_to_stop, closing(self.progress), closing(self.writer), closing(profiler):
            for batch in self.feed(self.step, total):
                profiler.before(self.step)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    self.state, metrics = self.step_function(self.state, batch, self.feed.data)
                profiler.after(self.step, metrics)
                self.pending.append(metrics)
                self.step += 1
                stop = asked_to_stop(self.step)  # asked once: a signal may come at any time
                evaluates = self.step % eval_every == 0 or self.step == total
                saves = self.step % checkpoint_every == 0 or self.step == total or bool(stop)
                if evaluates or saves or self.step % self.config.log_every == 0:
                    self.flush()
                if evaluates:
                    evaluated = self.evaluate()
                if saves:
                    self.save(evaluated if evaluates else {})
                if stop and self.step < total:
                    raise Stopped(self.step, stop)
            if not evaluated:  # killed between the last checkpoint and the result
                evaluated = self.evaluate()
        return {
            "step": self.step,
            **evaluated,
            **self.latest,
            "images_per_second": round(self.speed(), 1),
            "seconds": round(self.seconds, 2),
            "params": self.params,
        }

    def flush(self) -> None:
        """Fetches the metrics of the steps since the last flush, checks that they are finite, writes their means."""
        if not self.pending:
            return
        first = self.step - len(self.pending)
        fetched = jax.device_get(self.pending)  # waits for the steps
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        values = {
            name: np.array([np.ravel(metrics[name])[0] for metrics in fetched], np.float64) for name in fetched[0]
        }
        self.pending = []
        bad = ~np.isfinite(values["loss"]) | ~np.isfinite(values["gradient_norm"])
        if bad.any():
            self.fail(
                first + int(np.argmax(bad)), {name: float(value[np.argmax(bad)]) for name, value in values.items()}
            )
        self.seconds += seconds
        self.compiled = self.compiled or (self.step, self.seconds)
        means = {f"train/{name}": float(value.mean()) for name, value in values.items()}
        means["train/learning_rate"] = float(values["learning_rate"][-1])
        self.latest = {"train/loss": means["train/loss"]}
        means["images_per_second"] = len(fetched) * self.config.batch_size / seconds
        means["seconds"] = round(self.seconds, 3)
        self.writer.write(self.step, means)
        self.progress.update(self.step, means)

    def speed(self) -> float:
        """Returns images/s from the first flush on, saving included; 0 if there were no steps after it."""
        step, seconds = self.compiled or (self.step, 0.0)
        steps = self.step - step
        return steps * self.config.batch_size / (self.seconds - seconds) if steps else 0.0

    def evaluate(self) -> dict[str, float]:
        """Measures the network on the whole test split."""
        began = time.perf_counter()
        values = self.evaluator(self.parallel.collect(self.state).evaluated)
        named = {f"{self.config.data.test}/{name}": value for name, value in values.items()}
        self.writer.write(self.step, named)
        shown = {name: value for name, value in named.items() if name.split("/")[-1] in (self.metric, "loss")}
        self.progress.say(f"step {self.step}  {describe(shown)}")
        self.clock += time.perf_counter() - began
        return named

    def save(self, metrics: dict[str, float]) -> None:
        """Begins to write a checkpoint, of a finite state only."""
        state = self.parallel.collect(self.state)
        if not _all_finite(state.params):
            self.fail(self.step, {"loss": math.nan})
        self.checkpoints.save(state, metrics)

    def fail(self, step: int, values: dict[str, float]) -> None:
        """Writes the post-mortem of a step that was not finite and ends the run; the last good checkpoint stays."""
        self.state = None  # frees the device's memory
        state = _last_state(self.program, self.parallel, self.checkpoints)
        report = write_postmortem(self.workdir, self.program, self.feed, self.step_function, state, step)
        first = report["first"]
        kept = (
            f"the checkpoint of step {self.checkpoints.steps[-1]} stays"
            if self.checkpoints.steps
            else "there is no checkpoint yet"
        )
        raise UserError(
            f"not finite at step {step}: {describe(values)}; first in the {first['kind']} of layer {first['layer']!r};"
            f" see {self.workdir / 'postmortem'}; {kept}"
        )


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


class _Profiler:
    """Traces the steps that `config.profile` names, into `<workdir>/profile`."""

    def __init__(self, steps: str, workdir: epath.Path):
        self.start, self.stop = map(int, steps.split(":")) if steps else (0, 0)
        self.workdir, self.traces = workdir, False

    def before(self, step: int) -> None:
        """Starts with the first of the steps, or in their middle where a run goes on there."""
        if self.start <= step < self.stop and not self.traces:
            jax.profiler.start_trace(self.workdir / "profile")
            self.traces = True

    def after(self, step: int, outputs: Any) -> None:
        """Stops when the last of the steps has ended."""
        if self.traces and step + 1 >= self.stop:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Stops, if it traces."""
        if self.traces:
            jax.profiler.stop_trace()
            self.traces = False
