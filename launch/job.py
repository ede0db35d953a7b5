"""What is launched: a run's command, its directory and the machines that it wants."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from cnn_research.errors import UserError, nearest
from launch.topologies import Topology

TRY_AGAIN = 75  # the exit code of a run that was asked to stop and saved: started again, it goes on
WRONG = 2  # that of a run whose input is not right: started again, it would end likewise


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to be launched.

    Attributes:
      name: lower-case letters, digits and hyphens, as Kubernetes wants it.
      topology: what it runs on.
      workdir: the run's directory, which all its machines see.
      arguments: of `python -m experiments.train`.
      spot: whether its machines may be taken away.
    """

    name: str
    topology: Topology
    workdir: str
    arguments: tuple[str, ...]
    spot: bool = False

    def __post_init__(self) -> None:
        """Refuses what scripts and documents cannot hold as it is.

        Raises:
          UserError: the directory is not printable, or an argument is no text.
        """
        check_printable("workdir", self.workdir)
        for word in self.arguments:
            if re.search("[\ud800-\udfff]", word):  # how Python holds bytes that are no UTF-8
                raise UserError(f"argument {word!r} is not in UTF-8")

    @property
    def module(self) -> tuple[str, ...]:
        """What comes after `python`."""
        return ("-m", "experiments.train", *self.arguments, f"--workdir={self.workdir}")

    @property
    def in_bucket(self) -> bool:
        """Whether the run's directory is in a bucket, which outlives any machine."""
        return "://" in self.workdir


def make_name(workdir: str) -> str:
    """Returns the name of a job, from the last part of its run's directory."""
    words = re.sub(r"[^a-z0-9]+", "-", workdir.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
    return (words if re.match("[a-z]", words) else f"run-{words}")[:40].strip("-")


def check_printable(what: str, text: str) -> None:
    """Refuses a text that would not stay within its line, or that nobody could see.

    Args:
      what: it is.
      text: to check.

    Raises:
      UserError: it holds, say, the end of a line.
    """
    if not text.isprintable():
        raise UserError(
            f"{what} {text!r} holds characters that are not printable, such as a line's end; leave them out"
        )


def parse_options(texts: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Returns the options of a target.

    Args:
      texts: `name=value` each.
      known: the target's options, with what they are.

    Raises:
      UserError: a text is no such option.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in known:
            raise UserError(f"option {name!r} is unknown here; {nearest(name, known)}")
        if not equals or not value:
            raise UserError(f"option {name} has no value; write --option={name}=…: {known[name]}")
        check_printable(f"option {name}", value)
        options[name] = value
    return options


def require_bucket(job: Job, target: str) -> None:
    """Refuses a job whose checkpoints would go with its machines.

    Args:
      job: to launch.
      target: where.

    Raises:
      UserError: its directory is on a machine.
    """
    if not job.in_bucket:
        raise UserError(f"workdir {job.workdir} would be lost with {target}'s machines; give one in a bucket, gs://…")
