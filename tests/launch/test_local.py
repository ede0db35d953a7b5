"""Several processes on one machine: their output, how they end, and with which exit code."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def command(script, *flags):
    return [sys.executable, "-m", "launch.local", *flags, "--", sys.executable, "-c", "import os, sys, time\n" + script]


def launch(script, *flags):
    """Returns the exit code, and the lines of stdout and stderr."""
    process = subprocess.run(command(script, *flags), cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    return process.returncode, process.stdout.splitlines(), process.stderr.splitlines()


def test_each_process_knows_its_place_and_its_lines_are_marked():
    names = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS", "JAX_COORDINATOR_ADDRESS")
    script = f"print(*(os.environ[name] for name in {names})); print('[Gloo] Rank 0 is connected')"
    code, out, err = launch(script, "--processes=3", "--devices=2")
    assert (code, err) == (0, [])
    places = sorted(out)
    port = places[0].rsplit(":", 1)[1]
    assert places == [f"[{index}] {index} 3 2 cpu 127.0.0.1:{port}" for index in range(3)]


WAIT = "time.sleep(60)"  # ended by SIGTERM


@pytest.mark.parametrize(
    ("failure", "code", "reason"),
    [
        ("sys.exit(2)", 2, "failed with exit code 2"),
        ("1 / 0", 1, "failed with exit code 1"),
        ("os.kill(os.getpid(), 9)", 137, "was ended by SIGKILL"),
    ],
)
def test_one_that_fails_ends_the_others(failure, code, reason):
    began = time.monotonic()
    script = f"if os.environ['JAX_PROCESS_ID'] == '1':\n    {failure}\n{WAIT}"
    result, _, err = launch(script, "--processes=3")
    assert time.monotonic() - began < 20
    assert result == code
    assert err[-1] == f"launch.local: process 1 {reason}; ending the others"


def test_one_that_does_not_listen_is_killed():
    script = f"""
import signal
if os.environ['JAX_PROCESS_ID'] == '1':
    time.sleep(0.5)
    sys.exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
{WAIT}"""
    code, _, err = launch(script, "--processes=2", "--grace=0.5")
    assert code == 3
    assert err == [
        "launch.local: process 1 failed with exit code 3; ending the others",
        "launch.local: process 0 did not end within 0.5 s; killed",
    ]


def test_one_that_saved_gives_the_others_time():
    """75 is no failure: the others are saving, too."""
    script = "time.sleep(float(os.environ['JAX_PROCESS_ID'])); sys.exit(75)"
    assert launch(script, "--processes=2") == (75, [], [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(number):
    script = f"""
import signal
def end(number, _):
    print('got', number)
    sys.exit(75)
signal.signal({number:d}, end)
print('ready')
{WAIT}"""
    process = subprocess.Popen(
        command(script, "--processes=2"), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = [process.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert sorted(out.splitlines()) == [f"[{index}] got {number:d}" for index in range(2)]


def test_one_that_does_not_listen_to_a_signal_is_killed():
    script = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready')\n{WAIT}"
    process = subprocess.Popen(
        command(script, "--processes=1", "--grace=0.5"), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"[0] ready\n"
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGKILL
    assert err == b"launch.local: process 0 did not end within 0.5 s; killed\n"


def test_a_complaint_that_all_make_is_printed_once():
    script = "print('error: no such thing', file=sys.stderr); print('note', file=sys.stderr); sys.exit(2)"
    _, _, err = launch(script, "--processes=3")
    said = [line[4:] for line in err if line.startswith("[")]
    assert said.count("error: no such thing") == 1
    assert said.count("note") >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=0", "--", "true"], "error: --processes and --devices must be at least 1; see"),
        (["--processes=2"], "error: the following arguments are required: command; see"),
        (["--", "/no/such/program"], "launch.local: cannot start '/no/such/program': No such file or directory"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message):
    process = subprocess.run(
        [sys.executable, "-m", "launch.local", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert process.returncode == 2
    assert process.stderr.startswith(message)
    assert len(process.stderr.splitlines()) == 1
