"""`convolve` and its transpose against loops, SciPy, plain XLA and each other."""

import doctest
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from cnn_research.errors import UserError
from cnn_research.ops import convolution, transposed_forms
from cnn_research.ops import convolution_forms as forms
from cnn_research.ops.convolution import convolve, convolve_transposed
from cnn_research.ops.convolution_forms import Window

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
    groups, channels = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))  # depthwise among them
    mode = data.draw(st.sampled_from(sorted(NUMPYS)))
    padding = tuple(data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) for _ in range(2))
    extents = [step * (extent - 1) + 1 for extent, step in zip(size, dilation, strict=True)]
    # At least the kernel's extent, and enough to mirror two values.
    shape = [max(extent, 3) + data.draw(st.integers(0, 2)) for extent in extents]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    x = rng.normal(size=(data.draw(st.integers(0, 2)), *shape, channels * groups)).astype(np.float32)
    kernel = rng.normal(size=(*size, channels, 2 * groups)).astype(np.float32)
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
        ({"groups": 0}, "must divide both the 4 channels and the 2 features"),
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


@settings(max_examples=2, deadline=None)
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


def with_gradients(function, x, kernel, cotangent):
    """Returns the output and both gradients, compiled as one."""

    @jax.jit
    def compute(x, kernel, cotangent):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(cotangent.astype(y.dtype))

    return compute(x, kernel, cotangent)


def assert_close(actual, expected, tolerance):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(
            ours.astype("float32"), theirs, rtol=tolerance, atol=tolerance * float(jnp.abs(theirs).max())
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
@pytest.mark.parametrize(
    ("form", "channels", "kernel_shape", "strides", "padding", "groups"),
    [
        (forms.pointwise, 6, (1, 1, 6, 5), 2, 0, 1),
        (forms.whole, 3, (7, 6, 3, 4), 1, 0, 1),
        (forms.of_patches, 3, (7, 7, 3, 4), 1, 3, 1),
        (forms.depthwise, 6, (3, 3, 1, 12), 2, 1, 6),
        (forms.depthwise, 6, (4, 3, 1, 6), 1, 1, 6),
        (forms.of_few_channels, 8, (3, 3, 4, 6), 1, 1, 2),
        (forms.of_few_channels, 9, (3, 2, 3, 24), 1, 1, 3),
        (forms.of_few_channels, 8, (2, 3, 2, 8), 2, 1, 4),
        (forms.grouped, 32, (3, 3, 16, 32), 1, 1, 2),
        (forms.grouped, 24, (5, 4, 2, 36), 2, 1, 12),
        (forms.grouped, 4, (9, 9, 2, 4), 1, 4, 2),
    ],
)
def test_forms_for_a_cpu_equal_the_plain_one(form, channels, kernel_shape, strides, padding, groups, dtype, tolerance):
    window = Window((strides, strides), ((padding, padding), (padding, padding)), groups=groups)
    assert forms.on_cpu((2, 7, 6, channels), kernel_shape, window) is form
    plain = partial(forms.plain, window=window)
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in [(2, 7, 6, channels), kernel_shape])
    cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(plain, x, kernel).shape), dtype)
    ours = with_gradients(partial(convolve, strides=strides, padding=padding, groups=groups), x, kernel, cotangent)
    assert {each.dtype for each in ours} == {jnp.dtype(dtype)}
    wide = (each.astype("float32") for each in (x, kernel, cotangent))
    assert_close(ours, with_gradients(plain, *wide), tolerance)


def test_output_grows_where_padding_is_wider_than_what_the_window_takes():
    for vertical, horizontal, dilation in itertools.product(range(4), range(5), range(1, 3)):
        window = Window(widths=((vertical, 0), (1, horizontal)), dilation=(dilation, 1))
        grows = vertical > 2 * dilation or 1 + horizontal > 3
        assert forms.output_grows((3, 4, 1, 1), window) == grows


@pytest.mark.parametrize(("groups", "channels", "convolutions"), [(4, 16, 4), (4, 8, 2), (6, 3, 1)])
def test_groups_are_put_together_until_they_have_16_channels(groups, channels, convolutions):
    shapes = (1, 8, 8, groups * channels), (3, 3, channels, groups * channels)
    grouped = jax.make_jaxpr(partial(forms.grouped, window=Window(groups=groups)))(*map(jnp.zeros, shapes))
    assert str(grouped).count("conv_general_dilated[") == convolutions


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "strides", "padding", "groups"),
    [
        ((2, 3, 67, 2), (3, 2, 1, 4), 1, 1, 2),  # depthwise, of 68 columns: 22 times 3, and 2
        ((2, 9, 70, 2), (2, 3, 1, 2), 2, 0, 2),
        ((2, 24, 22, 3), (2, 2, 3, 4), 1, 1, 1),  # the output grows, of many pixels
        ((2, 4, 5, 3), (2, 2, 3, 4), 1, 1, 1),
    ],
)
def test_gradients_of_kernels_image_by_image(shape, kernel_shape, strides, padding, groups):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=each), jnp.float32) for each in (shape, kernel_shape))
    plain = partial(forms.plain, window=Window((strides,) * 2, ((padding,) * 2,) * 2, groups=groups))
    cotangent = jnp.asarray(rng.normal(size=jax.eval_shape(plain, x, kernel).shape), jnp.float32)
    ours = partial(convolve, strides=strides, padding=padding, groups=groups)
    assert_close(with_gradients(ours, x, kernel, cotangent), with_gradients(plain, x, kernel, cotangent), 1e-5)
    _, _, gradient = with_gradients(ours, x[:0], kernel, cotangent[:0])
    assert not gradient.any()


@pytest.mark.parametrize(("images", "side"), [(9, 64), (11, 56)])
def test_gradient_of_a_kernel_by_many_pixels(images, side):
    """It is a sum over parts of one image each; or over all at once, where one is too small and 11 has no divisors."""
    rng = np.random.default_rng(0)
    x, cotangent = (rng.normal(size=(images, side, side, channels)).astype("float32") for channels in (3, 4))
    *_, gradient = with_gradients(convolve, x, jnp.ones([1, 1, 3, 4]), cotangent)
    np.testing.assert_allclose(gradient[0, 0], np.einsum("nhwi,nhwo->io", x, cotangent), rtol=1e-4, atol=1e-2)


def stamps(x, kernel, strides, padding, output_padding, dilation, groups):
    """The definition, in loops."""
    batch, rows, columns, _ = x.shape
    height, width, inputs, features = kernel.shape
    extents = [step * (size - 1) + 1 for size, step in zip((height, width), dilation, strict=True)]
    whole = [
        stride * (size - 1) + extent + more
        for size, extent, stride, more in zip((rows, columns), extents, strides, output_padding, strict=True)
    ]
    y = np.zeros((batch, *whole, features))
    for row, column, u, v, feature in np.ndindex(rows, columns, height, width, features):
        group = feature // (features // groups)
        pixel = x[:, row, column, group * inputs : (group + 1) * inputs] @ kernel[u, v, :, feature]
        y[:, row * strides[0] + u * dilation[0], column * strides[1] + v * dilation[1], feature] += pixel
    return y[:, padding[0][0] : whole[0] - padding[0][1], padding[1][0] : whole[1] - padding[1][1]]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_transposed_equals_stamps(data):
    size, strides = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4))), data.draw(pairs)
    dilation = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 3)]))
    groups, channels = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    more = tuple(data.draw(st.integers(0, max(pair) - 1)) for pair in zip(strides, dilation, strict=True))
    shape = data.draw(pairs)
    whole = [
        stride * (extent - 1) + step * (taps - 1) + end
        for stride, extent, step, taps, end in zip(strides, shape, dilation, size, more, strict=True)
    ]
    ends = [data.draw(st.integers(0, min(2, most))) for most in whole]
    padding = tuple((data.draw(st.integers(0, min(2, most - end))), end) for most, end in zip(whole, ends, strict=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    x = rng.normal(size=(data.draw(st.integers(0, 2)), *shape, channels * groups)).astype(np.float32)
    kernel = rng.normal(size=(*size, channels, 2 * groups)).astype(np.float32)
    expected = stamps(x, kernel, strides, padding, more, dilation, groups)
    actual = convolve_transposed(jnp.asarray(x), jnp.asarray(kernel), strides, padding, more, dilation, groups)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


TRANSPOSED = [  # kernel, stride, padding, output padding, groups
    pytest.param(2, 2, 0, 0, 1, id="U-Net"),
    pytest.param(3, 2, 1, 1, 2, id="groups"),
    pytest.param(4, 2, 1, 0, 1, id="FCN"),
    pytest.param(2, 3, 0, 2, 1, id="gaps"),
]


@pytest.mark.parametrize(("size", "stride", "padding", "more", "groups"), TRANSPOSED)
def test_transposed_is_the_gradient_of_convolution(size, stride, padding, more, groups):
    """For a CPU and for the others, with its own gradients."""
    rng = np.random.default_rng(0)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in [(2, 4, 5, 4), (size, size, 4 // groups, 6)]
    )
    # The kernel of the convolution has their roles of channels and features exchanged, in each group.
    exchanged = jnp.concatenate([part.swapaxes(2, 3) for part in jnp.split(kernel, groups, -1)], -1)
    options = dict(strides=(stride, stride), output_padding=(more, more), groups=groups)
    y = convolve_transposed(x, kernel, padding=padding, **options)
    _, pull = jax.vjp(lambda images: convolve(images, exchanged, stride, padding, groups=groups), jnp.zeros_like(y))
    np.testing.assert_allclose(y, *pull(x), rtol=1e-4, atol=1e-5)

    window = Window(widths=((padding, padding), (padding, padding)), **options)
    plain = partial(transposed_forms.among_zeros, window=window)
    cotangent = jnp.asarray(rng.normal(size=y.shape), jnp.float32)
    ours = with_gradients(partial(convolve_transposed, padding=padding, **options), x, kernel, cotangent)
    assert_close(ours, with_gradients(plain, x, kernel, cotangent), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride", "padding", "more", "groups"), TRANSPOSED)
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_equals_pytorchs(size, stride, padding, more, groups, dilation):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype("float32") for shape in [(2, 4, 5, 4), (size, size, 4 // groups, 6)])
    # [channels, features per group, height, width]
    theirs = np.concatenate([part.transpose(2, 3, 0, 1) for part in np.split(kernel, groups, -1)])
    expected = torch.nn.functional.conv_transpose2d(
        torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(theirs), None, stride, padding, more, groups, dilation
    )
    actual = convolve_transposed(jnp.asarray(x), jnp.asarray(kernel), stride, padding, more, dilation, groups)
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": 4}, "leave nothing"),
        ({"output_padding": 1}, "output padding 1 is out of range; it must be from 0 to 0"),
        ({"strides": 0}, "is no window"),
        ({"groups": 3}, "must divide both the 4 channels and the 2 features"),
    ],
)
def test_faults_of_transposition_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        convolve_transposed(jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 4, 2)), **arguments)


def test_examples_in_docstrings():
    result = doctest.testmod(convolution)
    assert result.attempted > 3
    assert result.failed == 0


@pytest.mark.parametrize(("platform", "stored"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_images_are_stored_for_the_kernels_gradient_on_cpu_alone(platform, stored):
    """Elsewhere XLA may fuse as it likes."""
    gradient = jax.jit(jax.grad(lambda kernel: convolve(jnp.ones((1, 4, 4, 1)), kernel).sum()))
    lowered = gradient.trace(jnp.ones((3, 3, 1, 1))).lower(lowering_platforms=(platform,))
    assert ("inlineable" in lowered.as_text()) == stored


def test_gradients_of_images_are_fast_inside_of_loops():
    """XLA for CPUs turns kernels so that their features are last, which it runs fast, but not inside of loops."""
    x, kernel = jnp.ones((2, 16, 16, 4)), jnp.ones((3, 3, 4, 4))
    assert forms.on_cpu(x.shape, kernel.shape, Window((1, 1), ((1, 1), (1, 1)))) is forms.plain
    gradient = jax.grad(lambda x: jnp.tanh(convolve(x, kernel, padding=1)).sum())
    loop = jax.jit(lambda x: jax.lax.scan(lambda x, _: (gradient(x), None), x, length=2)[0])
    text = loop.lower(x).compile().as_text()
    assert text.count("dim_labels=b01f_01io->b01f") == text.count("dim_labels=") == 2


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("function", "kernel_shape", "groups"),
    [
        (convolve, (1, 1, 4, 4), 1),
        (convolve, (9, 9, 4, 4), 1),
        (convolve, (3, 3, 1, 4), 4),
        (convolve, (3, 3, 2, 4), 2),
        (partial(convolve_transposed, strides=2), (2, 2, 4, 4), 1),
    ],
)
def test_accelerators_get_three_convolutions_of_xlas(function, kernel_shape, groups, platform):
    """Forwards, and by either argument; none of the forms for a CPU."""
    padding = kernel_shape[0] // 2

    def all_three(x, kernel, cotangent):
        y, pull = jax.vjp(partial(function, padding=padding, groups=groups), x, kernel)
        return y, pull(cotangent)

    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones(kernel_shape)
    y = function(x, kernel, padding=padding, groups=groups)
    text = jax.jit(all_three).trace(x, kernel, y).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "dot_general" not in text
