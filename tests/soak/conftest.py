"""What the soak tests share: a small training as a user starts it, and what it comes to where nothing disturbs it."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cnn_research import analysis
from cnn_research.training.writers import read_records

REPOSITORY = Path(__file__).parents[2]
FIELDS = {
    **{"model.width": 0.25, "model.norm": "batch", "model.dropout_rate": 0.1},
    **{"duration": 200, "batch_size": 32, "log_every": 1, "eval_every": 20, "checkpoint_every": 20},
}


def command(workdir, **fields):
    given = [f"--config.{field}={value}" for field, value in (FIELDS | fields).items()]
    recipe = "--config=experiments/configs/digits.py:lenet5_modern"
    return [sys.executable, "-m", "experiments.train", recipe, f"--workdir={workdir}", *given]


def begin(arguments):
    quickly = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        arguments,
        cwd=REPOSITORY,
        env={**os.environ, **quickly},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="session")
def training_command():
    """A function from a workdir, and fields of the config, to the command line of a training."""
    return command


@pytest.fixture(scope="session")
def start(data_dir):
    """A function that starts a command in the repository; its stderr is a pipe."""
    return begin


def outcome(workdir):
    """Returns a finished run's variables, and its records without what clocks say."""
    records = [
        {name: value for name, value in record.items() if name not in ("time", "seconds", "images_per_second")}
        for record in read_records(workdir / "metrics.jsonl")
    ]
    return jax.device_get(analysis.load_run(workdir).variables), records


@pytest.fixture(scope="session")
def check(start, tmp_path_factory):
    """A function that asserts that a run came to the same bits and records as one that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    process = start(command(workdir))
    _, err = process.communicate()
    assert process.returncode == 0, err
    variables, records = outcome(workdir)
    assert len(records) == FIELDS["duration"] + FIELDS["duration"] // FIELDS["eval_every"]

    def assert_same(other):
        found, its_records = outcome(other)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, variables))
        assert its_records == records
        assert not [path.name for path in [*other.iterdir(), *(other / "checkpoints").iterdir()] if "tmp" in path.name]

    return assert_same


def plain(err):
    """Returns the lines of stderr that report no progress."""
    return [line for line in err.splitlines() if not line.startswith(("step ", "goes on from step"))]


@pytest.fixture(scope="session")
def complaints():
    """A function from what a training said on stderr to the lines of it that report no progress."""
    return plain
