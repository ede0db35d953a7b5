"""Rehearses a pod on one machine: several processes of some virtual CPU devices each, over loopback.

python -m launch.local --processes=2 --devices=4 -- python -m experiments.train --config=… --workdir=…

Each line of output is marked with its process. Ctrl-C and SIGTERM go to all of them. When one fails, the others are
ended too, and the exit code is that of the first that failed. What does not end in time is killed.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, NoReturn

TRY_AGAIN = 75  # of a process that was asked to stop and saved; the others are about to end likewise
GRACE = 60.0  # seconds that processes have to end by themselves, saving included
POLL = 0.05  # seconds

LOOPBACK = "127.0.0.1"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Complains in one line."""
        self.exit(2, f"error: {message}; see python -m launch.local --help\n")


def main(arguments: Sequence[str]) -> int:
    """Reads the command line and runs what it says.

    Args:
      arguments: of the command line.

    Returns:
      The exit code.
    """
    parser = _Parser(
        prog="launch.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=True
    )
    parser.add_argument("--processes", type=int, default=2, help="how many to start (2)")
    parser.add_argument("--devices", type=int, default=4, help="virtual CPU devices of each (4)")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        help=f"seconds to end in, after a signal or another process's end ({GRACE:g})",
    )
    parser.add_argument("command", nargs="+", help="what each process runs, after --")
    options = parser.parse_args(arguments)
    if options.processes < 1 or options.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    return run(options.command, options.processes, options.devices, options.grace)


def run(command: Sequence[str], processes: int = 2, devices: int = 4, grace: float = GRACE) -> int:
    """Runs a command as several processes that find each other.

    Args:
      command: a program and its arguments.
      processes: how many.
      devices: virtual CPU devices of each.
      grace: seconds that they have to end once a signal asked to or one of them failed; then they are killed.

    Returns:
      0, or the exit code of the first process that failed; 128 and the signal's number where one ended it.
    """
    port = _free_port()
    output = _Output()
    children: list[subprocess.Popen[str]] = []
    with _forwarded(children) as signals:
        try:
            for index in range(processes):
                children.append(_start(command, environment(index, processes, devices, port)))
                output.follow(index, children[-1])
            return _wait(children, signals, grace)
        except OSError as error:
            _say(f"cannot start {command[0]!r}: {error.strerror}")
            return 2
        finally:
            for child in children:
                _end(child, signal.SIGKILL)
            output.finish()


def environment(index: int, processes: int, devices: int, port: int) -> dict[str, str]:
    """Returns the environment variables by which a process finds its place; `experiments.train` reads them.

    Args:
      index: of the process.
      processes: how many there are.
      devices: virtual CPU devices of each.
      port: of the first process's coordinator.
    """
    patience = "--xla_cpu_collective_timeout_seconds=600 --xla_cpu_collective_call_terminate_timeout_seconds=600"
    return {
        # A process that still compiles when another computes is no fault where they share a few cores.
        "XLA_FLAGS": f"{patience} {os.environ.get('XLA_FLAGS', '')}",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"{LOOPBACK}:{port}",
        "JAX_COORDINATOR_BIND_ADDRESS": f"{LOOPBACK}:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }


def _free_port() -> int:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        return server.getsockname()[1]


def _start(command: Sequence[str], variables: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C comes once, from here
    )


@contextlib.contextmanager
def _forwarded(children: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Passes Ctrl-C and SIGTERM on to the children; yields the list of what was passed on."""
    signals: list[int] = []

    def forward(number: int, _: object) -> None:
        signals.append(number)
        for child in children:
            _end(child, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[str]], signals: Sequence[int], grace: float) -> int:
    """Waits until all have ended, and ends those that outlive a signal or the first to fail."""
    failed: subprocess.Popen[str] | None = None
    deadline = float("inf")
    while alive := [child for child in children if child.poll() is None]:
        if failed is None and (failed := next((child for child in children if child.returncode), None)):
            deadline = min(deadline, time.monotonic() + grace)
            if failed.returncode != TRY_AGAIN:
                _say(f"process {children.index(failed)} {_how(failed.returncode)}; ending the others")
                for child in alive:
                    _end(child, signal.SIGTERM)
        if signals and deadline == float("inf"):
            deadline = time.monotonic() + grace
        if time.monotonic() > deadline:
            names = ", ".join(str(children.index(child)) for child in alive)
            _say(f"process {names} did not end within {grace:g} s; killed")
            for child in alive:
                _end(child, signal.SIGKILL)
                child.wait()
        time.sleep(POLL)
    failed = failed or next((child for child in children if child.returncode), None)
    if failed is None:
        return 0
    return failed.returncode if failed.returncode > 0 else 128 - failed.returncode


def _how(code: int) -> str:
    return f"failed with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


def _end(child: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


def _say(text: str) -> None:
    print(f"launch.local: {text}", file=sys.stderr, flush=True)


class _Output:
    """What the processes print, line by line; complaints that all of them make are printed once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._complaints: dict[str, int] = {}

    def follow(self, index: int, child: subprocess.Popen[str]) -> None:
        """Begins to print a process's lines."""
        for stream, target in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
            assert stream
            thread = threading.Thread(target=self._copy, args=(index, stream, target), daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self) -> None:
        """Waits for the last lines; a grandchild may keep a pipe open for longer than that."""
        for thread in self._threads:
            thread.join(timeout=1)

    def _copy(self, index: int, stream: IO[str], target: IO[str]) -> None:
        for line in stream:
            if line.startswith("[Gloo] Rank"):  # says at each new group of devices that all are well
                continue
            with self._lock:
                if self._complaints.setdefault(line, index) == index or not line.startswith("error: "):
                    print(f"[{index}] {line}", end="", file=target, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
