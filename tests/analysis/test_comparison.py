"""What is compared of networks: the table's numbers, published accuracies, and a page that needs no network."""

import csv
import html.parser
import io
import json
import re

import jax.numpy as jnp
import pytest

from cnn_research import models
from cnn_research.analysis import comparison, comparison_page
from cnn_research.analysis.comparison import Entry
from cnn_research.analysis.published import IMAGENET


@pytest.fixture(scope="module")
def entries(table):
    return [
        Entry("lenet5", table("lenet5"), 0.99, "test/accuracy of digits", False, {1: 0.5, 8: 2.0}, 14.0),
        Entry("alexnet", table("alexnet"), 0.593, "published </script>", True),
        Entry("unknown", table("lenet5_modern")),
    ]


def test_numbers_are_the_tables(entries, table):
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(comparison.to_csv(entries)))}
    for name, of in (("lenet5", "lenet5"), ("alexnet", "alexnet"), ("unknown", "lenet5_modern")):
        numbers = [int(rows[name][column]) for column in ("params", "macs", "activation_bytes")]
        assert numbers == [table(of).params, table(of).macs, table(of).activation_bytes]
    assert float(rows["lenet5"]["percent_per_million_params"]) == pytest.approx(99 / 0.06)
    assert float(rows["lenet5"]["images_per_second_batch8"]) == 4.0
    assert float(rows["lenet5"]["latency_ms_batch1"]) == 500.0
    assert (rows["alexnet"]["published"], rows["unknown"]["accuracy"]) == ("True", "")


def test_published_accuracies_are_of_networks_for_imagenet():
    assert IMAGENET.keys() <= set(models.names("classification"))
    for name, (top1, top5, source) in IMAGENET.items():
        assert models.create(name).num_classes == 1000
        assert 0.5 < top1 < 0.8
        assert top5 is None or top1 + 0.1 < top5 < 0.95
        assert source


def test_charts_have_a_circle_and_a_name_each(entries):
    figure = comparison.charts(entries)
    accuracy, density, throughput = figure.axes
    assert {text.get_text() for text in accuracy.texts} == {"lenet5", "alexnet"}
    areas = [float(circle.get_sizes()[0]) for circle in accuracy.collections[::2]]
    assert areas[1] / comparison.LARGEST_AREA == 1
    assert [label.get_text() for label in density.get_yticklabels()] == ["alexnet", "lenet5"]
    assert len(throughput.lines) == 1
    [costs] = comparison.charts(entries[2:]).axes
    assert [text.get_text() for text in costs.texts] == ["unknown"]


def test_the_page_needs_nothing_else(entries):
    page = comparison_page.page(entries)
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    assert not [attributes for _, attributes in found if {"src", "href"} & attributes.keys()]
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]  # a namespace
    assert page.count("</script>") == 1
    assert "prefers-color-scheme: dark" in page
    rows = json.loads(re.search(r"const rows = (\[.*?\]), names", page)[1])
    assert rows == [entry.record() for entry in entries]


def test_latency_is_of_the_function():
    calls = []

    def forward(variables, images):
        calls.append(images.shape)
        return images.sum() * variables

    assert 0 < comparison.measure_latency(forward, jnp.ones(()), (4, 4, 1), 3, repeats=3) < 1
    assert calls == [(3, 4, 4, 1)]  # traced once, run compiled
