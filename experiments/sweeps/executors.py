"""Where the arms of a sweep run: as processes of this machine, or those alike as one program."""

import collections
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cnn_research.training import config as configs
from cnn_research.training import together
from experiments import command_line
from experiments.sweeps.arms import Arm, flag_arguments

REPOSITORY = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an arm ended.

    Attributes:
      arm: which.
      code: its exit code; a signal's number below zero.
      seconds: from start to end.
    """

    arm: Any
    code: int
    seconds: float


# (arms, workdir, jobs, requests): yields each arm's outcome as it ends. `jobs` is how many run at once, 0 leaves it to
# the executor. `requests` holds a signal once the sweep is to stop; the executor then passes it on, waits, and starts
# nothing more.
Executor = Callable[[Sequence[Arm], Path, int, list[int]], Generator[Outcome, None, None]]


class Named(Protocol):
    """An arm, or several as one: what has a directory of its own."""

    @property
    def name(self) -> str:
        """Of the directory."""
        ...


def train_command(arm: Arm, directory: Path) -> list[str]:
    """Returns the command that trains an arm.

    Args:
      arm: which.
      directory: of its run.
    """
    script = [sys.executable, "-m", "experiments.train"]
    return [*script, f"--config={arm.recipe}", *flag_arguments(arm.overrides), f"--workdir={directory}"]


def run_locally(
    arms: Sequence[Any],
    workdir: Path,
    jobs: int,
    requests: list[int],
    command: Callable[[Any, Path], list[str]] = train_command,
) -> Generator[Outcome, None, None]:
    """Runs arms as processes of this machine; an arm's output goes to `log.txt` in its directory.

    Args:
      arms: to run.
      workdir: the sweep's directory.
      jobs: arms that run at once, which share the GPUs; 0 gives each GPU an arm, or runs one at a time without.
      requests: holds a signal once the sweep is to stop.
      command: gives the command of an arm.

    Yields:
      The outcome of each arm that was started, as it ends.
    """
    waiting = collections.deque(arms)
    running: dict[subprocess.Popen[bytes], tuple[Named, float, dict[str, str]]] = {}
    free = shares(gpus(), jobs)
    told = False
    try:
        while running or (waiting and not requests):
            while waiting and free and not requests:
                arm, share = waiting.popleft(), free.pop(0)
                process = _start(command(arm, workdir / arm.name), workdir / arm.name, share)
                running[process] = (arm, time.monotonic(), share)
            for process in [process for process in running if process.poll() is not None]:
                arm, began, share = running.pop(process)
                free.append(share)
                if process.returncode == command_line.TRY_AGAIN:  # this machine is being taken away
                    requests.append(signal.SIGTERM)
                yield Outcome(arm, process.returncode, time.monotonic() - began)
            if requests and not told:
                told = True
                for process in running:
                    process.send_signal(requests[0])
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()


def gpus() -> list[str]:
    """Returns the names by which `CUDA_VISIBLE_DEVICES` knows this machine's GPUs."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def shares(devices: Sequence[str], jobs: int) -> list[dict[str, str]]:
    """Returns environment variables for each of the arms that run at once: their parts of the GPUs.

    Args:
      devices: the GPUs.
      jobs: arms at once; 0 is one for each GPU.
    """
    jobs = jobs or max(1, len(devices))
    if not devices or jobs == 1:
        return [{} for _ in range(jobs)]
    if jobs <= len(devices):
        return [{"CUDA_VISIBLE_DEVICES": ",".join(devices[job::jobs])} for job in range(jobs)]
    fraction = f"{0.9 / -(-jobs // len(devices)):.3f}"  # of a GPU's memory, which JAX would else take for one alone
    return [
        {"CUDA_VISIBLE_DEVICES": devices[job % len(devices)], "XLA_PYTHON_CLIENT_MEM_FRACTION": fraction}
        for job in range(jobs)
    ]


def _start(command: list[str], directory: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    with (directory / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **variables},
            start_new_session=True,  # Ctrl-C reaches it once, from here, and not from the terminal as well
            close_fds=False,  # it inherits the lock
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """Arms that one program trains.

    Attributes:
      arms: of the group.
    """

    arms: tuple[Arm, ...]

    @property
    def name(self) -> str:
        """Of its directory, which holds its log."""
        names = ",".join(sorted(arm.name for arm in self.arms))
        return f"together-{hashlib.sha256(names.encode()).hexdigest()[:8]}"


def group(arms: Iterable[Arm], most: int = 0) -> list[Group]:
    """Returns arms that differ in seeds and scalars alone as groups.

    Args:
      arms: to group.
      most: arms in a group; 0 is any number.
    """
    alike: dict[str, list[Arm]] = {}
    for arm in arms:
        fields = configs.flatten(arm.config)
        rest = {name: value for name, value in fields.items() if name not in together.SCALARS}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(arm)
    return [
        Group(tuple(several[start : start + (most or len(several))]))
        for several in alike.values()
        for start in range(0, len(several), most or len(several))
    ]


def run_together(arms: Sequence[Arm], workdir: Path, jobs: int, requests: list[int]) -> Generator[Outcome, None, None]:
    """Runs arms that differ in seeds and scalars alone as one program, and one such group after another.

    Args:
      arms: to run.
      workdir: the sweep's directory.
      jobs: arms of one program; 0 is all that are alike.
      requests: holds a signal once the sweep is to stop.

    Yields:
      The outcome of each arm of a group as the group ends.
    """

    def command(several: Group, directory: Path) -> list[str]:
        runs = [
            {"config": arm.recipe, "overrides": arm.overrides, "workdir": str(workdir / arm.name)}
            for arm in several.arms
        ]
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "runs.json").write_text(json.dumps(runs, indent=2) + "\n")
        return [sys.executable, "-m", "experiments.sweeps.train_together", f"--runs={directory / 'runs.json'}"]

    for outcome in run_locally(group(arms, jobs), workdir, 1, requests, command):
        log = workdir / outcome.arm.name / "log.txt"
        for arm in outcome.arm.arms:
            directory = workdir / arm.name
            finished = (directory / "result.json").exists()
            if not finished:
                directory.mkdir(exist_ok=True)
                own = [
                    line for line in log.read_text(errors="replace").splitlines() if line.startswith(f"{arm.name}: ")
                ]
                told = [line.replace(f"{arm.name}: ", "", 1) for line in own[-1:]] or [f"see {log}"]
                (directory / "log.txt").write_text("\n".join(told) + "\n")
            yield Outcome(arm, 0 if finished else outcome.code or 2, outcome.seconds)


EXECUTORS: dict[str, Executor] = {"local": run_locally, "vmap": run_together}
