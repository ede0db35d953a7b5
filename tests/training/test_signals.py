"""Being asked to stop, by real signals."""

import os
import signal
import threading

import pytest

from cnn_research.training.signals import Stopped, stop_requests

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def handlers():
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_is_noted_and_nothing_else_happens(number):
    before = handlers()
    with stop_requests() as requests:
        assert requests == []
        assert handlers() != before
        os.kill(os.getpid(), number)
        assert requests == [number]
    assert handlers() == before


def test_a_second_request_ends_the_process_as_ever():
    before = handlers()
    with stop_requests() as requests:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests == [signal.SIGTERM]
        assert handlers() == before
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_handlers_come_back_after_a_fault():
    before = handlers()
    with pytest.raises(ZeroDivisionError), stop_requests():
        1 / 0  # noqa: B018
    assert handlers() == before


def test_another_thread_leaves_the_signals_alone():
    before, seen = handlers(), []

    def run():
        with stop_requests() as requests:
            seen.extend([requests, handlers()])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [[], before]


def test_stopped_says_when_and_why():
    stopped = Stopped(120, signal.SIGTERM)
    assert (stopped.step, stopped.signal) == (120, signal.SIGTERM)
    assert str(stopped) == "stopped by SIGTERM after step 120; the same command goes on from there"
