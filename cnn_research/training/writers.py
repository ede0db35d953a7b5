"""What a run writes beside its checkpoints: metrics as JSON lines and for TensorBoard, its environment, its result."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from cnn_research.errors import UserError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def write_text(path: epath.Path, text: str) -> None:
    """Replaces a file as a whole: a process that is killed here leaves the old one or the new one.

    Args:
      path: of the file.
      text: all that it is to hold.

    Raises:
      UserError: it cannot be written; the old one stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _writing(path):
        temporary.write_text(text)
        temporary.replace(path)


@contextlib.contextmanager
def _writing(path: epath.Path) -> Iterator[None]:
    """Turns the faults of disks and buckets, which are of many kinds, into one line."""
    try:
        yield
    except Exception as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def to_json(values: dict[str, Any]) -> str:
    """Returns one line of JSON; NaN and infinities, which JSON lacks, become strings."""
    return json.dumps({key: _finite(value) for key, value in values.items()})


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: epath.Path, *fields: str) -> dict[str, Any]:
    """Reads an object that a run or a sweep wrote.

    Args:
      path: of the file.
      *fields: that it must have.

    Raises:
      UserError: the file is damaged.
    """
    return _parse(path, [path.read_bytes()], fields)[0]


def read_result(path: epath.Path, *fields: str) -> dict[str, Any]:
    """Reads a run's `result.json`: numbers by name.

    Args:
      path: of the file.
      *fields: that it must have.

    Raises:
      UserError: the file is damaged.
    """
    result = read_json(path, *fields)
    if strange := [name for name, value in result.items() if type(value) not in (int, float)]:
        raise UserError(f"{path} is damaged: {strange[0]} is no number; remove it, and the run measures itself again")
    return result


def read_records(path: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the records of a `metrics.jsonl`, or [] where there is none.

    Raises:
      UserError: the file is damaged.
    """
    path = epath.Path(path)
    records = _parse(path, path.read_bytes().splitlines(), ["step"]) if path.exists() else []
    if any(type(record["step"]) is not int for record in records):
        raise UserError(f"{path} is damaged: a step is no number; remove it")
    return records


def _parse(path: epath.Path, texts: Iterable[bytes], fields: Iterable[str]) -> list[dict[str, Any]]:
    try:
        found = [json.loads(text) for text in texts]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; remove it") from error
    for each in found:
        missing = sorted({*fields} - each.keys()) if isinstance(each, dict) else ["fields"]
        if missing:
            raise UserError(f"{path} is damaged: it has no {', '.join(missing)}")
    return found


class Writer:
    """Metrics by step, in `metrics.jsonl` and TensorBoard's event files; only process 0 writes."""

    def __init__(self, workdir: epath.PathLike, step: int, tensorboard: bool = True):
        """Opens the files; records from after `step` are dropped, since those steps are done again.

        Args:
          workdir: the run's directory.
          step: that the run goes on from.
          tensorboard: whether to write event files too.
        """
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._records: list[dict[str, Any]] = []
        self._events: _Events | None = None
        if jax.process_index():
            return
        self._records = [record for record in read_records(self._path) if record["step"] <= step]
        if tensorboard:
            self._events = _Events(epath.Path(workdir), step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one record: `{"step": …, "train/loss": …, "seconds": …}`.

        Args:
          step: number of updates done.
          values: under flat names, `train/loss`.

        Raises:
          UserError: a file cannot be written.
        """
        if jax.process_index():
            return
        # A run that was killed before its last checkpoint's result measures that step again.
        self._records = [old for old in self._records if old["step"] != step or not values.keys() <= old.keys()]
        self._records.append({"step": step, **values, "time": round(time.time(), 3)})
        # Buckets do not append, so the file is written anew.
        write_text(self._path, "".join(to_json(record) + "\n" for record in self._records))
        if self._events:
            self._events.write(step, values)

    def latest(self, name: str) -> float:
        """Returns a value's last record, or 0."""
        return next((float(record[name]) for record in reversed(self._records) if name in record), 0.0)

    def close(self) -> None:
        """Closes the event file."""
        if self._events:
            self._events.close()


class _Events:
    """TensorBoard's event file, on the disk after each record.

    tensorboardX's own writer leaves that to a thread. Where the disk is full the thread dies and the run waits for it
    for good, and where the clock is set back it writes nothing until the old time has come again.
    """

    def __init__(self, workdir: epath.Path, purge_step: int):
        """Begins a file; TensorBoard drops what older ones hold from `purge_step` on.

        Args:
          workdir: the run's directory.
          purge_step: the first that is done again.

        Raises:
          UserError: the file cannot be written.
        """
        # Here, since importing it takes a third of a second.
        from tensorboardX import record_writer, summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        # TensorBoard reads files by their names, which hold the time: none comes before an older one, whatever the
        # clock says.
        times = [path.name.split(".")[3] for path in workdir.glob("events.out.tfevents.*")]
        begun = max([int(time.time()), *(int(older) + 1 for older in times if older.isdigit())])
        self._path = workdir / f"events.out.tfevents.{begun:010d}.{platform.node()}"
        self._event, self._scalar = Event, summary.scalar
        with _writing(self._path):
            self._file = record_writer.RecordWriter(os.fspath(self._path))
            self._append({"file_version": "brain.Event:2"})
            self._append({"step": purge_step, "session_log": SessionLog(status=SessionLog.START)})

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends the values of a step.

        Args:
          step: number of updates done.
          values: by their names.

        Raises:
          UserError: the file cannot be written.
        """
        with _writing(self._path):
            for name, value in values.items():
                self._append({"step": step, "summary": self._scalar(name, value)})
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(Exception):  # all is written, or was said not to be
            self._file.close()

    def _append(self, fields: dict[str, Any]) -> None:
        self._file.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def environment() -> dict[str, Any]:
    """Returns what a run ran on: versions, devices, command line, commit."""
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "backend": jax.default_backend(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
        "host": platform.node(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _git(*arguments: str) -> str:
    """Returns git's answer about the checkout that this file is in; empty for an installed package."""
    command = ["git", "-C", os.fspath(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
