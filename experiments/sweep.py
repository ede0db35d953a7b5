r"""Trains the arms of a sweep and tabulates what they reach, mean ± standard deviation over seeds.

python -m experiments.sweep --config=experiments/configs/digits.py:lenet5 --workdir=runs/sweep_norm \
  --sweep="model.norm=none,batch; seed=0,1,2" --config.duration=5ep

`--sweep` is a grid, or the name of one of the recipe's functions `sweep_<name>()`. Further `--config.…` flags apply to
every arm. Each arm is an ordinary run directory; arms that are finished are not trained again, so the same command goes
on after an interruption. `--report` tabulates again what there is. With `--executor=vmap` arms that differ in seeds,
learning rates, weight decays or label smoothing alone are trained as one compiled program. With `--executor=slurm`,
`sky` or `gke` each arm is a job of its own, an array on Slurm; the same command later sends again what has failed:

python -m experiments.sweep --config=experiments/configs/cifar10.py:resnet20_cifar --sweep=skips --executor=sky \
  --topology=v5e:2x2 --spot --workdir=gs://BUCKET/sweeps/skips --dry_run
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags
from tqdm import tqdm

from cnn_research import tasks
from cnn_research.errors import UserError, nearest
from cnn_research.training.signals import stop_requests
from cnn_research.training.writers import read_result, write_text
from experiments import command_line
from experiments.sweeps import report, submit
from experiments.sweeps.arms import Arm, make_arms
from experiments.sweeps.executors import EXECUTORS, Executor, Outcome
from experiments.sweeps.results import pick
from launch import remote
from launch.job import parse_options
from launch.topologies import parse

_CONFIG = config_flags.DEFINE_config_file("config", help_string="a recipe, FILE.py or FILE.py:argument")
_SWEEP = flags.DEFINE_string("sweep", "", 'a named sweep of the recipe, or a grid: "model.norm=none,batch; seed=0,1"')
_WORKDIR = flags.DEFINE_string("workdir", "", "the sweep's directory, which holds a run's directory for each arm")
_EXECUTOR = flags.DEFINE_string(
    "executor", "local", "where the arms run: local; vmap: here, those alike as one program; slurm, sky, gke: as jobs"
)
_JOBS = flags.DEFINE_integer(
    "jobs", 0, "arms that run at once; 0: locally one a GPU, or one; with vmap all that are alike", lower_bound=0
)
_METRIC = flags.DEFINE_string(
    "metric", "", "what to compare, such as test/loss; the task's primary metric unless given"
)
_TOPOLOGY = flags.DEFINE_string("topology", "", "slurm, sky, gke: the machines of an arm, h100:1x8, v5e:2x4")
_OPTION = flags.DEFINE_multi_string("option", [], "slurm, sky, gke: NAME=VALUE of the target, see launch.submit --help")
_SPOT = flags.DEFINE_bool("spot", False, "slurm, sky, gke: take machines that may be taken away")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "slurm, sky, gke: print what would be sent, and send nothing")
_REPORT = flags.DEFINE_bool("report", False, "train nothing, only tabulate what there is")


def run_sweep(
    arms: Sequence[Arm], workdir: Path, execute: Executor, jobs: int, metric: str, **description: Any
) -> tuple[dict[str, Any], int]:
    """Runs the arms that are not finished and tabulates them all.

    Args:
      arms: of the sweep.
      workdir: the sweep's directory.
      execute: runs arms.
      jobs: arms that run at once.
      metric: that arms are compared by.
      **description: what else `sweep.json` is to say of the sweep.

    Returns:
      A summary, and the exit code: 0 all done; 1 some failed; 2 all failed, for the input was not right; 75 or 130
      interrupted.

    Raises:
      UserError: another sweep works in the directory, or no result holds the metric.
    """
    status = {arm.name: "done" if _result(workdir, arm) else "waiting" for arm in arms}
    waiting = [arm for arm in arms if status[arm.name] == "waiting"]
    codes = []
    with _locked(workdir), stop_requests() as requests:
        _save(workdir, arms, status, metric, description)
        if len(waiting) < len(arms):
            _say(f"{len(arms) - len(waiting)} of {len(arms)} arms are finished already and skipped")
        began = time.monotonic()
        with contextlib.closing(execute(waiting, workdir, jobs, requests)) as outcomes:
            for outcome in outcomes:
                codes.append(outcome.code)
                stopped = "interrupted" if requests else "failed"
                status[outcome.arm.name] = stopped if outcome.code else "done"
                _save(workdir, arms, status, metric, description)
                left = (time.monotonic() - began) / len(codes) * (len(waiting) - len(codes))
                told = _tell(outcome, status[outcome.arm.name], workdir, metric)
                told += "" if requests else f"  left {tqdm.format_interval(left)}"
                _say(f"[{len(arms) - len(waiting) + len(codes)}/{len(arms)}] {told}")
        text, summary = report.write(workdir, metric)
    print(f"\n{text}", flush=True)
    if requests:
        name = signal.Signals(requests[0]).name
        _say(f"stopped by {name} with {summary['done']} of {len(arms)} arms done; the same command goes on from there")
        return summary, command_line.TRY_AGAIN if requests[0] == signal.SIGTERM else 128 + requests[0]
    for name in summary["failed"]:
        _say(f"failed: {name}; see {workdir / name / 'log.txt'}")
    if len(summary["failed"]) == len(arms) and set(codes) == {2}:
        return summary, 2
    return summary, 1 if summary["failed"] else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _result(workdir: Path, arm: Arm) -> dict[str, Any] | None:
    path = workdir / arm.name / "result.json"
    return read_result(epath.Path(path)) if path.exists() else None


def _save(workdir: Path, arms: Sequence[Arm], status: dict[str, str], metric: str, description: dict[str, Any]) -> None:
    listed = [{"name": arm.name, "fields": arm.fields, "status": status[arm.name]} for arm in arms]
    text = json.dumps({**description, "metric": metric, "arms": listed}, indent=2)
    write_text(epath.Path(workdir / "sweep.json"), text + "\n")


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Keeps a second sweep out until this one and the runs it started have ended, even if this one is killed."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another sweep, or a run that one started, works in {workdir}; wait or end it") from error
        yield


def _tell(outcome: Outcome, status: str, workdir: Path, metric: str) -> str:
    """Returns a line on how an arm ended."""
    words = f"{outcome.arm.name}  {status}"
    if status == "done":
        value = pick(_result(workdir, outcome.arm) or {}, metric)
        words = outcome.arm.name + (f"  {metric} {value:.4f}" if value is not None else "")
    elif status == "failed":
        words += f": {_complaint(outcome, workdir)}"
    return f"{words}  {outcome.seconds:.0f} s"


def _complaint(outcome: Outcome, workdir: Path) -> str:
    """Returns the last `error: …` that an arm printed, or else its last line."""
    if outcome.code < 0:
        return f"killed by {signal.Signals(-outcome.code).name}"
    log = (workdir / outcome.arm.name / "log.txt").read_text(errors="replace")
    lines = [line.strip() for line in log.splitlines() if line.strip()] or [f"exit code {outcome.code}"]
    errors = [line for line in lines if line.startswith("error: ")] if outcome.code == 2 else []
    return (errors or lines)[-1]


def main() -> None:
    """Runs the sweep, or only its report; prints the table, and a summary as one JSON object."""
    jax.config.update("jax_platforms", "cpu")  # accelerators are for the arms
    command_line.require("workdir")
    if _REPORT.value:
        text, summary = report.write(_WORKDIR.value, _METRIC.value)
        print(f"{text}\n{json.dumps(summary)}")
        return
    command_line.require("config", "sweep")
    known = [*EXECUTORS, *remote.OPTIONS]
    if _EXECUTOR.value not in known:
        raise UserError(f"--executor={_EXECUTOR.value} is unknown; {nearest(_EXECUTOR.value, known)}")
    elsewhere = _EXECUTOR.value in remote.OPTIONS
    if not elsewhere and (_TOPOLOGY.value or _OPTION.value or _SPOT.value or _DRY_RUN.value):
        raise UserError(f"--topology, --option, --spot and --dry_run are of {', '.join(remote.OPTIONS)}")
    if "://" in _WORKDIR.value and not elsewhere:
        raise UserError(f"--workdir={_WORKDIR.value}: a sweep on this machine keeps its runs in a local directory")
    flag = flags.FLAGS["config"]
    recipe, overrides = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
    arms = make_arms(recipe, _SWEEP.value, overrides)
    config = arms[0].config
    metric = _METRIC.value or f"{config.data.test}/{tasks.create(config.task, **config.loss.to_dict()).primary_metric}"
    description = {"config": recipe, "sweep": _SWEEP.value, "flags": overrides}
    if elsewhere:
        command_line.require("topology")
        options = parse_options(_OPTION.value, remote.OPTIONS[_EXECUTOR.value])
        target = submit.Target(_EXECUTOR.value, parse(_TOPOLOGY.value), options, _SPOT.value)
        directory = epath.Path(_WORKDIR.value).expanduser()
        if _DRY_RUN.value:
            print(submit.preview(arms, directory, target))
            return
        print(json.dumps(submit.send_sweep(arms, directory, target, _JOBS.value, metric, description)))
        return
    workdir = Path(_WORKDIR.value).expanduser()
    summary, code = run_sweep(arms, workdir, EXECUTORS[_EXECUTOR.value], _JOBS.value, metric, **description)
    print(json.dumps(summary))
    sys.exit(code)


if __name__ == "__main__":
    command_line.run(main)
