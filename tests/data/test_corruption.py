"""Corruptions: what each does by its definition, that levels are graded, and that they are the same each time."""

import cv2
import numpy as np
import pytest

from cnn_research.data.corruption import CORRUPTIONS, Corruption, corrupted, parse_corruption
from cnn_research.data.images import decode
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError

DRAWS = np.random.default_rng(0)
SCENE = cv2.GaussianBlur(DRAWS.uniform(0, 255, (80, 96, 3)), (9, 9), 2)
SCENE = np.uint8(255 * (SCENE - SCENE.min()) / np.ptp(SCENE))


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("image", [SCENE, SCENE[:32, :32], SCENE[:28, :30, :1]], ids=["photograph", "small", "grey"])
def test_levels_are_graded_and_repeatable(kind, image):
    results = [Corruption(kind, level)(image, 5) for level in range(1, 6)]
    errors = [np.abs(result.astype(float) - image).mean() for result in results]
    assert all(result.shape == image.shape and result.dtype == np.uint8 for result in results)
    assert errors == sorted(errors) or (kind == "pixelate" and errors[0] < errors[-1])
    assert errors[-1] > 0.5
    np.testing.assert_array_equal(Corruption(kind, 3)(image, 5), results[2])
    if kind.endswith("noise"):
        assert (Corruption(kind, 3)(image, 6) != results[2]).any()


def test_noise_has_its_deviation():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = Corruption("gaussian_noise", 1)(grey, 0) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.02)
    counted = Corruption("shot_noise", 1)(grey, 0) / 255
    assert counted.std() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.02)


def test_brightness_is_added_to_the_value_of_hsv():
    bright = Corruption("brightness", 2)(SCENE, 0)
    before, after = (cv2.cvtColor(np.float32(image / 255), cv2.COLOR_RGB2HSV) for image in (SCENE, bright))
    unclipped = before[..., 2] < 0.79
    np.testing.assert_allclose(after[unclipped][:, 2], before[unclipped][:, 2] + 0.2, atol=1 / 255)
    coloured = unclipped & (before[..., 1] > 0.3) & (before[..., 2] > 0.3)
    turned = np.abs(after[coloured][:, 0] - before[coloured][:, 0])
    assert np.minimum(turned, 360 - turned).max() < 5  # degrees; the rest is rounding


def test_contrast_and_pixels():
    flat = Corruption("contrast", 5)(SCENE, 0)
    mean = SCENE.mean((0, 1))
    np.testing.assert_allclose(flat, (SCENE - mean) * 0.05 + mean, atol=1)
    blocks = Corruption("pixelate", 5)(SCENE, 0)
    assert len(np.unique(blocks.reshape(-1, 3), axis=0)) <= (80 // 4) * (96 // 4)


def test_blurs_keep_the_mean_and_take_the_detail():
    for kind in ("gaussian_blur", "defocus_blur"):
        blurred = Corruption(kind, 3)(SCENE, 0)
        assert blurred.mean() == pytest.approx(SCENE.mean(), abs=2)
        assert (
            np.abs(np.diff(blurred.astype(float), axis=0)).mean() < np.abs(np.diff(SCENE.astype(float), axis=0)).mean()
        )


def test_a_split_is_read_corrupted(data_dir):
    source = open_source("digits", "test")
    changed = corrupted(source, parse_corruption("gaussian_noise:4"))
    assert len(changed) == len(source)
    pairs = zip(source.read([7, 3]), changed.read([7, 3]), strict=True)
    for index, (clean, noisy) in zip([7, 3], pairs, strict=True):
        assert noisy["label"] == clean["label"]
        expected = Corruption("gaussian_noise", 4)(decode(clean["image"], 1), index)
        np.testing.assert_array_equal(decode(noisy["image"], 1), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [("gausian_noise:3", "did you mean 'gaussian_noise'"), ("jpeg", "write jpeg:3"), ("jpeg:6", "from 1 to 5")],
)
def test_what_is_no_corruption_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_corruption(text)
