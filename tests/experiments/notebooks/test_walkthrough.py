"""The notebook runs from its first cell to its last, and holds what it gave."""

import json
from pathlib import Path

import pytest

PATH = Path(__file__).parents[3] / "experiments" / "notebooks" / "walkthrough.ipynb"


@pytest.fixture(scope="module")
def cells():
    notebook = json.loads(PATH.read_text())
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_was_run_in_order(cells):
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)
    assert PATH.stat().st_size < 300_000


def test_it_runs(cells, capsys):
    """Without Jupyter: a cell ends with an expression or a statement, and pictures draw themselves."""
    names = {}
    for cell in cells:
        *body, last = "".join(cell["source"]).rstrip().split("\n")
        if last.startswith("Picture("):
            exec("\n".join(body), names)
            assert eval(last, names)._repr_png_().startswith(b"\x89PNG")
        else:
            exec("\n".join([*body, last]), names)
    assert names["result"]["test/accuracy"] > 0.9
    assert names["made"].shape == (10, 32, 32, 1)
    assert "61,706 parameters" in capsys.readouterr().out
