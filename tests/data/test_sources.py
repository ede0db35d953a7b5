"""Data sets are found by name or path, and read without being written to."""

import dataclasses
import io
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath

from cnn_research.data import sources
from cnn_research.errors import UserError

PIXELS = [np.full((4, 4, 3), 10 * index, np.uint8) for index in range(10)]


class Colours(tfds.core.GeneratorBasedBuilder):
    """Ten images to train on, whose label is their index modulo three, and four to test."""

    VERSION = tfds.core.Version("1.2.3")
    FEATURES = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(names=["red", "green", "blue"]),
        }
    )

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.FEATURES, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for index in range(count):
            example = {"image": io.BytesIO(cv2.imencode(".png", PIXELS[index])[1].tobytes()), "label": index % 3}
            yield index, {key: example[key] for key in self.FEATURES}


class Nameless(Colours):
    """The same without labels, in two configs."""

    FEATURES = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(4, 4, 3))})
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="smaller")]  # noqa: RUF012


class InMemory(list):
    """Examples with random access."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Masked(Colours):
    """Images with a mask and no label."""

    FEATURES = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(4, 4, 3)), "mask": tfds.features.Image(shape=(4, 4, 1))}
    )

    def _generate_examples(self, count):
        for index in range(count):
            pixels = {"image": PIXELS[index], "mask": np.full((4, 4), index, np.uint8)}
            yield index, {key: io.BytesIO(cv2.imencode(".png", value)[1].tobytes()) for key, value in pixels.items()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for builder in (Colours(data_dir=folder), Nameless(data_dir=folder, config="small")):
        builder.download_and_prepare(file_format="array_record")
    return str(folder)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """TFDS's own folder, empty."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.delenv("CNN_RESEARCH_DATA_DIRS", raising=False)
    return tmp_path / "home"


def tree(folder):
    return {str(path): path.stat().st_mtime_ns for path in pathlib.Path(folder).rglob("*")}


def test_folders_are_the_one_given_or_tfdss_and_then_the_read_only_ones(home, monkeypatch):
    monkeypatch.setenv("CNN_RESEARCH_DATA_DIRS", "/a:~/b:")
    assert list(sources.folders("/given")) == [epath.Path("/given")]
    assert list(sources.folders()) == [epath.Path(home), epath.Path("/a"), epath.Path("~/b").expanduser()]
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert next(sources.folders()) == epath.Path("~/tensorflow_datasets").expanduser()


def test_a_set_is_found_by_its_name_and_version(prepared):
    for name in ("colours", "colours:1.2.3", "colours:1.*.*"):
        assert sources.find(name, prepared).info.full_name == "colours/1.2.3"
    assert sources.find("nameless/small", prepared).info.full_name == "nameless/small/1.2.3"


def test_a_set_is_found_by_the_path_of_its_directory(prepared):
    source = sources.open_source(f"{prepared}/colours/1.2.3", "train")
    assert len(source) == 10


def test_read_only_folders_are_searched_and_never_written_to(home, prepared, monkeypatch):
    monkeypatch.setenv("CNN_RESEARCH_DATA_DIRS", f"/nowhere:{prepared}")
    before = tree(prepared)
    assert len(sources.open_source("colours", "test")) == 4
    digits = sources.find("digits")
    assert digits.data_path.is_relative_to(home)
    assert tree(prepared) == before


def test_the_first_folder_that_holds_a_set_is_taken(home, prepared, monkeypatch):
    monkeypatch.setenv("CNN_RESEARCH_DATA_DIRS", prepared)
    assert sources.find("colours").data_path.is_relative_to(prepared)
    Colours(data_dir=home).download_and_prepare(file_format="array_record")
    assert sources.find("colours").data_path.is_relative_to(home)


def test_digits_are_prepared_when_they_are_first_asked_for(home):
    source = sources.open_source("digits", "train")
    assert len(source) == 1437
    before = tree(home)
    assert len(sources.open_source("digits", "test")) == 360
    assert tree(home) == before
    assert source.class_names == tuple("0123456789")


def test_shapes_take_their_config_from_the_name():
    source = sources.open_source("shapes/16x24_train3_test2", "test")
    assert len(source) == 2
    assert source.features["image"].shape == (16, 24, 3)


def test_examples_are_read_by_index_with_their_images_as_files(prepared):
    source = sources.open_source("colours", "train", prepared)
    assert (source.name, source.split, source.class_names) == ("colours", "train", ("red", "green", "blue"))
    for index, example in zip((7, 2), source.examples.__getitems__([7, 2]), strict=True):
        assert example["label"] == index % 3
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(image, PIXELS[index])


@pytest.mark.parametrize(
    ("split", "labels"),
    [
        ("train", [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]),
        ("train[:30%]", [0, 1, 2]),
        ("train[-2:]", [2, 0]),
        ("train[1:2]+test[:2]", [1, 0, 1]),
    ],
)
def test_a_split_may_be_cut_and_joined(prepared, split, labels):
    source = sources.open_source("colours", split, prepared)
    assert len(source) == len(labels)
    assert [int(source.examples[index]["label"]) for index in range(len(source))] == labels


def test_examples_without_a_label_have_no_class_names(prepared):
    assert sources.open_source("nameless/small", "train", prepared).class_names == ()


@pytest.mark.parametrize(
    "split", ["trian", "", "train[:", "train[a:b]", "train[:0]", "train[20:]", "train[:0]+test[:0]"]
)
def test_an_unknown_or_empty_split_gets_those_there_are(prepared, split):
    message = "data set 'colours' has no examples in split '.*'; its splits are train \\(10\\), test \\(4\\)"
    with pytest.raises(UserError, match=message):
        sources.open_source("colours", split, prepared)


def test_a_missing_set_gets_the_folders_the_nearest_and_the_command(home, prepared, monkeypatch):
    monkeypatch.setenv("CNN_RESEARCH_DATA_DIRS", prepared)
    with pytest.raises(UserError) as caught:
        sources.find("colors")
    assert str(caught.value) == (
        f"no prepared data set 'colors' in {home}, {prepared}; did you mean 'colours'?"
        " (a catalogue set is prepared by: python -m experiments.prepare_data --dataset=colors)"
    )


def test_a_set_that_is_stored_in_configs_is_suggested_with_one(prepared):
    with pytest.raises(UserError, match=r"'nameless/smaller' in .*; did you mean 'nameless/small'"):
        sources.find("nameless/smaller", prepared)


def test_an_empty_name_is_refused():
    with pytest.raises(UserError, match=r"data\.name is empty; give a TFDS name"):
        sources.find("")


@pytest.mark.parametrize("name", ["two words", "/no/such/directory", "~/nothing", "a/b/c"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(UserError, match="is neither a TFDS name such as mnist or voc/2012, nor a directory"):
        sources.find(name)


def test_a_format_without_random_access_is_refused(prepared, tmp_path):
    directory = tmp_path / "colours" / "1.2.3"
    shutil.copytree(f"{prepared}/colours/1.2.3", directory)
    info = json.loads((directory / "dataset_info.json").read_text())
    (directory / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="'colours' is stored without random access; prepare it again as ArrayRecord"):
        sources.open_source("colours", "train", str(tmp_path))


@pytest.mark.parametrize("small", [0, 2**14])
@pytest.mark.parametrize("name", ["colours", "nameless/small"])
def test_read_gives_the_image_files_and_labels_that_tfds_gives(prepared, monkeypatch, name, small):
    """One by one, as photographs are read, and as a list."""
    monkeypatch.setattr(sources, "SMALL_FILE", small)
    source = sources.open_source(name, "train[2:]", prepared)
    indices = [7, 0, 3, 3]
    read = list(source.read(indices))
    assert read == source.examples.__getitems__(indices)
    assert cv2.imdecode(np.frombuffer(read[1]["image"], np.uint8), cv2.IMREAD_COLOR).max() == 20


def test_read_takes_examples_in_memory():
    examples = InMemory({"image": bytes(length), "label": length} for length in (2, 2**15))
    source = sources.Source("a", "b", examples, Colours.FEATURES)
    for indices in ([0, 1, 0], [1, 0, 1]):
        assert list(source.read(indices)) == [examples[index] for index in indices]


def test_read_gives_a_mask_too(tmp_path):
    builder = Masked(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    source = sources.open_source(str(builder.data_path), "train")
    read = list(source.read([2, 0], mask="mask"))
    assert read == source.examples.__getitems__([2, 0])
    assert cv2.imdecode(np.frombuffer(read[0]["mask"], np.uint8), cv2.IMREAD_GRAYSCALE).max() == 2
    assert [example.keys() for example in source.read([2, 0])] == [{"image"}] * 2
    renamed = sources.open_source(str(builder.data_path), "train", image="mask")
    in_memory = dataclasses.replace(renamed, examples=InMemory(renamed.examples))
    for records in (renamed, in_memory):
        assert next(records.read([2]))["image"] == read[0]["mask"]
