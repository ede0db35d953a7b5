"""Anchors against the paper's, against loops, and against counts that are known."""

import numpy as np
import pytest

from cnn_research.ops.anchors import anchors, pyramid_anchors

# Of Faster R-CNN's code, about a first place of 16 x 16 pixels: inclusive corners x, y, x, y, rounded to whole pixels.
PUBLISHED = [
    (-84, -40, 99, 55),
    (-176, -88, 191, 103),
    (-360, -184, 375, 199),
    (-56, -56, 71, 71),
    (-120, -120, 135, 135),
    (-248, -248, 263, 263),
    (-36, -80, 51, 95),
    (-80, -168, 95, 183),
    (-168, -344, 183, 359),
]


def test_anchors_are_the_papers_before_it_rounds_them():
    ours = anchors(1, 16, (128.0, 256.0, 512.0))
    theirs = np.array(PUBLISHED)[:, [1, 0, 3, 2]] + [0, 0, 1, 1]
    np.testing.assert_allclose((ours[:, :2] + ours[:, 2:]) / 2, 8, atol=1e-4)
    np.testing.assert_allclose((theirs[:, :2] + theirs[:, 2:]) / 2, 8)
    # Its sides of 23 x 12 and 11 x 22 pixels stand for those whose area is 16².
    np.testing.assert_allclose(ours, theirs, atol=0.03 * 512)
    np.testing.assert_array_equal(ours[3:6], theirs[3:6])


def test_anchors_have_their_area_ratio_and_place():
    sizes, ratios = (10.0, 30.0), (0.5, 2.0, 3.0)
    every = anchors((2, 3), 8, sizes, ratios).reshape(2, 3, 3, 2, 4)
    for row, column, ratio, size in np.ndindex(2, 3, 3, 2):
        ymin, xmin, ymax, xmax = every[row, column, ratio, size].astype(float)
        assert (ymax - ymin) * (xmax - xmin) == pytest.approx(sizes[size] ** 2, rel=1e-5)
        assert (ymax - ymin) / (xmax - xmin) == pytest.approx(ratios[ratio], rel=1e-5)
        assert ((ymin + ymax) / 2, (xmin + xmax) / 2) == pytest.approx((8 * row + 4, 8 * column + 4), abs=1e-5)
    np.testing.assert_allclose(anchors((2, 3), 8, sizes, ratios, offset=0.0), every.reshape(-1, 4) - 4, atol=1e-5)


def test_levels_of_a_pyramid():
    levels = pyramid_anchors((1024, 1024), (4, 8, 16, 32, 64), [(2.0**power,) for power in range(5, 10)])
    assert sum(map(len, levels)) == 261_888  # as Mask R-CNN's implementations print
    np.testing.assert_array_equal(levels[2], anchors(64, 16, (128.0,)))
    assert [len(level) for level in pyramid_anchors((33, 65), (8, 32), [(9.0, 10.0), (11.0,)], (1.0,))] == [
        2 * 5 * 9,
        2 * 3,
    ]
