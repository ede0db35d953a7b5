"""Batches: decoding, resizing, and the same examples whichever way they are read."""

import io
import multiprocessing
import os
import signal
import struct
import zlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.data.batches import RESIZE, ImageSpec, decode, load, load_all, nbytes, resize, stream
from cnn_research.data.order import Sequential, Shuffled
from cnn_research.data.sources import Source, open_source
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
    """Encodes RGB, RGBA or grey pixels."""
    order = {1: None, 3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[1 if image.ndim == 2 else image.shape[-1]]
    return cv2.imencode(extension, image if order is None else cv2.cvtColor(image, order))[1].tobytes()


def noise(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def smooth():
    """Pixels that JPEG keeps nearly as they are: a red, a green and a blue ramp."""
    rows, columns = np.mgrid[:32, :48]
    return np.stack([rows * 8, columns * 5, 255 - rows * 4 - columns * 2], axis=-1).astype(np.uint8)


def assert_same(batch, expected):
    assert batch.keys() == expected.keys()
    for key in expected:
        assert batch[key].dtype == expected[key].dtype
        np.testing.assert_array_equal(batch[key], expected[key])


def test_decode_gives_the_pixels_in_the_order_red_green_blue():
    image = noise(5, 7, 3)
    np.testing.assert_array_equal(decode(encode(image), 3), image)


def test_decode_gives_grey_pixels():
    image = noise(5, 7)
    np.testing.assert_array_equal(decode(encode(image), 1), image[..., None])
    np.testing.assert_array_equal(decode(encode(image), 3), np.repeat(image[..., None], 3, axis=-1))


def test_decode_makes_colour_grey_by_luminance():
    image = noise(5, 7, 3)
    expected = image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(decode(encode(image), 1)[..., 0], expected, atol=1)


def test_decode_leaves_transparency_out():
    image = noise(5, 7, 4)
    np.testing.assert_array_equal(decode(encode(image), 3), image[..., :3])


def test_decode_keeps_the_upper_byte_of_16_bits():
    image = np.random.default_rng(2).integers(0, 2**16, (5, 7), np.uint16)
    np.testing.assert_array_equal(decode(encode(image), 1)[..., 0], image >> 8)


def test_decode_takes_a_palette():
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    palette = noise(4, 3)
    indices = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in indices))
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 3, 0, 0, 0))
    encoded += chunk(b"PLTE", palette.tobytes()) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(encoded, 3), palette[indices])


def test_decode_takes_jpeg():
    np.testing.assert_allclose(decode(encode(smooth(), ".jpg"), 3), smooth(), atol=12)


def test_decode_does_not_turn_a_photograph():
    encoded = encode(smooth(), ".jpg")
    # Exif's only entry: tag 0x0112, orientation 6, a quarter turn.
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + tiff
    turned = encoded[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + encoded[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (48, 32, 3)
    np.testing.assert_array_equal(decode(turned, 3), decode(encoded, 3))


@pytest.mark.parametrize("content", [b"", b"garbage", encode(noise(64, 64))[:200], b"GIF89a"])
def test_decode_refuses_what_is_no_image(content):
    with pytest.raises(UserError, match="an image cannot be decoded; PNG and JPEG files can"):
        decode(content, 3)


def test_stretch_shrinks_by_the_mean_of_the_pixels():
    image = noise(8, 6, 3)
    expected = image.reshape(4, 2, 2, 3, 3).astype(float).mean((1, 3))
    np.testing.assert_allclose(resize(image, ImageSpec((4, 2), 3)), expected, atol=0.51)


def test_stretch_grows_by_interpolating_between_the_centres_of_pixels():
    image = np.array([[0, 100]], np.uint8)[..., None]
    assert resize(image, ImageSpec((1, 4), 1))[0, :, 0].tolist() == [0, 25, 75, 100]


def test_pad_centres_an_image_that_fits_unchanged():
    image = noise(28, 27, 3)
    expected = np.pad(image, ((2, 2), (3, 2), (0, 0)))
    np.testing.assert_array_equal(resize(image, ImageSpec((32, 32), 3, "pad")), expected)


def test_pad_shrinks_an_image_that_does_not_fit():
    image = noise(8, 16, 1)
    halved = image.reshape(4, 2, 8, 2, 1).astype(float).mean((1, 3))
    expected = np.pad(halved, ((2, 2), (0, 0), (0, 0)))
    np.testing.assert_allclose(resize(image, ImageSpec((8, 8), 1, "pad")), expected, atol=0.51)


def test_crop_keeps_the_middle_of_the_longer_side():
    image = noise(8, 16, 3)
    np.testing.assert_array_equal(resize(image, ImageSpec((8, 8), 3, "crop")), image[:, 4:12])
    shrunk = resize(image, ImageSpec((4, 4), 3, "crop"))
    np.testing.assert_allclose(shrunk, image[:, 4:12].reshape(4, 2, 4, 2, 3).astype(float).mean((1, 3)), atol=0.51)


def test_crop_grows_a_small_image_until_the_shorter_side_fits():
    image = np.repeat(np.array([0, 100, 200], np.uint8), 2)[None, :, None].repeat(2, axis=0)  # 2x6
    grown = resize(image, ImageSpec((4, 4), 1, "crop"))
    assert grown[0, :, 0].tolist() == [75, 100, 100, 125]


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([1, 3]),
    st.sampled_from(RESIZE),
)
def test_resize_gives_one_size_whatever_the_images(size, target, channels, mode):
    spec = ImageSpec(target, channels, mode)
    resized = resize(np.full((*size, channels), 200, np.uint8), spec)
    assert resized.shape == (*target, channels)
    assert resized.dtype == np.uint8
    if mode != "pad":
        assert (resized == 200).all()
        return
    scale = min(1, target[0] / size[0], target[1] / size[1])
    rows, columns = np.nonzero(resized[..., 0])
    for places, length, whole in ((rows, size[0], target[0]), (columns, size[1], target[1])):
        assert np.ptp(places) + 1 == max(1, round(length * scale))
        assert abs(places.min() - (whole - 1 - places.max())) <= 1
    assert (resized[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 200).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "strech"}, "data.resize='strech' is unknown; did you mean 'stretch'"),
        ({"channels": 4}, "data.channels=4: images have 1 channel"),
        ({"size": (0, 8)}, "data.image_size=.* give a height and a width"),
        ({"size": (8,)}, "data.image_size=.* give a height and a width"),
    ],
)
def test_a_shape_that_is_none_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        ImageSpec(**{"size": (8, 8)} | fields)


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
    order, spec = Shuffled(9, 4, seed=0), ImageSpec((8, 8))
    iterator = stream(prepared, order, spec, range(2, 7), slice(1, 3), workers=2, ahead=1)
    batches = [next(iterator), next(iterator)]  # one of each process
    for process, number in zip(multiprocessing.active_children(), (signal.SIGINT, signal.SIGTERM), strict=True):
        os.kill(process.pid, number)
    batches.extend(iterator)
    for step, batch in zip(range(2, 7), batches, strict=True):
        indices, mask = order(step)
        assert_same(batch, load(prepared, indices[1:3], mask[1:3], spec))


@pytest.mark.parametrize("workers", [0, 1])
def test_stream_passes_the_users_fault_on(prepared, workers):
    batches = stream(prepared, Sequential(10, 9), ImageSpec((8, 8)), range(2), slice(0, 9), workers, ahead=1)
    assert next(batches)["example_mask"].all()
    with pytest.raises(UserError, match=r"^example 9 of .*, split train: an image cannot be decoded"):
        next(batches)
