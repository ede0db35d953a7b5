r"""Launches a run: on clouds by SkyPilot, on GKE, on Slurm, or rehearsed on this machine.

python -m launch.submit --on=sky --config=experiments/configs/imagenet.py:resnet50 --topology=v5e:4x4 --spot \
  --workdir=gs://BUCKET/runs/imagenet_resnet50 --config.batch_size=1024 --dry_run
python -m launch.submit --on=local --config=experiments/configs/digits.py:lenet5 --topology=local:2x4 \
  --workdir=runs/digits_pod

A run is started again when its machines were taken away and when it ends with exit code 75, which says that it has
saved; never when it ends with 2, which says that its input is not right. Flags --config.… are the run's own.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cnn_research.errors import UserError
from launch import remote
from launch.job import TRY_AGAIN, Job, make_name, parse_options
from launch.remote import REPOSITORY
from launch.topologies import LOCAL, parse

OPTIONS: dict[str, Mapping[str, str]] = {**remote.OPTIONS, "local": {}}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m launch.submit --help")


def read(arguments: Sequence[str]) -> tuple[argparse.Namespace, Job, dict[str, str]]:
    """Returns what a command line asks for: the flags, the run, and options of the target.

    Args:
      arguments: of the command line.

    Raises:
      UserError: it is not right.
    """
    options = "\n".join(f"  {on}: {name}, {what}" for on, known in OPTIONS.items() for name, what in known.items())
    parser = _Parser(
        prog="launch.submit",
        description=__doc__,
        epilog=f"values of --option:\n{options}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--on", choices=[*OPTIONS], required=True, help="where")
    parser.add_argument("--config", required=True, help="a recipe, FILE.py or FILE.py:argument")
    parser.add_argument("--topology", required=True, help="v5e:4x4, 2xv5e:16x16, h100:2x8, local:2x4")
    parser.add_argument("--workdir", required=True, help="the run's directory; in a bucket where machines come and go")
    parser.add_argument("--name", default="", help="of the job; from the directory unless given")
    parser.add_argument("--spot", action="store_true", help="take machines that may be taken away")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the target; repeatable")
    parser.add_argument("--dry_run", action="store_true", help="print what would be sent, and send nothing")
    flags, rest = parser.parse_known_args(arguments)
    if strange := [word for word in rest if not word.startswith("--config.")]:
        raise UserError(f"unexpected argument {strange[0]!r}; the run's own flags are --config.name=value")
    if not os.path.isfile(REPOSITORY / flags.config.split(":", 1)[0]):  # whatever text that is
        raise UserError(f"there is no recipe {flags.config.split(':', 1)[0]!r}; recipes are in experiments/configs")
    job = Job(
        name=make_name(flags.name or flags.workdir),
        topology=parse(flags.topology),
        workdir=flags.workdir,
        arguments=(f"--config={flags.config}", *rest),
        spot=flags.spot,
    )
    return flags, job, parse_options(flags.option, OPTIONS[flags.on])


def main(arguments: Sequence[str]) -> int:
    """Launches what a command line asks for.

    Args:
      arguments: of the command line.

    Returns:
      The exit code.
    """
    flags, job, options = read(arguments)
    if flags.on == "local":
        command = local_command(job)
        return _show(shlex.join(command)) if flags.dry_run else run_until_done(command)
    if flags.dry_run:
        return _show(remote.preview(flags.on, [job], options))
    [known] = remote.send(flags.on, [job], options)
    return _show(f"job {known}")


def local_command(job: Job) -> list[str]:
    """Returns the command that runs a job on this machine, rehearsing a pod where the topology has processes.

    Args:
      job: to run.

    Raises:
      UserError: its topology is not of this machine.
    """
    if job.topology.kind != LOCAL:
        raise UserError(f"{job.topology} is not on this machine; give local:2x4, 2 processes of 4 devices, or local")
    command = [sys.executable, *job.module]
    if not job.topology.shape:
        return command
    processes, devices = job.topology.shape
    return [sys.executable, "-m", "launch.local", f"--processes={processes}", f"--devices={devices}", "--", *command]


def run_until_done(command: Sequence[str]) -> int:
    """Runs a command, again where it ends with `TRY_AGAIN`, but not once this process is asked to stop.

    Args:
      command: to run.

    Returns:
      Its last exit code.
    """
    asked: list[int] = []
    processes: list[subprocess.Popen[bytes]] = []

    def stop(number: int, _: Any) -> None:
        asked.append(number)
        if number == signal.SIGTERM:  # a terminal sends Ctrl-C to both
            processes[-1].send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            processes.append(subprocess.Popen(command, cwd=REPOSITORY))
            code = processes[-1].wait()
            if code != TRY_AGAIN or asked:
                return code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(text: str) -> int:
    print(text.rstrip("\n"))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
