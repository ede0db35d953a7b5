"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Stopped(Exception):  # noqa: N818 - not an error: the run is saved and goes on when it is started again
    """The run was asked to stop, and saved.

    Attributes:
      step: updates done.
      signal: that asked.
    """

    def __init__(self, step: int, number: int):
        """Notes when and why."""
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on from there"
        )
        self.step, self.signal = step, number


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yields a list that holds the signal once one has asked to stop; a second one ends the process as ever."""
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield requests
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _: object) -> None:
        requests.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
