"""The parts of a report: markup, numbers, charts, tables, pictures."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnn_research.analysis.report import charts, numbers, pictures, tables
from cnn_research.analysis.report.charts import Line, chart, curves
from cnn_research.analysis.report.markup import Markup, element, join
from cnn_research.analysis.report.picker import Panel, picker
from cnn_research.analysis.report.pictures import inline, read_pictures


class Reader(html.parser.HTMLParser):
    """Notes elements with their attributes, and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_text_stays_text(text, name):
    read = Reader(element("p", text, element("b"), title=name))
    assert read.elements == [("p", {"title": name}), ("b", {})]
    assert read.text == text
    assert Reader(Markup() + text).text == text


def test_elements():
    assert element("p", "a<b", class_="x", data_y='"', hidden=True, open=False) == (
        '<p class="x" data-y="&quot;" hidden>a&lt;b</p>'
    )
    assert element("img", src="x") == '<img src="x">'
    assert isinstance(join("&", element("i")), Markup)


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (0.843, "test/accuracy", "84.3%"),
        (0.70063, "test/coco_ap_small", "70.1%"),
        (0.75, "test/coco_ar100", "75.0%"),
        (0.459549, "test/loss", "0.4595"),
        (0.41, "train/shape", "0.41"),
        (1.25e-5, "train/learning_rate", "1.25e-05"),
        (61706, "params", "61,706"),
        (12345.6, "", "12,346"),
        ("nan", "test/accuracy", "nan"),
    ],
)
def test_numbers(value, name, text):
    assert numbers.number(value, name) == text


def test_sizes_and_times():
    assert [numbers.magnitude(size) for size in (512, 269_722, 40_551_040, 7_600_000_000)] == [
        *("512", "269.7 k"),
        *("40.6 M", "7.6 G"),
    ]
    assert [numbers.duration(time) for time in (47.6, 1903.67, 7800)] == ["48 s", "31 min 44 s", "2 h 10 min"]


def test_curves_are_by_quantity_with_training_last():
    records = [
        {"step": 10, "train/loss": 2.0, "train/accuracy": "nan", "images_per_second": 5.0},
        {"step": 20, "train/loss": 1.0, "train/accuracy": 0.5},
        {"step": 20, "test/loss": 1.5, "test/accuracy": 0.4, "test/examples": 360},
    ]
    found = curves(records)
    assert set(found) == {"loss", "accuracy"}
    assert found["loss"] == [Line("test", [(20, 1.5)], 0), Line("train", [(10, 2.0), (20, 1.0)], 1)]
    assert found["accuracy"][1].points == [(20, 0.5)]
    main, further = charts.learning_curves([{"step": 1, "train/gradient_norm": 3.0}, *records], "accuracy")
    assert [json.loads(Reader(each).elements[0][1]["data-chart"])["title"] for each in (*main, *further)] == [
        *("loss", "accuracy"),
        "gradient norm",
    ]


def test_long_lines_are_thinned_to_their_end():
    points = [(step, 1 / 3 if step else float("inf")) for step in range(4001)]
    data = json.loads(Reader(chart("loss", [Line("train", points)])).elements[0][1]["data-chart"])
    kept = data["lines"][0]["points"]
    assert len(kept) <= charts.LONGEST
    assert kept[-1] == [4000, 0.333333]
    assert kept == sorted(kept)


def test_a_name_that_looks_like_a_cell():
    read = Reader(tables.table(["class", "text"], [["a", "<td title=x>"]]))
    assert "<td title=x>" in read.text
    assert [attrs for tag, attrs in read.elements if tag == "td"] == [{"class": "number"}]


def test_confusion_names_the_most_frequent_mistakes():
    matrix = np.array([[8, 2, 0], [0, 10, 0], [5, 0, 15]])
    text = tables.confusion(matrix, ["cat", "dog", "<i>"])
    rows = re.findall(r"<tr>(.*?)</tr>", text)[-2:]
    assert [Reader(row).text for row in rows] == ["<i>cat525.0%", "catdog220.0%"]
    cells = [attrs for tag, attrs in Reader(text).elements if tag == "td" and "title" in attrs]
    assert len(cells) == 9
    assert cells[1]["title"] == "cat as dog: 2, 20.0%"
    assert cells[1]["style"] == "--share:0.800"  # of the largest share of a mistake, 25%
    many = tables.confusion(np.eye(21, dtype=int), list(map(str, range(21))))
    assert "title=" not in many


def test_shares_that_are_not_known():
    assert tables.share(float("nan")) == '<td class="number">-</td>'
    assert "--share:0.2500" in tables.share(0.25)


def write(folder, *names, size=(40, 30)):
    for name in names:
        Image.fromarray(np.full((*size[::-1], 3), 200, np.uint8)).save(folder / f"{name}.png")


def test_pictures_are_found_by_method_and_layer(tmp_path):
    write(tmp_path, "top_patches_stage1_block1_conv1", "top_patches_conv1", "mistakes", "grad_cam_pp", "grad_cam")
    write(
        tmp_path, "embedding_tsne", "activations_02", "00003_photo", "00003_photo_classes", "confusions", "own_picture"
    )
    layers = ["conv1", "stage1/block1/conv1"]
    found = read_pictures(epath.Path(tmp_path), layers, without=["confusions"])
    assert [(each.method, each.part) for each in found] == [
        *(("Activations", "image 2"), ("Top patches", "conv1"), ("Top patches", "stage1/block1/conv1")),
        *(("Embedding", "t-SNE"), ("Grad-CAM", ""), ("Grad-CAM++", ""), ("Surest mistakes", "")),
        *(("Predictions", "photo"), ("Own picture", "")),
    ]
    assert read_pictures(epath.Path(tmp_path / "nowhere")) == []


def test_no_method_fills_the_page(tmp_path):
    write(tmp_path, *(f"{index:05d}_photo{index}" for index in range(pictures.MOST + 3)))
    assert len(read_pictures(epath.Path(tmp_path))) == pictures.MOST


def test_pictures_are_inside_the_page(tmp_path):
    write(tmp_path, "flat")
    write(tmp_path, "wide", size=(2 * pictures.WIDEST, 100))
    source, size = inline(epath.Path(tmp_path / "flat.png"))
    assert size == (40, 30)
    start, _, data = source.partition(",")
    assert start == "data:image/webp;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(pixels, np.full((30, 40, 3), 200))
    assert inline(epath.Path(tmp_path / "wide.png"))[1] == (pictures.WIDEST, 50)


def test_picker_names_each_choice_once():
    choices = ("all", "a", "1"), ("all", "a", "2"), ("b", "c", "")
    panels = [Panel(*choice, element("p")) for choice in choices]
    elements = Reader(picker(panels, "Method", "Layer")).elements
    assert [attrs["label"] for tag, attrs in elements if tag == "optgroup"] == ["all", "b"]
    assert sum(tag == "option" for tag, _ in elements) == 2
    assert [(attrs["data-choice"], attrs["data-part"]) for _, attrs in elements if attrs.get("class") == "panel"] == [
        *(("a", "1"), ("a", "2"), ("c", "")),
    ]
