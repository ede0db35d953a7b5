"""The how-tos do what they say: their files are written, their changes made and their commands run, in a copy.

So does the Python of the guide to analysis.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cnn_research import training

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted((REPOSITORY / "docs" / "how_to").glob("*.md"))
BLOCK = re.compile(r'^```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.MULTILINE | re.DOTALL)

# All that the pages add, as the tables say.
ADDED = """
from cnn_research import models, tasks
from cnn_research.analysis import attribution, gallery
from cnn_research.metrics.classification import balanced_accuracy

assert models.task("all_cnn_cifar") == "classification" and models.input_shape("all_cnn_cifar") == (32, 32, 3)
assert models.names("counting") == ["counter"] and "counting" in tasks.names()
assert "vargrad" in attribution.METHODS and "vargrad" in gallery.METHODS
"""


def blocks(page):
    return [match.groupdict() for match in BLOCK.finditer(page.read_text())]


def changed(text, diff):
    """Returns a file with the parts of a diff, separated by @@, replaced; each stands there once."""
    for part in diff.split("@@\n"):
        lines = part.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in f" {sign}") for sign in "-+")
        assert text.count(old) == 1, f"the file does not hold this once:\n{old}"
        text = text.replace(old, new)
    return text


def write(block, copy):
    """Writes the file of a block that has a title, or changes it."""
    path = copy / block["title"]
    path.write_text(changed(path.read_text(), block["text"]) if block["kind"] == "diff" else block["text"])


def run(copy, *command):
    """Runs a command in the copy; returns what it writes."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": paths, "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository, as far as the pages need it."""
    for folder in ("cnn_research", "experiments", "launch", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_what_the_pages_add_goes_together(copy):
    """All files and changes of all pages at once give a package that knows what was added, in the common style."""
    for page in PAGES:
        for block in blocks(page):
            if block["title"]:
                write(block, copy)
    run(copy, sys.executable, "-c", ADDED)
    for command in (["check"], ["format", "--check"]):
        run(copy, sys.executable, "-m", "ruff", *command, "--quiet", "cnn_research", "experiments", "tests/models")


def test_every_page_has_commands():
    assert len(PAGES) == 5
    for page in PAGES:
        kinds = {block["kind"] for block in blocks(page)}
        assert {"bash", "python"} <= kinds <= {"bash", "diff", "python", "text"}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_as_it_is_written(page, copy):
    """From top to bottom; lines of a `text` block are in what the block before it wrote."""
    written = ""
    for block in blocks(page):
        if block["title"]:
            write(block, copy)
        elif block["kind"] == "bash":
            written = run(copy, "bash", "-euc", block["text"])
        elif block["kind"] == "python":
            written = run(copy, sys.executable, "-c", block["text"])
        else:
            assert block["kind"] == "text"
            for line in block["text"].splitlines():
                assert line in written, written


@pytest.mark.slow
def test_the_guide_to_analysis(digits_config, tmp_path, monkeypatch):
    training.train(digits_config(), tmp_path / "runs" / "digits_lenet5", jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    pieces = [block["text"] for block in blocks(REPOSITORY / "docs/guides/restore.md") if block["kind"] == "python"]
    for piece in pieces:
        exec(piece, {})
    assert {"curves.png", "digits_lenet5.safetensors"} <= {path.name for path in tmp_path.iterdir()}
