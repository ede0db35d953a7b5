"""The arms of a sweep as jobs elsewhere: sent, and not sent again while they are there or once they are done."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from cnn_research.errors import UserError
from cnn_research.training.writers import write_text
from experiments.sweeps.arms import Arm, flag_arguments
from launch import remote
from launch.job import Job, make_name
from launch.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Target:
    """Where arms are sent.

    Attributes:
      on: a name of `launch.remote.OPTIONS`.
      topology: the machines of an arm.
      options: of the target.
      spot: whether its machines may be taken away.
    """

    on: str
    topology: Topology
    options: Mapping[str, str]
    spot: bool = False


def preview(arms: Sequence[Arm], workdir: epath.Path, target: Target) -> str:
    """Returns what the first sending of a sweep would send; nobody is asked for what is done or there.

    Args:
      arms: of the sweep.
      workdir: the sweep's directory.
      target: where to.

    Raises:
      UserError: the target has no such machines.
    """
    return remote.preview(target.on, [_job(arm, workdir, target, attempt=1) for arm in arms], target.options)


def send_sweep(
    arms: Sequence[Arm],
    workdir: epath.Path,
    target: Target,
    at_once: int,
    metric: str,
    description: Mapping[str, Any],
) -> dict[str, Any]:
    """Sends the arms that are neither done nor there; those that are gone without a result are sent again.

    Args:
      arms: of the sweep.
      workdir: the sweep's directory, which the target's machines see.
      target: where to.
      at_once: arms that run at once, on Slurm; 0 is any number.
      metric: that arms are compared by.
      description: what else `sweep.json` is to say of the sweep.

    Returns:
      A summary: the number of `arms`, of those `done`, `running` and `sent`, and the names of those that had `failed`.

    Raises:
      UserError: the target has no such machines, or cannot be reached.
    """
    entries = _entries(arms, workdir)
    left = [(arm, entry) for arm, entry in zip(arms, entries, strict=True) if entry["status"] != "done"]
    there = remote.unfinished(target.on) if any("job" in entry for _, entry in left) else set()
    jobs, sent, failed = [], [], []
    for arm, entry in left:
        if entry.get("job") in there:
            entry["status"] = "running"
            continue
        if "job" in entry:
            failed.append(arm.name)
            print(f"gone without a result, sent again: {arm.name}", file=sys.stderr)
        jobs.append(_job(arm, workdir, target, entry.get("attempts", 0) + 1))
        sent.append(entry)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        for known, entry in zip(remote.send(target.on, jobs, target.options, at_once), sent, strict=True):
            entry |= {"status": "sent", "job": known, "attempts": entry.get("attempts", 0) + 1}
    finally:  # what was sent must not be sent twice
        text = json.dumps({**description, "metric": metric, "arms": entries}, indent=2)
        write_text(workdir / "sweep.json", text + "\n")
    statuses = [entry["status"] for entry in entries]
    return {"arms": len(arms), **{s: statuses.count(s) for s in ("done", "running", "sent")}, "failed": failed}


def _entries(arms: Sequence[Arm], workdir: epath.Path) -> list[dict[str, Any]]:
    """Returns what `sweep.json` says of each arm, brought up to date."""
    path = workdir / "sweep.json"
    try:
        before = {entry["name"]: entry for entry in json.loads(path.read_text())["arms"]} if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}; delete it, and the sweep goes on from its results") from error
    return [
        {
            **before.get(arm.name, {}),
            "name": arm.name,
            "fields": arm.fields,
            "status": "done" if (workdir / arm.name / "result.json").exists() else "waiting",
        }
        for arm in arms
    ]


def _job(arm: Arm, workdir: epath.Path, target: Target, attempt: int) -> Job:
    """Returns an arm as a job; the name ends with the arm's hash, and the attempt where it is not the first."""
    digest = arm.name.rpartition("-")[2]
    again = f"-{attempt}" if attempt > 1 else ""
    return Job(
        name=f"{make_name(workdir.name)[:24].strip('-')}-{digest}{again}",
        topology=target.topology,
        workdir=str(workdir / arm.name),
        arguments=(f"--config={arm.recipe}", *flag_arguments(arm.overrides)),
        spot=target.spot,
    )
