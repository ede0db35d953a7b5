"""Jobs elsewhere: what is sent, what would be, and which are still there."""

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cnn_research.errors import UserError
from launch.gke import jobset
from launch.job import Job
from launch.skypilot import task
from launch.slurm import job as slurm

REPOSITORY = Path(__file__).parent.parent

# By target, what `--option=NAME=VALUE` sets there.
OPTIONS: dict[str, Mapping[str, str]] = {"sky": task.OPTIONS, "gke": jobset.OPTIONS, "slurm": slurm.OPTIONS}


def send(on: str, jobs: Sequence[Job], options: Mapping[str, str], at_once: int = 0) -> Iterator[str]:
    """Sends jobs, each as it is asked for.

    Args:
      on: where, a name of `OPTIONS`.
      jobs: on Slurm, several are one array.
      options: of the target.
      at_once: jobs of an array that run at once; 0 is any number.

    Yields:
      By what each job is known there.

    Raises:
      UserError: the target has no such machines, or cannot be reached.
    """
    if not jobs:
        return
    if on == "slurm":
        yield from slurm.submit(jobs, options, at_once)
        return
    documents = [_document(on, job, options) for job in jobs]  # refuses before anything is sent
    for job, document in zip(jobs, documents, strict=True):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(_yaml(document))
            file.flush()
            _run(_command(on, job, file.name), capture=False)
        yield job.name


def preview(on: str, jobs: Sequence[Job], options: Mapping[str, str]) -> str:
    """Returns what `send` would send, as YAML with the command that would.

    Args:
      on: where, a name of `OPTIONS`.
      jobs: to send.
      options: of the target.

    Raises:
      UserError: the target has no such machines.
    """
    if on == "slurm":
        commands = [[sys.executable, *job.module] for job in jobs]
        what = {"command": commands[0]} if len(jobs) == 1 else {"array": commands}
        return _yaml({**what, "parameters": slurm.parameters(jobs[0], options)}).rstrip("\n")
    texts = []
    for job in jobs:
        document = _yaml(_document(on, job, options))
        notes = f"# The nodes of a slice, once: {jobset.node_pool(job)}\n" if on == "gke" else ""
        texts.append(f"# {shlex.join(_command(on, job, 'FILE'))}\n{notes}{document}")
    return "---\n".join(texts).rstrip("\n")


def unfinished(on: str) -> set[str]:
    """Returns by what the jobs are known that wait or run.

    Args:
      on: where, a name of `OPTIONS`.

    Raises:
      UserError: the target cannot be reached, or does not answer as it should.
    """
    if on == "slurm":
        return set(_run(["squeue", "--me", "--array", "--noheader", "--format=%i"]).split())
    try:
        if on == "sky":
            answer = _run(["sky", "jobs", "queue", "--skip-finished", "--all", "--output", "json"])
            return {entry["job_name"] for entry in json.loads(answer or "[]")}
        jobsets = json.loads(_run(["kubectl", "get", "jobsets", "--output=json"]))["items"]
        return {each["metadata"]["name"] for each in jobsets if not each.get("status", {}).get("terminalState")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"what {on} says of its jobs cannot be read: {error}") from error


def _document(on: str, job: Job, options: Mapping[str, str]) -> dict[str, Any]:
    return task.render(job, options) if on == "sky" else jobset.render(job, options)


def _command(on: str, job: Job, path: str) -> list[str]:
    return task.command(path, job) if on == "sky" else jobset.command(path)


def _run(command: Sequence[str], capture: bool = True) -> str:
    """Runs a target's own program, and returns what it prints where that is wanted."""
    try:
        done = subprocess.run(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE if capture else None)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not installed; see the README beside its launcher") from None
    if done.returncode:
        raise UserError(f"{shlex.join(command)} ended with exit code {done.returncode}")
    return done.stdout or ""


class _Dumper(yaml.SafeDumper):
    """Writes scripts as they are, line by line."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000)
