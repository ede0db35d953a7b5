"""Images: decoded, cut and brought to one size, no finer than is seen of them."""

import dataclasses
import functools
import io
import math
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnn_research.data.images import (
    RESIZE,
    ImageSpec,
    MaskSpec,
    decode,
    jpeg_size,
    place_boxes,
    reduced,
    resize,
    restore,
    restore_boxes,
    write,
    write_mask,
)
from cnn_research.data.windows import RandomWindows, Window
from cnn_research.errors import UserError


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


def test_fit_is_pad_that_also_makes_an_image_larger():
    image = noise(8, 6, 3)
    found = resize(image, ImageSpec((16, 20), resize="fit"))
    np.testing.assert_array_equal(found[:, 4:16], resize(image, ImageSpec((16, 12))))
    assert not found[:, :4].any()
    assert not found[:, 16:].any()
    large = noise(50, 30, 3)
    np.testing.assert_array_equal(*(resize(large, ImageSpec((16, 20), resize=mode)) for mode in ("fit", "pad")))


def test_crop_keeps_the_middle_of_the_longer_side():
    image = noise(8, 16, 3)
    np.testing.assert_array_equal(resize(image, ImageSpec((8, 8), 3, "crop")), image[:, 4:12])
    shrunk = resize(image, ImageSpec((4, 4), 3, "crop"))
    np.testing.assert_allclose(shrunk, image[:, 4:12].reshape(4, 2, 4, 2, 3).astype(float).mean((1, 3)), atol=0.51)


def test_crop_grows_what_is_kept_of_a_small_image():
    image = np.repeat(np.array([7, 7, 100, 200, 7, 7], np.uint8)[None, :, None], 2, axis=0)  # 2x6
    assert resize(image, ImageSpec((4, 4), 1, "crop"))[0, :, 0].tolist() == [100, 125, 175, 200]


def test_bilinear_down_to_half_the_size_and_the_mean_below():
    """Both leave no pixel out."""
    image = noise(60, 60, 3)
    for side, interpolation in ((31, cv2.INTER_LINEAR), (29, cv2.INTER_AREA)):
        expected = cv2.resize(image, (side, side), interpolation=interpolation)
        np.testing.assert_array_equal(resize(image, ImageSpec((side, side))), expected)


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
    if mode not in ("pad", "fit"):
        assert (resized == 200).all()
        return
    scale = min(target[0] / size[0], target[1] / size[1], 1 if mode == "pad" else math.inf)
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", RESIZE)
def test_write_is_decode_and_resize_in_place(mode, channels):
    """For what is not reduced: PNG, and JPEG that is smaller than twice the result."""
    batch = np.full((3, 20, 30, channels), 77, np.uint8)
    spec = ImageSpec((20, 30), channels, mode)
    for encoded in (
        encode(noise(41, 67, 3)),
        encode(noise(39, 50, 3), ".jpg"),
        encode(noise(20, 30, 3)),
        encode(noise(9, 8, 3)),
    ):
        image = decode(encoded, channels)
        assert write(encoded, spec, batch[1]) == image.shape[:2]
        np.testing.assert_array_equal(batch[1], resize(image, spec))
        assert (batch[::2] == 77).all()


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (300, 7)])
def test_jpeg_size_is_that_of_the_decoded_image(size, progressive):
    encoded = cv2.imencode(".jpg", noise(*size, 3), [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    assert jpeg_size(encoded) == size
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 99) + encode(noise(5, 5, 3), ".jpg")[:99]
    assert jpeg_size(encoded[:2] + thumbnail + encoded[2:]) == size  # as cameras put one before the image
    assert jpeg_size(encoded[:2] + b"\xff\xff" + encoded[2:]) == size  # fill bytes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xe0\x00",
        b"\xff\xd8" + b"\xff" * 50,
        b"\xff\xd8" + b"\xff\xe0\x00\x00" * 9,
        b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x05\x03" + bytes(9),  # its height comes later
        b"\xff\xd8\xff\xc3\x00\x11\x08\x00\x07\x00\x05\x03" + bytes(9),  # lossless
        b"garbage" * 9,
        encode(noise(5, 7, 3)),
    ],
)
def test_jpeg_size_of_what_cannot_be_reduced(content):
    assert jpeg_size(content) is None


def test_a_broken_photograph_is_refused_whatever_is_seen_of_it():
    encoded = encode(noise(100, 100, 3), ".jpg")
    with pytest.raises(UserError, match="an image cannot be decoded"):
        write(encoded[:200], ImageSpec((9, 9)), np.empty((9, 9, 3), np.uint8))


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 9),
    st.sampled_from([*RESIZE, "windows"]),
)
def test_a_reduced_photograph_shows_what_is_meant_to_be_seen(size, result, position, mode):
    """An image of its own coordinates: each pixel of the result tells where it was."""
    windows = RandomWindows(seed=0, area=(0.08, 1.0))
    spec = ImageSpec(result, 3, *(["stretch", windows] if mode == "windows" else [mode]))
    draws = windows.draws(0, 10)[position].tolist() if mode == "windows" else ()
    seen, place = spec.place(size, draws)
    reduction, window = reduced(seen, place)
    fits = [each for each in (1, 2, 4, 8) if each * place.height <= seen.height and each * place.width <= seen.width]
    assert reduction == max(fits, default=1)
    shown_window = Window(*(part * reduction for part in window))
    assert all(0 <= part - other < reduction for part, other in zip(seen, shown_window, strict=True))

    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    out = np.zeros((*result, 3), np.uint8)
    assert write(finely(image), spec, out, draws) == size
    shown = out[place.top : place.top + place.height, place.left : place.left + place.width]
    for axis in (0, 1):
        length, count = shown_window[2 + axis], place[2 + axis]
        expected = shown_window[axis] + (np.arange(count) + 0.5) * length / count - 0.5
        found = shown[..., axis].astype(float).mean(axis=1 - axis)
        np.testing.assert_allclose(found, expected, atol=3)


def finely(image):
    """Encodes as JPEG with little loss: all of the colours, at the highest quality."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


@functools.cache
def china():
    """A photograph of 427x640 pixels, encoded."""
    from sklearn.datasets import load_sample_image

    return encode(load_sample_image("china.jpg"), ".jpg")


def psnr(image, other):
    """In dB."""
    return 10 * np.log10(255**2 / np.square(image.astype(float) - other).mean())


@pytest.mark.parametrize(("side", "reduction"), [(210, 2), (150, 2), (106, 4), (80, 4), (53, 8), (40, 8)])
def test_a_reduced_photograph_is_close_to_exact_decoding(side, reduction):
    """Closer than bilinear resizing of the exact image comes, and in its place to less than a pixel of the reduced."""
    spec = ImageSpec((side, side), 3, "crop")
    seen, place = spec.place((427, 640))
    factor, window = reduced(seen, place)
    assert factor == reduction
    top, left, height, width = (part * factor for part in window)
    exact = decode(china(), 3)[top : top + height, left : left + width]
    averaged = cv2.resize(exact, (side, side), interpolation=cv2.INTER_AREA)
    out = np.empty((side, side, 3), np.uint8)
    write(china(), spec, out)
    assert psnr(out, averaged) > 29
    assert psnr(out, averaged) > psnr(cv2.resize(exact, (side, side), interpolation=cv2.INTER_LINEAR), averaged) + 1
    shifted = cv2.resize(np.roll(exact, reduction, axis=1), (side, side), interpolation=cv2.INTER_AREA)
    assert psnr(out, averaged) > psnr(out, shifted) + 2


@pytest.mark.parametrize(("side", "least"), [(420, 38), (300, 30), (220, 28)])
def test_bilinear_resizing_is_close_to_pillows_with_antialiasing(side, least):
    """Down to half the size, which is what torchvision's transforms would give."""
    exact = decode(china(), 3)[:, :427]
    theirs = np.asarray(Image.open(io.BytesIO(encode(exact))).resize((side, side), Image.Resampling.BILINEAR))
    assert psnr(resize(exact, ImageSpec((side, side))), theirs) > least


def masked(mask, spec, draws=(), **fields):
    """Returns what a file of a mask becomes."""
    spec = dataclasses.replace(spec, masks=MaskSpec("mask", **({"num_classes": 20} | fields)))
    out = np.empty((*spec.size, 1), np.uint8)
    write_mask(encode(mask), mask.shape, spec, out, draws)
    return out[..., 0]


@pytest.mark.parametrize("mode", [*RESIZE, "window"])
@pytest.mark.parametrize("size", [(9, 14), (40, 31), (8, 8), (23, 6)])
def test_masks_come_to_lie_where_their_images_do(mode, size):
    """Wherever a resized image has the colour of one class, and not of a mixture."""
    colours = np.array([0, 10, 30, 90, 250], np.uint8)
    rows, columns = np.indices(size)
    mask = (1 + rows * 2 // size[0] + 2 * (columns * 2 // size[1])).astype(np.uint8)
    windows = RandomWindows(seed=3, area=(0.3, 1.0)) if mode == "window" else None
    spec = ImageSpec((12, 10), 1, mode if mode in RESIZE else "stretch", windows)
    draws = windows.draws(0, 1)[0].tolist() if windows else ()
    image = np.empty((12, 10, 1), np.uint8)
    write(encode(colours[mask]), spec, image, draws)
    found = masked(mask, spec, draws)
    known = found != 255
    pure = np.isin(image[..., 0], colours) & known
    assert pure.sum() > known.sum() / 2
    np.testing.assert_array_equal(colours[found[pure]], image[..., 0][pure])
    _, place = spec.place(size, draws)
    assert (found == 255).sum() == 120 - place.height * place.width


@pytest.mark.parametrize("mode", [*RESIZE, "window"])
@pytest.mark.parametrize("size", [(9, 14), (40, 31), (23, 6)])
def test_boxes_come_to_lie_where_their_objects_do(mode, size):
    """By the mask of each object, whose pixels are the nearest ones: within half a pixel of the result."""
    windows = RandomWindows(seed=3, area=(0.3, 1.0)) if mode == "window" else None
    spec = ImageSpec((12, 10), 1, mode if mode in RESIZE else "stretch", windows)
    draws = windows.draws(0, 1)[0].tolist() if windows else ()
    seen, _ = spec.place(size, draws)
    rng = np.random.default_rng(0)
    corners = np.sort([rng.integers(0, side + 1, (40, 2)) for side in size], axis=-1)  # axis, object, end
    boxes = (np.moveaxis(corners, 1, 0) / np.array(size)[:, None]).swapaxes(1, 2).reshape(-1, 4).astype(np.float32)
    placed = place_boxes(boxes, size, spec, draws)
    found = 0
    for (rows, columns), box in zip(corners.swapaxes(0, 1), placed, strict=True):
        mask = np.zeros(size, np.uint8)
        mask[slice(*rows), slice(*columns)] = 1
        inside = np.argwhere(masked(mask, spec, draws) == 1)
        height, width = box[2:] - box[:2]
        center = (np.mean([rows, columns], axis=1) - seen[:2]) / seen[2:]
        if np.abs(center * (1 - center)).min() < 1e-4:  # on the border, within rounding
            continue
        if not ((center > 0) & (center < 1)).all():
            assert (height, width) == (0, 0)
        elif len(inside):
            expected = np.concatenate([inside.min(0), inside.max(0) + 1])
            np.testing.assert_allclose(box * [12, 10, 12, 10], expected, atol=0.501)
            found += 1
        else:
            assert min(height * 12, width * 10) <= 1
    assert found > 6
    if mode != "window":
        top, left, bottom, right = seen.top, seen.left, seen.top + seen.height, seen.left + seen.width
        limits = np.array([top, left, top, left]), np.array([bottom, right, bottom, right])
        expected = np.clip(boxes, *(limit / np.tile(size, 2) for limit in limits))
        kept = (placed[:, 2:] > placed[:, :2]).all(axis=1)
        np.testing.assert_allclose(restore_boxes(placed, size, spec)[kept], expected[kept], atol=1e-6)


def test_masks_take_the_nearest_centre():
    mask = np.arange(6, dtype=np.uint8)[None].repeat(2, 0)
    np.testing.assert_array_equal(masked(mask, ImageSpec((2, 2)))[0], [1, 4])
    np.testing.assert_array_equal(masked(mask, ImageSpec((2, 18)))[0], np.arange(6).repeat(3))


def test_values_of_masks_become_classes():
    mask = np.array([[7, 9, 255, 0, 3]], np.uint8)
    found = masked(mask, ImageSpec((1, 5)), values=(3, 0, 7), num_classes=3)
    np.testing.assert_array_equal(found, [[2, 255, 255, 1, 0]])
    np.testing.assert_array_equal(masked(mask, ImageSpec((1, 5)), num_classes=10), mask)


def test_masks_of_16_bits_are_read_by_their_values():
    mask = np.array([[0, 3, 19, 255]], np.uint16)
    np.testing.assert_array_equal(masked(mask, ImageSpec((1, 4))), mask)
    with pytest.raises(UserError, match="a mask has the value 300, "):
        masked(np.array([[300]], np.uint16), ImageSpec((1, 1)))
    np.testing.assert_array_equal(
        masked(np.array([[300]], np.uint16), ImageSpec((1, 1)), values=(3,), num_classes=1), 255
    )


@pytest.mark.parametrize(
    ("size", "fields", "message"),
    [
        ((2, 4), {}, r"the mask has \(2, 3\) pixels and the image \(2, 4\)"),
        (
            (2, 3),
            {"num_classes": 5},
            r"a mask has the value 5, model\.num_classes is 5; give more classes, or .*mask_values",
        ),
        ((2, 3), {"num_classes": 254}, r"model\.num_classes=254: a mask has 1 to 253 classes"),
        ((2, 3), {"values": (1, 2)}, r"data\.mask_values=\(1, 2\): give a value from 0 to 255 for each of 20 classes"),
        ((2, 3), {"num_classes": 1, "values": (256,)}, r"data\.mask_values=\(256,\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused(size, fields, message):
    mask = np.array([[0, 1, 255], [3, 4, 5]], np.uint8)

    def read():
        spec = ImageSpec((2, 3), masks=MaskSpec("mask", **({"num_classes": 20} | fields)))
        write_mask(encode(mask), size, spec, np.empty((2, 3, 1), np.uint8))

    with pytest.raises(UserError, match=message):
        read()


@pytest.mark.parametrize("mode", RESIZE)
@pytest.mark.parametrize("size", [(48, 64), (64, 48), (30, 20)])
def test_what_is_said_of_an_image_comes_back_to_its_size(mode, size):
    """A smooth picture of the image's places, resized and restored, says where its pixels are; but for what was cut."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([rows, columns], -1).astype(np.uint8)
    spec = ImageSpec((40, 40), 1, mode)
    maps = np.concatenate([resize(image[..., [axis]], spec) for axis in (0, 1)], -1).astype(np.float32)
    found = restore(maps, spec, size)
    assert found.shape == (*size, 2)
    seen, _ = spec.place(size)
    inside = np.zeros(size, bool)
    inside[seen.top + 2 : seen.top + seen.height - 2, seen.left + 2 : seen.left + seen.width - 2] = True
    np.testing.assert_allclose(found[inside], image[inside], atol=1.2)
    outer = restore(np.pad(maps, ((3, 4), (3, 4), (0, 0))), spec, size)  # of a network that saw a border
    np.testing.assert_array_equal(outer, found)
    inner = restore(maps[5:-5, 5:-5], spec, size)  # of one that labels the middle, whose border goes on
    np.testing.assert_array_equal(
        inner, restore(np.pad(maps[5:-5, 5:-5], ((5, 5), (5, 5), (0, 0)), "edge"), spec, size)
    )
