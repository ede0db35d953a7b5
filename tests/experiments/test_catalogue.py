"""The documentation's tables are what the code says."""

from pathlib import Path

import pytest

from experiments import catalogue

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_recipes_is_written_from_their_docstrings():
    assert (DOCS / "recipes.md").read_text() == "\n".join(catalogue.recipes_page()) + "\n"


def test_measurements_are_read():
    where = "a TPU, seed 1"
    text = f"A set.\n\nMeasured on {where}:\n\n    a,b  90% (of 10)  1 min 2 s\n    c    1.5 AP       3 s\n\nMore.\n"
    expected = [("a,b", "90% (of 10)", "1 min 2 s", where), ("c", "1.5 AP", "3 s", where)]
    assert [*catalogue.measurements(text)] == expected
    assert [*catalogue.measurements("A set. Measured on a TPU, once.")] == []


@pytest.mark.slow
def test_the_page_of_networks_is_what_they_count():
    """The numbers alone: tests/models/test_counts.py."""
    assert (DOCS / "models.md").read_text() == "\n".join(catalogue.models_page()) + "\n"
