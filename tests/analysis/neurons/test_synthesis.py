"""Images made to order: canvases against NumPy, motions by hand, and ends that are known."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cnn_research.analysis.attribution import class_score
from cnn_research.analysis.neurons import synthesis

SHAPE = (8, 6, 3)
DATA = np.random.default_rng(0).random((40, *SHAPE)).astype(np.float32)
COLOURS = synthesis.colour_matrix(DATA)
CANVASES = {
    "components": synthesis.components(DATA, count=10),
    "fourier": synthesis.fourier(SHAPE, COLOURS),
    "pixels": synthesis.pixels(SHAPE),
}


@pytest.mark.parametrize("kind", CANVASES)
def test_pixels_stay_in_range_whatever_is_written(kind):
    canvas = CANVASES[kind]
    blank = canvas.blank(jax.random.key(0), 2)
    images = np.asarray(canvas.draw(1e4 * blank))
    assert images.shape == (2, *SHAPE)
    assert images.min() >= 0
    assert images.max() <= 1
    assert canvas.cost(blank).shape == (2,)
    middle = DATA.mean(0) if kind == "components" else 0.5
    np.testing.assert_allclose(canvas.draw(blank), np.broadcast_to(middle, (2, *SHAPE)), atol=0.1)


def test_a_frequency_is_a_wave_with_the_share_that_photographs_give_it():
    canvas = synthesis.fourier((16, 16, 1))
    sizes = []
    for row in (1, 2, 4):
        spectrum = np.zeros((1, 2, 16, 9, 1), np.float32)
        spectrum[0, 0, row, 0] = 1e-3
        image = np.asarray(canvas.draw(jnp.asarray(spectrum)))[0, ..., 0]
        wave = np.log(image / (1 - image))  # before the sigmoid
        expected = np.cos(2 * np.pi * row * np.arange(16) / 16)[:, None] * np.ones(16)
        np.testing.assert_allclose(wave / wave.max(), expected, atol=1e-2)
        sizes.append(wave.max())
    np.testing.assert_allclose(sizes, sizes[0] / np.array([1, 2, 4]), rtol=1e-2)


def test_components_are_as_likely_as_the_data_says():
    """Of data along one direction: a step is a standard deviation along it, and costs its logarithm of likelihood."""
    rng = np.random.default_rng(0)
    direction = np.linspace(-0.2, 0.2, 12, dtype=np.float32).reshape(2, 6, 1)
    data = 0.5 + rng.normal(size=(50, 1, 1, 1)).astype(np.float32) * direction
    canvas = synthesis.components(data, count=1, strength=0.3)
    moved = np.asarray(canvas.draw(jnp.array([[1.0]])))[0] - data.mean(0)
    np.testing.assert_allclose(abs(moved), data.std(0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(canvas.cost(jnp.array([[2.0], [1.0]])), [0.6, 0.15], rtol=1e-6)


def test_colours_that_are_drawn_vary_as_those_of_the_data():
    """White colours through the matrix have the data's covariance, up to a factor."""
    mixed = DATA.reshape(-1, 3) @ np.array([[1, 0.9, 0.8], [0, 0.3, 0.1], [0, 0, 0.2]])
    matrix = synthesis.colour_matrix(mixed)
    covariance, expected = matrix @ matrix.T, np.cov(mixed, rowvar=False)
    np.testing.assert_allclose(covariance / covariance[0, 0], expected / expected[0, 0], rtol=1e-4)
    assert np.linalg.norm(matrix, axis=1).max() == pytest.approx(1)
    np.testing.assert_allclose(synthesis.colour_matrix(DATA[..., :1]), [[1]], rtol=1e-6)


def test_motions_are_small_and_of_each_image_by_itself():
    image = cv2.GaussianBlur(np.pad(np.ones((7, 5), np.float32), 13), (0, 0), 2)[:31, :31]
    images = jnp.asarray(np.stack([image] * 6)[..., None])
    still = synthesis.jittered(images, jax.random.key(0), jitter=0.0, scale=0.0, rotation=0.0)
    np.testing.assert_allclose(still, images, atol=1e-6)
    moved = np.asarray(synthesis.jittered(images, jax.random.key(0), jitter=3.0, scale=0.0, rotation=0.0))[..., 0]
    rows, columns = np.indices((31, 31))
    places = [(np.sum(rows * each) / each.sum(), np.sum(columns * each) / each.sum()) for each in (image, *moved)]
    shifts = np.array(places[1:]) - places[0]
    assert (abs(shifts) < 3.01).all()
    assert len({tuple(np.round(shift, 2)) for shift in shifts}) == 6
    sizes = np.asarray(synthesis.jittered(images, jax.random.key(1), jitter=0.0, scale=0.2, rotation=0.0)).sum(
        (1, 2, 3)
    )
    assert (sizes < 1.2**2 * 1.01 * image.sum()).all()
    assert (sizes > image.sum() / 1.2**2 / 1.01).all()
    assert np.ptp(sizes) > 0.1 * image.sum()
    turned = np.asarray(synthesis.jittered(images, jax.random.key(2), jitter=0.0, scale=0.0, rotation=10.0))[..., 0]
    angle = np.rad2deg(2 * jax.random.uniform(jax.random.split(jax.random.key(2), 6)[0], (4,))[3] - 1) * np.deg2rad(10)
    matrix = cv2.getRotationMatrix2D((15, 15), -float(angle), 1.0)
    np.testing.assert_allclose(turned[0], cv2.warpAffine(image, matrix, (31, 31)), atol=0.02)


def test_variation_is_the_mean_step():
    image = jnp.asarray(np.add.outer(2.0 * np.arange(4), 3.0 * np.arange(5))[None, ..., None])
    np.testing.assert_allclose(synthesis.variation(image), [5.0])


class Template(nn.Module):
    """The score of a class is minus the distance to its template."""

    @nn.compact
    def __call__(self, images, train):
        templates = self.param("templates", nn.initializers.normal(), (2, *SHAPE))
        features = nn.Dense(40, name="features")(images.reshape(len(images), -1))
        return -jnp.square(images[:, None] - templates).mean((2, 3, 4)) + 0 * features[:, :1]


def test_what_is_maximal_is_found():
    """Templates that each canvas can hold: what maximises the score is the template itself."""
    templates = jnp.asarray(np.clip(DATA[:2] * 0.8 + 0.1, 0, 1))
    features = {"kernel": jnp.zeros((144, 40)), "bias": jnp.zeros(40)}
    variables = {"params": {"templates": templates, "features": features}}

    @functools.partial(jax.jit, static_argnums=0)
    def make(kind, weight):
        return synthesis.maximize(
            Template(),
            variables,
            class_score(jnp.arange(2)),
            2,
            CANVASES[kind],
            jax.random.key(0),
            cost=lambda images: weight * images.mean((1, 2, 3)),
            robust=False,
            steps=400,
        )

    for kind in ("fourier", "pixels"):
        assert abs(make(kind, 0.0) - templates).mean() < 0.05, kind
    assert make("pixels", 10.0).mean() < 0.1


def test_images_are_found_by_their_features():
    model, images = Template(), jnp.asarray(DATA[:2])
    variables = model.init(jax.random.key(0), images, False)
    kernel = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(144, 144)))[0], jnp.float32)
    variables = {"params": {**variables["params"], "features": {"kernel": kernel[:, :40], "bias": jnp.zeros(40)}}}
    wanted = images.reshape(2, -1) @ kernel[:, :40]
    found = synthesis.invert(model, variables, wanted, "features", CANVASES["pixels"], jax.random.key(0), steps=400)
    got = found.reshape(2, -1) @ kernel[:, :40]
    assert (jnp.square(got - wanted).sum(1) / jnp.square(wanted).sum(1) < 1e-3).all()
