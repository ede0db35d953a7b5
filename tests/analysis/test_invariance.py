import matplotlib.image
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.analysis import invariance
from cnn_research.analysis.invariance import DIRECTIONS, MEASURES, ShiftCurve, draw, records, shift_curve
from cnn_research.errors import UserError


def images(count=7, height=6, width=5):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 1), np.uint8)


def corner(batch):
    """Says of each image the class that its upper left pixel names."""
    return batch[:, 0, 0, 0].astype(np.int32) % 4


def test_edges_move_in_and_images_move_by_whole_pixels():
    """Against numpy, one step after the other; the batch does not divide the images."""
    x, shifts = images(), (0, 1, 3)
    labels = corner(x)
    curve = shift_curve(corner, x, labels, shifts, batch_size=3)
    for direction, ways in DIRECTIONS.items():
        for index, shift in enumerate(shifts):
            shares = []
            for down, right in ways:
                rows = np.clip(np.arange(6) - shift * down, 0, 5)
                columns = np.clip(np.arange(5) - shift * right, 0, 4)
                shares.append(np.mean(corner(x[:, rows][:, :, columns]) == labels))
            assert curve.accuracy[direction][index] == pytest.approx(np.mean(shares)), (direction, shift)
    assert curve.accuracy["vertical"][2] < 1
    assert curve.accuracy == curve.consistency  # since the unshifted are all right


def test_consistency_compares_with_the_unshifted_image_and_not_with_the_truth():
    x = images()
    wrong = (corner(x) + 1) % 4
    curve = shift_curve(corner, x, wrong, (0, 1))
    assert all(values[0] == 0 for values in curve.accuracy.values())
    assert all(values[0] == 1 for values in curve.consistency.values())
    right = shift_curve(corner, x, corner(x), (0, 1))
    assert curve.consistency == right.accuracy


def test_what_does_not_look_at_places_is_consistent_on_a_circle():
    x = images()
    curve = shift_curve(lambda batch: batch.astype(np.int32).sum((1, 2, 3)) % 4, x, corner(x), (1, 2, 4), "circular")
    assert all(values == (1, 1, 1) for values in curve.consistency.values())


@pytest.mark.parametrize("shift", [-1, 5])
def test_a_shift_out_of_the_image_is_refused(shift):
    with pytest.raises(UserError, match=f"a shift by {shift} is out of range on images of side 5; it is 0 to 4"):
        shift_curve(corner, images(), corner(images()), (0, shift))


@pytest.fixture(scope="module")
def run(digits_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = digits_config("mlp", features=(20,))
    config.update(duration="60", eval_every="60", checkpoint_every="60")
    training.train(config, workdir)
    return analysis.load_run(workdir)


def test_a_run_is_measured_on_its_whole_split(run):
    x, labels = invariance.load_split(run)
    assert x.shape == (360, 32, 32, 1)
    curve = shift_curve(invariance.classifier(run), x, labels, (0, 6), batch_size=100)
    assert {values[0] for values in curve.accuracy.values()} == {run.result["test/accuracy"]}
    assert {values[0] for values in curve.consistency.values()} == {1}
    # What `Run.predict` says of images that were shifted before.
    right = [np.pad(x, ((0, 0), (0, 0), (6, 6), (0, 0)), "edge")[:, :, begin : begin + 32] for begin in (0, 12)]
    shares = [np.mean(run.predict(list(moved))["label"] == labels) for moved in right]
    assert curve.accuracy["horizontal"][1] == pytest.approx(np.mean(shares))
    assert curve.accuracy["horizontal"][1] < curve.accuracy["horizontal"][0]
    assert len(invariance.load_split(run, "train[:50]")[1]) == 50


def test_another_task_is_refused(run):
    config = run.config.copy_and_resolve_references()
    config.task = "segmentation"
    program = training.program.dataclasses.replace(run.program, config=config)
    with pytest.raises(UserError, match="is a run of segmentation; shifts are measured of classification"):
        invariance.classifier(analysis.Run(run.workdir, program, run.step, run.variables))


CURVES = {
    name: ShiftCurve(
        (0, 1, 2),
        dict.fromkeys(DIRECTIONS, (0.9, 0.8 - lower, 0.5)),
        dict.fromkeys(DIRECTIONS, (1.0, 0.85 - lower, 0.6)),
    )
    for name, lower in (("one", 0.0), ("other", 0.1))
}


def test_records_are_flat():
    rows = records(CURVES)
    assert len(rows) == 2 * 3 * 3
    assert rows[1] == {"run": "one", "direction": "horizontal", "shift": 1, "accuracy": 0.8, "consistency": 0.85}
    assert rows[-1]["run"] == "other"


def test_a_panel_for_each_measure_and_direction_and_a_line_for_each_run(tmp_path):
    figure = draw(CURVES)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"{measure}, {direction}" for measure in MEASURES for direction in DIRECTIONS]
    for axes, measure in zip(figure.axes, np.repeat(MEASURES, 3), strict=True):
        assert [line.get_label() for line in axes.lines] == ["one", "other"]
        for line, curve in zip(axes.lines, CURVES.values(), strict=True):
            np.testing.assert_array_equal(line.get_xydata()[:, 1], getattr(curve, measure)["horizontal"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    figure.savefig(tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0
