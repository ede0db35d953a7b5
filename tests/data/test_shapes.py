"""A config and its name are the same thing, an example depends on nothing else, and disk gives back what was drawn."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from cnn_research.data import embedded, scenes, shapes
from cnn_research.errors import UserError

fields_of_configs = st.fixed_dictionaries(
    {},
    optional=dict(
        height=st.integers(16, 2000),
        width=st.integers(16, 2000),
        train=st.integers(1, 10**6),
        test=st.integers(1, 10**6),
        min_objects=st.integers(1, 3),
        max_objects=st.integers(3, 4),
        seed=st.integers(0, 2**63 - 1),
    ),
)


@given(fields_of_configs, st.randoms())
def test_name_says_all(fields, random):
    config = shapes.ShapesConfig(**fields)
    assert shapes.shapes_config(config.name) == config
    parts = config.name.split("_")
    random.shuffle(parts)
    assert shapes.shapes_config("_".join(parts)).name == config.name
    assert re.fullmatch(r"[\w+.-]+", config.name)  # what TFDS takes for a config's name


@given(fields_of_configs, fields_of_configs)
def test_only_equal_configs_share_a_name(fields, other_fields):
    config, other = shapes.ShapesConfig(**fields), shapes.ShapesConfig(**other_fields)
    assert (config.name == other.name) == (config == other)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "64x64"),
        ("64x64_train2000_test500_objects1-4_seed0", "64x64"),
        ("seed7", "64x64_seed7"),
        ("test8_096x128", "96x128_test8"),
        ("objects3-3_train10_96x128", "96x128_train10_objects3-3"),
    ],
)
def test_names_are_canonical(text, name):
    assert shapes.shapes_config(text).name == name


def test_text_sets_every_field():
    config = shapes.shapes_config("96x128_train4000_test800_objects2-3_seed5")
    fields = ("height", "width", "train", "test", "min_objects", "max_objects", "seed")
    assert [getattr(config, field) for field in fields] == [96, 128, 4000, 800, 2, 3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian400", "unknown part 'trian400'; did you mean 'train'?"),
        ("64", "malformed part '64'; write it like 64x64"),
        ("64x", "malformed part '64x'"),
        ("64x64_", "malformed part ''"),
        ("train", "malformed part 'train'; write it like train2000"),
        ("objects3", "malformed part 'objects3'; write it like objects1-4"),
        ("train5\n", "malformed part"),
        ("train-5", "malformed part 'train-5'"),
        ("train1_train1", "gives the train twice"),
        ("train0", "each split needs at least 1"),
        ("8x64", "at least 16"),
        ("objects0-2", "from 1 to 64"),
        ("objects3-2", "in this order"),
        ("16x16_objects1-5", "from 1 to 4"),
        ("seed99999999999999999999", "less than 2\\^63"),
        ("96x128,train=4", "malformed part '96x128,train=4'"),
    ],
)
def test_malformed_texts(text, message):
    with pytest.raises(UserError, match=message) as caught:
        shapes.shapes_config(text)
    assert "\n" not in str(caught.value)


def test_example_depends_on_what_it_should():
    config = shapes.shapes_config("32x48")
    image = shapes.draw(config, "train", 3).image
    assert image.shape == (32, 48, 3)
    larger = dataclasses.replace(config, train=9999, test=7)
    np.testing.assert_array_equal(shapes.draw(larger, "train", 3).image, image)
    for other in (
        shapes.draw(config, "train", 4),
        shapes.draw(config, "test", 3),
        shapes.draw(dataclasses.replace(config, seed=1), "train", 3),
        shapes.draw(dataclasses.replace(config, min_objects=4), "train", 3),
    ):
        assert np.any(other.image != image)


def test_largest_seed():
    assert shapes.draw(shapes.ShapesConfig(seed=2**63 - 1, height=16, width=16), "train", 0).image.any()


@pytest.mark.parametrize("reader", ["builder", "directory"])
def test_disk_gives_back_what_was_drawn(data_dir, reader):
    config = shapes.shapes_config("24x40_train12_test5_objects2-4_seed1")
    builder = embedded.prepare(f"shapes/{config.name}", data_dir)
    if reader == "directory":
        builder = tfds.builder_from_directory(builder.data_dir)
    features = builder.info.features
    assert list(features["label"].names) == list(features["objects"]["label"].names) == list(scenes.CLASSES)
    for split, count in (("train", 12), ("test", 5)):
        source = builder.as_data_source(split=split)
        assert len(source) == count
        for index, example in enumerate(source):
            scene = shapes.draw(config, split, index)
            np.testing.assert_array_equal(example["image"], scene.image)
            np.testing.assert_array_equal(example["instance_mask"][..., 0], scene.instances)
            np.testing.assert_array_equal(example["segmentation_mask"][..., 0], scene.semantic)
            np.testing.assert_array_equal(example["objects"]["label"], scene.classes)
            np.testing.assert_allclose(example["objects"]["bbox"], scene.boxes, atol=1e-7)
            visible = [np.sum(example["instance_mask"] == k + 1) for k in range(len(scene.classes))]
            assert example["label"] == scene.classes[np.argmax(visible)]
