"""The README's commands run, in its order, and give what it claims; the numbers of its tables are the exact ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"

# Trained for a few steps, since what else the README claims of them takes long, and stands in their recipes.
FEW_STEPS = "duration=4", "eval_every=4", "checkpoint_every=2", "data.train=train[:256]", "data.test=test[:128]"
SHORTENED = {f"--workdir=runs/{name}": FEW_STEPS for name in ("shapes_unet", "resnet20", "skips")}
SHORTENED["--workdir=runs/mnist_hog_svm"] = "data.train=train[:500]", "data.test=test[:100]"

# Not run here: what would be downloaded, and what needs a compiler for TPUs (tests/experiments/test_plan.py).
LEFT_OUT = {"experiments.prepare_data", "experiments.plan"}


def rows(page):
    """Yields the cells of each row of a page's tables."""
    for line in page.read_text().splitlines():
        if line.startswith("|") and not line.startswith(("|--", "|:-")):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]


def named(cell):
    """Returns the networks of a cell; a number alone stands for the one before with this number."""
    names = []
    for name in re.findall(r"`(\w+)`", cell):
        names.append(re.sub(r"\d+", name, names[0]) if name.isdigit() else name)
    return names


def agrees(number, unit, count):
    """Says whether a number is a count, rounded to the digits that are written."""
    digits = len(number.partition(".")[2])
    return round(count / {"": 1, "M": 1e6, "G": 1e9}[unit], digits) == float(number.replace(",", ""))


def test_counts_are_the_exact_ones_rounded():
    exact = {}
    for cells in rows(REPOSITORY / "docs" / "models.md"):
        if len(cells) == 5 and cells[0].startswith("`"):
            exact[cells[0].strip("`")] = [int(cell.replace(",", "")) for cell in cells[3:]]
    found = [cells for cells in rows(README) if len(cells) == 4 and set(named(cells[0])) & set(exact)]
    assert len(found) == 15
    for cells in found:
        names = named(cells[0])
        for column, cell in enumerate(cells[1:3]):
            counts = [exact[name][column] for name in names]
            numbers = re.match(r"(?P<least>[\d.]+) to (?P<most>[\d.]+) (?P<unit>[MG])", cell)
            if numbers:
                given = [(numbers["least"], numbers["unit"]), (numbers["most"], numbers["unit"])]
                counts = [min(counts), max(counts)]
            else:
                given = re.findall(r"(?:^|, )([\d.,]*\d)(?: ([MG]))?", cell)
                counts = counts if len(given) > 1 else [*dict.fromkeys(counts)]
            if len(given) == 1 and len(counts) > 1:  # one number for all: each rounds to it
                given *= len(counts)
            assert len(given) == len(counts), cells
            for (number, unit), count in zip(given, counts, strict=True):
                assert agrees(number, unit, count), f"{cells[0]}: {number} {unit} is written, {count:,} is true"


def test_measurements_are_those_of_the_recipes():
    """Accuracies and times are what the recipe's docstring says, which docs/recipes.md gathers."""
    measured = {cells[0]: cells[1:3] for cells in rows(REPOSITORY / "docs" / "recipes.md") if len(cells) == 4}
    found = [cells for cells in rows(README) if len(cells) == 4 and re.match(r"`\w+\.py", cells[0])]
    assert len(found) > 20
    for recipe, _, claimed, time in found:
        name = recipe if ":" in recipe else next(row for row in measured if row.startswith(recipe.rstrip("`")))
        results, duration = measured[name]
        assert time == duration, recipe
        percentages = re.findall(r"\d+\.\d+%", claimed.partition(", the paper's")[0])
        assert percentages, recipe
        assert set(percentages) <= set(re.findall(r"\d+\.\d+%", results)), (recipe, claimed, results)


def run(folder, words):
    """Runs a command of ours; returns what it writes to stdout."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{words}: {done.stderr[-2000:]}"
    return done.stdout


def claimed_rows():
    """Yields the settings of the README's ablation of LeNet-5, and the mean of their accuracies."""
    for cells in rows(README):
        if len(cells) == 8 and "±" in cells[5]:
            yield cells[:5], float(cells[5].strip("*").partition(" ± ")[0])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_commands_run_and_give_what_is_claimed(commands, real_data, tmp_path):
    """All blocks from top to bottom; about 20 minutes on two cores."""
    (tmp_path / "experiments").symlink_to(REPOSITORY / "experiments")
    given = [[word.replace("gs://BUCKET", str(tmp_path)) for word in words] for words in commands(README, True)]
    for words, after in zip(given, [*given[1:], []], strict=True):
        if words[0] in LEFT_OUT or words in given[: given.index(words)]:
            continue
        if words[0] == "launch.local":
            run(tmp_path, [*words, sys.executable, "-m", *after])
            continue
        workdir = next((word for word in words if word.startswith("--workdir=")), "")
        starts = any(word.startswith("--config=") for word in words)
        fields = SHORTENED.get(workdir, ()) if starts else ()
        run(tmp_path, [*words, *(f"--config.{field}" for field in fields)])

    def result(run):
        return json.loads((tmp_path / "runs" / run / "result.json").read_text())

    assert "98.6% of the test digits" in README.read_text()
    assert result("rehearsal")["test/accuracy"] == pytest.approx(0.986, abs=0.006)
    table = [*rows(tmp_path / "runs" / "since_1998" / "table.md")]
    claims = [*claimed_rows()]
    assert len(claims) == 5
    for settings, mean in claims:
        (cells,) = [cells for cells in table if set(settings) <= set(cells)]
        measured = float(next(cell for cell in cells if "±" in cell).strip("*").partition(" ± ")[0])
        assert measured == pytest.approx(mean, abs=0.01), settings  # one of the 360 digits is 0.003
    for picture in ("vgg16.svg", "runs/resnet20/report/index.html", "runs/skips/report/index.html"):
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.slow
def test_python_runs(tmp_path, monkeypatch, digits_config):
    """The blocks of Python, but for the weights, which are a file of somebody's."""
    import jax
    import numpy as np

    from cnn_research import training

    training.train(digits_config(), tmp_path / "runs" / "wide", jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    first, weights = blocks
    assert "vgg16_bn.pth" in weights
    images = np.zeros([2, 32, 32, 1], np.uint8)
    exec(first, {"images": images, "rng": jax.random.key(0), "x": jax.numpy.zeros([2, 32, 32, 3])})
    assert {"curves.png", "wide.safetensors"} <= {path.name for path in tmp_path.iterdir()}
