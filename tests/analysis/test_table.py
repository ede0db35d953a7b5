"""How tables of networks are written: text, markdown and JSON."""

import dataclasses
import json
import re

import pytest
from flax import linen as nn

from cnn_research import analysis
from cnn_research.analysis import tabulate
from cnn_research.analysis.table import COLUMNS, Row, Table, memory, times


def cells(line):
    return re.split(r"\s{2,}", line.strip())


def number(cell):
    return float(cell.replace(",", "")) if cell != "-" else 0


@pytest.mark.parametrize("every", [False, True])
def test_text(table, every):
    lines = table("resnet20_cifar").text(every).splitlines()
    heading, rule, *rows, _, total, _, note, _ = lines
    assert cells(heading) == list(COLUMNS)
    assert set(rule) == {"-"}
    assert len(rows) == len(table("resnet20_cifar").shown(every))
    kind = heading.index("kind")
    assert all(row[kind - 1] == " " != row[kind] for row in rows)
    ends = [re.search(rf"\b{name}\b", heading).end() for name in list(COLUMNS)[2:]]  # numbers stand at the right
    assert all(row[end - 1] != " " == row[end : end + 1].ljust(1) for row in rows for end in ends)
    parsed = [dict(zip(COLUMNS, cells(row), strict=True)) for row in rows]
    assert [row["layer"] for row in parsed] == [row.name for row in table("resnet20_cifar").shown(every)]
    for column in ("weights", "biases"):
        assert sum(number(row[column]) for row in parsed) == getattr(table("resnet20_cifar"), column)
    assert sum(number(row["MMACs"]) for row in parsed) == pytest.approx(40.551, abs=0.01)
    assert cells(total)[:4] == ["total", "269,024", "698", "40.551"]
    assert "269,722 parameters" in note


def test_what_is_shown_adds_up_to_the_totals(table):
    for name in ("googlenet_cifar", "lenet5", "vgg11"):
        shown = table(name).shown()
        assert len(shown) < len(table(name).rows)
        for total in ("params", "macs", "activation_bytes"):
            assert sum(getattr(row, total) for row in shown) == getattr(table(name), total)
        assert not [row for row in shown if row.kind in ("Activation", "Dropout")]
        assert [row for row in table(name).shown(every=True) if row.kind == "Dropout"]


def test_markdown(table):
    heading, rule, *rows, total = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table("vgg16").markdown().splitlines()
        if line.startswith("|")
    ]
    assert heading == list(COLUMNS)
    assert rule == [":--", ":--", *["--:"] * 11]
    assert rows[0] == [
        "conv1_1",
        "Conv",
        "3x3",
        "1",
        "1",
        "224x224x3",
        "224x224x64",
        "1,728",
        "64",
        "86.704",
        "12.25 MiB",
        "3",
        "1",
    ]
    assert rows[-1] == [
        "head",
        "Dense",
        "-",
        "-",
        "-",
        "4096",
        "1000",
        "4,096,000",
        "1,000",
        "4.096",
        "3.91 KiB",
        "404",
        "-",
    ]
    assert total[0] == "total"
    assert total[7:11] == ["138,344,128", "13,416", "15,470.264", "57.55 MiB"]


def test_json(table):
    written = json.loads(table("lenet5").json())
    rows = written.pop("rows")
    assert written == {
        "name": "lenet5", "input_shape": [32, 32, 1], "params": 60_000, "weights": 59_752, "biases": 248,
        "macs": 325_680, "activation_bytes": 32_376, "largest_activation_bytes": 28 * 28 * 6 * 4,
    }  # fmt: skip
    assert len(rows) == len(table("lenet5").rows)
    for row, expected in zip(rows, table("lenet5").rows, strict=True):
        assert row.pop("params") == expected.params
        assert row == json.loads(json.dumps(dataclasses.asdict(expected)))


def test_cells_of_unusual_rows():
    row = Row("x", "Conv", (3, 5), (2, 1), ((0, 1), (2, 2)), (2, 2), groups=4, output_shape=(1_234_567,), jump=(0.5, 1))
    written = {name: cell(row) for name, cell in COLUMNS.items()}
    assert written == {
        **dict.fromkeys(COLUMNS, ""), "layer": "x", "kind": "Conv, 4 groups", "kernel": "3x5 by 2", "stride": "2x1",
        "padding": "0+1 x 2", "output": "1234567", "jump": "0.5x1",
    }  # fmt: skip
    assert [memory(size) for size in (40, 2**20 - 1024, 2**20, 5 * 2**30)] == [
        "0.04 KiB", "1,023.00 KiB", "1.00 MiB", "5,120.00 MiB"]  # fmt: skip
    assert times((7, 7), square=True) == "7"
    assert times((7, 7, 7)) == "7x7x7"


def test_names_are_whole():
    class Long(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name=200 * "x")(x)

    assert 200 * "x" in tabulate(Long(), (2, 2, 2)).text()


def test_a_network_without_layers_has_a_table():
    class Nothing(nn.Module):
        def __call__(self, x):
            return x

    table = tabulate(Nothing(), (2, 3, 4))
    assert [row.output_shape for row in table.rows] == [(2, 3, 4)]
    assert (table.params, table.macs) == (0, 0)
    assert "Nothing on one image of 2x3x4: 0 parameters" in table.text()


def test_the_package_has_it():
    assert analysis.tabulate is tabulate
    assert analysis.Table is Table
