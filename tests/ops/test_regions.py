"""Regions against loops, numbers that are known by hand, finite differences, SciPy and torchvision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from jax.test_util import check_grads

from cnn_research.errors import UserError
from cnn_research.ops import regions

HEIGHT, WIDTH = 9, 11
FEATURES = np.random.default_rng(0).permutation(HEIGHT * WIDTH * 2).reshape(HEIGHT, WIDTH, 2).astype(np.float32) / 99
# Inside, smaller than a pixel, all of the map, on a border, beyond it, and without area.
BOXES = np.array(
    [
        [1.3, 2.1, 6.2, 9.7],
        [4.2, 4.4, 4.5, 4.6],
        [0, 0, HEIGHT, WIDTH],
        [3, 6, 9, 11],
        [-4.5, -2, 5, 16.5],
        [3.5, 5.5, 3.5, 5.5],
        [-9, -9, -3, -2],
        [2.5, 1.5, 7.5, 3.5],
    ],
    np.float32,
)
align = jax.jit(regions.roi_align, static_argnums=(2, 3))
pool = jax.jit(regions.roi_pool, static_argnums=2)


def bilinear(features, y, x):
    """Interpolates between pixels' centres as Detectron2's kernel does; y and x count from the first one's."""
    height, width, _ = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    return (1 - down) * ((1 - along) * features[top, left] + along * features[top, right]) + down * (
        (1 - along) * features[bottom, left] + along * features[bottom, right]
    )


def aligned(features, box, size, ratio):
    ymin, xmin, ymax, xmax = map(float, box)
    tall, wide = (ymax - ymin) / size[0], (xmax - xmin) / size[1]
    out = np.zeros((*size, features.shape[-1]))
    for row, column, down, along in np.ndindex(*size, ratio, ratio):
        y = ymin - 0.5 + tall * (row + (down + 0.5) / ratio)
        x = xmin - 0.5 + wide * (column + (along + 0.5) / ratio)
        out[row, column] += bilinear(features, y, x) / ratio**2
    return out


@pytest.mark.parametrize(("size", "ratio"), [((3, 2), 2), ((1, 4), 3)])
def test_aligned_regions_are_those_of_loops(size, ratio):
    expected = [aligned(FEATURES, box, size, ratio) for box in BOXES]
    np.testing.assert_allclose(align(FEATURES, BOXES, size, ratio), expected, atol=1e-5)


def test_regions_of_a_ramp_are_the_centres_of_their_bins():
    """Half-pixel centres: a map that holds its own coordinates gives the regions' coordinates."""
    centers = np.stack(np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij"), axis=-1)
    out = align(centers.astype(np.float32), BOXES[:1], (4, 4), 2)[0]
    ymin, xmin, ymax, xmax = BOXES[0]
    np.testing.assert_allclose(out[:, 0, 0], ymin + (ymax - ymin) * (np.arange(4) + 0.5) / 4, rtol=1e-5)
    np.testing.assert_allclose(out[0, :, 1], xmin + (xmax - xmin) * (np.arange(4) + 0.5) / 4, rtol=1e-5)


def test_a_bin_a_pixel_is_the_map_itself():
    box = np.array([[2, 3, 7, 9]], np.float32)
    for function in (lambda *args: align(*args, 1), pool):
        np.testing.assert_allclose(function(FEATURES, box, (5, 6))[0], FEATURES[2:7, 3:9], atol=1e-6)


def test_gradient_of_aligned_regions():
    weights = jnp.array(np.random.default_rng(1).normal(size=(8, 2, 3, 2)), jnp.float32)
    inside = jnp.array(BOXES[:1] + 0.01)  # off the kinks of interpolation

    @jax.jit
    def of_features(features):
        return (weights * regions.roi_align(features, jnp.array(BOXES), (2, 3))).sum()

    @jax.jit
    def of_boxes(boxes):
        return (weights[:1] * regions.roi_align(jnp.array(FEATURES), boxes, (2, 3))).sum()

    gradient = jax.jit(jax.grad(of_features))(FEATURES)
    for pixel in np.ndindex(HEIGHT, WIDTH):  # it is linear in the map: each pixel's share of the loops'
        if sum(pixel) % 4 == 0:
            one = np.zeros_like(FEATURES)
            one[pixel] = 1
            expected = sum(w * aligned(one, box, (2, 3), 2) for w, box in zip(weights, BOXES, strict=True)).sum((0, 1))
            np.testing.assert_allclose(gradient[pixel], expected, atol=1e-4)
    check_grads(of_boxes, (inside,), order=1, modes=["rev"], atol=0.05, rtol=0.05, eps=1e-2)


def test_low_precision_is_summed_in_float32():
    features = jnp.array(FEATURES, jnp.bfloat16)
    out = align(features, jnp.array(BOXES), (2, 2), 2)
    assert out.dtype == jnp.bfloat16
    expected = align(features.astype(jnp.float32), jnp.array(BOXES), (2, 2), 2)
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))


def test_a_bin_has_a_point():
    with pytest.raises(UserError, match="sampling_ratio=0"):
        regions.roi_align(jnp.array(FEATURES), jnp.array(BOXES), 2, 0)


def bins_of(box, size, shape):
    """Yields each bin's place and its rows and columns, in whole numbers as the paper's code has them."""
    axes = []
    for axis in (0, 1):
        first = min(max(math.floor(box[axis] + 0.5), 0), shape[axis] - 1)
        last = min(max(math.floor(box[2 + axis] + 0.5), first + 1), shape[axis])
        share = (last - first) / size[axis]
        axes.append(
            [
                slice(first + math.floor(i * share + 1e-9), first + math.ceil((i + 1) * share - 1e-9))
                for i in range(size[axis])
            ]
        )
    for row, column in np.ndindex(*size):
        yield (row, column), (axes[0][row], axes[1][column])


SIZES = [(1, 1), (3, 2), (7, 7), (9, 4)]


@pytest.mark.parametrize("size", SIZES)
def test_pooled_regions_and_their_gradient_are_those_of_loops(size):
    rng = np.random.default_rng(2)
    corners = rng.uniform(-4, 15, (20, 2, 2))
    boxes = np.concatenate([BOXES, np.sort(corners, axis=1).reshape(-1, 4)]).astype(np.float32)
    weights = rng.normal(size=(len(boxes), *size, 2)).astype(np.float32)

    @jax.jit
    def both(features):
        pooled, pull = jax.vjp(lambda features: regions.roi_pool(features, jnp.array(boxes), size), features)
        return pooled, pull(jnp.array(weights))[0]

    pooled, gradient = both(FEATURES)
    expected = np.zeros_like(FEATURES)
    for index, box in enumerate(boxes):
        for place, window in bins_of(box.tolist(), size, FEATURES.shape):
            patch = FEATURES[window]
            np.testing.assert_array_equal(pooled[index][place], patch.max((0, 1)))
            expected[window] += np.where(patch == patch.max((0, 1)), weights[index][place], 0)
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


def test_equal_values_share_the_gradient_of_pooling():
    whole = jnp.array([[0.0, 0, 3, 3]])
    gradient = jax.jit(jax.grad(lambda x: regions.roi_pool(x, whole, 1).sum()))(jnp.ones((3, 3, 1)))
    assert gradient.sum() == pytest.approx(1)


def test_levels_of_a_pyramid():
    sides = np.array([1, 111.99, 112, 223.9, 224, 300, 447.9, 448, 5000], np.float32)
    boxes = jnp.stack([0 * sides, 0 * sides + 7, sides, sides + 7], axis=1)
    assert regions.pyramid_level(boxes, 2, 5).tolist() == [2, 2, 3, 3, 4, 4, 4, 5, 5]
    assert regions.pyramid_level(boxes, 2, 3, canonical_level=3, canonical_size=112.0).tolist() == [2, 2] + 7 * [3]
    stretched = jnp.array([[0.0, 0, 112, 448]])  # the area counts
    assert regions.pyramid_level(stretched, 0, 9).tolist() == [4]


def test_a_pyramid_gives_each_box_its_level():
    rng = np.random.default_rng(0)
    levels = [jnp.array(rng.normal(size=(64 // 2**level, 64 // 2**level, 2)), jnp.float32) for level in (2, 3, 4)]
    boxes = np.array([[5, 5, 20, 30], [0, 0, 64, 64], [10, 20, 50, 60], [7, 3, 9, 5]], np.float32)
    out = jax.jit(lambda *args: regions.pyramid_roi_align(args[:-1], args[-1], 2, 3))(*levels, boxes)
    for index, level in enumerate((2, 2, 2, 2)):
        expected = aligned(np.asarray(levels[level - 2]), boxes[index] / 2**level, (3, 3), 2)
        np.testing.assert_allclose(out[index], expected, atol=1e-5)
    boxes *= 8  # sides of 155, 512, 320 and 16
    out = jax.jit(lambda *args: regions.pyramid_roi_align(args[:-1], args[-1], 2, 3))(*levels, boxes)
    for index, level in enumerate((3, 4, 4, 2)):
        expected = aligned(np.asarray(levels[level - 2]), boxes[index] / 2**level, (3, 3), 2)
        np.testing.assert_allclose(out[index], expected, atol=1e-5)


def test_masks_are_pasted_as_scipy_interpolates():
    rng = np.random.default_rng(0)
    masks = rng.random((6, 5, 7)).astype(np.float32)
    boxes = np.array(
        [[2, 3, 12, 20], [0, 0, 15, 25], [-3.5, 4.2, 8.1, 30], [4.3, 5.1, 5.2, 5.9], [3, 3, 3, 3], [20, 30, 40, 50]],
        np.float32,
    )
    for threshold in (0.5, 0.2):
        pasted = regions.paste_masks(masks, boxes, (15, 25), threshold)
        assert pasted.shape == (6, 15, 25)
        for mask, box, ours in zip(masks, boxes, pasted, strict=True):
            if box[0] == box[2]:
                assert not ours.any()
                continue
            y = (np.arange(15) + 0.5 - box[0]) / (box[2] - box[0]) * 5 - 0.5
            x = (np.arange(25) + 0.5 - box[1]) / (box[3] - box[1]) * 7 - 0.5
            places = np.meshgrid(y, x, indexing="ij")
            values = scipy.ndimage.map_coordinates(mask, places, order=1, mode="grid-constant")
            clear = abs(values - threshold) > 1e-4
            np.testing.assert_array_equal(ours[clear], (values >= threshold)[clear])
    assert not regions.paste_masks(masks[:0], boxes[:0], (15, 25)).size


def test_a_full_mask_fills_its_box():
    pasted = regions.paste_masks(np.ones((1, 28, 28), np.float32), np.array([[2, 3, 9, 17]], np.float32), (12, 20))
    expected = np.zeros((12, 20), bool)
    expected[2:9, 3:17] = True
    np.testing.assert_array_equal(pasted[0], expected)


@pytest.mark.slow
def test_regions_are_torchvisions(torchvision):
    import torch

    features = torch.tensor(FEATURES.transpose(2, 0, 1)[None], requires_grad=True)
    boxes = jnp.array(BOXES[[0, 1, 2, 3, 7]])  # inside: beyond the map, its forms differ
    weights = np.random.default_rng(1).normal(size=(len(boxes), 3, 2, 2)).astype(np.float32)

    def compare(ours, theirs):
        out, pull = jax.vjp(ours, jnp.array(FEATURES))
        np.testing.assert_allclose(out, theirs.detach().permute(0, 2, 3, 1), atol=1e-5)
        theirs.backward(torch.tensor(weights).permute(0, 3, 1, 2))
        np.testing.assert_allclose(pull(jnp.array(weights))[0], features.grad[0].permute(1, 2, 0), atol=1e-4)
        features.grad = None

    turned = torch.tensor(np.array(boxes)[:, [1, 0, 3, 2]])
    with torch.compiler.set_stance("force_eager"):
        out = torchvision.ops.roi_align(features, [turned], (3, 2), sampling_ratio=2, aligned=True)
        compare(lambda features: align(features, boxes, (3, 2), 2), out)
    if torchvision.extension._has_ops():
        out = torchvision.ops.roi_pool(features, [turned - torch.tensor([0, 0, 1, 1])], (3, 2))
        compare(lambda features: pool(features, boxes, (3, 2)), out)
