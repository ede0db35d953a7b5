"""A run as a Slurm job that goes on when it has been stopped. https://github.com/facebookincubator/submitit."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_research.errors import UserError
from launch.job import TRY_AGAIN, Job
from launch.topologies import GPUS

OPTIONS = {
    "partition": "of the cluster",
    "account": "that pays",
    "qos": "quality of service",
    "constraint": "features of the nodes",
    "hours": "after which the job starts anew and goes on (24)",
    "cpus": "for each GPU (8)",
}
GRACE = 180  # seconds before the end of its time at which a job is told


class Command:
    """A command that submitit runs in each task, and starts again where it ends with `TRY_AGAIN`.

    Attributes:
      words: of the command.
    """

    def __init__(self, words: Sequence[str]):
        self.words = tuple(words)

    def __call__(self) -> int:
        """Runs the command to its end.

        Raises:
          RuntimeError: it ends with another code than 0; submitit then counts the job as failed.
        """
        while (code := self._run()) == TRY_AGAIN:
            if "SLURM_JOB_ID" in os.environ:
                self._requeue()
        if code:
            raise RuntimeError(f"{' '.join(self.words)} ended with exit code {code}")
        return code

    def _run(self) -> int:
        self._process = subprocess.Popen(self.words)
        return self._wait()

    def _wait(self) -> int:
        # Not `wait`, whose lock the handler of a signal would find taken.
        while (code := self._process.poll()) is None:
            time.sleep(0.1)
        return code

    def _requeue(self) -> None:
        """Queues the job again, by its first task, which ends all of them."""
        if os.environ.get("SLURM_PROCID", "0") == "0":
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        signal.pause()

    def checkpoint(self) -> Any:
        """Has the command save and end; submitit calls it when the job's time is nearly over, then queues it again."""
        from submitit.helpers import DelayedSubmission

        self._process.terminate()
        self._wait()
        return DelayedSubmission(Command(self.words))


def parameters(job: Job, options: Mapping[str, str]) -> dict[str, Any]:
    """Returns what submitit's executor is told.

    Args:
      job: to launch.
      options: see `OPTIONS`.

    Raises:
      UserError: Slurm has no such machines, or an option is no number.
    """
    if job.topology.kind not in GPUS:
        raise UserError(f"Slurm starts nodes of GPUs, not {job.topology}; give h100:2x8 for 2 nodes of 8")
    for name in ("hours", "cpus"):
        if not options.get(name, "1").isdecimal() or options.get(name) == "0":
            raise UserError(f"--option={name}={options[name]} is no number: {OPTIONS[name]}")
    nodes, each = job.topology.shape
    return {
        "name": job.name,
        "nodes": nodes,
        # JAX gives each task of a Slurm job the one device of its rank.
        "tasks_per_node": each,
        "gpus_per_node": each,
        "cpus_per_task": int(options.get("cpus", "8")),
        "timeout_min": 60 * int(options.get("hours", "24")),
        "slurm_signal_delay_s": GRACE,
        "slurm_additional_parameters": {"requeue": True},
        **{f"slurm_{name}": options[name] for name in ("partition", "account", "qos", "constraint") if name in options},
    }


def submit(jobs: Sequence[Job], options: Mapping[str, str], at_once: int = 0) -> list[str]:
    """Sends jobs, several as an array.

    Args:
      jobs: to launch, on the same machines.
      options: see `OPTIONS`.
      at_once: jobs of an array that run at once; 0 is any number.

    Returns:
      Their numbers.

    Raises:
      UserError: submitit, or Slurm, is not there.
    """
    try:
        import submitit
    except ImportError:
        raise UserError('submitit is not installed; pip install -e ".[launch]" brings it') from None
    first, wanted = jobs[0], parameters(jobs[0], options)
    folder = Path("runs") / "slurm" / first.name if first.in_bucket else Path(first.workdir) / "slurm"
    try:
        # How often the time of a job may run out.
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=1000)
    except RuntimeError as error:
        raise UserError(f"Slurm is not here, {error}; submit from one of its machines") from error
    executor.update_parameters(**wanted)
    if len(jobs) > 1:
        executor.update_parameters(slurm_array_parallelism=at_once or len(jobs))
    with executor.batch() if len(jobs) > 1 else contextlib.nullcontext():
        sent = [executor.submit(Command([sys.executable, *job.module])) for job in jobs]
    return [job.job_id for job in sent]
