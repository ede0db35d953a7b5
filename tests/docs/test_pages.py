"""The documentation's commands are understood; the files, tests and names that it speaks of are there."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md"), *REPOSITORY.glob("launch/*/README.md")])


def test_commands_are_understood(commands):
    """By the scripts' own parsers: scripts, flags, recipes, fields of configs and named sweeps exist."""
    # Those of the how-tos, which add names, are run by another test.
    found = [(page.name, words) for page in PAGES if page.parent.name != "how_to" for words in commands(page)]
    assert len(found) > 80
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(Path(__file__).with_name("parse_commands.py"))],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        input=json.dumps([words for _, words in found]),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    complaints = json.loads(done.stdout.splitlines()[-1])
    faults = [f"{page}: {shlex.join(words)}: {fault}" for (page, words), fault in zip(found, complaints, strict=True)]
    assert not [fault for fault, complaint in zip(faults, complaints, strict=True) if complaint]


def resolve(name):
    """Returns what a dotted name means: a module, or what stands in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            found = getattr(found, attribute)
        return found
    raise AssertionError(f"{name} is no module of ours")


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_names_and_files_are_there(page):
    """Names that are linked or written out, and paths from the repository's root, with the test that they name."""
    text = page.read_text()
    for name in re.findall(r"\.md#(cnn_research[\w.]*)\)", text):
        resolve(name)
    for word in re.findall(r"`([^`\n]+)`", text):
        if re.fullmatch(r"cnn_research(\.\w+)+", word):
            resolve(word)
        elif re.fullmatch(r"(cnn_research|docs|experiments|launch|tests)/[\w/.]+(::\w+)?", word) and "NAME" not in word:
            path, _, test = word.partition("::")
            assert (REPOSITORY / path).exists(), f"{path} is not there"
            assert not test or f"def {test}(" in (REPOSITORY / path).read_text(), f"{path} has no {test}"


def test_links_lead_somewhere():
    """Those to files; strict builds of the site say the same of the pages, and of the headings in them."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
