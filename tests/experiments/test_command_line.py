import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DIGITS = "--config=experiments/configs/digits.py:lenet5"

# Starts as a script does, then gives each command line a process of its own, as the shell does, but imports only once.
FORKS = """
import json, os, sys, tempfile
from experiments import command_line, train

def main():
    command_line.require("config", "workdir")
    print(train._CONFIG.value.to_json())

for line in sys.stdin:
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    child = os.fork()
    if not child:
        os.dup2(files[0].fileno(), 1), os.dup2(files[1].fileno(), 2)
        sys.argv = ["train", *json.loads(line)]
        command_line.run(main)
        sys.exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, *(file.seek(0) or file.read() for file in files)]), flush=True)
"""


@pytest.fixture(scope="module")
def parse():
    """Returns a function from arguments to the exit code, stdout and stderr of a script that trains nothing."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def ask(*arguments):
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask
        process.stdin.close()


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
def test_faults_end_in_one_line(parse, arguments, message):
    code, stdout, stderr = parse(*arguments)
    assert code == 2, stderr
    assert re.fullmatch(r"error: [^\n]+\n", stderr), stderr
    assert re.search(message, stderr), stderr
    assert not stdout


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="buckets can be read here")
def test_a_bucket_without_the_package_that_reads_it():
    command = [sys.executable, "-m", "experiments.evaluate", "--workdir=gs://bucket/run"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r'error: Please install gcsfs [^\n]*: pip install -e "\.\[gcs\]"\n', ended.stderr)


def test_every_field_is_a_flag(parse):
    code, stdout, stderr = parse(
        DIGITS,
        "--workdir=x",
        "--config.model.activation=relu",
        "--config.model.width=2",
        "--config.optimizer.name=adamw",
        "--config.data.image_size=(32,32)",
        "--config.augmentation.flip",
        "--config.data.mean=0.1",
        "--noconfig.tensorboard",
    )
    assert code == 0, stderr
    config = json.loads(stdout)
    assert config["model"]["activation"] == "relu"
    assert config["model"]["width"] == 2.0
    assert config["optimizer"]["name"] == "adamw"
    assert config["augmentation"]["flip"] is True
    assert config["data"]["mean"] == [0.1]
    assert config["tensorboard"] is False


def test_help():
    command = [sys.executable, "-m", "experiments.train", "--help"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0
    assert "--workdir" in ended.stdout
    assert "Trains a network" in ended.stdout
    assert not ended.stderr
