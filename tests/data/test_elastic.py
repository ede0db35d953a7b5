import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from scipy.interpolate import CubicHermiteSpline

from cnn_research.data.elastic import displacements, elastic

KEY = jax.random.key(3)
SIZE = (9, 13)
IMAGE = np.random.default_rng(0).random((*SIZE, 2)).astype(np.float32)


def moves():
    return np.asarray(displacements(4.0 * jax.random.normal(KEY, (3, 3, 2)), SIZE), np.float64)


def places():
    return np.indices(SIZE) + np.moveaxis(moves(), -1, 0)


def test_control_points_lie_on_the_border():
    grid = jax.random.normal(KEY, (3, 3, 2))
    np.testing.assert_allclose(displacements(grid, SIZE)[::4, ::6], grid, atol=1e-5)


def test_between_points_keys_cubic_runs():
    """Along a line of five points its middle is Catmull and Rom's spline: slopes are those of the neighbours' chord."""
    values = np.array([0.3, -1.0, 2.0, 0.5, 1.0])
    grid = jnp.asarray(np.stack([values, 0 * values], -1)[:, None].repeat(2, 1), jnp.float32)
    found = displacements(grid, (41, 2))[:, 0, 0]
    spline = CubicHermiteSpline([1, 2, 3], values[1:4], (values[2:] - values[:-2]) / 2)
    np.testing.assert_allclose(found[10:31], spline(np.arange(10, 31) / 10), atol=1e-5)


def test_images_agree_with_scipy():
    found = elastic(KEY, jnp.asarray(IMAGE), 4.0)
    for channel in range(2):
        expected = scipy.ndimage.map_coordinates(IMAGE[..., channel], places(), order=1, mode="mirror")
        np.testing.assert_allclose(found[..., channel], expected, atol=1e-4)
    np.testing.assert_allclose(elastic(KEY, jnp.asarray(IMAGE), 0.0), IMAGE)


def test_masks_take_the_nearest_class_and_ignore_what_is_outside():
    mask = np.random.default_rng(1).integers(0, 5, (*SIZE, 1)).astype(np.uint8)
    found = elastic(KEY, jnp.asarray(mask), 4.0, nearest=True, outside=255.0)
    assert found.dtype == np.uint8
    rows, columns = np.round(places()).astype(int)
    expected = np.full(SIZE, 255)
    for row, column in np.ndindex(SIZE):
        if 0 <= rows[row, column] < SIZE[0] and 0 <= columns[row, column] < SIZE[1]:
            expected[row, column] = mask[rows[row, column], columns[row, column], 0]
    np.testing.assert_array_equal(found[..., 0], expected)
    assert 0.1 < (expected == 255).mean() < 0.8
