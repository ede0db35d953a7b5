"""Progress, with and without a terminal."""

import io
import sys
import types

import pytest
import tqdm

from cnn_research.training import progress
from cnn_research.training.progress import Progress, describe

VALUES = {"train/loss": 0.03125, "train/accuracy": 0.99, "images_per_second": 5210.4}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_without_a_terminal_there_is_a_line_a_report(clock, capsys):
    shown = Progress(start=100, total=400)
    clock.seconds += 50
    shown.update(200, VALUES)
    clock.seconds += 10
    shown.update(400, VALUES)
    shown.close()
    out, err = capsys.readouterr()
    assert out == ""
    # 100 steps in 50 s leave 100 s for 200 steps, whatever the steps that an earlier start had done.
    assert err.splitlines() == [
        "step 200/400  train/loss 0.03125  train/accuracy 0.99  5,210 images/s  left 01:40",
        "step 400/400  train/loss 0.03125  train/accuracy 0.99  5,210 images/s  left 00:00",
    ]


def test_a_report_before_the_first_step_divides_by_nothing(clock, capsys):
    Progress(start=5, total=10).update(5, {})
    assert capsys.readouterr().err.startswith("step 5/10")


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress(start=100, total=400)
    shown.update(200, VALUES)
    bar = terminal.getvalue().split("\r")[-1]
    assert "50%" in bar
    assert "200/400" in bar
    assert "train/loss 0.03125" in bar
    assert "5,210 images/s" in bar
    shown.say("saved")
    assert "saved\n" in terminal.getvalue()
    shown.close()
    assert terminal.getvalue().split("\r")[-1].strip() == ""


def test_a_bar_goes_on_where_the_clock_is_set_back(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    now = types.SimpleNamespace(seconds=1e9)
    monkeypatch.setattr(tqdm.std, "time", lambda: now.seconds)
    shown = Progress(start=0, total=400)
    now.seconds -= 7200
    shown.update(200, VALUES)
    bar = terminal.getvalue().split("\r")[-1]
    assert "200/400" in bar
    assert "[00:00<00:00, " in bar
    shown.close()


def test_other_processes_are_silent(monkeypatch, capsys):
    monkeypatch.setattr(progress.jax, "process_index", lambda: 1)
    shown = Progress(start=0, total=10)
    shown.update(5, VALUES)
    shown.say("hello")
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_describe_shows_what_a_person_watches():
    values = VALUES | {"seconds": 1.0, "train/learning_rate": 0.1, "train/gradient_norm": 2.0, "examples": 12345}
    assert describe(values) == "train/loss 0.03125  train/accuracy 0.99  5,210 images/s  examples 12345"
    assert describe({"loss": float("nan"), "rate": 1.23456e-7}) == "loss nan  rate 1.235e-07"
