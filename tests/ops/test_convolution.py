"""`convolve` against loops and against SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from cnn_research.errors import UserError
from cnn_research.ops.convolution import convolve

NUMPYS = {"zeros": "constant", "edge": "edge", "reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}


def brute_force(x, kernel, strides, padding, padding_mode, dilation, groups):
    x = np.pad(x, ((0, 0), *padding, (0, 0)), mode=NUMPYS[padding_mode])
    extents = [step * (size - 1) + 1 for size, step in zip(kernel.shape[:2], dilation, strict=True)]
    height, width = ((x.shape[1 + axis] - extents[axis]) // strides[axis] + 1 for axis in (0, 1))
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    result = np.zeros((len(x), height, width, kernel.shape[3]))
    for row, column, feature in np.ndindex(height, width, kernel.shape[3]):
        group = feature // outputs
        rows = row * strides[0] + dilation[0] * np.arange(kernel.shape[0])
        columns = column * strides[1] + dilation[1] * np.arange(kernel.shape[1])
        patch = x[:, rows][:, :, columns][..., group * inputs : (group + 1) * inputs]
        result[:, row, column, feature] = (patch * kernel[..., feature]).sum((1, 2, 3))
    return result


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_equals_brute_force(data):
    size, strides, dilation = data.draw(pairs), data.draw(pairs), data.draw(pairs)
    groups = data.draw(st.integers(1, 2))
    mode = data.draw(st.sampled_from(sorted(NUMPYS)))
    padding = tuple(data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(2))
    extents = [step * (extent - 1) + 1 for extent, step in zip(size, dilation, strict=True)]
    # At least the kernel's extent, and enough to mirror two values.
    shape = [max(extent, 3) + data.draw(st.integers(0, 2)) for extent in extents]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    x = rng.normal(size=(data.draw(st.integers(0, 2)), *shape, 2 * groups)).astype(np.float32)
    kernel = rng.normal(size=(*size, 2, 3 * groups)).astype(np.float32)
    expected = brute_force(x, kernel, strides, padding, mode, dilation, groups)
    actual = convolve(jnp.asarray(x), jnp.asarray(kernel), strides, padding, mode, dilation, groups)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_one_channel_equals_scipys_cross_correlation(padding):
    rng = np.random.default_rng(0)
    image, kernel = rng.normal(size=(6, 7)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)
    actual = convolve(jnp.asarray(image[None, ..., None]), jnp.asarray(kernel[..., None, None]), padding=padding)
    expected = scipy.signal.correlate2d(image, kernel, mode=padding)
    np.testing.assert_allclose(actual[0, ..., 0], expected, rtol=1e-4, atol=1e-5)


def test_same_is_symmetric_at_stride_two():
    # The first window of a 7x7 kernel is centred on the first pixel, as in ResNet's stem; TensorFlow's SAME is not.
    x = jnp.zeros((1, 14, 14, 1)).at[0, 0, 0, 0].set(1)
    centre = jnp.zeros((7, 7, 1, 1)).at[3, 3].set(1)
    y = convolve(x, centre, strides=2, padding="same")
    assert y.shape == (1, 7, 7, 1)
    assert y[0, 0, 0, 0] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": "smae"}, "did you mean 'same'"),
        ({"padding_mode": "mirror"}, "padding mode 'mirror' is not known"),
        ({"dilation": 4}, "window of 9 does not fit an input of 5"),
        ({"groups": 3}, "must divide both the 4 channels and the 2 features"),
        ({"groups": 2}, "takes 8 channels; the images have 4"),
    ],
)
def test_faults_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        convolve(jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 4, 2)), **arguments)


def test_every_padding_mode_differs_from_every_other():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 1)), jnp.float32)
    outputs = {mode: convolve(x, jnp.ones((3, 3, 1, 1)), padding=1, padding_mode=mode) for mode in NUMPYS}
    # At width 1 the symmetric mirror is the border extension.
    same = {a + b for a, b in itertools.combinations(NUMPYS, 2) if jnp.allclose(outputs[a], outputs[b])}
    assert same == {"edgesymmetric"}


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_derivatives_of_first_and_second_order(data):
    """Forward and reverse, against finite differences, with respect to both or to one argument alone."""
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(2, 3, 1, 2)), jnp.float32)
    strides, padding = data.draw(pairs), data.draw(st.integers(0, 2))

    def function(x, kernel):
        return jnp.sin(convolve(jnp.asarray(x), jnp.asarray(kernel), strides, padding, groups=2))

    check_grads(function, (x, kernel), 2, rtol=0.03, atol=0.03)
    check_grads(lambda x: function(x, kernel), (x,), 1, rtol=0.03, atol=0.03)
    check_grads(lambda kernel: function(x, kernel), (kernel,), 1, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("platform", "stored"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_images_are_stored_for_the_kernels_gradient_on_cpu_alone(platform, stored):
    """Elsewhere XLA may fuse as it likes."""
    gradient = jax.jit(jax.grad(lambda kernel: convolve(jnp.ones((1, 4, 4, 1)), kernel).sum()))
    lowered = gradient.trace(jnp.ones((3, 3, 1, 1))).lower(lowering_platforms=(platform,))
    assert ("inlineable" in lowered.as_text()) == stored
