"""Feeds: the batch of a step, wherever the split lives."""

import dataclasses

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_research.data.batches import ImageSpec, load
from cnn_research.data.order import Sequential, Shuffled
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.training import feed as feeds
from cnn_research.training.config import default_config
from cnn_research.training.feed import image_spec, make_feed
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


def test_a_set_without_labels_is_refused(source):
    features = tfds.features.FeaturesDict({"image": source.features["image"], "text": tfds.features.Text()})
    unlabelled = dataclasses.replace(source, name="pictures", features=features)
    with pytest.raises(UserError, match="data set 'pictures' has no feature 'label'; it has image, text"):
        make_feed(unlabelled, Shuffled(50, 16, seed=0), data(), make_parallel("jit"))
