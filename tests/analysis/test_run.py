import dataclasses

import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.data.corruption import parse_corruption
from cnn_research.data.images import ImageSpec, decode, resize
from cnn_research.data.order import Shuffled
from cnn_research.data.windows import RandomWindows
from cnn_research.errors import UserError
from cnn_research.interop import safetensors
from cnn_research.training.evaluation import open_split


@pytest.fixture(scope="module")
def trained(digits_config, tmp_path_factory):
    """A short run: its directory and its result."""
    workdir = tmp_path_factory.mktemp("trained")
    config = digits_config()
    config.update(duration="60", eval_every="20", checkpoint_every="20", keep_last=1, keep_best=1)
    config.augmentation.update(flip=True)
    return workdir, training.train(config, workdir, jax.devices()[:1])


@pytest.fixture(scope="module")
def run(trained):
    return analysis.load_run(trained[0])


def test_evaluate_gives_the_result(trained, run):
    _, result = trained
    metrics = run.evaluate()
    assert metrics["accuracy"] == result["test/accuracy"]
    assert metrics["examples"] == 360
    assert run.evaluate("train[:100]")["examples"] == 100


def test_result_and_metrics(trained, run):
    _, result = trained
    assert run.result == result
    assert run.metrics[-1]["step"] == run.step == 60
    assert run.config.data.name == "digits"
    assert run.class_names == tuple("0123456789")


def test_predict_takes_images_of_any_size_and_number(trained, run):
    source = open_split(run.config, "test")
    examples = source.examples.__getitems__(list(range(360)))
    images = [decode(example["image"], 1) for example in examples]
    assert images[0].shape == (8, 8, 1)
    predictions = run.predict(images, batch_size=100)
    assert predictions["probabilities"].shape == (360, 10)
    np.testing.assert_allclose(predictions["probabilities"].sum(1), 1, rtol=1e-5)
    right = np.mean([int(example["label"]) for example in examples] == predictions["label"])
    assert right == pytest.approx(trained[1]["test/accuracy"])
    for given, message in (([], "no images"), ([np.zeros((8, 8, 3), np.uint8)], "3 channels; the network takes 1")):
        with pytest.raises(UserError, match=message):
            run.predict(given)
    # A single image, and images of another size, say the same.
    one = run.predict(images[:1])["probabilities"]
    np.testing.assert_allclose(one, predictions["probabilities"][:1], rtol=1e-4, atol=1e-6)


def test_a_network_that_sees_a_window_of_its_images(digits_config, tmp_path):
    config = digits_config()
    config.data.update(image_size=(37, 36), crop_size=(32, 32))
    config.data.train = "train[:100]"
    result = training.train(config, tmp_path, jax.devices()[:1])
    run = analysis.load_run(tmp_path)
    assert run.program.image_shape == (32, 32, 1)
    stored, seen = run.batch(3), run.batch(3, augmented=True)
    assert stored["image"].shape == (32, 37, 36, 1)
    windows = np.lib.stride_tricks.sliding_window_view((stored["image"] / 255 - 0.3) / 0.38, (32, 32), axis=(1, 2))
    is_window = np.isclose(windows[:, :, :, 0], seen["image"][:, None, None, ..., 0], atol=1e-5).all((3, 4))
    assert is_window.any((1, 2)).all()
    assert not is_window[:, 2, 2].all()
    whole = np.random.default_rng(0).integers(0, 256, (5, 37, 36, 1), dtype=np.uint8)
    middle = (whole[:, 2:34, 2:34].astype(np.float32) / 255 - 0.3) / 0.38
    expected = run.model.apply(run.variables, jax.numpy.asarray(middle), train=False)
    np.testing.assert_allclose(run.predict(whole)["logits"], expected, rtol=1e-4, atol=1e-5)
    assert run.evaluate()["accuracy"] == result["test/accuracy"]


def test_a_network_that_sees_what_the_host_has_cut(digits_config, tmp_path):
    config = digits_config()
    config.data.update(image_size=(37, 36), crop_size=(32, 32), crop_on="host")
    config.augmentation.random_resized_crop = (0.3, 1.0)
    config.data.train = "train[:100]"
    result = training.train(config, tmp_path, jax.devices()[:1])
    run = analysis.load_run(tmp_path)
    stored, seen = run.batch(3), run.batch(3, augmented=True)
    assert stored["image"].shape == (32, 32, 32, 1)
    np.testing.assert_allclose(seen["image"], (stored["image"] / 255 - 0.3) / 0.38, atol=1e-5)
    source = open_split(run.config, "train[:100]")
    order = Shuffled(100, 32, config.seed)
    windows = RandomWindows(config.seed, area=(0.3, 1.0))
    for row, (index, draws) in enumerate(zip(order(3)[0], windows.draws(3, 32).tolist(), strict=True)):
        top, left, height, width = windows((8, 8), (32, 32), draws)
        window = decode(source.examples[int(index)]["image"], 1)[top : top + height, left : left + width]
        np.testing.assert_array_equal(stored["image"][row], resize(window, ImageSpec((32, 32), 1)))
    assert run.evaluate()["accuracy"] == result["test/accuracy"]


def test_batch_is_the_one_that_training_saw(run):
    stored = run.batch(7)
    assert stored["image"].dtype == np.uint8
    assert stored["image"].shape == (32, 32, 32, 1)
    seen = run.batch(7, augmented=True)
    plain = (stored["image"] / 255 - 0.3) / 0.38
    flipped = plain[:, :, ::-1]
    kept = np.isclose(seen["image"], plain, atol=1e-5).all((1, 2, 3))
    turned = np.isclose(seen["image"], flipped, atol=1e-5).all((1, 2, 3))
    assert (kept | turned).all()
    assert 0 < turned.sum() < 32
    np.testing.assert_array_equal(seen["label"], stored["label"])
    assert not np.array_equal(run.batch(8)["label"], stored["label"])


def test_steps(trained):
    workdir, _ = trained
    best = analysis.load_run(workdir, "best")
    accuracies = {record["step"]: record["test/accuracy"] for record in best.metrics if "test/accuracy" in record}
    assert accuracies[best.step] == max(accuracies.values())
    assert analysis.load_run(workdir, "latest").step == analysis.load_run(workdir, 60).step == 60
    with pytest.raises(UserError, match=r"no checkpoint of step 7; it has steps .*60"):
        analysis.load_run(workdir, 7)


def test_export_starts_another_run(run, digits_config, tmp_path):
    path = tmp_path / "weights.safetensors"
    run.export(path)
    assert jax.tree.all(jax.tree.map(np.array_equal, safetensors.load(path), run.variables))
    config = digits_config()
    config.update(duration="1", eval_every="1", init_from=str(path))
    config.optimizer.update(learning_rate=1e-9, warmup="0")
    result = training.train(config, tmp_path / "again", jax.devices()[:1])
    assert result["test/accuracy"] == run.result["test/accuracy"]
    config = digits_config(num_classes=12)
    config.update(duration="1", init_from=str(run.workdir))
    with pytest.raises(UserError, match=r"params/output/kernel is 84x10 there, 84x12 here"):
        training.train(config, tmp_path / "other", jax.devices()[:1])
    config.init_except = "params/output"
    assert training.train(config, tmp_path / "third", jax.devices()[:1])["step"] == 1


def test_directory_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"holds no run: there is no config.json"):
        analysis.load_run(tmp_path)


def test_other_weights_and_other_images(run, tmp_path):
    run.export(tmp_path / "weights.safetensors")
    again = run.with_weights(tmp_path / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, again.variables, run.variables)
    safetensors.save({"params": {"C1": {"kernel": np.zeros((5, 5, 1, 6))}}}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="does not fit the run's network: missing params/C1/bias"):
        run.with_weights(tmp_path / "part.safetensors")
    with pytest.raises(UserError, match="LeNet-5 takes images of 32x32"):
        run.with_data(image_size=(40, 40))
    other = run.with_data(name="digits", resize="pad")
    assert (other.program.config.data.resize, run.config.data.resize) == ("pad", "stretch")
    corrupted = dataclasses.replace(run, corruption=parse_corruption("contrast:5"))
    [clean], [pale] = (each.open_split("train[:1]").read([0]) for each in (run, corrupted))
    assert np.ptp(decode(pale["image"], 1)) < 0.2 * np.ptp(decode(clean["image"], 1))
