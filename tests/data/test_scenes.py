"""Outlines against point-in-polygon tests, scenes against brute force, colours against a classifier."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path
from sklearn.linear_model import LogisticRegression

from cnn_research.data import scenes


def generator(index):
    return np.random.Generator(np.random.Philox(key=index))


def corners(figure):
    """Corners in pixels as x, y, from the regular figure's polar form and the area alone."""
    if figure.kind == "star":  # each second corner of a pentagram lies at the golden ratio squared
        radii, turns = np.tile([1.0, 2 / (3 + np.sqrt(5))], 5), np.arange(10) * np.pi / 5
    else:
        sides = {"triangle": 3, "rectangle": 4}[figure.kind]
        radii, turns = np.ones(sides), (2 * np.arange(sides) + 1) * np.pi / sides
    x, y = radii * np.cos(turns), radii * np.sin(turns)
    area = 0.5 * abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))
    scale = figure.radius * np.sqrt(np.pi / area)
    x, y = scale * np.sqrt(figure.aspect) * x, scale / np.sqrt(figure.aspect) * y
    cos, sin = np.cos(figure.angle), np.sin(figure.angle)
    return np.stack([cos * x - sin * y + figure.centre[1], sin * x + cos * y + figure.centre[0]], axis=1)


figures = st.builds(
    scenes.Figure,
    st.sampled_from(scenes.CLASSES),
    st.tuples(st.floats(0, 30), st.floats(0, 40)),
    st.floats(2.5, 15),
    st.floats(0.5, 2),
    st.floats(0, 6.3),
)


@given(figures)
@settings(deadline=None, max_examples=60)
def test_outline_and_window(figure):
    y, x = np.mgrid[:30, :40] + 0.5
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    if figure.kind == "ellipse":
        angles = np.linspace(0, 2 * np.pi, 400)
        u = figure.radius * np.sqrt(figure.aspect) * np.cos(angles)
        v = figure.radius / np.sqrt(figure.aspect) * np.sin(angles)
        cos, sin = np.cos(figure.angle), np.sin(figure.angle)
        outline = np.stack([cos * u - sin * v + figure.centre[1], sin * u + cos * v + figure.centre[0]], axis=1)
    else:
        outline = corners(figure)
    depth = figure.depth(slice(0, 30), slice(0, 40))
    clear = np.abs(depth) > 1e-3  # rounding may decide a point on the line
    expected = Path(np.concatenate([outline, outline[:1]])).contains_points(points).reshape(30, 40)
    np.testing.assert_array_equal((depth >= 0)[clear], expected[clear])

    window = figure.window(30, 40)
    np.testing.assert_array_equal(figure.depth(*window), depth[window])
    outside = np.ones((30, 40), bool)
    outside[window] = False
    assert not (depth >= 0)[outside].any()


@pytest.mark.parametrize("kind", scenes.CLASSES)
def test_all_classes_have_the_same_area(kind):
    figure = scenes.Figure(kind, (100.0, 100.0), 40.0, 1.5, 0.3)
    assert figure.area == pytest.approx(np.pi * 1600)
    assert np.sum(figure.depth(slice(0, 200), slice(0, 200)) >= 0) == pytest.approx(figure.area, rel=0.01)


def test_depth_is_a_distance():
    square = scenes.Figure("rectangle", (50.5, 50.5), 20.0, 1.0, 0.0).depth(slice(0, 101), slice(0, 101))
    half_side = 20 * np.sqrt(np.pi) / 2
    assert square[50, 50] == pytest.approx(half_side)
    assert square[50, 60] == pytest.approx(half_side - 10)
    disc = scenes.Figure("ellipse", (50.5, 50.5), 20.0, 1.0, 0.0).depth(slice(0, 101), slice(0, 101))
    assert disc[50, 71] == pytest.approx(-1, abs=0.05)
    assert disc[69, 50] == pytest.approx(1, abs=0.05)


@given(st.integers(0, 2**32), st.integers(16, 48), st.integers(16, 48), st.integers(1, 3), st.integers(0, 1))
@settings(deadline=None, max_examples=40)
def test_scene_against_brute_force(index, height, width, fewest, more):
    scene = scenes.draw(generator(index), height, width, (fewest, fewest + more))
    count = len(scene.classes)
    assert fewest <= count <= fewest + more
    assert scene.image.shape == (height, width, 3)
    assert scene.instances.shape == scene.semantic.shape == (height, width)
    assert set(np.unique(scene.instances)) <= set(range(count + 1))
    for y, x in itertools.product(range(height), range(width)):
        instance = scene.instances[y, x]
        assert scene.semantic[y, x] == (scene.classes[instance - 1] + 1 if instance else 0)
    for index, (ymin, xmin, ymax, xmax) in enumerate(scene.boxes * [height, width, height, width]):
        mask = scene.instances == index + 1
        assert scene.sizes[index] == mask.sum() >= scenes.MIN_PIXELS
        rows = [y for y in range(height) if mask[y].any()]
        columns = [x for x in range(width) if mask[:, x].any()]
        np.testing.assert_allclose(
            [ymin, xmin, ymax, xmax], [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=1e-9
        )


def test_scenes_do_not_change():
    digest = hashlib.sha256()
    for index, (height, width) in enumerate([(64, 64), (16, 40), (100, 30)] * 4):
        scene = scenes.draw(generator(index), height, width, (1, 4))
        for array in (scene.image, scene.instances, scene.boxes, scene.classes):
            digest.update(array.tobytes())
    assert digest.hexdigest()[:16] == "5715d918db9c2456"


@pytest.mark.parametrize(("size", "count"), [(16, 4), (32, 16), (128, 255)])
def test_crowds_find_room(size, count):
    for index in range(1 if count > 16 else 20):
        assert len(scenes.draw(generator(index), size, size, (count, count)).classes) == count


def test_later_objects_cover_earlier_ones_and_leave_enough():
    hidden = 0
    for index in range(20):
        scene = scenes.draw(generator(index), 64, 48, (4, 4))
        expected = np.zeros((64, 48), int)
        for instance, figure in enumerate(scene.figures, start=1):
            expected[figure.depth(slice(0, 64), slice(0, 48)) >= 0] = instance
        np.testing.assert_array_equal(scene.instances, expected)
        visible = scene.sizes / [figure.area for figure in scene.figures]
        assert visible.min() >= scenes.MIN_VISIBLE
        hidden += np.sum(visible < 0.9)
    assert hidden > 20  # of 80: overlaps are common


def test_edges_are_soft_and_masks_crisp(monkeypatch):
    monkeypatch.setattr(
        scenes, "_paint", lambda random, shape, side, light, dark: np.broadcast_to(light, (*shape, 3)).copy()
    )
    for index in range(5):
        scene = scenes.draw(generator(index), 64, 64, (2, 2))
        neighbours = [np.roll(scene.instances, shift, (0, 1)) for shift in itertools.product((-1, 0, 1), repeat=2)]
        inner = np.all([each == scene.instances for each in neighbours], axis=0)
        colors = [np.median(scene.image[scene.instances == instance], axis=0) for instance in range(3)]
        flat = np.any([np.all(scene.image == color, axis=-1) for color in colors], axis=0)
        flat, inner = flat[1:-1, 1:-1], inner[1:-1, 1:-1]
        assert flat[inner].mean() > 0.98  # the soft edge reaches a little beyond sharp tips
        assert flat[~inner].mean() < 0.75


def test_color_does_not_tell_the_class():
    drawn = [scenes.draw(generator(index), 32, 32, (1, 1)) for index in range(500)]
    labels = np.array([scene.classes[0] for scene in drawn])
    assert np.bincount(labels).min() > 90
    colors = np.array(
        [
            np.concatenate([scene.image[scene.instances == instance].mean(axis=0) / 255 for instance in range(2)])
            for scene in drawn
        ]
    )
    model = LogisticRegression().fit(colors[:300], labels[:300])
    # Chance is 0.25, with a standard deviation of 0.03 over 200 images.
    assert model.score(colors[300:], labels[300:]) < 0.36


def test_grounds_and_objects_are_textured():
    for index in range(20):
        scene = scenes.draw(generator(index), 64, 64, (1, 2))
        for instance in range(len(scene.classes) + 1):
            assert scene.image[scene.instances == instance].astype(float).std(axis=0).max() > 2
