"""Sheets: what is drawn, and values as colours."""

import matplotlib.image
import numpy as np

from cnn_research.analysis import sheets
from cnn_research.analysis.sheets import Panel, sheet

IMAGE = np.random.default_rng(0).random((6, 8, 3))


def test_a_panel_for_each_picture_in_its_place(tmp_path):
    rows = [[Panel(IMAGE, "one"), Panel(IMAGE[..., :1])], [Panel(IMAGE)]]
    figure = sheet(rows, ["first", "second"], "title")
    assert [axes.get_title() for axes in figure.axes] == ["one", "", ""]
    one, beside, below = (axes.get_position() for axes in figure.axes)
    assert one.y0 == beside.y0 > below.y0
    assert one.x0 == below.x0 < beside.x0
    assert one.x1 <= beside.x0
    assert below.y1 <= one.y0
    assert {text.get_text() for text in figure.texts} == {"title", "first", "second"}
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), IMAGE)
    figure.savefig(tmp_path / "sheet.png")
    assert matplotlib.image.imread(tmp_path / "sheet.png").std() > 0


def test_heat_is_strongest_where_values_are_largest():
    values = np.zeros((6, 8))
    values[2, 3], values[4, 4] = 5.0, -5.0
    warm = sheets.heat(IMAGE, values)
    grey = IMAGE @ np.array([0.299, 0.587, 0.114])
    brightness = (warm - 0.35 * grey[..., None]).sum(-1)
    assert np.unravel_index(brightness.argmax(), (6, 8)) == (2, 3)
    np.testing.assert_allclose(brightness[4, 4], brightness[0, 0], atol=1e-3)
    assert np.isfinite(sheets.heat(IMAGE[..., :1], np.zeros((6, 8)))).all()


def test_signs_have_colours():
    red, white, blue = sheets.signed(np.array([[-1.0, 0.0, 1.0]]), largest=1.0)[0]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert white.min() > 0.9


def test_scales():
    values = np.array([[-2.0, 0.0], [1.0, 2.0]])
    np.testing.assert_allclose(sheets.strength(values)[..., 0], [[1, 0], [0.5, 1]], rtol=0.05)
    np.testing.assert_allclose(sheets.relief(values[..., None])[..., 0], [[0, 0.5], [0.75, 1]], atol=0.02)
    np.testing.assert_allclose(sheets.stretched(values)[..., 0], [[0, 0.5], [0.75, 1]])
    assert not sheets.stretched(np.ones((2, 2))).any()
