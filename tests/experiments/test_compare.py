"""The scripts that compare networks and runs, look into their checkpoints, and evaluate them on other data."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.interop import safetensors

REPOSITORY = Path(__file__).parents[2]


def run(script, *flags):
    command = [sys.executable, "-W", "ignore", "-m", f"experiments.{script}", *flags]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def runs(digits_config, tmp_path_factory):
    """Two runs of 12 steps with checkpoints after 6 and 12; the second one has another seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        config = digits_config()
        config.update(seed=seed, keep_last=2, log_every=2)
        training.train(config, folder / f"seed{seed}", jax.devices()[:1])
    return folder


@pytest.mark.slow
def test_networks_by_name(tmp_path):
    code, out, err = run("compare", "--models=lenet5,alexnet_owt", "--batch_sizes=1", f"--out={tmp_path}")
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert int(rows["alexnet_owt"]["params"]) == 61_100_840
    assert float(rows["lenet5"]["latency_ms_batch1"]) > 0
    assert "56.5%*" in out
    assert "* published by others" in out
    assert (tmp_path / "charts.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_runs_and_where_they_part(runs, tmp_path):
    flags = ["--batch_sizes=", "--similarity", "--receptive_fields", "--examples=64"]
    code, out, err = run("compare", f"--runs={runs}/seed*", *flags, f"--out={tmp_path}")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    results = [json.loads((runs / name / "result.json").read_text()) for name in ("seed0", "seed1")]
    assert [float(row["accuracy"]) for row in rows] == [result["test/accuracy"] for result in results]
    assert "config: seed is 0 and 1" in out
    assert "examples: other ones from step 0 on" in out
    assert "logged: " in out
    assert "at step 2 is" in out
    assert "parameters at step 6: C1 is the first that differs" in out
    assert (tmp_path / "receptive_fields.png").exists()
    matrix = list(csv.reader((tmp_path / "similarity.csv").open()))
    assert matrix[0][1:] == [row[0] for row in matrix[1:]]
    assert all(float(value) <= 1.0001 for row in matrix[1:] for value in row[1:])


@pytest.mark.slow
def test_checkpoints_are_averaged_and_evaluated(runs, tmp_path):
    workdir, mean = runs / "seed0", tmp_path / "mean.safetensors"
    code, out, err = run(
        "weights", f"--workdir={workdir}", "--average=all", f"--out={mean}", "--params=C1", "--compare=6"
    )
    assert (code, err) == (0, "")
    assert "| params/C1/kernel | 5x5x1x6 |" in out
    assert "step 12 of " in out
    assert f"the mean of steps 6, 12 of {workdir} written to {mean}\n" in out
    kernels = [analysis.load_run(workdir, step).variables["params"]["C1"]["kernel"] for step in (6, 12)]
    np.testing.assert_allclose(safetensors.load(mean)["params"]["C1"]["kernel"], sum(kernels) / 2, atol=1e-7)
    code, out, err = run(
        "evaluate", f"--workdir={workdir}", f"--weights={mean}", "--corruption=contrast:5", "--split=test[:40]"
    )
    assert code == 0, err
    result = json.loads(out)
    assert (result["corruption"], result["test[:40]/examples"]) == ("contrast:5", 40)


@pytest.mark.slow
def test_other_data(runs):
    loaded = analysis.load_run(runs / "seed0")
    other = loaded.with_data(name="digits", image_size=(32, 32))
    assert other.evaluate("test[:50]") == loaded.evaluate("test[:50]")
    with pytest.raises(Exception, match="LeNet-5 takes images of 32x32"):
        loaded.with_data(image_size=(40, 40))


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        pytest.param("compare", ["--out=x"], "give --models=alexnet,vgg16 or --runs=", marks=pytest.mark.slow),
        ("compare", ["--models=lenet5,vgg61", "--out=x"], "model 'vgg61' is not known"),
        pytest.param(
            "compare", ["--models=lenet5", "--batch_sizes=0", "--out=x"], "such as 1,8", marks=pytest.mark.slow
        ),
        pytest.param("weights", ["--workdir=x"], "give --params=REGEX", marks=pytest.mark.slow),
        pytest.param("weights", ["--workdir=x", "--average=all"], "--average needs a file", marks=pytest.mark.slow),
        pytest.param("evaluate", ["--workdir=x", "--corruption=fog:3"], "'fog' is not known", marks=pytest.mark.slow),
    ],
)
def test_faults_are_one_line(script, flags, message):
    code, out, err = run(script, *flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
