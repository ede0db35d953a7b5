"""Batches: the same examples and the same windows of them, whichever way they are read."""

import io
import logging
import multiprocessing
import os
import signal

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from cnn_research.data.batches import load, load_all, load_step, nbytes, stream
from cnn_research.data.borders import border_distance
from cnn_research.data.images import ImageSpec, MaskSpec, decode, resize
from cnn_research.data.order import Sequential, Shuffled
from cnn_research.data.sources import Source, open_source
from cnn_research.data.windows import RandomWindows
from cnn_research.errors import UserError

FEATURES = tfds.features.FeaturesDict(
    {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=10)}
)


class Examples(list):
    """What a TFDS data source offers, in memory."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def make_source(count, size=(8, 8)):
    """Images of random noise; the label of an example is its index modulo ten."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    examples = Examples({"image": encode(image), "label": index % 10} for index, image in enumerate(images))
    return Source("noise", "train", examples, FEATURES), images


def encode(image, extension=".png"):
    return cv2.imencode(extension, image[..., ::-1])[1].tobytes()


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


WINDOWS = ImageSpec((6, 5), 3, windows=RandomWindows(seed=3, area=(0.08, 1.0)))


def assert_same(batch, expected):
    assert batch.keys() == expected.keys()
    for key in expected:
        assert batch[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(batch[key], expected[key])


def test_load_stacks_the_examples_that_are_asked_for():
    source, images = make_source(12)
    mask = np.array([True, True, False])
    batch = load(source, np.array([11, 3, 0]), mask, ImageSpec((8, 8)))
    expected = {
        "image": np.stack([images[11], images[3], images[0]]),
        "label": np.array([1, 3, 0], np.int32),
        "example_mask": mask,
        "original_size": np.full((3, 2), 8, np.int32),
    }
    assert_same(batch, expected)


def test_load_notes_the_sizes_from_before_resizing():
    images = [noise(3, 9, 3), noise(20, 5, 3)]
    examples = Examples({"image": encode(image), "label": 0} for image in images)
    spec = ImageSpec((8, 8), 1, "crop")
    batch = load(Source("a", "b", examples, FEATURES), np.arange(2), np.ones(2, bool), spec)
    assert batch["original_size"].tolist() == [[3, 9], [20, 5]]
    for row, image in zip(batch["image"], images, strict=True):
        np.testing.assert_array_equal(row, resize(decode(encode(image), 1), spec))


def test_load_names_the_example_that_cannot_be_decoded():
    source, _ = make_source(12)
    source.examples[5]["image"] = b"garbage"
    with pytest.raises(UserError, match="example 5 of noise, split train: an image cannot be decoded"):
        load(source, np.arange(3, 7), np.ones(4, bool), ImageSpec((8, 8)))


def test_load_refuses_examples_without_a_label():
    source, _ = make_source(12)
    source.examples[5]["label"] = -1
    with pytest.raises(UserError, match="split 'train' of data set 'noise' has examples without a label"):
        load(source, np.arange(6), np.ones(6, bool), ImageSpec((8, 8)))


def test_load_all_is_the_whole_split_as_stored():
    source, images = make_source(2500, size=(2, 2))  # more than two chunks
    content = load_all(source, ImageSpec((2, 2)), workers=3)
    assert_same(content, load(source, np.arange(2500), np.ones(2500, bool), ImageSpec((2, 2))))
    np.testing.assert_array_equal(content["image"], images)


def test_nbytes_is_what_the_images_take():
    source, _ = make_source(5)
    spec = ImageSpec((4, 6), 1)
    assert nbytes(source, spec) == load_all(source, spec)["image"].nbytes


@pytest.mark.parametrize("order", [Shuffled(10, 4, seed=3), Sequential(10, 4)])
@pytest.mark.parametrize("steps", [range(3), range(2, 7), range(0)])
def test_stream_is_a_load_a_step(order, steps):
    steps = range(steps.start, min(steps.stop, len(order))) if isinstance(order, Sequential) else steps
    source, _ = make_source(10)
    spec = ImageSpec((8, 8))
    batches = list(stream(source, order, spec, steps, slice(0, 4)))
    assert len(batches) == len(steps)
    for step, batch in zip(steps, batches, strict=True):
        assert_same(batch, load(source, *order(step), spec))


def test_streams_of_the_processes_are_together_the_global_batch():
    source, _ = make_source(10)
    spec, order = ImageSpec((8, 8)), Sequential(10, 6)
    parts = [list(stream(source, order, spec, range(2), slice(begin, begin + 3))) for begin in (0, 3)]
    for step in range(2):
        together = {key: np.concatenate([part[step][key] for part in parts]) for key in parts[0][step]}
        assert_same(together, load(source, *order(step), spec))


def test_windows_are_those_of_seed_step_and_position():
    """The same whatever the cut of the global batch, and where a run begins; others at each step."""
    source, images = make_source(10, size=(20, 30))
    order = Shuffled(10, 8, seed=5)
    whole = load_step(source, order, WINDOWS, slice(None), 4)
    for row, (index, draws) in enumerate(zip(order(4)[0], WINDOWS.windows.draws(4, 8).tolist(), strict=True)):
        top, left, height, width = WINDOWS.windows((20, 30), (6, 5), draws)
        window = images[index][top : top + height, left : left + width]
        np.testing.assert_array_equal(whole["image"][row], resize(window, ImageSpec((6, 5))))
    part = load_step(source, order, WINDOWS, slice(2, 5), 4)
    assert_same(part, {key: value[2:5] for key, value in whole.items()})
    streamed = list(stream(source, order, WINDOWS, range(3, 6), slice(2, 5)))
    assert_same(streamed[1], part)
    again = load(source, order(4)[0], order(4)[1], WINDOWS, WINDOWS.windows.draws(5, 8))
    assert not any((first == second).all() for first, second in zip(whole["image"], again["image"], strict=True))


def test_without_draws_nothing_is_random():
    source, images = make_source(3, size=(20, 30))
    spec = ImageSpec((6, 5), 3, "crop", WINDOWS.windows)
    batch = load(source, np.arange(3), np.ones(3, bool), spec)
    np.testing.assert_array_equal(batch["image"], [resize(image, ImageSpec((6, 5), 3, "crop")) for image in images])


MASKED = ImageSpec((8, 6), masks=MaskSpec("classes", num_classes=5, borders=True))


def make_masked_source(count):
    """Images with a mask each, and no labels."""
    masks = np.random.default_rng(5).integers(0, 5, (count, 8, 6, 1), np.uint8)
    examples = Examples({"image": encode(noise(8, 6, 3)), "classes": encode(mask)} for mask in masks)
    return Source("masked", "train", examples, FEATURES), masks


def test_masks_take_the_place_of_labels():
    source, masks = make_masked_source(7)
    batch = load(source, np.array([4, 2]), np.ones(2, bool), MASKED)
    assert batch.keys() == {"image", "segmentation_mask", "border_distance", "example_mask", "original_size"}
    assert batch["segmentation_mask"].dtype == np.uint8
    np.testing.assert_array_equal(batch["segmentation_mask"], masks[[4, 2]])
    np.testing.assert_array_equal(batch["border_distance"], [border_distance(mask) for mask in masks[[4, 2]]])
    whole = load_all(source, MASKED)
    np.testing.assert_array_equal(whole["segmentation_mask"], masks)
    held = sum(whole[key].nbytes for key in ("image", "segmentation_mask", "border_distance"))
    assert nbytes(source, MASKED) == held
    order = Shuffled(7, 3, seed=0)
    for step, streamed in enumerate(stream(source, order, MASKED, range(2), slice(0, 3))):
        assert_same(streamed, load(source, *order(step), MASKED))


def test_masks_see_the_windows_of_their_images():
    masks = noise(5, 20, 30) // 13
    examples = Examples({"image": encode(mask), "classes": encode(mask)} for mask in masks)
    spec = ImageSpec((6, 5), 1, windows=RandomWindows(seed=3, short_side=(20, 20)), masks=MaskSpec("classes", 20))
    batch = load_step(Source("masked", "train", examples, FEATURES), Shuffled(5, 5, seed=1), spec, slice(1, 4), 2)
    np.testing.assert_array_equal(batch["segmentation_mask"], batch["image"])


def test_load_names_the_example_whose_mask_does_not_fit():
    source, _ = make_masked_source(7)
    source.examples[3]["classes"] = encode(np.full((8, 6), 9, np.uint8))
    with pytest.raises(UserError, match=r"example 3 of masked, split train: a mask has the value 9"):
        load(source, np.arange(7), np.ones(7, bool), MASKED)


def test_objects_take_the_place_of_labels_the_largest_first(caplog):
    """In memory and from TFDS's files; those without area are dropped, with their number in the log."""
    boxes = [[0, 0, 0.25, 0.5], [0.5, 0, 1, 1], [0.25, 0.25, 0.25, 1], [0, 0.5, 0.5, 1]]
    examples = Examples(
        {"image": encode(noise(8, 6, 3)), "objects": {"bbox": boxes[:count], "label": [3, 1, 2, 4][:count]}}
        for count in (4, 0, 3)
    )
    source = Source("boxes", "train", examples, FEATURES)
    with caplog.at_level(logging.WARNING):
        batch = load(source, np.arange(3), np.ones(3, bool), ImageSpec((8, 6), max_objects=2))
        load(source, np.arange(3), np.ones(3, bool), ImageSpec((8, 6), max_objects=2))
    assert caplog.messages == ["split train of boxes: 2 boxes without area dropped"]  # once
    objects = [f"objects/{name}" for name in ("bbox", "label", "valid", "ignored", "number")]
    assert batch.keys() == {"image", "example_mask", "original_size", *objects}
    assert batch["objects/valid"].tolist() == [[True, True], [False, False], [True, True]]
    np.testing.assert_array_equal(batch["objects/label"], [[1, 4], [0, 0], [1, 3]])
    expected = [[boxes[1], boxes[3]], np.zeros((2, 4)), [boxes[1], boxes[0]]]
    np.testing.assert_array_equal(batch["objects/bbox"], np.array(expected, np.float32))
    source = open_source("shapes/32x24_train64_test20", "test")
    batch = load(source, np.arange(20), np.ones(20, bool), ImageSpec((32, 24), max_objects=4))
    assert source.object_names == ("ellipse", "rectangle", "triangle", "star")
    for row, example in enumerate(source.examples.__getitems__(list(range(20)))):
        instances, count = decode(example["instance_mask"], 1), batch["objects/valid"][row].sum()
        edges = [np.argwhere(instances == index + 1)[:, :2] for index in range(count)]
        around = [np.concatenate([each.min(0), each.max(0) + 1]) / [32, 24, 32, 24] for each in edges]
        areas = [np.prod(box[2:] - box[:2]) for box in around]
        assert count == instances.max()
        for box, area in zip(batch["objects/bbox"][row], sorted(areas, reverse=True), strict=False):
            assert np.isclose(np.prod(box[2:] - box[:2]), area)
            assert np.isclose(around, box, atol=1e-6).all(axis=1).any()


class Noise(tfds.core.GeneratorBasedBuilder):
    """The examples of `make_source`; the last image is none."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=FEATURES, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, example in enumerate(make_source(10)[0].examples):
            yield index, example | {"image": io.BytesIO(example["image"] if index < 9 else b"garbage")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    builder = Noise(data_dir=tmp_path_factory.mktemp("data"), file_format="array_record")
    builder.download_and_prepare()
    return open_source(str(builder.data_path), "train")


def test_stream_by_processes_is_the_same_though_they_are_asked_to_stop(prepared):
    order, spec = Shuffled(9, 4, seed=0), WINDOWS
    iterator = stream(prepared, order, spec, range(2, 7), slice(1, 3), workers=2, ahead=1)
    batches = [next(iterator), next(iterator)]  # one of each process
    for process, number in zip(multiprocessing.active_children(), (signal.SIGINT, signal.SIGTERM), strict=True):
        os.kill(process.pid, number)
    batches.extend(iterator)
    for step, batch in zip(range(2, 7), batches, strict=True):
        assert_same(batch, load_step(prepared, order, spec, slice(1, 3), step))


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_passes_the_users_fault_on(prepared, workers):
    batches = stream(prepared, Sequential(10, 9), ImageSpec((8, 8)), range(2), slice(0, 9), workers, ahead=1)
    assert next(batches)["example_mask"].all()
    with pytest.raises(UserError, match=r"^example 9 of .*, split train: an image cannot be decoded"):
        next(batches)
