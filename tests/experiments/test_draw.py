"""The script that draws networks."""

import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, "-W", "ignore", "-m", "experiments.draw", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout, ended.stderr


def test_a_recipes_network_as_svg(tmp_path):
    out = tmp_path / "pictures" / "lenet5.svg"
    config = "--config=experiments/configs/digits.py:lenet5"
    code, stdout, stderr = run(config, "--config.model.c3=dense", f"--out={out}")
    assert (code, stderr) == (0, "")
    assert stdout == f"lenet5 drawn into {out}\n"
    words = {element.text for element in xml.etree.ElementTree.parse(out).iter() if element.text}
    assert {"lenet5", "C3", "28\N{MULTIPLICATION SIGN}28\N{MULTIPLICATION SIGN}6"} <= words


@pytest.mark.slow
def test_the_same_network_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        assert run("--model=lenet5", f"--out={tmp_path / name}.svg")[0] == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    for suffix, begins in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        assert run("--model=resnet50", "--inside=stage1/block1", f"--out={tmp_path / 'c'}{suffix}")[0] == 0
        assert (tmp_path / f"c{suffix}").read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("--model=lenet5",), "--out is missing", marks=pytest.mark.slow),
        (("--model=lenet5", "--out=lenet5.bmp"), "--out=lenet5.bmp: a picture's name ends in .pdf, .png, .svg"),
        pytest.param(
            ("--model=resnet20_cifar", "--inside=stage9", "--out=x.svg"), "did you mean 'stage", marks=pytest.mark.slow
        ),
    ],
)
def test_faults_are_one_line(arguments, message):
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert message in stderr
    assert len(stderr.splitlines()) == 1
