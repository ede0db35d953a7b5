import numpy as np
import pytest

from cnn_research.data.borders import border_distance, nearest_two


def slow_nearest_two(mask):
    """Every pixel against every pixel of every object, which are found by flooding."""
    objects, left = [], {tuple(place) for place in np.argwhere((mask != 0) & (mask != 255))}
    while left:
        front, members = [left.pop()], []
        while front:
            row, column = front.pop()
            members.append((row, column))
            for place in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if place in left and mask[place] == mask[row, column]:
                    left.remove(place)
                    front.append(place)
        objects.append(members)
    distances = np.full((*mask.shape, 2 + len(objects)), np.inf)
    for place in np.ndindex(mask.shape):
        for index, members in enumerate(objects):
            distances[(*place, index)] = min(np.hypot(place[0] - y, place[1] - x) for y, x in members)
    distances.sort(-1)
    return distances[..., 0], distances[..., 1]


@pytest.fixture(scope="module")
def mask():
    mask = np.zeros((14, 17), np.uint8)
    mask[1:5, 1:6], mask[1:5, 8:12], mask[5, 9], mask[7:12, 2:4], mask[8:10, 12] = 1, 2, 2, 1, 1
    mask[2:4, 12] = 3  # touches another class
    mask[13, 16] = 255
    return mask


def test_distances_agree_with_the_slow_ones(mask):
    for found, expected in zip(nearest_two(mask[..., None]), slow_nearest_two(mask), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_ground_alone_has_a_distance(mask):
    found = border_distance(mask[..., None])
    nearest, second = slow_nearest_two(mask)
    np.testing.assert_allclose(found[..., 0], np.where(mask == 0, nearest + second, np.inf), rtol=1e-3)
    assert found.dtype == np.float16


def test_what_is_out_of_reach_is_infinitely_far():
    mask = np.zeros((4, 200, 1), np.uint8)
    mask[:, 0] = mask[:, 61] = mask[:, 190] = 1
    found = border_distance(mask)[0, :, 0]
    np.testing.assert_array_equal(found[1:61], 61)
    assert np.isinf(found[126:189]).all()
    assert np.isinf(border_distance(np.zeros((3, 3, 1), np.uint8))).all()
