"""Whatever scripts are given: exit code 0, or 2 and one line `error: …`; never a traceback, a crash or a lost file."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cnn_research.training import config as configs
from experiments.command_line import load_config

RECIPE = f"{Path(__file__).parents[2]}/experiments/configs/digits.py:lenet5_modern"
QUICK = (f"--config={RECIPE}", "--config.duration=1", "--config.batch_size=8", "--noconfig.tensorboard")
FIELDS = {
    name: value
    for name, value in configs.flatten(load_config(RECIPE)).items()
    if name not in ("batch_size", "duration", "tensorboard", "data.workers")
}
NUMBERS = ("-1", "0", "0.5", "1", "3", "-0.0", "1e30", "nan", "inf", "-inf")
WORDS = (
    "",
    " ",
    "None",
    "()",
    "(0,)",
    "(8, 8)",
    "(-1, 4)",
    "('a',)",
    "[",
    "{}",
    "x" * 300,
    "../..",
    "é\n",
    "*",
    "%s{}",
)
CALLED = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(st.characters(codec="utf-8"), max_size=8))
# A command line holds all characters but this one.
JUNK = CALLED.filter(lambda text: "\0" not in text)

# Scripts, what they are called with, and flags that change what they then are given.
SCRIPTS = {
    "evaluate": (
        ["--workdir={run}"],
        [
            *("workdir", "step", "split", "out", "score", "worst", "cells"),
            *("data", "data_dir", "image_size", "corruption", "weights"),
        ],
    ),
    "predict": (
        ["--workdir={run}", "--out={out}"],
        ["workdir", "step", "images", "split", "score", "count", "tile", "margin", "multiple", "out"],
    ),
    "visualize": (
        ["--workdir={run}", "--out={out}", "--method=filters", "--examples=8"],
        ["workdir", "step", "method", "layer", "target", "images", "split", "count", "out"],
    ),
    "tabulate": (["--model=lenet5"], ["model", "fields", "config", "input_shape", "format", "all"]),
    "filters": (
        ["--out={out}", "--filters=blur", "--max_side=16"],
        ["images", "filters", "padding", "max_side", "out"],
    ),
    "invariance": (
        ["--runs={run}", "--out={out}", "--max_shift=1"],
        ["runs", "step", "split", "max_shift", "padding_mode", "out"],
    ),
    "sweep": (
        [*QUICK, "--workdir={out}", "--sweep=seed=0", "--report"],
        ["config", "sweep", "workdir", "executor", "jobs", "metric", "topology", "option"],
    ),
    "plan": ([*QUICK, "--topology=local", "--nolargest"], ["config", "topology", "batch_per_chip"]),
    "hog_svm": ([f"--config={RECIPE}", "--workdir={out}", "--max_examples=20"], ["config", "cell", "C", "workdir"]),
    "train": (
        [*QUICK, "--workdir={out}", "--config.init_from={run}"],
        ["config", "workdir", "config.init_from", "config.init_except", "config.optimizer.freeze"],
    ),
    "sweeps.train_together": (["--runs={run}/config.json"], ["runs"]),
    "compare": (
        ["--runs={run}", "--out={out}", "--batch_sizes=", "--examples=8"],
        ["runs", "models", "step", "batch_sizes", "examples", "out"],
    ),
    "draw": (["--model=lenet5", "--out={out}.svg"], ["model", "config", "input_shape", "depth", "inside", "out"]),
    "report": (["--workdir={run}", "--out={out}"], ["workdir", "step", "split", "metric", "out"]),
    "weights": (
        ["--workdir={run}", "--average=all", "--out={out}.safetensors"],
        ["workdir", "step", "params", "compare", "average", "layout", "out"],
    ),
    "propose": (
        ["--dataset=digits", "--split=test[:2]", "--out={out}"],
        ["dataset", "split", "data_dir", "image", "mode", "width", "max", "shard", "workers", "out"],
    ),
    "benchmark": (
        ["--suite=detect", "--models=nms 1000", "--rounds=1", "--out={out}"],
        ["suite", "rounds", "models", "out"],
    ),
    "prepare_data": (["--dataset=digits", "--data_dir={out}"], ["dataset", "data_dir", "manual_dir"]),
}


def cases(few: int, many: int):
    """Runs a property on some examples, and in the long tests on many others."""
    quiet = dict(deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None)

    def decorate(test):
        return pytest.mark.parametrize(
            "check",
            [
                pytest.param(settings(max_examples=few, derandomize=True, **quiet), id=f"{few}"),
                pytest.param(
                    settings(max_examples=many, **quiet),
                    id=f"{many}",
                    marks=[pytest.mark.slow, pytest.mark.timeout(3600)],
                ),
            ],
        )(test)

    return decorate


@pytest.fixture(scope="module")
def run(shell, tmp_path_factory):
    """The directory of a run of one step."""
    workdir = tmp_path_factory.mktemp("bad") / "run"
    code, _, stderr = shell("train", *QUICK, f"--workdir={workdir}")
    assert code == 0, stderr
    return workdir


@pytest.fixture
def ends_well(shell, tmp_path):
    """Returns a function that runs a command and returns its exit code, and fails where it ended in another way."""

    def check(script, *arguments):
        code, stdout, stderr = shell(script, *arguments, folder=tmp_path)
        told = f"{script} {arguments}\n{stdout[-1000:]}\n{stderr[-3000:]}"
        assert code in (0, 2), told
        assert "Traceback" not in stdout + stderr, told
        assert len(re.findall(r"^error: [^\n]+\n", stderr, re.M)) == (code == 2), told
        assert code == 0 or stderr.splitlines()[-1].startswith("error: "), told
        return code

    return check


@cases(few=4, many=350)
def test_fields(check, ends_well, run, tmp_path_factory):
    """Any field of a config gets any value."""

    @check
    @given(st.sampled_from(sorted(FIELDS)), JUNK)
    def test(field, junk):
        workdir = tmp_path_factory.mktemp("fields") / "run"
        ends_well("train", *QUICK, f"--config.{field}={junk}", f"--workdir={workdir}")

    test()


@cases(few=4, many=350)
def test_flags(check, ends_well, run, tmp_path_factory):
    """Any flag of any script gets any value."""

    @check
    @given(st.data())
    def test(data):
        script = data.draw(st.sampled_from(sorted(SCRIPTS)))
        called, names = SCRIPTS[script]
        out = tmp_path_factory.mktemp("flags")
        junk = f"--{data.draw(st.sampled_from(names))}={data.draw(JUNK)}"
        ends_well(script, *(part.format(run=run, out=out / "out") for part in called), junk)

    test()


def damage(data: st.DataObject, path: Path) -> None:
    """Cuts a file, flips one of its bits, empties it, fills it with something else, or takes it away."""
    content = path.read_bytes()
    how = data.draw(st.sampled_from(("cut", "flip", "flip", "fill", "delete")))
    where = data.draw(st.integers(0, max(len(content) - 1, 0)))
    if how == "delete":
        path.unlink()
    elif how == "flip" and content:
        bit = 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content[:where] + bytes([content[where] ^ bit]) + content[where + 1 :])
    elif how == "fill":
        path.write_bytes(data.draw(st.binary(max_size=64)))
    else:
        path.write_bytes(content[:where])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@cases(few=1, many=150)
def test_damaged_runs(check, ends_well, run, tmp_path_factory):
    """Any file of a run is damaged; what only reads the run changes nothing in it."""
    names = sorted(contents(run))

    @check
    @given(st.data())
    def test(data):
        copy = tmp_path_factory.mktemp("runs") / "run"
        shutil.copytree(run, copy)
        damage(data, copy / data.draw(st.sampled_from(names)))
        before = contents(copy)
        for script in ("evaluate", "visualize --method=filters --examples=8", "train"):
            name, *arguments = script.split()
            if name == "train":
                ends_well(name, *QUICK, f"--workdir={copy}")
            else:
                ends_well(name, f"--workdir={copy}", *arguments, *([f"--out={copy.parent}"] if arguments else []))
                assert contents(copy) == before

    test()


@cases(few=2, many=100)
def test_damaged_images(check, ends_well, run, tmp_path_factory):
    """One of two images is damaged, of any form."""
    image = np.random.default_rng(0).integers(0, 255, (9, 14, 3), np.uint8)

    @check
    @given(st.data(), st.sampled_from(("png", "jpg", "webp", "bmp", "tiff")))
    def test(data, form):
        folder = tmp_path_factory.mktemp("images")
        for name in "ab":
            cv2.imwrite(str(folder / f"{name}.{form}"), image)
        damage(data, folder / f"b.{form}")
        ends_well("predict", f"--workdir={run}", f"--images={folder}/*.{form}", f"--out={folder / 'out'}")

    test()


@cases(few=2, many=100)
def test_damaged_weights(check, ends_well, run, tmp_path_factory):
    """A file of weights that a run begins with is damaged."""
    from cnn_research import analysis

    whole = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    analysis.load_run(run).export(whole)

    @check
    @given(st.data())
    def test(data):
        folder = tmp_path_factory.mktemp("weights")
        shutil.copy(whole, folder / "weights.safetensors")
        damage(data, folder / "weights.safetensors")
        ends_well("train", *QUICK, f"--config.init_from={folder}/weights.safetensors", f"--workdir={folder / 'run'}")

    test()


@cases(few=2, many=100)
def test_damaged_sets(check, ends_well, data_dir, run, tmp_path_factory):
    """Any file of a prepared data set is damaged."""
    [whole] = [path.parent for path in data_dir.glob("digits/*/dataset_info.json")]
    names = sorted(contents(whole))

    @check
    @given(st.data())
    def test(data):
        folder = tmp_path_factory.mktemp("sets")
        copy = folder / "digits" / whole.name
        shutil.copytree(whole, copy)
        damage(data, copy / data.draw(st.sampled_from(names)))
        ends_well("train", *QUICK, f"--config.data.name={copy}", f"--workdir={folder / 'run'}")

    test()
