"""Embedded sets are prepared once, whoever asks at the same time or was killed before, and without a word."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cnn_research.data import embedded
from cnn_research.errors import UserError

PREPARE = """
import pathlib, sys, time
from cnn_research.data import embedded
data_dir, *names = sys.argv[1:]
while not pathlib.Path(data_dir, "go").exists():
    time.sleep(0.01)
for name in names:
    embedded.prepare(name, data_dir)
assert "tensorflow" not in sys.modules
"""


def start(data_dir, *names):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(data_dir), *names], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "did you mean 'digits'"),
        ("digits/8x8", "digits has no configs"),
        ("shapes/64", "malformed part '64'"),
    ],
)
def test_unknown_names(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        embedded.builder(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("digits", "digits/1.0.0"),
        ("shapes", "shapes/64x64/1.0.0"),
        ("shapes/64x64", "shapes/64x64/1.0.0"),
        ("shapes/seed2_32x32", "shapes/32x32_seed2/1.0.0"),
    ],
)
def test_builder_writes_nothing(tmp_path, name, path):
    assert embedded.builder(name, tmp_path).data_path == tmp_path / path
    assert not list(tmp_path.iterdir())


def test_all_names_have_builders(tmp_path):
    assert [embedded.builder(name, tmp_path).name for name in embedded.NAMES] == list(embedded.NAMES)


def test_two_processes_at_once_without_a_word_or_tensorflow(tmp_path):
    names = ("shapes/24x24_train100_test10", "digits")
    processes = [start(tmp_path, *names) for _ in range(2)]
    (tmp_path / "go").touch()
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, b"")
    for name in names:
        builder = embedded.builder(name, tmp_path)
        assert builder.is_prepared()
        assert [path.name for path in builder.data_path.parent.iterdir() if path.name[0] != "."] == ["1.0.0"]
    assert {path.name for path in tmp_path.iterdir()} == {"go", "digits", "shapes"}
    assert len(builder.as_data_source(split="train")) == 1437


def test_a_killed_process_blocks_nobody(tmp_path):
    name = "shapes/32x32_train400_test1"
    parent = embedded.builder(name, tmp_path).data_path.parent
    process = start(tmp_path, name)
    (tmp_path / "go").touch()
    while not list(parent.glob("incomplete*")):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(parent.glob("incomplete*"))
    builder = embedded.prepare(name, tmp_path)
    assert len(builder.as_data_source(split="train")) == 400
    assert not list(parent.glob("incomplete*"))


def test_prepared_sets_are_left_alone(tmp_path):
    name = "shapes/16x16_train2_test1"
    directory = embedded.prepare(name, tmp_path).data_path
    before = {path: os.stat(path).st_mtime_ns for path in (directory, *directory.iterdir())}
    assert embedded.prepare(name, tmp_path).info.splits["train"].num_examples == 2
    assert before == {path: os.stat(path).st_mtime_ns for path in (directory, *directory.iterdir())}


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot prepare digits in .*file: .*; give a folder to write in"):
        embedded.prepare("digits", tmp_path / "file")
