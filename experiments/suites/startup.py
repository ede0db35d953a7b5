"""From the command to the end of the first training step: cold, and with what the compilation cache keeps."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cnn_research.data import sources
from cnn_research.errors import UserError
from cnn_research.training.writers import read_records
from experiments.suites import timing

REPOSITORY = Path(__file__).parents[2]
MODELS = ("lenet5", "resnet20_cifar")


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """Seconds from the command to the end of the first step on the digits; `ratio` is cold over warm."""
    chosen = timing.chosen(models, MODELS)
    sources.find("digits")  # prepares them where they are missing, which only the very first run does
    return [_row(model, rounds) for model in chosen]


def _row(model: str, rounds: int) -> timing.Row:
    seconds: dict[str, list[float]] = {"cold": [], "warm": [], "import": []}
    cpu: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for start in cpu:  # the warm one finds the programs that the cold one compiled
                first_step, total = _train(model, Path(folder), start)
                seconds[start].append(first_step)
                cpu[start].append(total)
        began = time.time()
        _run("-c", "import experiments.train")
        seconds["import"].append(time.time() - began)
    return {
        "model": model,
        **{f"{name}_s": round(statistics.median(values), 2) for name, values in seconds.items()},
        **{f"{name}_cpu_s": round(statistics.median(values), 2) for name, values in cpu.items()},
        **timing.ratios(seconds["cold"], seconds["warm"]),
    }


def _train(model: str, folder: Path, start: str) -> tuple[float, float]:
    """Trains for one step.

    Returns:
      Seconds from the command to the record of the step; and seconds of all cores for the whole command, which
      evaluates and saves after the step.
    """
    recipe, workdir = f"--config=experiments/configs/digits.py:{model}", folder / start
    steps = ("--config.duration=1", "--config.log_every=1")
    began, used = time.time(), _children()
    _run("-m", "experiments.train", recipe, *steps, f"--workdir={workdir}", cache=folder / "xla")
    return read_records(workdir / "metrics.jsonl")[0]["time"] - began, _children() - used


def _run(*arguments: str, cache: Path | None = None) -> None:
    environment = {**os.environ, **({"JAX_COMPILATION_CACHE_DIR": str(cache)} if cache else {})}
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise UserError(f"{' '.join(arguments)} ended with {ended.returncode}: {ended.stderr.strip()[-500:]}")


def _children() -> float:
    """Returns the seconds that the cores have worked for this process's children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
