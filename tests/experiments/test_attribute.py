"""The form of what the suite `attribute` measures; not its figures."""

import pytest

from cnn_research.analysis.attribution import METHODS
from experiments.suites import attribute


def test_a_row_for_each_method_that_the_network_has(monkeypatch):
    monkeypatch.setattr(attribute, "METHODS", ("saliency", "cam"))
    monkeypatch.setitem(attribute.CASES, "lenet5_modern", attribute.Case("lenet5_modern", (3, 32, 32, 1)))
    (row,) = attribute.rows(1, ["lenet5_modern"])
    assert (row["model"], row["method"], row["batch_size"]) == ("lenet5_modern", "saliency", 3)
    assert row["ratio"] == pytest.approx(row["batch_images_per_s"] / row["loop_images_per_s"], rel=0.05)
    assert set(METHODS) > {"saliency", "cam"}
