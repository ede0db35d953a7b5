import errno
import importlib.util
import json
import re

import pytest

from experiments import command_line

DIGITS = "--config=experiments/configs/digits.py:lenet5"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config"], "--config=FILE"),
        (["--config=experiments/configs/digit.py"], r"no recipe .*did you mean 'experiments/configs/digits.py'"),
        (["--config=nowhere/at_all.py"], "no recipe"),
        (["--config=pyproject.toml"], "no Python file"),
        (["--config=experiments/command_line.py"], "has no function get_config"),
        (["--config=experiments/configs/digits.py:lenet6"], "'lenet6' is not known; did you mean 'lenet5"),
        ([DIGITS, "--config.model.activaton=relu"], "config.model.activaton .*did you mean 'model.activation'"),
        (
            [DIGITS, "--config.learning_rate=0.1"],
            "did you mean .*'learning_rate'|did you mean .*optimizer.learning_rate",
        ),
        ([DIGITS, "--config.zzz.qqq=0.1"], "config.zzz.qqq is no field"),
        ([DIGITS, "--config.batch_size=many"], "--config.batch_size=many: "),
        ([DIGITS, "--config.batch_size=0.5"], "--config.batch_size=0.5: "),
        ([DIGITS, "--config.augmentation.flip=perhaps"], "--config.augmentation.flip=perhaps: "),
        ([DIGITS, "--config.batch_size"], "Missing value for flag --config.batch_size"),
        ([DIGITS, "--config.model=3"], "it has the fields model."),
        ([DIGITS, "--wrokdir=x"], "wrokdir.*workdir"),
        ([DIGITS, "--workdir=x", "surplus"], "unexpected argument 'surplus'"),
        (["--config.seed=3", DIGITS], "before a value for --config"),
        ([DIGITS], "--workdir is missing"),
    ],
)
def test_faults_end_in_one_line(shell, arguments, message):
    code, stdout, stderr = shell("train", *arguments)
    assert code == 2, stderr
    assert re.fullmatch(r"error: [^\n]+\n", stderr), stderr
    assert re.search(message, stderr), stderr
    assert not stdout


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device\n"),
        (OSError(errno.EACCES, "Permission denied", "/there"), "error: /there: Permission denied\n"),
    ],
)
def test_faults_of_disks_end_in_one_line(monkeypatch, capsys, fault, line):
    def main():
        raise fault

    for name in ("_quiet", "enable_compilation_cache"):
        monkeypatch.setattr(command_line, name, lambda: None)
    monkeypatch.setattr(command_line, "_parse", lambda _: None)
    with pytest.raises(SystemExit) as end:
        command_line.run(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == line


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="buckets can be read here")
@pytest.mark.parametrize("name", ["a\nb", "a\x85b", "a\u2028b"])
def test_a_file_whose_name_has_several_lines_is_named_in_one(shell, tmp_path, name):
    code, out, err = shell("sweeps.train_together", f"--runs={tmp_path}/{name}")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err == f"error: {tmp_path}/a b: No such file or directory\n"


def test_a_bucket_without_the_package_that_reads_it(shell):
    code, out, err = shell("evaluate", "--workdir=gs://bucket/run")
    assert (code, out) == (2, "")
    assert re.fullmatch(r'error: Please install gcsfs [^\n]*: pip install -e "\.\[gcs\]"\n', err)


def test_every_field_is_a_flag(shell, tmp_path):
    code, _, stderr = shell(
        "train",
        DIGITS,
        f"--workdir={tmp_path}",
        "--config.duration=1",
        "--config.batch_size=8",
        "--config.model.activation=relu",
        "--config.model.width=2",
        "--config.optimizer.name=adamw",
        "--config.data.image_size=(32,32)",
        "--config.augmentation.flip",
        "--config.data.mean=0.1",
        "--noconfig.tensorboard",
    )
    assert code == 0, stderr
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["activation"] == "relu"
    assert config["model"]["width"] == 2.0
    assert config["optimizer"]["name"] == "adamw"
    assert config["augmentation"]["flip"] is True
    assert config["data"]["mean"] == [0.1]
    assert config["tensorboard"] is False


def test_help(shell):
    code, out, err = shell("train", "--help")
    assert (code, err) == (0, "")
    assert "--workdir" in out
    assert "Trains a network" in out
