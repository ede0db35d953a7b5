"""Being asked to stop, by real signals."""

import os
import signal
import threading

import jax
import pytest

from cnn_research.training import signals
from cnn_research.training.signals import Stopped, agreed_stop, stop_requests

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


@pytest.fixture
def _interruptible():
    """Has Ctrl-C raise KeyboardInterrupt, also where a shell has started pytest in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
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


def test_one_process_stops_once_it_was_asked():
    with agreed_stop(5) as asked:
        assert asked(6) == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert asked(7) == signal.SIGINT


@pytest.mark.parametrize(("agreed", "stops"), [(1003, 1003), (1, 1001)])
def test_several_processes_stop_after_the_step_that_they_agree_on(monkeypatch, agreed, stops):
    """Or after the first one, where they agreed before any had begun."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", lambda step: step == agreed)
    with agreed_stop(1000) as asked:
        assert [step for step in range(1001, stops + 1) if asked(step) == signal.SIGTERM] == [stops]


def test_ctrl_c_goes_the_way_of_sigterm(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(signals.multihost_utils, "reached_preemption_sync_point", lambda step: step == 3)
    passed_on: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: passed_on.append(number))
    try:
        with agreed_stop(0) as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert passed_on == [signal.SIGTERM]
            assert [asked(step) for step in (1, 2, 3)] == [0, 0, signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before)
