"""Memory, threads and open files of a training's processes, which stay as they are however long it goes on.

SOAK_STEPS=5000 python -m pytest tests/soak/test_memory.py -s   # a tenth of the usual length; -s shows what is measured
"""

import os
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cnn_research.training.writers import read_records

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc"),
]

STEPS = int(os.environ.get("SOAK_STEPS", 50_000))
CHECKPOINTS = 50  # and evaluations
WARM = 0.4  # of the steps, in which caches fill
# MB over the whole run. Steps and evaluations leave nothing, but each checkpoint 0.06 to 0.09 MB: TensorStore 0.1.86
# never frees the Python objects that its `to_json` makes, which Orbax calls for each array.
GROWTH = 20.0
FIELDS = {"model.width": 0.5, "batch_size": 16, "log_every": 50}


def usage(pid):
    """Returns a process's resident megabytes, its threads and its open files."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["Threads"]), len(os.listdir(f"/proc/{pid}/fd"))


def sample(process, workdir):
    """Yields the step and the usage of a process, and in its megabytes those of its largest child, until it ends."""
    while process.poll() is None:
        time.sleep(0.5)
        listed = subprocess.run(["ps", "-o", "rss=", "--ppid", str(process.pid)], capture_output=True, text=True)
        try:
            megabytes, threads, files = usage(process.pid)
        except (FileNotFoundError, KeyError):  # it has just ended
            continue
        records = read_records(workdir / "metrics.jsonl")
        if records:
            child = max(map(int, listed.stdout.split()), default=0) / 1024
            yield records[-1]["step"], megabytes + child, threads, files


@pytest.mark.parametrize(
    ("share", "fields"),
    [(1, {}), (10, {"data.resident": "off"}), (10, {"data.resident": "off", "data.workers": 2})],
    ids=["resident", "threads", "processes"],
)
def test_nothing_grows(training_command, start, tmp_path, share, fields):
    steps = STEPS // share
    every = max(steps // CHECKPOINTS, 1)
    periods = {"duration": steps, "eval_every": every, "checkpoint_every": every}
    process = start(training_command(tmp_path, **FIELDS, **fields, **periods))
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)  # or the pipe fills up
    reader.start()
    samples = np.array(list(sample(process, tmp_path)))
    reader.join()
    assert process.returncode == 0, said[-20:]

    warm = samples[(samples[:, 0] >= WARM * steps) & (samples[:, 0] < steps)]
    half = len(warm) // 2
    assert half >= 10
    step, megabytes, threads, files = warm.T
    growth = np.polyfit(step, megabytes, 1)[0] * steps
    print(
        f"{growth:+.1f} MB in {steps} steps, from {megabytes[0]:.0f} MB; {threads.min():.0f} to {threads.max():.0f}"
        f" threads, {files.min():.0f} to {files.max():.0f} files"
    )
    assert growth < GROWTH
    # What writes a checkpoint or evaluates has some of its own while it does.
    assert np.median(threads[half:]) <= np.median(threads[:half]) + 10
    assert np.median(files[half:]) <= np.median(files[:half]) + 10
