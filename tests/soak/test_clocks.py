"""Clocks that are set forth and back by hours: what is measured, ordered and locked does not go by the time of day."""

import itertools
import re
import signal
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cnn_research.training.writers import read_records

pytestmark = pytest.mark.slow

# Runs a script with a clock that another process sets now and then, by up to a day.
JUMPING = """
import random, runpy, sys, time

real, real_ns, generator = time.time, time.time_ns, random.Random(0)
offset, jumps = float(sys.argv[1]), real() + 3

def jump():
    global offset, jumps
    if real() > jumps:
        jumps = real() + 3
        offset += generator.choice((-1, 1)) * generator.uniform(600, 86_400)
    return offset

time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + int(jump() * 1e9)
sys.argv[:2] = []
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def jumping(command, offset):
    """Returns the command with a clock that begins so many seconds off and jumps."""
    python, dash_m, module, *arguments = command
    assert dash_m == "-m"
    return [python, "-c", JUMPING, str(offset), module, *arguments]


def seconds(interval):
    """Returns `1:02:03` in seconds."""
    return sum(60**power * int(part) for power, part in enumerate(reversed(interval.split(":"))))


def seen_by_tensorboard(workdir):
    """Returns the scalars that TensorBoard shows: it reads files by name, and drops what is done again."""
    scalars = {}
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            length = struct.unpack("<Q", content[:8])[0]
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                scalars = {(step, tag): value for (step, tag), value in scalars.items() if step < event.step}
            scalars |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    return scalars


def test_clock_that_jumps(training_command, start, check, complaints, tmp_path):
    """Each start has a clock that is a day before the one before; the first two are stopped.

    Where the clock is set forth while a checkpoint is written, Orbax may take that for its own time limit: the run then
    ends with one line and goes on when it is started again.
    """
    began, code, number = time.monotonic(), -1, 0
    while code != 0:
        started = time.monotonic()
        process = start(jumping(training_command(tmp_path), -86_400 * number))
        while number < 2 and process.poll() is None and not (tmp_path / f"checkpoints/{(number + 1) * 60}").exists():
            time.sleep(0.01)
        if number < 2 and process.poll() is None:
            process.send_signal(signal.SIGSTOP)
            other = start(training_command(tmp_path))
            assert "error: another process is training in" in other.communicate()[1]
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        _, err = process.communicate()
        code, number = process.returncode, number + 1
        assert code in (0, 75) or (code == 2 and "Timed out after" in complaints(err)[-1]), err
        reports = [(int(step), seconds(left)) for step, left in re.findall(r"^step (\d+)/.* left ([\d:]+)$", err, re.M)]
        took = time.monotonic() - started
        assert all(left <= took / (step - reports[0][0] + 1) * (200 - step) + 1 for step, left in reports)
    elapsed = time.monotonic() - began

    check(tmp_path)
    records = read_records(tmp_path / "metrics.jsonl")
    assert max(abs(after["time"] - before["time"]) for before, after in itertools.pairwise(records)) > 600
    worked = [record["seconds"] for record in records if "seconds" in record]
    assert worked == sorted(worked)
    assert 0 < worked[-1] < elapsed
    assert all(record["images_per_second"] > 0 for record in records if "images_per_second" in record)
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} >= {180, 200}
    named = {(record["step"], name): value for record in records for name, value in record.items()}
    shown = seen_by_tensorboard(tmp_path)
    for (step, tag), value in shown.items():
        assert value == pytest.approx(named[step, tag], rel=1e-5), (step, tag)
    assert {step for step, tag in shown if tag == "train/loss"} == set(range(1, 201))
