import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from PIL import Image, ImageEnhance

from cnn_research.data import color

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
images = arrays(np.float32, (3, 2, 3), elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    ("adjust", "reference"),
    [
        (color.adjust_brightness, ImageEnhance.Brightness),
        (color.adjust_contrast, ImageEnhance.Contrast),
        (color.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_blends_as_pillow_does(adjust, reference, factor):
    expected = np.asarray(reference(Image.fromarray(RGB)).enhance(factor))
    # Pillow rounds the grey it blends with, and the result, to bytes.
    np.testing.assert_allclose(255 * adjust(jnp.array(RGB / 255, jnp.float32), factor), expected, atol=1.6)


@settings(max_examples=50, deadline=None)
@given(images, st.floats(-0.5, 0.5))
def test_hue_as_matplotlib_has_it(image, turns):
    hsv = rgb_to_hsv(image.astype(np.float64))
    expected = hsv_to_rgb(np.stack([(hsv[..., 0] + turns) % 1, hsv[..., 1], hsv[..., 2]], axis=-1))
    np.testing.assert_allclose(color.adjust_hue(jnp.array(image), turns), expected, atol=1e-5)


def test_a_third_of_a_turn_makes_red_green_and_green_blue():
    red, green, blue = jnp.eye(3, dtype=jnp.float32)[:, None, None]
    np.testing.assert_allclose(color.adjust_hue(red, 1 / 3), green, atol=1e-5)
    np.testing.assert_allclose(color.adjust_hue(green, 1 / 3), blue, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(images, st.floats(0, 3), st.floats(-0.5, 0.5))
def test_values_stay_in_range(image, factor, turns):
    for adjust in (color.adjust_brightness, color.adjust_contrast, color.adjust_saturation):
        changed = adjust(jnp.array(image), factor)
        assert 0 <= changed.min() <= changed.max() <= 1
    changed = color.adjust_hue(jnp.array(image), turns)
    assert -1e-6 <= changed.min() <= changed.max() <= 1 + 1e-6


def test_neutral_amounts_change_nothing():
    image = jnp.array(RGB / 255, jnp.float32)
    for adjust in (color.adjust_brightness, color.adjust_contrast, color.adjust_saturation):
        np.testing.assert_array_equal(adjust(image, 1.0), image)
    np.testing.assert_allclose(color.adjust_hue(image, 0.0), image, atol=1e-6)


def test_grey_images_have_no_colour_to_change():
    grey = jnp.array(RGB[..., :1] / 255, jnp.float32)
    np.testing.assert_array_equal(color.luma(grey), grey)
    np.testing.assert_array_equal(color.adjust_saturation(grey, 0.2), grey)
    np.testing.assert_array_equal(color.adjust_hue(grey, 0.2), grey)
    np.testing.assert_allclose(color.adjust_contrast(grey, 0.0), jnp.full_like(grey, grey.mean()), atol=1e-6)


def test_luma_is_that_of_bt_601():
    np.testing.assert_allclose(color.luma(jnp.eye(3, dtype=jnp.float32)[None])[0, :, 0], [0.299, 0.587, 0.114])
