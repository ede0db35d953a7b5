"""The earlier approach, as a user starts it and piece by piece."""

import json

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from cnn_research import analysis
from cnn_research.data.batches import load
from cnn_research.errors import UserError
from cnn_research.interop import safetensors
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import image_spec
from experiments import hog_svm

CONFIG = "--config=experiments/configs/digits.py"


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from a directory and flags to the exit code, stdout and stderr of the script."""
    return lambda workdir, *flags: shell("hog_svm", CONFIG, f"--workdir={workdir}", *flags)


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("hog") / "run"
    code, out, err = run(workdir, "--max_examples=500", "--cell=8")
    assert code == 0, err
    return workdir, json.loads(out)


def test_digits(finished):
    """The run's files say what was printed, and the weights that they hold are all that it learned."""
    workdir, result = finished
    assert result["test/accuracy"] > 0.9
    assert result["test/error"] == pytest.approx(1 - result["test/accuracy"])
    assert result["test/examples"] == 360
    assert json.loads((workdir / "result.json").read_text()) == result
    machines = safetensors.load(workdir / "weights.safetensors")["params"]["machines"]
    # Images of 32x32 have 3x3 blocks of 2x2 cells of 8 pixels, with 9 bins each.
    assert machines["kernel"].shape == (3 * 3 * 2 * 2 * 9, 10)
    assert result["params"] == machines["kernel"].size + machines["bias"].size


@pytest.mark.slow
def test_a_complete_run_is_not_run_again_and_another_one_not_over_it(run, finished):
    workdir, result = finished
    code, out, _ = run(workdir, "--max_examples=500", "--cell=8")
    assert (code, json.loads(out)) == (0, result)
    code, out, err = run(workdir, "--max_examples=501", "--cell=8")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "max_examples" in err


def test_its_directory_is_no_networks(finished):
    with pytest.raises(UserError, match="holds a run of hog_svm, which is no network"):
        analysis.load_run(finished[0])


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--config.model.width=2", "--config.model.width does nothing here"), ("--C=-1", "must be more than 0")],
)
def test_what_does_nothing_is_refused(run, tmp_path, flag, message):
    code, out, err = run(tmp_path / "run", flag)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert not (tmp_path / "run").exists()


def test_a_descriptor_sees_orientations():
    """Turning an edge by a quarter moves its histogram by half of the bins; brightness alone changes nothing."""
    hog = hog_svm.Hog((16, 16), 8)
    image = np.zeros((16, 16, 1), np.uint8)
    image[:, 8:] = 200
    upright, lying = (hog(each).reshape(4, 9).sum(0) for each in (image, np.ascontiguousarray(image.swapaxes(0, 1))))
    strong = upright > 0.1 * upright.max()
    assert not (strong & (lying > 0.1 * lying.max())).any()
    np.testing.assert_allclose(hog(image + np.uint8(30)), hog(image), atol=1e-5)


def test_the_window_that_networks_see_is_described(digits_config):
    config = digits_config()
    config.data.crop_size = (24, 16)
    source = open_split(config, "test")
    descriptors, labels = hog_svm.describe(source, np.arange(3), config, hog := hog_svm.Hog((24, 16), 8))
    batch = load(source, np.arange(3), np.ones(3, bool), image_spec(config.data))
    np.testing.assert_array_equal(labels, batch["label"])
    expected = [hog(np.ascontiguousarray(image[4:28, 8:24])) for image in batch["image"]]
    np.testing.assert_allclose(descriptors, expected)


def test_one_class_alone_cannot_be_fitted():
    with pytest.raises(UserError, match="all 5 training examples are of class 3"):
        hog_svm.fit(np.ones((5, 2)), np.full(5, 3), 10, 0.01, 0)


def test_machines_are_scikit_learns_one_against_the_rest_and_one_without_examples_never_wins():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3], 200)
    descriptors = rng.normal(size=(200, 5)) + 2 * np.eye(5)[labels]
    weights, biases, iterations = hog_svm.fit(descriptors, labels, num_classes=5, c=0.1, seed=0)
    whole = LinearSVC(C=0.1, dual="auto").fit(descriptors, labels)
    np.testing.assert_allclose(weights[:, [0, 1, 3]].T, whole.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(biases[[0, 1, 3]], whole.intercept_, rtol=1e-6, atol=1e-8)
    assert iterations == whole.n_iter_
    logits = (descriptors @ weights + biases).astype(np.float32)
    assert (logits[:, [2, 4]] == -np.inf).all()
    metrics = hog_svm.measure(logits, labels.astype(np.int32))
    assert metrics["accuracy"] == whole.score(descriptors, labels)
    assert metrics["top5_accuracy"] == 1
    assert set(metrics) == {"accuracy", "top5_accuracy", "error", "examples"}


def test_images_are_stretched_to_whole_cells_and_colours_give_their_largest_gradient():
    assert hog_svm.Hog((13, 5), 4).size == 3 * 1 * 36  # a window of 16x8
    grey = np.random.default_rng(0).integers(0, 256, (16, 16, 1), np.uint8)
    hog = hog_svm.Hog((16, 16), 4)
    for channel in range(3):
        colour = np.full((16, 16, 3), 90, np.uint8)
        colour[..., [channel]] = grey
        np.testing.assert_array_equal(hog(colour), hog(grey))
