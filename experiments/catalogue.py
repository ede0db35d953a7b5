"""Writes the pages of the documentation that follow from the code: all networks with their counts, and all recipes.

python -m experiments.catalogue --out=docs

Networks are counted as `tabulate` counts them, at the size that they were made for; nothing is computed (but the
deepest take a minute to trace). What recipes reach is what their docstrings say, where they say it in this form, with
two spaces or more between the columns:

    Measured on 2 CPU cores, seed 0:

        lenet5  98.6% test accuracy  14 s
"""

import ast
import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from absl import flags
from flax import linen as nn
from tqdm import tqdm

from cnn_research import analysis, models
from cnn_research.analysis.table import times
from cnn_research.models.classifiers import SHARED
from experiments import command_line
from experiments.markdown import markdown_table

RECIPES = Path(__file__).parent / "configs"
MEASURED = re.compile(r"^Measured on (?P<where>[^\n]+):\n\n(?P<rows>(?:    [^\n]+\n?)+)", re.MULTILINE)
COMMON = ("num_classes", "dropout_rate", *SHARED)
WRITTEN = "Written by `python -m experiments.catalogue --out=docs`."

_OUT = flags.DEFINE_string("out", "", "the folder for models.md and recipes.md")


class Measurement(NamedTuple):
    """What a recipe reached, in words.

    Attributes:
      argument: after the recipe's colon.
      score: on the test split.
      time: of the training.
      where: the hardware, and the seed.
    """

    argument: str
    score: str
    time: str
    where: str


def measurements(text: str) -> Iterator[Measurement]:
    """Yields what a recipe's docstring says that it reaches.

    Args:
      text: the docstring, in the form that this module's shows.
    """
    for block in MEASURED.finditer(text):
        for row in block["rows"].splitlines():
            argument, score, time = re.split(r"\s{2,}", row.strip())
            yield Measurement(argument, score, time, block["where"])


def docstring(path: Path) -> str:
    """Returns a file's docstring; nothing is run."""
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def recipes_page() -> Iterator[str]:
    """Yields the lines of the page on recipes."""
    rows = [["recipe", "test", "time", "on"]]
    unmeasured = []
    for path in sorted(RECIPES.glob("*.py")):
        text = docstring(path)
        found = [*measurements(text)]
        rows += [[f"`{path.name}:{each.argument}`", each.score, each.time, each.where] for each in found]
        if not found:
            unmeasured.append(f"- `{path.name}`: {text.splitlines()[0]}")
    yield from ("# Recipes", "")
    yield from _wrapped(
        "A recipe is a file in `experiments/configs`; after the colon stands the network. The numbers are what "
        "`experiments.train` printed; each file's docstring gives the command and says more."
    )
    yield from ("", WRITTEN, "", *markdown_table(rows, left=4), "", "## Not measured", "")
    yield from _wrapped(
        "These build and are tested, but have not been run to their end here. Some of their docstrings say what others "
        "have published."
    )
    yield from ("", *unmeasured)


def models_page() -> Iterator[str]:
    """Yields the lines of the page on networks."""
    names = tqdm(models.names(), unit="network", disable=None, leave=False)
    tables = {name: analysis.tabulate(models.create(name), models.input_shape(name)) for name in names}
    families: dict[type[nn.Module], list[str]] = {}
    for name in tables:
        families.setdefault(type(models.create(name)), []).append(name)
    yield from ("# Networks", "")
    yield from _wrapped(
        "Every network, at the size of the images that it was made for. Parameters are the trainable ones, those of "
        "auxiliary heads included. Multiply-adds are those of convolutions and fully connected layers for one image, "
        "as papers count them. `experiments.tabulate` shows the layers, at any size and with any fields."
    )
    yield from ("", WRITTEN, "")
    yield from _wrapped(f"As far as they apply, all have the fields {_listed(COMMON)}.")
    for family in sorted(families, key=lambda family: family.__name__.lower()):
        rows = [["network", "task", "images", "parameters", "multiply-adds"]]
        for name in families[family]:
            table = tables[name]
            counts = [f"{table.params:,}", f"{table.macs:,}"]
            rows.append([f"`{name}`", models.task(name).replace("_", " "), times(table.input_shape), *counts])
        fields = [field.name for field in dataclasses.fields(family)]
        own = [field for field in fields if field not in (*COMMON, "parent", "name")]
        title = (sys.modules[family.__module__].__doc__ or "").splitlines()[0]
        yield from ("", f"## {family.__name__}", "", title, "", *markdown_table(rows, left=3), "")
        yield from _wrapped(f"Its own fields: {_listed(own)}.")
        yield from ("", f"[What they mean](reference/models.md#{family.__module__}.{family.__name__}).")


def _listed(fields: Iterable[str]) -> str:
    return ", ".join(f"`{field}`" for field in fields)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_on_hyphens=False)


def main() -> None:
    """Writes both pages."""
    command_line.require("out")
    for name, lines in (("recipes", recipes_page()), ("models", models_page())):
        path = Path(_OUT.value) / f"{name}.md"
        path.write_text("\n".join(lines) + "\n")
        print(f"{path} is written")


if __name__ == "__main__":
    command_line.run(main)
