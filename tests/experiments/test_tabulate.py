"""The script's flags, what it writes, and how it ends."""

import json
from functools import partial

import pytest

from cnn_research import analysis, models
from cnn_research.errors import UserError
from experiments.networks import parse_fields, parse_shape
from experiments.tabulate import remainders

DIGITS = "--config=experiments/configs/digits.py:lenet5_modern"


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from flags to the exit code, stdout and stderr of the script."""
    return partial(shell, "tabulate")


def test_a_network_by_name(run):
    code, stdout, stderr = run("--model=vgg16", "--input_shape=224,224,3", "--format=json")
    assert (code, stderr) == (0, "")
    table = json.loads(stdout)
    assert (table["name"], table["params"], table["macs"]) == ("vgg16", 138_357_544, 15_470_264_320)
    assert table["rows"][-1]["receptive_field"] == [404, 404]


def test_fields_and_the_papers_size(run):
    code, stdout, _ = run("--model=resnet20_cifar", "--fields=norm=group, stage_sizes=(1,1),width=0.5", "--all")
    assert code == 0
    assert "Norm group" in stdout
    assert "Dropout" in stdout
    assert "resnet20_cifar on one image of 32x32x3: " in stdout
    assert stdout.endswith(": stage2/block1/conv1; nothing at 31x31 or 33x33.\n")


def test_a_recipes_network(run):
    code, stdout, stderr = run(DIGITS, "--config.model.c3=partial", "--config.data.channels=3", "--format=markdown")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("| layer | kind |")
    assert "| C3 | PartialConv | 5x5 |" in stdout
    assert "lenet5_modern on one image of 32x32x3" in stdout
    assert stdout.endswith("\n\nAt 32x32 strides leave no remainder.\n")


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
def test_faults_end_in_one_line(run, arguments, message):
    assert run(*arguments) == (2, "", f"error: {message}\n")


UNSEEN = "pixels at the end that no window sees"
PADDING = "a remainder, but no pixel at the end unseen"


@pytest.mark.parametrize(
    ("model", "sizes", "line"),
    [
        ("alexnet", (224, 224), f"{UNSEEN}: conv1, pool1, pool2, pool5; nothing at 195x195 or 227x227"),
        ("alexnet", (227, 300), f"{UNSEEN}: conv1, pool2; nothing at 227x291 or 227x323"),
        ("alexnet", (227, 195), "no remainder"),
        ("vgg11", (230, 250), f"{UNSEEN}: pool2, pool3, pool4, pool5; nothing at 224x224 or 256x256"),
        ("vgg11", (33, 95), f"{UNSEEN}: pool1, pool2, pool3, pool4 and 1 more; nothing at 32x64 or 64x96"),
        ("resnet18", (225, 193), "no remainder"),
        # The 1x1 windows of the shortcuts leave no more than there is between any two of them.
        ("resnet18", (224, 224), f"{PADDING}: conv1, pool1, stage2/block1/conv1, stage2/block1/shortcut_conv and 4 "
         "more; nothing at 193x193 or 225x225"),
        ("googlenet", (224, 224), f"{PADDING}: conv1"),  # the poolings are padded as their sizes want it
        ("lenet5", (32, 32), "no remainder"),
    ],
)  # fmt: skip
def test_remainders(model, sizes, line):
    """The paper's 224 for AlexNet is not what its arithmetic wants; ResNet's padding takes up what 224 leaves."""
    height, width = sizes
    table = analysis.tabulate(models.create(model), (height, width, models.input_shape(model)[-1]))
    assert remainders(table) == f"At {height}x{width} strides leave {line}.\n"


def test_no_line_without_strides():
    assert remainders(analysis.tabulate(models.create("mlp"), (28, 28, 1))) == ""


def test_the_sizes_without_a_remainder_are_those_that_are_named():
    model = models.create("resnet20_cifar", stage_sizes=(1, 1, 1))
    lines = {size: remainders(analysis.tabulate(model, (size, size, 3))) for size in range(13, 22)}
    assert [size for size, line in lines.items() if "no remainder" in line] == [13, 17, 21]
    assert lines[18].endswith("nothing at 17x17 or 21x21.\n")


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
