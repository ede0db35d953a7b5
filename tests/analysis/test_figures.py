import io

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from cnn_research.analysis.figures import GUESS, TRUE, learning_curves, prediction_grid, top_predictions
from cnn_research.errors import UserError

NAMES = ["airplane", "bird", "cat", "dog", "frog", "horse", "ship", "truck"]
PROBABILITIES = np.array([0.05, 0.3, 0.25, 0.02, 0.2, 0.1, 0.01, 0.07], np.float32)
LIKELIEST = ["bird", "cat", "frog", "horse", "truck"]


def picture(size=8, channels=1):
    return np.random.default_rng(0).integers(0, 256, (size, size, channels), np.uint8)


def bars(axes):
    """The rows of an axes from the top: the bar's width and colour, and the text."""
    patches = [patch for patch in axes.patches if patch.get_gid() == "bar"]
    texts = [text.get_text() for text in axes.texts]
    return [
        (float(patch.get_width()), matplotlib.colors.to_hex(patch.get_facecolor()), name, percentage)
        for patch, name, percentage in zip(patches, texts[::2], texts[1::2], strict=True)
    ]


def test_the_likeliest_labels_stand_beside_the_image():
    image = picture()
    drawn, axes = top_predictions(image, PROBABILITIES, NAMES, label=2).axes
    np.testing.assert_array_equal(drawn.images[0].get_array(), image[..., 0])
    rows = bars(axes)
    assert [row[0] for row in rows] == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.07])
    assert [row[1] for row in rows] == [GUESS, TRUE, GUESS, GUESS, GUESS]
    assert [row[2].split()[0] for row in rows] == LIKELIEST
    assert ["true" in row[2] for row in rows] == [False, True, False, False, False]
    assert rows[1][3] == "25.0%"


def test_a_true_label_that_is_not_among_them_stands_below():
    _, axes = top_predictions(picture(), PROBABILITIES, NAMES, label=6).axes
    rows = bars(axes)
    assert len(rows) == 6
    assert rows[5] == (pytest.approx(0.01), TRUE, "ship  true, #8", "1.0%")
    assert TRUE not in [row[1] for row in rows[:5]]
    bottom, top = axes.get_ylim()
    assert all(top < patch.get_y() and patch.get_y() + patch.get_height() < bottom for patch in axes.patches)


def test_an_unknown_label_marks_none_and_k_is_at_most_the_classes():
    _, axes = top_predictions(picture(), PROBABILITIES, NAMES, label=None, k=3).axes
    assert [row[1:3] for row in bars(axes)] == [(GUESS, name) for name in LIKELIEST[:3]]
    _, axes = top_predictions(picture(), PROBABILITIES[:2], NAMES[:2], label=0).axes
    assert [row[2].split()[0] for row in bars(axes)] == ["bird", "airplane"]


def test_equal_probabilities_keep_the_classes_order():
    _, axes = top_predictions(picture(), np.full(8, 0.125, np.float32), NAMES, label=None).axes
    assert [row[2] for row in bars(axes)] == NAMES[:5]


@pytest.mark.parametrize(("size", "interpolation"), [(8, "nearest"), (32, "nearest"), (224, "antialiased")])
def test_small_images_are_crisp(size, interpolation):
    drawn, _ = top_predictions(picture(size, channels=3), PROBABILITIES, NAMES, label=0).axes
    assert drawn.images[0].get_interpolation() == interpolation


def test_long_names_stay_clear_of_the_percentages():
    names = ["black-footed ferret, polecat, Mustela nigripes"] * 7 + ["$dollar$ sign_"]
    for label in (1, 6):
        figure = top_predictions(picture(), PROBABILITIES, names, label)
        figure.savefig(io.BytesIO())
        axes = figure.axes[1]
        extents = [text.get_window_extent() for text in axes.texts]
        assert all(name.x1 < percentage.x0 for name, percentage in zip(extents[::2], extents[1::2], strict=True))
    assert "$dollar$ sign_" in [row[2] for row in bars(axes)]


@pytest.mark.parametrize("known", [True, False])
def test_a_grid_holds_every_image(known):
    images = np.stack([picture(), 255 - picture(), picture()])
    probabilities = np.stack([PROBABILITIES, PROBABILITIES[::-1], PROBABILITIES])
    labels = np.array([1, 6, 3]) if known else None
    figure = prediction_grid(images, probabilities, NAMES, labels, columns=2)
    pictures, rows = figure.axes[::2], [bars(axes) for axes in figure.axes[1::2]]
    assert len(pictures) == len(rows) == 3
    np.testing.assert_array_equal(pictures[1].images[0].get_array(), images[1, ..., 0])
    assert [len(each) for each in rows] == ([5, 5, 6] if known else [5, 5, 5])
    if known:
        marked = [[row[2].split()[0] for row in each if row[1] == TRUE] for each in rows]
        assert marked == [["bird"], ["ship"], ["dog"]]
    (left, top), (right, beside), (_, below) = [axes.get_position().min for axes in pictures]
    assert left < right
    assert top == pytest.approx(beside)
    assert below < top
    corners = np.array([axes.get_position().corners() for axes in figure.axes])
    assert corners.min() >= 0
    assert corners.max() <= 1


def test_figures_are_written_as_png():
    buffer = io.BytesIO()
    top_predictions(picture(), PROBABILITIES, NAMES, label=2).savefig(buffer, format="png")
    buffer.seek(0)
    pixels = matplotlib.image.imread(buffer)
    assert min(pixels.shape[:2]) > 200
    # The true label's green is really seen.
    green = np.array(matplotlib.colors.to_rgb(TRUE))
    assert (np.abs(pixels[..., :3] - green).max(axis=-1) < 0.01).sum() > 100


RECORDS = [
    {"step": 0, "train/loss": 2.0, "train/accuracy": 0.1},
    {"step": 20, "test/loss": 0.7, "test/accuracy": 0.8, "train/loss": None},
    {"step": 10, "train/loss": 1.0, "train/accuracy": 0.6, "seconds": 3.0},
]


def test_learning_curves_have_a_panel_a_quantity_and_a_line_a_split():
    keys = ["train/loss", "test/loss", "train/accuracy", "test/accuracy"]
    loss, accuracy = learning_curves(RECORDS, keys).axes
    assert (loss.get_title("left"), accuracy.get_title("left")) == ("loss", "accuracy")
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    for axes, train, test in ((loss, [2.0, 1.0], 0.7), (accuracy, [0.1, 0.6], 0.8)):
        lines = {line.get_label(): line for line in axes.lines}
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "test"]
        np.testing.assert_array_equal(lines["train"].get_xydata(), list(zip([0, 10], train, strict=True)))
        np.testing.assert_array_equal(lines["test"].get_xydata(), [[20, test]])
        assert lines["train"].get_color() != lines["test"].get_color()
    assert loss.lines[0].get_color() == accuracy.lines[0].get_color()


def test_a_loss_that_is_not_positive_is_drawn_on_a_linear_scale():
    (axes,) = learning_curves([{"step": 0, "train/loss": -1.0}, {"step": 1, "train/loss": 2.0}], ["train/loss"]).axes
    assert axes.get_yscale() == "linear"


def test_a_key_that_no_record_holds_is_named():
    with pytest.raises(UserError, match="'test/acuracy'; did you mean 'test/accuracy'"):
        learning_curves(RECORDS, ["test/acuracy"])
