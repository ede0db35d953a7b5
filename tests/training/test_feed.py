"""Feeds: the batch of a step, wherever the split lives."""

import dataclasses

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_research.data.batches import load, load_step
from cnn_research.data.images import ImageSpec, MaskSpec
from cnn_research.data.order import Sequential, Shuffled
from cnn_research.data.sources import open_source
from cnn_research.data.windows import RandomWindows
from cnn_research.errors import UserError
from cnn_research.training import feed as feeds
from cnn_research.training.config import default_config
from cnn_research.training.feed import eval_spec, image_spec, make_feed, train_spec
from cnn_research.training.parallel import make_parallel
from cnn_research.training.step import gather

SPEC = ImageSpec((8, 8), 1)


@pytest.fixture(scope="module")
def source():
    return open_source("digits", "test[:50]")


def data(**fields):
    config = default_config("lenet5").data
    config.update(channels=1, image_size=(8, 8))
    config.update(fields)
    return config


def assert_same(batch, expected):
    assert batch.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(batch[key], expected[key])


def test_the_images_shape_is_the_configs():
    assert image_spec(data(image_size=(24, 32), channels=3, resize="pad")) == ImageSpec((24, 32), 3, "pad")


@pytest.mark.parametrize("resident", ["on", "off"])
@pytest.mark.parametrize("order", [Shuffled(50, 16, seed=1), Sequential(50, 16)])
def test_a_steps_batch_is_the_same_resident_and_streamed(source, resident, order):
    feed = make_feed(source, order, data(resident=resident), make_parallel("jit"))
    assert bool(feed.data) == (resident == "on")
    placed = list(feed(1, 4))
    assert len(placed) == 3
    for step, batch in zip((1, 2, 3), placed, strict=True):
        expected = load(source, *order(step), SPEC)
        assert_same(feed.batch(step), expected)
        assert_same(gather(batch, feed.data), expected)
        shards = batch["example_mask"].addressable_shards
        assert [len(shard.data) for shard in shards] == [2] * 8


def test_a_resident_splits_batches_only_hold_indices(source):
    feed = make_feed(source, Shuffled(50, 16, seed=0), data(resident="on"), make_parallel("jit"))
    assert feed.data["image"].shape == (50, 8, 8, 1)
    assert feed.data["image"].dtype == np.uint8
    assert feed.data["image"].sharding.is_fully_replicated
    (batch,) = feed(0, 1)
    assert batch.keys() == {"index", "example_mask"}
    np.testing.assert_array_equal(batch["index"], feed.order(0)[0])


def test_auto_keeps_what_is_small(source, monkeypatch):
    order, parallel = Shuffled(50, 16, seed=0), make_parallel("jit")
    monkeypatch.setattr(feeds, "RESIDENT_BYTES", 50 * 8 * 8)
    assert make_feed(source, order, data(), parallel).data
    monkeypatch.setattr(feeds, "RESIDENT_BYTES", 50 * 8 * 8 - 1)
    assert not make_feed(source, order, data(), parallel).data


@pytest.mark.parametrize("resident", ["on", "off"])
def test_each_replica_gets_its_part(source, resident):
    order, devices = Shuffled(50, 16, seed=0), jax.local_device_count()
    feed = make_feed(source, order, data(resident=resident), make_parallel("pmap"))
    (batch,) = feed(2, 3)
    expected = load(source, *order(2), SPEC)
    gathered = jax.vmap(gather)(batch, feed.data)
    for key in expected:
        assert gathered[key].shape[:2] == (devices, 16 // devices)
        np.testing.assert_array_equal(np.concatenate(gathered[key]), expected[key])


@pytest.mark.parametrize(
    ("changes", "size", "windows"),
    [
        ({"data.crop_size": (6, 5)}, (8, 8), None),
        ({"augmentation.random_resized_crop": (0.08, 1.0)}, (8, 8), None),
        ({"data.crop_on": "host"}, (8, 8), RandomWindows(7, short_side=(8, 8))),
        ({"data.crop_on": "host", "data.crop_size": (6, 5)}, (6, 5), RandomWindows(7, short_side=(8, 8))),
        ({"data.crop_on": "host", "data.short_side": (9, 12)}, (8, 8), RandomWindows(7, short_side=(9, 12))),
        (
            {
                "data.crop_on": "host",
                "data.crop_size": (6, 5),
                "augmentation.random_resized_crop": (0.08, 1.0),
                "augmentation.aspect_ratio": (0.5, 2.0),
            },
            (6, 5),
            RandomWindows(7, area=(0.08, 1.0), aspect_ratio=(0.5, 2.0), short_side=(8, 8)),
        ),
    ],
)
def test_training_takes_the_windows_that_the_config_says(changes, size, windows):
    config = default_config("lenet5")
    config.seed = 7
    config.data.update(channels=1, image_size=(8, 8))
    config.update_from_flattened_dict(changes)
    assert train_spec(config) == ImageSpec(size, 1, "stretch", windows)
    assert image_spec(config.data) == SPEC


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_what_the_host_cuts_is_streamed(source, kind):
    """However small the set is; the batch of a step is that of seed and step."""
    spec = ImageSpec((6, 6), 1, windows=RandomWindows(seed=1, area=(0.08, 1.0)))
    order = Shuffled(50, 16, seed=1)
    feed = make_feed(source, order, data(), make_parallel(kind), spec)
    assert not feed.data
    for step, batch in zip((3, 4), feed(3, 5), strict=True):
        expected = load_step(source, order, spec, slice(None), step)
        assert_same(feed.batch(step), expected)
        assert_same({key: np.reshape(value, expected[key].shape) for key, value in batch.items()}, expected)
    assert make_feed(source, order, data(), make_parallel(kind)).data  # evaluation's images are the same each time


def test_a_set_without_labels_is_refused(source):
    features = tfds.features.FeaturesDict({"image": source.features["image"], "text": tfds.features.Text()})
    unlabelled = dataclasses.replace(source, name="pictures", features=features)
    with pytest.raises(UserError, match="data set 'pictures' has no feature 'label'; it has image, text"):
        make_feed(unlabelled, Shuffled(50, 16, seed=0), data(), make_parallel("jit"))


def masked(**loss):
    """A config whose pixels have classes: `shapes`, and the ground."""
    config = default_config("unet", task="segmentation", num_classes=5)
    config.data.update(image_size=(16, 16), class_names=("ground", "ellipse", "rectangle", "triangle", "star"))
    config.loss.update(loss)
    return config


def test_masks_are_read_where_the_task_wants_them():
    spec = ImageSpec((16, 16), masks=MaskSpec("segmentation_mask", 5))
    assert train_spec(masked()) == eval_spec(masked()) == spec
    weighted = masked(border_weight=10.0)
    assert train_spec(weighted) == dataclasses.replace(spec, masks=MaskSpec("segmentation_mask", 5, borders=True))
    assert eval_spec(weighted) == spec
    assert train_spec(default_config("lenet5")).masks is None
    weighted.data.update(mask="classes", mask_values=(1, 2, 3, 5, 4))
    assert eval_spec(weighted).masks == MaskSpec("classes", 5, (1, 2, 3, 5, 4))


@pytest.mark.parametrize("resident", ["on", "off"])
def test_masks_come_with_their_images(resident):
    config, parallel = masked(border_weight=10.0), make_parallel("jit")
    config.data.resident = resident
    shapes = open_source("shapes/16x16_train20_test8", "train")
    order = Shuffled(20, 8, seed=1)
    feed = make_feed(shapes, order, config.data, parallel, train_spec(config))
    assert bool(feed.data) == (resident == "on")
    (batch,) = feed(1, 2)
    expected = load(shapes, *order(1), train_spec(config))
    assert expected["segmentation_mask"].max() > 1
    assert_same(gather(batch, feed.data), expected)


def test_a_set_without_objects_is_refused(source):
    with pytest.raises(UserError, match="data set 'digits' has no feature 'objects'; it has image, label"):
        make_feed(source, Sequential(8, 8), data(max_objects=1), make_parallel("jit"))


def test_a_set_without_masks_is_refused(source):
    with pytest.raises(UserError, match="data set 'digits' has no feature 'segmentation_mask'; it has image, label"):
        make_feed(source, Shuffled(50, 16, seed=0), masked().data, make_parallel("jit"), train_spec(masked()))
