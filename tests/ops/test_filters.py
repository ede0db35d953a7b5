"""Convolution against NumPy's and SciPy's, the laws that it obeys, and where padding breaks them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.test_util import check_grads

from cnn_research.errors import UserError
from cnn_research.ops import filters
from cnn_research.ops.padding import MODES

MIRRORS = ("reflect", "symmetric")
NDIMAGES = {"zeros": "constant", "edge": "nearest", "reflect": "mirror", "symmetric": "reflect", "circular": "wrap"}
SIGNALS = {"zeros": "fill", "circular": "wrap", "symmetric": "symm"}
# Compiled as a whole, in less time than operation by operation.
compiled = partial(jax.jit, static_argnames=("mode", "padding"))
convolve1d, convolve2d = compiled(filters.convolve1d), compiled(filters.convolve2d)
correlate1d, correlate2d = compiled(filters.correlate1d), compiled(filters.correlate2d)
sobel_magnitude = compiled(filters.sobel_magnitude)
gaussian = jax.jit(filters.gaussian, static_argnums=0)


def whole(*shape):
    """Draws arrays of small whole numbers, whose products and sums float32 holds exactly."""
    return arrays.arrays(np.float32, shape, elements=st.integers(-9, 9).map(float))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mirrored(quarter):
    """Returns the odd kernel that is its own mirror image along each axis and has this lower right quarter."""
    half = np.concatenate([quarter[:0:-1], quarter])
    return np.concatenate([half[:, :0:-1], half], axis=1)


def test_the_formula_of_the_course():
    """(m ∗ a)[k] = Σ_i m[k + i] · a[−i]: a kernel of 1, 2, 3 at −1, 0, 1 writes itself where the signal is 1."""
    signal, kernel = np.array([0, 0, 1, 0, 0]), {-1: 1, 0: 2, 1: 3}
    expected = [sum(signal[k + i] * kernel[-i] for i in kernel if 0 <= k + i < 5) for k in range(5)]
    assert expected == [0, 1, 2, 3, 0]
    assert convolve1d(signal, np.array([1, 2, 3]), "same").tolist() == expected
    assert correlate1d(signal, np.array([1, 2, 3]), "same").tolist() == expected[::-1]


@pytest.mark.parametrize("mode", filters.WIDTHS)
@pytest.mark.parametrize("size", [1, 3, 6])
def test_one_dimension_equals_numpys(mode, size):
    x, kernel = normal(7), normal(size, seed=1)
    np.testing.assert_allclose(convolve1d(x, kernel, mode), np.convolve(x, kernel, mode), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(correlate1d(x, kernel, mode), np.correlate(x, kernel, mode), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", filters.WIDTHS)
@pytest.mark.parametrize("shape", [(3, 3), (2, 4)])
def test_two_dimensions_equal_scipys(mode, shape):
    image, kernel = normal(5, 6), normal(*shape, seed=1)
    for padding, boundary in SIGNALS.items():
        expected = scipy.signal.convolve2d(image, kernel, mode, boundary)
        np.testing.assert_allclose(convolve2d(image, kernel, mode, padding), expected, rtol=1e-5, atol=1e-5)
    expected = scipy.signal.correlate(image, kernel, mode)
    np.testing.assert_allclose(correlate2d(image, kernel, mode), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", MODES)
def test_every_padding_equals_ndimages(padding):
    image, kernel = normal(5, 6, 2), normal(3, 5, seed=1)
    for ours, theirs in ((convolve2d, scipy.ndimage.convolve), (correlate2d, scipy.ndimage.correlate)):
        expected = theirs(image, kernel[..., None], mode=NDIMAGES[padding])
        np.testing.assert_allclose(ours(image, kernel, "same", padding), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "edge"])
def test_a_kernel_may_be_larger_than_the_image(padding):
    image, kernel = normal(2, 3), normal(5, 7, seed=1)
    expected = scipy.ndimage.convolve(image, kernel, mode=NDIMAGES[padding])
    np.testing.assert_allclose(convolve2d(image, kernel, "same", padding), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(whole(5, 4), whole(3, 2), whole(2, 3), whole(5, 4), st.integers(-3, 3))
def test_full_convolution_is_linear_commutative_and_associative(m, a, b, other, factor):
    def full(x, kernel):
        return np.asarray(convolve2d(x, kernel, "full"))

    np.testing.assert_array_equal(full(m + factor * other, a), full(m, a) + factor * full(other, a))
    np.testing.assert_array_equal(full(a, m + factor * other), full(a, m) + factor * full(a, other))
    np.testing.assert_array_equal(full(m, a), full(a, m))
    np.testing.assert_array_equal(full(full(m, a), b), full(m, full(a, b)))


@settings(max_examples=15, deadline=None)
@given(whole(5, 4), whole(3, 2), whole(2, 3), whole(5, 4), st.integers(-3, 3))
def test_cyclic_convolution_is_linear_commutative_and_associative(m, a, b, other, factor):
    def cyclic(x, kernel):
        return np.asarray(convolve2d(x, kernel, "same", "circular"))

    np.testing.assert_array_equal(cyclic(m + factor * other, a), cyclic(m, a) + factor * cyclic(other, a))
    np.testing.assert_array_equal(cyclic(m, other), cyclic(other, m))
    np.testing.assert_array_equal(cyclic(cyclic(m, a), b), cyclic(m, convolve2d(a, b, "full")))


@settings(max_examples=15, deadline=None)
@given(whole(7), whole(3), whole(4))
def test_the_laws_hold_in_one_dimension(m, a, b):
    np.testing.assert_array_equal(convolve1d(m, a), convolve1d(a, m))
    np.testing.assert_array_equal(convolve1d(convolve1d(m, a), b), convolve1d(m, convolve1d(a, b)))
    twice = convolve1d(convolve1d(m, a, "same", "circular"), b, "same", "circular")
    np.testing.assert_array_equal(twice, convolve1d(m, convolve1d(a, b), "same", "circular"))


def test_two_even_kernels_put_a_cycle_off_by_one():
    m, a, b = normal(6), normal(2, seed=1), normal(4, seed=2)
    twice = convolve1d(convolve1d(m, a, "same", "circular"), b, "same", "circular")
    once = convolve1d(m, convolve1d(a, b), "same", "circular")
    np.testing.assert_allclose(np.roll(twice, -1), once, rtol=1e-5, atol=1e-6)
    assert not np.allclose(twice, once, atol=0.1)


@settings(max_examples=15, deadline=None)
@given(whole(5, 4), whole(5, 4), whole(3, 2), st.integers(-3, 3), st.sampled_from(sorted(MODES)))
def test_every_padding_is_linear(m, other, a, factor, padding):
    one, two, both = (convolve2d(x, a, "same", padding) for x in (m, other, m + factor * other))
    np.testing.assert_array_equal(both, one + factor * two)


@pytest.mark.parametrize("padding", sorted(set(MODES) - {"circular"}))
def test_padding_breaks_associativity_at_the_borders_alone(padding):
    m, a, b = normal(7, 6), normal(3, 3, seed=1), normal(5, 3, seed=2)
    twice = convolve2d(convolve2d(m, a, "same", padding), b, "same", padding)
    once = convolve2d(m, convolve2d(a, b, "full"), "same", padding)
    wrong = ~np.isclose(twice, once, rtol=1e-4, atol=1e-4)
    frame = np.ones((7, 6), bool)
    frame[2:-2, 1:-1] = False  # as far as b reaches
    np.testing.assert_array_equal(wrong, frame)


@settings(max_examples=15, deadline=None)
@given(whole(7, 6), whole(2, 2), whole(3, 3), st.sampled_from(MIRRORS))
def test_mirrors_keep_associativity_of_a_kernel_that_is_its_own_mirror_image(m, quarter, b, padding):
    a = mirrored(quarter)
    twice = convolve2d(convolve2d(m, a, "same", padding), b, "same", padding)
    np.testing.assert_array_equal(twice, convolve2d(m, convolve2d(a, b, "full"), "same", padding))


def test_zeros_and_border_extension_do_not_even_then():
    m = normal(5, 5)
    for padding in ("zeros", "edge"):
        twice = convolve2d(convolve2d(m, filters.BLUR, "same", padding), filters.BLUR, "same", padding)
        once = convolve2d(m, convolve2d(filters.BLUR, filters.BLUR, "full"), "same", padding)
        assert not np.allclose(twice, once, atol=0.01)


def test_correlation_is_neither_commutative_nor_associative():
    m, a, b = normal(4), normal(3, seed=1), normal(2, seed=2)
    assert not np.allclose(correlate1d(m, a), correlate1d(a, m), atol=0.1)
    assert not np.allclose(correlate1d(correlate1d(m, a), b), correlate1d(m, correlate1d(a, b)), atol=0.1)


def test_the_convolution_theorem():
    """A cyclic convolution is the product of the Fourier transforms, but that `same` has the kernel's middle at 0."""
    m, a = normal(5, 8), normal(5, 8, seed=1)
    product = np.fft.ifft2(np.fft.fft2(m) * np.fft.fft2(a)).real
    expected = np.roll(product, (-(5 // 2), -(7 // 2)), axis=(0, 1))
    np.testing.assert_allclose(convolve2d(m, a, "same", "circular"), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(whole(5, 6), whole(3, 4), st.integers(-5, 5), st.integers(-5, 5))
def test_a_shifted_cycle_gives_the_shifted_result(image, kernel, down, right):
    def shift(x):
        return np.roll(x, (down, right), axis=(0, 1))

    shifted = convolve2d(shift(image), kernel, "same", "circular")
    np.testing.assert_array_equal(shifted, shift(convolve2d(image, kernel, "same", "circular")))


def test_zeros_do_not_shift_with_the_image():
    image, kernel = normal(5, 5), normal(3, 3, seed=1)
    shifted = convolve2d(np.roll(image, 1, axis=0), kernel)
    assert not np.allclose(shifted, np.roll(convolve2d(image, kernel), 1, axis=0), atol=0.1)


def test_kernels_of_the_course():
    np.testing.assert_array_equal(filters.EDGE, [[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    np.testing.assert_array_equal(filters.SHARPEN, [[0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    np.testing.assert_array_equal(filters.BLUR, np.full((3, 3), np.float32(1 / 9)))
    for kernel in (filters.BLUR, filters.EDGE, filters.EDGE_8, filters.SHARPEN, filters.SOBEL_X, filters.SOBEL_Y):
        assert (kernel.dtype, kernel.flags.writeable) == (np.float32, False)


@pytest.mark.parametrize("padding", MODES)
def test_a_constant_image(padding):
    """Blurs and sharpening leave it alone and edges are 0, but where zeros make a border of it."""
    image = np.full((5, 6), 200, np.uint8)
    border = np.ones((5, 6), bool) if padding == "zeros" else np.zeros((5, 6), bool)
    border[1:-1, 1:-1] = False
    for kernel, level in (
        (filters.BLUR, 200),
        (gaussian(3, 1.0), 200),
        (filters.SHARPEN, 200),
        (filters.EDGE, 0),
        (filters.EDGE_8, 0),
    ):
        result = convolve2d(image, kernel, "same", padding)
        np.testing.assert_array_equal(~np.isclose(result, level, rtol=1e-5, atol=1e-3), border)
    steepness = sobel_magnitude(image, padding=padding)
    np.testing.assert_array_equal(steepness > 0, border)


def test_the_laplacian_of_a_paraboloid_is_its_second_derivative():
    y, x = np.mgrid[-3:4, -3:4]
    image = 2 * x**2 + 3 * y**2
    assert (convolve2d(image, filters.EDGE, "valid") == 2 * 2 + 2 * 3).all()
    # The diagonals count (1, 1) twice over: their second differences add 2·(4 + 6).
    assert (convolve2d(image, filters.EDGE_8, "valid") == 10 + 20).all()


def test_sobel_on_a_slope():
    y, x = np.mgrid[:5, :6]
    assert (convolve2d(x, filters.SOBEL_X, "valid") == 8).all()
    assert (convolve2d(x, filters.SOBEL_Y, "valid") == 0).all()
    assert (convolve2d(y, filters.SOBEL_Y, "valid") == 8).all()
    np.testing.assert_allclose(sobel_magnitude(3 * x - 4 * y, "valid"), 8 * 5, rtol=1e-6)
    image = normal(5, 6)
    expected = [scipy.ndimage.sobel(image, axis, mode="reflect") for axis in (0, 1)]
    np.testing.assert_allclose(sobel_magnitude(image, padding="symmetric"), np.hypot(*expected), rtol=1e-5)


def test_boxes_and_bells():
    for size in (1, 2, 5):
        assert (filters.box(size) == np.float32(1 / size**2)).all()
        bell = gaussian(size, 0.8)
        assert filters.box(size).shape == bell.shape == (size, size)
        assert filters.box(size).sum() == pytest.approx(1, rel=1e-5)
        assert bell.sum() == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(bell, bell[::-1, ::-1])
    impulse = np.zeros((7, 7))
    impulse[3, 3] = 1
    expected = scipy.ndimage.gaussian_filter(impulse, 1.3, radius=3)
    np.testing.assert_allclose(gaussian(7, 1.3), expected, rtol=1e-5)


@pytest.mark.parametrize("padding", MODES)
def test_a_gaussian_is_separable(padding):
    """Rows, then columns, each in 1-D, give what the square kernel gives, at the borders too."""
    image, bell = normal(6, 7), gaussian(5, 1.0)
    along = jnp.sqrt(jnp.diagonal(bell))
    rows = jax.vmap(lambda row: convolve1d(row, along, "same", padding))(image)
    both = jax.vmap(lambda column: convolve1d(column, along, "same", padding), 1, 1)(rows)
    np.testing.assert_allclose(both, convolve2d(image, bell, "same", padding), rtol=1e-4, atol=1e-5)


def test_channels_do_not_see_each_other():
    image, kernel = normal(5, 6, 3), normal(3, 2, seed=1)
    each = [convolve2d(image[..., channel], kernel, "full") for channel in range(3)]
    np.testing.assert_allclose(convolve2d(image, kernel, "full"), np.stack(each, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, jnp.bfloat16, np.float32])
def test_results_are_float32(dtype):
    image = np.full((4, 4), 255).astype(dtype)
    result = convolve2d(image, np.full((3, 3), -2, np.int8), "valid")
    assert result.dtype == jnp.float32
    assert (result == -2 * 9 * np.float32(image[0, 0])).all()  # neither wrapped around nor cut off


def test_accelerators_must_not_round_even_in_derivatives():
    """TensorFloat-32 and bfloat16 are what GPUs and TPUs do otherwise; a CPU would not show it."""
    gradient = jax.jit(jax.grad(jax.jit(lambda image, kernel: convolve2d(image, kernel).sum()), argnums=(0, 1)))
    text = gradient.lower(jnp.ones((4, 4)), jnp.ones((3, 3))).as_text()
    assert text.count("stablehlo.convolution") == 2
    assert "precision DEFAULT" not in text


def test_under_jit_vmap_and_grad():
    images, kernels = normal(2, 5, 4, 3), normal(2, 3, 2, seed=1)
    expected = [convolve2d(image, kernel, "same", "reflect") for image, kernel in zip(images, kernels, strict=True)]
    together = jax.jit(jax.vmap(lambda image, kernel: filters.convolve2d(image, kernel, "same", "reflect")))
    np.testing.assert_allclose(together(images, kernels), np.stack(expected), rtol=1e-5, atol=1e-6)

    def function(image, kernel, sigma):
        blurred = convolve2d(convolve2d(image, kernel, "full", "edge"), gaussian(3, sigma))
        return jnp.sin(blurred) + sobel_magnitude(blurred + 5, "same", "circular")

    arguments = (jnp.asarray(images[0]), jnp.asarray(kernels[0]), jnp.float32(0.9))
    check_grads(jax.jit(function), arguments, 1, modes=["rev"], rtol=0.03, atol=0.03)


def test_the_magnitude_has_a_gradient_where_the_image_is_flat():
    gradient = jax.jit(jax.grad(lambda image: sobel_magnitude(image, "valid").sum()))(jnp.ones((4, 4)))
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convolve2d(normal(4, 4), normal(3, 3), "smae"), "did you mean 'same'"),
        (lambda: convolve2d(normal(4, 4), normal(3, 3), "same", "zero"), "did you mean 'zeros'"),
        (lambda: convolve2d(normal(4, 4), normal(3, 3), "valid", "zero"), "did you mean 'zeros'"),
        (lambda: convolve2d(normal(4, 4), normal(3, 5), "valid"), "window of 5 does not fit an input of 4"),
        (lambda: convolve2d(normal(4, 4), normal(3, 6), "full", "circular"), "of axis 1 is too wide for 'circular'"),
        (lambda: convolve2d(normal(4, 4), normal(3, 0)), "no values"),
        (lambda: convolve2d(normal(1, 4, 4, 3), normal(3, 3)), "it is .height, width. or"),
        (lambda: filters.box(0), "size=0 is out of range"),
        (lambda: filters.gaussian(0, 1.0), "size=0 is out of range"),
        (lambda: filters.gaussian(3, 0.0), "sigma=0.0 is out of range"),
    ],
)
def test_faults_are_one_line(call, message):
    with pytest.raises(UserError, match=message) as fault:
        call()
    assert "\n" not in str(fault.value)
