"""The loop: one for every task, and for one run or several in one program. Resuming and stopping happen here."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import filelock
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from cnn_research.data.order import Shuffled
from cnn_research.data.sources import Source
from cnn_research.errors import UserError
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.config import validate
from cnn_research.training.evaluation import Evaluator, check_classes, class_names, open_split
from cnn_research.training.feed import make_feed, train_spec
from cnn_research.training.parallel import Jit, make_parallel
from cnn_research.training.phases import phases_left
from cnn_research.training.program import Program, make_program
from cnn_research.training.progress import Progress, describe
from cnn_research.training.run import NotFiniteError, Run, last_state
from cnn_research.training.signals import Stopped, agreed_stop
from cnn_research.training.together import check_alike, join
from cnn_research.training.writers import environment, read_result, write_text

# Steps that the host may be ahead of the devices. XLA's CPU client hangs for good with 32 of them where several devices
# wait for each other: the threads that are to run a step all wait for room to begin another one.
IN_FLIGHT = 16


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
    (outcome,) = train_together([config], [workdir], devices)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def train_together(
    configs: Sequence[ConfigDict], workdirs: Sequence[epath.PathLike], devices: Sequence[jax.Device] = ()
) -> list[dict[str, Any] | UserError]:
    """Trains runs that differ in scalars as one program, each as `train` would; one that fails leaves the others be.

    Args:
      configs: of the runs; they differ in `together.SCALARS` at most.
      workdirs: the runs' directories.
      devices: to train on, with `jit`; all there are unless given.

    Returns:
      Each run's result, or what is wrong with it.

    Raises:
      UserError: the data or what the configs share is not right.
      Stopped: a signal asked to stop; the runs are saved.
    """
    first = configs[0]
    validate(first)
    train_source, test_source = (open_split(first, first.data[split]) for split in ("train", "test"))
    names = class_names(train_source, first)
    configs = [_with_facts(config, len(train_source), names) for config in configs]
    check_alike(configs)
    check_classes(train_source, first)
    parallel = make_parallel(first.parallel, devices, first.shard_state)
    parallel.block(first.batch_size, first.accumulate)  # refuses what does not divide, before anything is written

    outcomes: dict[int, dict[str, Any] | UserError] = {}
    begun: dict[int, Run] = {}
    with contextlib.ExitStack() as closing:
        for index, (config, workdir) in enumerate(zip(configs, map(_expanded, workdirs), strict=True)):
            try:
                program = make_program(config)
                _check_directory(config, workdir)
                if (workdir / "result.json").exists():
                    outcomes[index] = read_result(workdir / "result.json", "step")
                    continue
                closing.enter_context(_locked(workdir))
                others = [*begun.values()]
                begun[index] = _begin(program, parallel, train_source, test_source, workdir, others, closing)
            except UserError as error:
                outcomes[index] = error
        # Runs that were interrupted between their checkpoints are at different steps.
        starts = {index: run.step for index, run in begun.items()}
        for step in sorted({*starts.values()}):
            _Loop([begun[index] for index, start in starts.items() if start == step], parallel).run()
    return [outcomes[index] if index in outcomes else begun[index].outcome for index in range(len(configs))]


def _expanded(workdir: epath.PathLike) -> epath.Path:
    return epath.Path(workdir).expanduser()


def _begin(
    program: Program,
    parallel: Jit,
    train_source: Source,
    test_source: Source,
    workdir: epath.Path,
    others: Sequence[Run],
    closing: contextlib.ExitStack,
) -> Run:
    """Returns a run with its data and its state on the devices; what is the same as another's is shared with it."""
    config = program.config
    order = Shuffled(len(train_source), config.batch_size, config.seed)
    shared = (others[0].feed.data, others[0].feed.skipped) if others else ()
    feed = make_feed(train_source, order, config.data, parallel, train_spec(config), *shared)
    evaluator = (
        others[0].evaluator
        if others
        else Evaluator(program.model, program.task, program.preprocessing, test_source, config, Jit(parallel.mesh))
    )
    if jax.process_index() == 0:
        write_text(workdir / "config.json", configs.to_json(config))
        write_text(workdir / "environment.json", json.dumps(environment(), indent=2) + "\n")
    metric = f"{config.data.test}/{program.task.primary_metric}"
    checkpoints = closing.enter_context(Checkpoints(workdir, config.keep_last, config.keep_best, metric))
    state = last_state(program, parallel, checkpoints)
    run = Run(workdir, program, feed, evaluator, checkpoints, state)
    return closing.enter_context(contextlib.closing(run))


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


class _Loop:
    """The steps of runs that are as far as each other, to the last, and what happens between them."""

    def __init__(self, runs: Sequence[Run], parallel: Jit):
        self.runs, self.config = list(runs), runs[0].program.config
        program = runs[0].program
        self.step, self.total = runs[0].step, program.total_steps
        self.together = join([run.program for run in runs], [run.feed for run in runs], parallel)
        self.state = self.together.stack([run.take_state() for run in runs])
        self.progress = Progress(self.step, self.total)
        self.pending: list[dict[str, jax.Array]] = []  # metrics on the device, of the steps since the last flush

    def run(self) -> None:
        program = self.runs[0].program
        eval_every, checkpoint_every = program.steps("eval_every"), program.steps("checkpoint_every")
        if self.step:
            self.progress.say(f"goes on from step {self.step} of {self.total}")
        starts = [part.start for part in program.later]
        self.clock = time.perf_counter()
        profiler = _Profiler(self.config.profile, self.runs[0].workdir)
        closing = contextlib.closing
        with agreed_stop(self.step) as asked_to_stop, closing(self.progress), closing(profiler):
            for batch in self.together.batches(self.step, self.total):
                part = program.at(self.step)
                if part.stage and part.start == self.step:
                    self.progress.say(f"step {self.step}  trains {part.stage.name}")
                profiler.before(self.step)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    self.state, metrics = self.together.step(self.step, self.state, batch)
                profiler.after(self.step, metrics)
                self.pending.append(metrics)
                if len(self.pending) > IN_FLIGHT:
                    jax.block_until_ready(self.pending[-1 - IN_FLIGHT])
                self.step += 1
                stop = asked_to_stop(self.step)  # asked once: a signal may come at any time
                evaluates = self.step % eval_every == 0 or self.step == self.total
                ends = self.step == self.total or self.step in starts
                saves = self.step % checkpoint_every == 0 or ends or bool(stop)
                if evaluates or saves or self.step % self.config.log_every == 0:
                    self.flush()
                if evaluates:
                    self.evaluate()
                if saves:
                    self.each(lambda index, run: run.save(self.together.part(self.state, index)))
                if not self.left():
                    return
                if stop and self.step < self.total:
                    raise Stopped(self.step, stop)
            # Killed between the last checkpoint and the result, a run is still to be evaluated.
            if not all(run.evaluated for _, run in self.left()):
                self.evaluate()
            self.each(self.fit_phases)
            self.each(self.finish)

    def left(self) -> list[tuple[int, Run]]:
        """Returns the runs that have not failed, with their places in the stack."""
        return [(index, run) for index, run in enumerate(self.runs) if not isinstance(run.outcome, UserError)]

    def each(self, action: Callable[[int, Run], None]) -> None:
        """Does something with each run that is left; a fault is that run's own."""
        for index, run in self.left():
            try:
                action(index, run)
            except UserError as error:
                run.outcome = error
                if not self.left():
                    self.state = None  # frees the devices' memory
                if isinstance(error, NotFiniteError):
                    run.outcome = run.examine(error)
                if len(self.runs) > 1:
                    self.progress.say(f"{run.workdir.name}: {run.outcome}")

    def flush(self) -> None:
        """Fetches the metrics of the steps since the last flush, and has them checked and written."""
        if not self.pending:
            return
        fetched = jax.device_get(self.pending)  # waits for the steps
        self.pending = []
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        means: list[dict[str, float]] = []

        def note(index: int, run: Run) -> None:
            values = {
                name: np.array([np.ravel(metrics[name])[index] for metrics in fetched], np.float64)
                for name in fetched[0]
            }
            means.append(run.note(self.step, values, seconds))

        self.each(note)
        if means:
            shown = {name: sum(mean[name] for mean in means) / len(means) for name in means[0]}
            self.progress.update(self.step, {**shown, "images_per_second": len(means) * shown["images_per_second"]})

    def evaluate(self) -> None:
        """Measures the networks on the whole test split."""
        began = time.perf_counter()

        def measure(index: int, run: Run) -> None:
            named = run.evaluate(self.together.part(self.state, index))
            shown = {name: value for name, value in named.items() if name.split("/")[-1] in (run.metric, "loss")}
            self.say_of(run, f"step {run.step}  {describe(shown)}")

        self.each(measure)
        self.clock += time.perf_counter() - began

    def fit_phases(self, index: int, run: Run) -> None:
        """Goes through a run's phases, each with an evaluation and a checkpoint; the next begins with what it left."""
        state = self.together.part(self.state, index)
        for phase in phases_left(run.program, run.step):
            self.say_of(run, f"step {run.step}  fits {phase}")
            state = run.fit(state, phase)
            self.say_of(run, f"step {run.step}  {describe(run.evaluate(state))}")
            run.save(state)

    def finish(self, _: int, run: Run) -> None:
        """Writes a run's result, and says what it skipped."""
        run.finish()
        assert isinstance(run.outcome, dict)
        skipped = {name: value for name, value in run.outcome.items() if name.endswith("/skipped") and value}
        if skipped:
            self.say_of(run, f"examples that cannot be decoded were skipped: {describe(skipped)}")

    def say_of(self, run: Run, text: str) -> None:
        """Prints a line, with the run's name where there are several."""
        self.progress.say(f"{run.workdir.name}  {text}" if len(self.runs) > 1 else text)


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
