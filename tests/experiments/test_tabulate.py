"""The script's flags, what it writes, and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_research.errors import UserError
from experiments.tabulate import parse_fields, parse_shape

REPOSITORY = Path(__file__).parents[2]
DIGITS = "--config=experiments/configs/digits.py:lenet5_modern"


def run(*arguments):
    """Runs the script as a user does; returns its exit code, stdout and stderr."""
    command = [sys.executable, "-W", "ignore", "-m", "experiments.tabulate", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_network_by_name():
    code, stdout, stderr = run("--model=vgg16", "--input_shape=224,224,3", "--format=json")
    assert (code, stderr) == (0, "")
    table = json.loads(stdout)
    assert (table["name"], table["params"], table["macs"]) == ("vgg16", 138_357_544, 15_470_264_320)
    assert table["rows"][-1]["receptive_field"] == [404, 404]


def test_fields_and_the_papers_size():
    code, stdout, _ = run("--model=resnet20_cifar", "--fields=norm=group, stage_sizes=(1,1),width=0.5", "--all")
    assert code == 0
    assert "Norm group" in stdout
    assert "Dropout" in stdout
    assert "resnet20_cifar on one image of 32x32x3: " in stdout


def test_a_recipes_network():
    code, stdout, stderr = run(DIGITS, "--config.model.c3=partial", "--config.data.channels=3", "--format=markdown")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("| layer | kind |")
    assert "| C3 | PartialConv | 5x5 |" in stdout
    assert "lenet5_modern on one image of 32x32x3" in stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--model is missing; it is a network's name"),
        (("--model=googlenet", "--input_shape=8,8,3"), "pool3 gets 1x1x480: a window of 3 does not fit an input of 1 "
         "padded by (0, 0); the input must be at least 3"),
        ((DIGITS, "--fields=width=2"), "--config names the network itself; its fields are --config.model.width=0.5 and "
         "so on"),
    ],
)  # fmt: skip
def test_faults_end_in_one_line(arguments, message):
    assert run(*arguments) == (2, "", f"error: {message}\n")


def test_shapes():
    assert parse_shape(" 32, 48,3") == (32, 48, 3)
    for text in ("32", "32,32", "32,32,3,1", "32,0,3", "32,-1,3", "a,b,c", "32,32,3,", "1e2,1,1"):
        with pytest.raises(UserError, match="is no height,width,channels"):
            parse_shape(text)


def test_fields():
    assert parse_fields("") == {}
    assert parse_fields("width=0.5, stage_sizes=(2,2),norm=batch ,lrn=False") == {
        "width": 0.5,
        "stage_sizes": (2, 2),
        "norm": "batch",
        "lrn": False,
    }
    for text, message in (("norm", "'norm' is no field=value"), ("a=1,a=2", "names a twice"), ("a=", "is no field")):
        with pytest.raises(UserError, match=message):
            parse_fields(text)
