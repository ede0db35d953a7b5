import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_research.data import sources
from cnn_research.training import make_program
from experiments.suites import train_step

REPOSITORY = Path(__file__).parents[2]


def start(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "CNN_RESEARCH_DATA_DIRS"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def benchmark(*arguments):
    ended = start("-m", "experiments.benchmark", *arguments)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.slow
def test_loop(tmp_path):
    """Two turns of a few steps: the form of what it prints, not its figures."""
    small = ("--rounds=1", "--steps=30", "--examples=300", "--models=lenet5_modern")
    result = benchmark("--suite=loop", *small, f"--out={tmp_path / 'loop.json'}")
    assert json.loads((tmp_path / "loop.json").read_text()) == result
    assert result["suite"] == "loop"
    assert [row["model"] for row in result["rows"]] == ["lenet5_modern"]
    for row in result["rows"]:
        assert row["bare_images_per_s"] > 0
        assert 0 < row["ratio"] < 2
        assert row["data"].startswith("shapes/32x32")


def test_unknown_suite():
    ended = start("-m", "experiments.benchmark", "--suite=lop")
    assert ended.returncode == 2
    assert ended.stderr == "error: --suite=lop is unknown; did you mean 'loop'?\n"


@pytest.mark.slow
def test_train_step():
    (row,) = benchmark("--suite=train_step", "--rounds=1", "--models=lenet5", "--batch_size=8")["rows"]
    assert (row["model"], row["batch_size"], row["precision"]) == ("lenet5", 8, "float32")
    # A multiply-add (tests/models/test_counts.py has their number) is two operations; a step is three forward passes.
    assert row["gflops"] == pytest.approx(6 * 325_680 * row["images_per_s"] / 1e9, abs=0.06)
    assert not row.keys() & {"ratio", "peak_share"}


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is here")
def test_without_pytorch():
    ended = start("-m", "experiments.benchmark", "--suite=train_step", "--against=torch")
    assert ended.returncode == 2
    assert ended.stderr == 'error: --against=torch needs PyTorch; install it: pip install -e ".[torch]"\n'


@pytest.mark.parametrize(
    ("device", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("cpu", None),
    ],
)
def test_peaks(device, tflops):
    assert train_step.peak(device) == tflops


@pytest.mark.slow
def test_train_step_against_pytorch():
    pytest.importorskip("torch")
    row, mean = benchmark("--suite=train_step", "--against=torch", "--rounds=3", "--models=lenet5", "--batch_size=8")[
        "rows"
    ]
    assert row["ratio"] == sorted(row["ratios"])[1]
    assert 0.2 < row["ratio"] * row["torch_images_per_s"] / row["images_per_s"] < 5
    assert mean == {"model": "geometric mean", "ratio": row["ratio"]}


def in_pytorchs_order(program, params):
    """Returns parameters in the order in which the network makes them, with PyTorch's order of axes."""
    paths = []

    def init(rng):
        variables = program.model.init(rng, jnp.zeros((1, *program.image_shape)), train=False)
        paths.extend(traverse_util.flatten_dict(variables["params"]))
        return variables

    jax.eval_shape(init, jax.random.key(0))
    axes = {1: (0,), 2: (1, 0), 3: (2, 0, 1), 4: (3, 2, 0, 1)}
    transposed = {4: (2, 3, 0, 1)}
    flat = traverse_util.flatten_dict(jax.device_get(params))
    orders = [axes | (transposed if path[0].startswith("upconv") else {}) for path in paths]
    return [flat[path].transpose(order[flat[path].ndim]) for path, order in zip(paths, orders, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in train_step.CASES if name != "resnet18@224"])
def test_pytorch_takes_the_same_steps(name):
    torch = pytest.importorskip("torch")
    from experiments.suites import torch_networks

    case = train_step.CASES[name]
    if case.image_shape[0] > 64:
        case = dataclasses.replace(case, image_shape=(64, 64, 3))
    config = train_step.make_config(case, batch_size=8)
    config.optimizer.update(learning_rate=1e-4, weight_decay=1.0)
    if config.task == "classification":
        config.loss.rubbish_penalty = 80.0  # as likely as fresh networks find the digits
    if name == "nin_cifar":
        config.model.dropout_rate = 0.0
    program, batch = make_program(config), train_step.make_batch(config)
    ours, theirs = train_step.Trainer(program, batch), torch_networks.Trainer(config, batch)
    for module in theirs.network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    begin = in_pytorchs_order(program, ours.state.params)
    with torch.no_grad():
        for parameter, value in zip(theirs.network.parameters(), begin, strict=True):
            parameter.copy_(torch.tensor(value))
    # The second step shows the momentum; in deeper networks rounding grows from there on.
    steps = 2 if name == "lenet5" else 1
    ours.train(steps)
    theirs.train(steps)
    ends = zip(begin, in_pytorchs_order(program, ours.state.params), theirs.network.parameters(), strict=True)
    for before, our, their in ends:
        # In the deepest, rounding moves units across zero, and all gradients by 2%. Biases before a norm have none.
        distance, update = (np.linalg.norm(x - our) for x in (their.detach().numpy(), before))
        assert distance < (0.05 if name == "resnet50@224" else 0.01) * update + 1e-8


def test_training_imports_no_more_than_it_needs(tmp_path):
    """In the whole of a run. (TensorBoard's writer would import PyTorch where that is installed.)"""
    sources.find("digits")  # which scikit-learn brings, once
    recipe, workdir = "--config=experiments/configs/digits.py:lenet5", f"--workdir={tmp_path / 'run'}"
    small = ("--config.duration=1", "--config.tensorboard=False")
    ended = start("-X", "importtime", "-m", "experiments.train", recipe, workdir, *small)
    assert ended.returncode == 0, ended.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "jax" in imported
    assert not imported & {"matplotlib", "pandas", "scipy", "sklearn", "tensorboardX", "tensorflow", "torch"}


@pytest.mark.slow
def test_startup():
    (row,) = benchmark("--suite=startup", "--rounds=1", "--models=lenet5")["rows"]
    assert 0 < row["import_s"] < row["cold_s"]
    assert 0 < row["warm_cpu_s"] < row["cold_cpu_s"]
    assert row["ratio"] == pytest.approx(row["cold_s"] / row["warm_s"], rel=0.02)
