"""Training as several processes: the losses of one process, and the same parameters whatever interrupts it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.training.writers import read_records
from experiments.sweeps import arms

REPOSITORY = Path(__file__).parents[2]
RECIPE = "experiments/configs/digits.py:lenet5_modern"
STEPS = 20
FIELDS = {
    "model.norm": "batch",
    "model.width": "0.5",
    "model.dropout_rate": "0.2",
    "augmentation.flip": "True",
    "augmentation.cutout": "4",
    "optimizer.name": "sgd",
    "duration": str(STEPS),
    "batch_size": "32",
    "log_every": "1",
    "eval_every": "10",
    "checkpoint_every": "5",
    "tensorboard": "False",
}


def config(**fields):
    return arms.resolve(RECIPE, {**FIELDS, **fields})


def start(workdir, processes=2, devices=4, **fields):
    """Starts to train as several processes."""
    train = ["-m", "experiments.train", f"--config={RECIPE}", f"--workdir={workdir}"]
    train += arms.flag_arguments({**FIELDS, **fields})
    launch = ["-m", "launch.local", f"--processes={processes}", f"--devices={devices}", "--grace=2", "--"]
    return subprocess.Popen(
        [sys.executable, *launch, sys.executable, *train],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )


def finish(process):
    """Returns the exit code and stderr."""
    _, err = process.communicate(timeout=500)
    return process.returncode, err


def signal_one(process, index, number):
    """Sends a signal to one of the processes that `launch.local` started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    children = sorted(map(int, listed.stdout.split()))
    if index < len(children):
        os.kill(children[index], number)


def last_step(workdir):
    records = read_records(workdir / "metrics.jsonl")
    return max((record["step"] for record in records), default=0)


def losses(workdir):
    records = [record for record in read_records(workdir / "metrics.jsonl") if "train/loss" in record]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return np.array([record["train/loss"] for record in records])


def params(workdir):
    return jax.device_get(analysis.load_run(workdir).variables)


def assert_equal(first, second):
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The directory of a run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("alone")
    training.train(config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
    """The directory of a run of two processes with four devices each."""
    workdir = tmp_path_factory.mktemp("pod")
    code, err = finish(start(workdir))
    assert code == 0, err
    return workdir


def result(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_two_processes_give_the_losses_of_one(alone, pod):
    """With batch norm, dropout and augmentation; and evaluation counts every example once."""
    assert len(losses(pod)) == STEPS
    assert losses(pod).std() > 0.1
    np.testing.assert_allclose(losses(pod), losses(alone), atol=1e-5)
    for name in ("test/accuracy", "test/top5_accuracy", "test/examples"):
        assert result(pod)[name] == result(alone)[name]


def test_checkpoint_of_two_processes_is_evaluated_on_one_device(pod):
    found = analysis.load_run(pod).evaluate()
    for name in ("accuracy", "top5_accuracy", "examples"):
        assert found[name] == result(pod)[f"test/{name}"]
    assert found["loss"] == pytest.approx(result(pod)["test/loss"], rel=1e-5)


@pytest.mark.slow
def test_one_that_is_terminated_stops_all_after_the_same_step(pod, alone, tmp_path):
    """Then the run goes on as one process of two devices, and as two processes, to the last bit."""
    workdir = tmp_path / "run"
    process = start(workdir)
    while process.poll() is None and last_step(workdir) < 1:
        time.sleep(0.05)
    signal_one(process, 1, signal.SIGTERM)
    code, err = finish(process)
    assert code == 75, err
    assert err.count("stopped by SIGTERM after step") == 1
    stopped = int(err.split("after step ")[1].split(";")[0])
    assert last_step(workdir) == stopped == analysis.load_run(workdir).step

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workdir, elsewhere)
    training.train(config(), elsewhere, jax.devices()[:2])
    np.testing.assert_allclose(losses(elsewhere), losses(alone), atol=1e-5)

    code, err = finish(start(workdir))
    assert code == 0, err
    assert f"goes on from step {stopped} of {STEPS}" in err
    assert_equal(params(workdir), params(pod))


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_under_pmap(tmp_path):
    fields = {"parallel": "pmap", "model.dropout_rate": "0.0"}
    training.train(config(**fields), tmp_path / "alone")
    code, err = finish(start(tmp_path / "pod", **fields))
    assert code == 0, err
    np.testing.assert_allclose(losses(tmp_path / "pod"), losses(tmp_path / "alone"), atol=1e-5)


@pytest.mark.slow
def test_a_cut_state_and_a_damaged_checkpoint(alone, tmp_path):
    """Two processes that hold parts of the state go on from the checkpoint before the one that cannot be read."""
    workdir = tmp_path / "run"
    code, err = finish(start(workdir, shard_state="all"))
    assert code == 0, err
    np.testing.assert_allclose(losses(workdir), losses(alone), atol=1e-5)
    whole = params(workdir)

    (workdir / "result.json").unlink()
    (workdir / "checkpoints" / str(STEPS) / "training" / "manifest.ocdbt").unlink()
    code, err = finish(start(workdir, shard_state="all"))
    assert code == 0, err
    assert f"set aside: the checkpoint of step {STEPS}" in err
    assert f"goes on from step {STEPS - 5} of {STEPS}" in err
    assert_equal(params(workdir), whole)


# Interrupted at random moments, resumed each time, until so many signals were sent; more than one training, if need be.
COUNTS = {signal.SIGKILL: 50, signal.SIGTERM: 20}


@pytest.mark.slow
@pytest.mark.timeout(3600)  # each interruption takes a start, ten seconds and more
@pytest.mark.parametrize("number", COUNTS)
@pytest.mark.parametrize("processes", [1, 2])
def test_interrupted_at_random_gives_the_same_parameters(tmp_path, processes, number):
    count = int(os.environ.get("INTERRUPTIONS", COUNTS[number]))
    generator = random.Random(int(number))
    undisturbed, began = tmp_path / "undisturbed", time.monotonic()
    code, err = finish(start(undisturbed, processes, 2))
    assert code == 0, err
    whole = time.monotonic() - began
    sent = training_number = 0
    while sent < count:
        workdir, code = tmp_path / str(training_number), -1
        training_number += 1
        while code != 0:
            process = start(workdir, processes, 2)
            if sent < count:
                time.sleep(generator.uniform(0.3, 1.0) * whole)
                if process.poll() is None:
                    signal_one(process, generator.randrange(processes), number)
                    sent += 1
            code, err = finish(process)
            assert code in (0, 75, 128 + number), err
            assert "damaged" not in err
        assert_equal(params(workdir), params(undisturbed))
        assert len(losses(workdir)) == STEPS
