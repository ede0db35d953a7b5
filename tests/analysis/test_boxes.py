import numpy as np

from cnn_research.analysis.boxes import box_grid, detection_grid, precision_recall
from cnn_research.metrics.detection import Curve

IMAGES = [np.zeros((6, 8, 3), np.uint8), np.zeros((40, 30, 1), np.uint8), np.zeros((4, 4, 3), np.uint8)]
BOX, OTHER = np.array([0.25, 0.5, 0.75, 1.0]), np.array([0.0, 0.0, 0.5, 0.25])


def drawn(axes):
    """Left, top, width, height and style of the boxes of an image."""
    return [(*patch.get_xy(), patch.get_width(), patch.get_height(), patch.get_linestyle()) for patch in axes.patches]


def test_a_box_is_drawn_where_it_is():
    figure = box_grid(IMAGES, [[(BOX, "cat 90%")], [], []], [[(OTHER, "true: dog")], [], []], columns=2)
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
    assert drawn(figure.axes[0]) == [(0, 0, 0.25, 0.5, "--"), (0.5, 0.25, 0.5, 0.5, "-")]
    assert figure.axes[0].get_title() == "cat 90%\ntrue: dog"
    assert not figure.axes[1].patches


def test_each_class_has_its_colour_and_each_detection_its_score():
    found = [[(BOX, "dog", 0.9), (OTHER, "cat", 0.456)], [(OTHER, "dog", 1.0)], []]
    figure = detection_grid(IMAGES, found, [[], [(BOX, "dog")], []], ("cat", "dog"))
    first, second, _ = figure.axes
    assert [text.get_text() for text in first.texts] == ["dog 90%", "cat 46%"]
    assert drawn(second) == [(0.5, 0.25, 0.5, 0.5, "--"), (0, 0, 0.25, 0.5, "-")]
    dog, cat = (patch.get_edgecolor() for patch in first.patches)
    assert dog != cat
    assert second.patches[1].get_edgecolor() == dog


def test_curves_are_named():
    curve = Curve(np.array([0.2, 0.5]), np.array([1.0, 0.7]), np.array([0.9, 0.3]))
    [axes] = precision_recall({"cat": curve, "dog": curve}).axes
    assert [line.get_label() for line in axes.lines] == ["cat", "dog"]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0.2, 1.0], [0.5, 0.7]])
