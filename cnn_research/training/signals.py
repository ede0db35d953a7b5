"""Being asked to stop: SIGTERM from a scheduler, Ctrl-C from a person."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.experimental import multihost_utils


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
def stop_requests(
    numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT), then: Callable[[], None] = lambda: None
) -> Iterator[list[int]]:
    """Yields a list that holds the signal once one has asked to stop; a second one ends the process as ever.

    Args:
      numbers: of the signals that ask.
      then: called once one has asked.
    """
    requests: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield requests
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, _: object) -> None:
        requests.append(number)
        for known, handler in before.items():
            signal.signal(known, handler)
        then()

    for number in before:
        signal.signal(number, note)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def agreed_stop(step: int) -> Iterator[Callable[[int], int]]:
    """Yields what says, given the step after each one, whether to stop now: the signal that asked to, or 0.

    Several processes all stop after the same step, whichever was asked: JAX takes SIGTERM itself there, tells the
    others, and agrees on a step in the background. Ctrl-C goes the same way.

    Args:
      step: that the loop begins with.
    """
    if jax.process_count() == 1:
        with stop_requests() as requests:
            yield lambda _: next(iter(requests), 0)
        return
    # Steps that processes have reached count from 0; where none has begun when one is asked, they agree on step 1.
    early = multihost_utils.reached_preemption_sync_point(1)
    multihost_utils.reached_preemption_sync_point(step)
    with stop_requests((signal.SIGINT,), then=lambda: signal.raise_signal(signal.SIGTERM)) as interrupts:

        def agreed(step: int) -> int:
            stop = multihost_utils.reached_preemption_sync_point(step) or early
            return next(iter(interrupts), signal.SIGTERM) if stop else 0

        yield agreed
