from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cnn_research.data import crops

# Small programs that run once: the compiler's effort would be most of these tests' time.
FAST = {"xla_backend_optimization_level": 0}


def draws(operation, image, count):
    return np.asarray(
        jax.jit(jax.vmap(operation, (0, None)), compiler_options=FAST)(
            jax.random.split(jax.random.key(0), count), image
        )
    )


def distinct(height, width, channels=1):
    """An image in which no value stands twice, none of them 0."""
    return jnp.arange(1, height * width * channels + 1, dtype=jnp.float32).reshape(height, width, channels)


def coordinates(height, width):
    """An image of its own row and column numbers: a resized window shows where it was."""
    return jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), axis=-1).astype(jnp.float32)


@pytest.mark.parametrize(("shape", "size"), [((8, 9), (5, 6)), ((8, 9), (5, 5)), ((4, 4), (4, 4)), ((2, 7, 4), (3, 3))])
def test_center_crop_is_the_middle(shape, size):
    images = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    top, left = (shape[-2] - size[0]) // 2, (shape[-1] - size[1]) // 2
    found = crops.center_crop(jnp.array(images), size)
    np.testing.assert_array_equal(found, images[..., top : top + size[0], left : left + size[1], :])


def test_random_crop_takes_every_window_alike_often():
    image, height, width = distinct(7, 8, 2), 4, 5
    windows = [np.asarray(image)[r : r + height, c : c + width] for r in range(4) for c in range(4)]
    found = draws(partial(crops.random_crop, size=(height, width)), image, 1600)
    counts = np.array([(found == window).all(axis=(1, 2, 3)).sum() for window in windows])
    assert counts.sum() == len(found)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("size", [(), (3, 4)])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_pad_crop_takes_every_window_of_the_padded_image_alike_often(mode, size):
    image, padding, fill = distinct(5, 6, 2), 2, (-1.0, -2.0)
    height, width = size or (5, 6)
    widths = ((padding, padding), (padding, padding))
    if mode == "reflect":
        padded = np.pad(image, (*widths, (0, 0)), mode="reflect")
    else:
        channels = [np.pad(image[..., c], widths, constant_values=fill[c]) for c in range(2)]
        padded = np.stack(channels, axis=-1)
    windows = [padded[r : r + height, c : c + width] for r in range(10 - height) for c in range(11 - width)]
    found = draws(partial(crops.pad_crop, padding=padding, mode=mode, fill=fill, size=size), image, 2500)
    counts = np.array([(found == window).all(axis=(1, 2, 3)).sum() for window in windows])
    assert counts.sum() == len(found)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_flip_mirrors_half():
    image = distinct(3, 4, 3)
    found = draws(crops.flip, image, 1000)
    mirrored = (found == np.asarray(image)[:, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(found[~mirrored], np.broadcast_to(image, found[~mirrored].shape))
    assert abs(mirrored.mean() - 0.5) < 0.06


@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 4)])
def test_dihedral_takes_every_way_alike_often(height, width):
    image = np.asarray(distinct(height, width, 2))
    found = draws(crops.dihedral, jnp.array(image), 1600)
    turned = [np.rot90(image, turns) for turns in range(0, 4, 1 if height == width else 2)]
    counts = [(found == way).all(axis=(1, 2, 3)).sum() for each in turned for way in (each, each[:, ::-1])]
    assert sum(counts) == len(found)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 4)])
def test_other_backends_turn_as_a_cpu_does(height, width):
    image = distinct(height, width, 2)
    for turn in jnp.array(list(np.ndindex(2, 2, 2)), bool):
        np.testing.assert_array_equal(crops._turned(image, turn), crops._turned_by_gather(image, turn))


@pytest.mark.parametrize("size", [(20, 31), (9, 14)])
def test_resized_window_is_what_opencv_makes_of_it(size):
    image = np.random.default_rng(1).random((20, 31, 3), dtype=np.float32)
    for row, column, height, width in [(3, 5, 7, 9), (0, 0, 1, 1), (19, 30, 1, 1), (0, 4, 20, 2), (13, 0, 7, 31)]:
        expected = cv2.resize(image[row : row + height, column : column + width], size[::-1])
        found = crops.resize_window(jnp.array(image), jnp.array([row, column]), jnp.array([height, width]), size)
        np.testing.assert_allclose(found, expected.reshape(*size, 3), atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 96)])
def test_resizing_the_whole_changes_nothing(size):
    image = jnp.array(np.random.default_rng(2).random((*size, 3), dtype=np.float32))
    found = jax.jit(crops.resize_window, static_argnums=3)(image, jnp.array([0, 0]), jnp.array(size), size)
    np.testing.assert_array_equal(found, image)


def test_resizing_keeps_a_ramp_a_ramp():
    found = crops.resize_window(coordinates(16, 16), jnp.array([4, 2]), jnp.array([8, 4]), (16, 16))
    np.testing.assert_allclose(found[1:-1, 5, 0], 4 + (np.arange(1, 15) + 0.5) / 2 - 0.5, atol=1e-5)
    np.testing.assert_allclose(found[3, 2:-2, 1], 2 + (np.arange(2, 14) + 0.5) / 4 - 0.5, atol=1e-5)
    assert found[0, 0].tolist() == [4, 2]
    assert found[-1, -1].tolist() == [11, 5]


def test_random_resized_crop_draws_area_and_aspect_ratio_as_stated():
    size, area, aspect_ratio = 128, (0.1, 0.4), (0.5, 1.0)
    operation = partial(crops.random_resized_crop, area=area, aspect_ratio=aspect_ratio)
    found = draws(
        lambda key, image: operation(key, image)[jnp.array([0, -1]), jnp.array([0, -1])], coordinates(size, size), 500
    )
    corner = found[:, 0].astype(int)
    height, width = (found[:, 1] - corner + 1).T
    assert (corner >= 0).all()
    uniform = scipy.stats.uniform
    # Whole pixels move a window's sides by 1% and its distribution by less than these tests can see.
    assert scipy.stats.kstest(height * width / size**2, uniform(area[0], area[1] - area[0]).cdf).pvalue > 1e-3
    low, high = np.log(aspect_ratio)
    assert scipy.stats.kstest(np.log(width / height), uniform(low, high - low).cdf).pvalue > 1e-3
    for offset, length in zip(corner.T, (height, width), strict=True):
        assert scipy.stats.kstest((offset + 0.5) / (size - length + 1), uniform.cdf).pvalue > 1e-3


def test_random_resized_crop_reaches_every_corner():
    operation = partial(crops.random_resized_crop, area=(9 / 16, 9 / 16), aspect_ratio=(1.0, 1.0))
    found = draws(operation, coordinates(4, 4), 100)
    assert {tuple(corner) for corner in found[:, 0, 0].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    np.testing.assert_array_equal(found[:, -1, -1] - found[:, 0, 0], 2)


def test_random_resized_crop_draws_the_same_window_for_any_size():
    operation = partial(crops.random_resized_crop, area=(0.3, 0.9), aspect_ratio=(0.5, 2.0))
    image = np.random.default_rng(4).random((40, 40, 1), dtype=np.float32)
    own, smaller = (draws(partial(operation, size=size), coordinates(40, 40), 20) for size in ((), (8, 10)))
    assert own.shape == (20, 40, 40, 2)
    for at, window, found in zip(
        own, smaller, draws(partial(operation, size=(8, 10)), jnp.array(image), 20), strict=True
    ):
        # Clipped at the border, a grown window begins and ends with its own first and last pixel.
        (top, left), (bottom, right) = at[0, 0].astype(int), at[-1, -1].astype(int) + 1
        expected = cv2.resize(image[top:bottom, left:right], (10, 8))
        np.testing.assert_allclose(found[..., 0], expected, atol=1e-5)
        assert (window >= [top, left]).all()
        assert (window <= [bottom - 1, right - 1]).all()


def test_random_resized_crop_of_everything_changes_nothing():
    image = distinct(17, 17, 3)
    found = draws(partial(crops.random_resized_crop, area=(1.0, 1.0), aspect_ratio=(1.0, 1.0)), image, 3)
    np.testing.assert_array_equal(found, np.broadcast_to(image, found.shape))


@pytest.mark.parametrize(("aspect_ratio", "height", "width"), [(2.0, 8, 16), (0.25, 16, 4)])
def test_random_resized_crop_takes_the_largest_window_where_none_fits(aspect_ratio, height, width):
    operation = partial(crops.random_resized_crop, area=(1.0, 1.0), aspect_ratio=(aspect_ratio, aspect_ratio))
    found = draws(operation, coordinates(16, 16), 20)
    np.testing.assert_array_equal(found[:, -1, -1] - found[:, 0, 0] + 1, np.broadcast_to([height, width], (20, 2)))


@pytest.mark.parametrize("side", [1, 4, 5, 40])
def test_cutout_fills_a_square_around_any_pixel(side):
    height, width = 12, 15
    image = distinct(height, width, 2)
    found = draws(partial(crops.cutout, side=side, fill=(-1.0, -2.0)), image, 1500)
    cut = (found == np.array([-1, -2])).all(axis=-1)
    np.testing.assert_array_equal(found[~cut], np.broadcast_to(image, found.shape)[~cut])
    centers = []
    for mask in cut:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        for center in np.ndindex(height, width):
            begin = np.array(center) - side // 2
            expected = (max(begin[0], 0), min(begin[0] + side, height), max(begin[1], 0), min(begin[1] + side, width))
            if expected == (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) and mask.sum() == len(rows) * len(
                columns
            ):
                centers.append(center)
                break
    assert len(centers) == len(cut)
    if side < 12:  # one centre makes one square
        rows, columns = np.transpose(centers)
        assert scipy.stats.chisquare(np.bincount(rows, minlength=height)).pvalue > 1e-3
        assert scipy.stats.chisquare(np.bincount(columns, minlength=width)).pvalue > 1e-3


def test_random_rectangle_has_the_size_asked_for_inside_the_image():
    keys = jax.random.split(jax.random.key(3), 300)
    rectangle = partial(crops.random_rectangle, image=jnp.zeros((20, 20, 3)), size=jnp.array([3, 6]))
    marked = np.asarray(jax.jit(jax.vmap(rectangle))(keys))[..., 0]
    inside = ~(marked[:, [0, -1]].any(axis=(1, 2)) | marked[:, :, [0, -1]].any(axis=(1, 2)))
    assert inside.sum() > 100
    assert (marked[inside].any(axis=2).sum(axis=1) == 3).all()
    assert (marked[inside].any(axis=1).sum(axis=1) == 6).all()


def test_scale_jitter_shows_the_image_through_a_frame():
    """Larger and smaller, each pixel from the place that the corners' box says, and the fill beyond."""
    height, width = 16, 12
    boxes = jnp.array([[0.0, 0, 1, 1]])

    def both(key, image):
        scale, nearest = (0.5, 2.0), partial(crops.scale_jitter, key, scale=(0.5, 2.0), fill=(-1.0,), nearest=True)
        smooth = crops.scale_jitter(key, image, scale, (-1.0,))
        return smooth, nearest(image), crops.scale_jitter_boxes(key, boxes, (height, width), scale)[0]

    image = coordinates(height, width) + 0.5
    keys = jax.random.split(jax.random.key(0), 300)
    smooth, nearest, whole = map(np.asarray, jax.jit(jax.vmap(both, (0, None)), compiler_options=FAST)(keys, image))
    factors = (whole[:, 2:] - whole[:, :2]).T
    np.testing.assert_allclose(factors[0], factors[1], rtol=1e-4)
    assert scipy.stats.kstest(np.log2(factors[0]), "uniform", (-1, 2)).pvalue > 1e-3
    for found, classes, (top, left, bottom, right) in zip(smooth, nearest, whole, strict=True):
        rows = ((np.arange(height) + 0.5) / height - top) / (bottom - top) * height
        columns = ((np.arange(width) + 0.5) / width - left) / (right - left) * width
        y, x = np.meshgrid(rows, columns, indexing="ij")
        inside = (y >= 0) & (y <= height) & (x >= 0) & (x <= width)
        clear = (np.abs(y - y.round()) > 1e-3) & (np.abs(x - x.round()) > 1e-3)  # of the border between pixels
        expected = np.stack([y.clip(0.5, height - 0.5), x.clip(0.5, width - 0.5)], -1)
        np.testing.assert_allclose(found[inside & clear], expected[inside & clear], atol=1e-3)
        pixels = np.floor(np.stack([y, x], -1)) + 0.5
        np.testing.assert_allclose(classes[inside & clear], pixels[inside & clear])
        assert (found[~inside & clear] == -1).all()
    # Smaller ones lie within the frame, larger ones cover it.
    lower, upper = whole[:, :2], whole[:, 2:]
    small = factors[0] < 1
    assert (lower[small] >= -1e-5).all()
    assert (upper[small] <= 1 + 1e-5).all()
    assert (lower[~small] <= 1e-5).all()
    assert (upper[~small] >= 1 - 1e-5).all()
