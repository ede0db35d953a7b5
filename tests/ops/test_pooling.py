"""Pooling against loops, plain `lax` and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.test_util import check_grads

from cnn_research.errors import UserError
from cnn_research.ops.pooling import avg_pool, global_avg_pool, max_pool, max_pool_with_switches, unpool

SHAPE = (2, 7, 6, 3)


def random_case(rng):
    """Returns window, strides and padding: gaps, overlaps and borders of every width."""
    window = tuple(rng.integers(1, 5, 2).tolist())
    padding = tuple(tuple(rng.integers(0, extent, 2).tolist()) for extent in window)
    return window, tuple(rng.integers(1, 6, 2).tolist()), padding


CASES = [
    (2, 2, 0),  # side by side; a row remains
    (3, 2, 1),
    (3, 1, ((1, 1), (2, 0))),
    ((2, 3), (3, 1), ((0, 1), (1, 2))),  # with a gap between the rows
    ((1, 5), (2, 3), ((0, 0), (0, 4))),
    ((7, 6), 1, 0),  # the whole image
    *map(random_case, np.random.default_rng(0).spawn(10)),
]
# Outside of a program every operation of theirs would be compiled on its own.
switched = jax.jit(max_pool_with_switches, static_argnums=(1, 2, 3))
unpooled = jax.jit(unpool, static_argnums=(2, 3))
few_values = st.integers(0, 2**16).map(lambda seed: np.random.default_rng(seed).integers(-2, 3, SHAPE))


def windows(x, window, strides, padding, fill):
    """Returns what each window sees, as loops find it, row by row on a last axis."""
    window, strides = np.broadcast_to(window, 2), np.broadcast_to(strides, 2)
    padded = np.pad(x, ((0, 0), *np.broadcast_to(padding, (2, 2)), (0, 0)), constant_values=fill)
    height, width = ((padded.shape[1 + axis] - window[axis]) // strides[axis] + 1 for axis in (0, 1))
    values = np.empty((len(x), height, width, x.shape[-1], window[0] * window[1]), padded.dtype)
    for row, column in np.ndindex(height, width):
        top, left = row * strides[0], column * strides[1]
        patch = padded[:, top : top + window[0], left : left + window[1]]
        values[:, row, column] = np.moveaxis(patch, -1, 1).reshape(values[:, row, column].shape)
    return values


def first_largest(x, *case):
    """Returns which pixel of each window is the largest, row · width + column, the first one of several."""
    pixels = windows(np.arange(x[0, ..., 0].size).reshape(1, *x.shape[1:3], 1), *case, fill=-1)
    inside = pixels >= 0
    values = np.where(inside, windows(x, *case, fill=0), -np.inf)
    chosen = np.argmax((values == values.max(-1, keepdims=True)) & inside, -1)
    return np.take_along_axis(np.broadcast_to(pixels, values.shape), chosen[..., None], -1)[..., 0]


def put(values, switches, shape):
    """Returns maps with each value added where its switch points."""
    maps = np.zeros(shape)
    for (image, row, column, channel), value in np.ndenumerate(values):
        pixel = divmod(switches[image, row, column, channel], shape[2])
        maps[image, *pixel, channel] += value
    return maps


@jax.jit
def pooled_in_every_way(x):
    """One program for all cases: the maxima, their gradients and switches, and both kinds of mean."""
    results = []
    for case in CASES:
        maxima, pull = jax.vjp(lambda x, case=case: max_pool(x, *case), x)
        weights = jnp.arange(maxima.size, dtype=x.dtype).reshape(maxima.shape) % 7
        pooled, switches = max_pool_with_switches(x, *case)
        means = avg_pool(x, *case), avg_pool(x, *case, count_include_pad=False)
        results.append((maxima, weights, pull(weights)[0], pooled, switches, *means))
    return results


@settings(max_examples=20, deadline=None)
@given(few_values)
def test_equals_loops(values):
    """Five values, so that many are equal; their sums are exact."""
    x = values.astype(np.float32)
    for case, result in zip(CASES, pooled_in_every_way(x), strict=True):
        maxima, weights, gradient, pooled, switches, means, means_inside = map(np.asarray, result)
        seen = windows(x, *case, fill=np.nan)
        np.testing.assert_array_equal(maxima, np.nanmax(seen, -1))
        np.testing.assert_array_equal(pooled, maxima)
        np.testing.assert_array_equal(switches, first_largest(x, *case))
        np.testing.assert_array_equal(gradient, put(weights, switches, SHAPE))
        np.testing.assert_allclose(means, np.nan_to_num(seen).mean(-1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(means_inside, np.nanmean(seen, -1), rtol=1e-5, atol=1e-6)


def plain(x, window, strides, padding):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, strides, strides, 1), padding)


def test_derivatives_are_those_of_lax():
    """Forward, reverse, of second order, of one image at a time and by way of a checkpoint."""
    rng = np.random.default_rng(0)
    x, tangent = (jnp.asarray(rng.integers(-3, 4, (4, 5, 5, 2)), jnp.float32) for _ in range(2))

    @jax.jit
    def derivatives(x, tangent):
        def every(pool):
            def loss(x):
                return jnp.sum(jnp.sin(pool(x)) ** 3)

            return (
                jax.jvp(pool, (x,), (tangent,)),
                jax.linearize(pool, x)[1](tangent),
                jax.jvp(jax.grad(loss), (x,), (tangent,)),
                jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), tangent))(x),
                jax.vmap(jax.grad(lambda image: loss(image[None])))(x),
                jax.grad(jax.checkpoint(loss))(x),
            )

        return every(lambda x: max_pool(x, 3, 2, 1)), every(lambda x: plain(x, 3, 2, [(0, 0), (1, 1), (1, 1), (0, 0)]))

    ours, theirs = derivatives(x, tangent)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_derivatives_on_several_devices():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2)), jnp.float32)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2, 2) ** 2))
    np.testing.assert_allclose(jax.pmap(gradient)(x), jnp.stack([*map(gradient, x)]), rtol=1e-6)


def test_derivatives_of_means():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5, 2)), jnp.float32)
    check_grads(jax.jit(lambda x: jnp.sin(avg_pool(x, 3, 2, 1))), (x,), 2, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("platform", "plain"), [("cpu", False), ("cuda", True), ("tpu", True)])
def test_on_accelerators_it_is_lax(platform, plain):
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, 1) * max_pool(x, 3, 2, 1))))
    text = gradient.trace(jnp.ones((1, 8, 8, 1))).lower(lowering_platforms=(platform,)).as_text()
    assert ("reduce_window" in text) == plain
    assert ("select_and_scatter" in text) == plain
    assert ("xi8>" in text) != plain  # the places of the largest values


def test_a_window_that_a_cpu_would_take_long_to_compile_is_laxs():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 40, 1, 2)), jnp.float32)
    pool = jax.jit(lambda x: max_pool(x, (17, 1), 1))
    np.testing.assert_array_equal(pool(x)[0, :, 0], np.lib.stride_tricks.sliding_window_view(x[0, :, 0], 17, 0).max(-1))
    assert "reduce_window" in pool.lower(x).as_text()


def test_switches_of_a_long_window():
    x = np.random.default_rng(0).normal(size=(1, 1, 300, 2)).astype(np.float32)
    _, switches = switched(x, (1, 299), 1)
    np.testing.assert_array_equal(switches[0, 0], [x[0, 0, :299].argmax(0), 1 + x[0, 0, 1:].argmax(0)])


def test_infinite_values_and_no_numbers():
    x = np.full((1, 4, 4, 1), -np.inf, np.float32)
    x[0, 2:, 2:, 0] = [[1, np.nan], [3, 2]]
    pooled, switches = switched(jnp.asarray(x), 2, 2, 1)  # windows at the corners see one pixel alone
    np.testing.assert_array_equal(pooled[0, ..., 0], [[-np.inf] * 3, [-np.inf, 1, np.nan], [-np.inf, 3, 2]])
    assert switches[0, ..., 0].tolist() == [[0, 1, 3], [4, 10, 11], [12, 14, 15]]
    _, switches = switched(jnp.asarray(x), 2, 2)
    assert switches[0, ..., 0].tolist() == [[0, 2], [8, 11]]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(-4, 5, (2, 5, 5, 2)), dtype)
    pooled, switches = switched(x, 3, 2, 1)
    assert (pooled.dtype, switches.dtype) == (dtype, "int32")
    np.testing.assert_array_equal(switches, first_largest(np.asarray(x, np.float32), 3, 2, 1))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, 1))))(x)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, unpooled(jnp.ones_like(pooled), switches, x.shape))


def test_no_images():
    x = jnp.zeros((0, 5, 4, 2))
    pooled, switches = switched(x, 2, 2)
    assert pooled.shape == switches.shape == avg_pool(x, 2, 2).shape == (0, 2, 2, 2)
    assert unpooled(pooled, switches, x.shape).shape == unpooled(pooled, switches, (5, 4), 2).shape == x.shape
    assert jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x, 3, 2, 1))))(x).shape == x.shape


def test_means_of_bfloat16_are_added_up_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)  # bfloat16 alone counts to 256
    assert avg_pool(x, 64, 64).dtype == jnp.bfloat16
    assert avg_pool(x, 64, 64).item() == 1
    assert avg_pool(x, 16, 16).ravel().tolist() == [1] * 16
    assert global_avg_pool(x).item() == 1


def test_global_average():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(global_avg_pool(jnp.asarray(x)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


@jax.jit
def unpooled_in_every_way(x, values):
    """For each case: values unpooled, by all means that it allows; their gradient against x; and switches."""
    results = []
    for window, strides, padding in CASES:
        pooled, switches = max_pool_with_switches(x, window, strides, padding)
        values = jnp.resize(values, pooled.shape)
        tiles = [window] if (window, padding) == (strides, 0) else []
        ways = [
            jax.vjp(lambda values, way=way, switches=switches: unpool(values, switches, SHAPE, *way), values)
            for way in ([], *([tile] for tile in tiles))
        ]
        results.append((values, switches, pooled, [(maps, pull(x)[0]) for maps, pull in ways]))
    return results


@settings(max_examples=10, deadline=None)
@given(few_values, few_values)
def test_unpooling_adds_up_where_switches_point_and_its_gradient_is_what_is_there(x, values):
    results = unpooled_in_every_way(x.astype(np.float32), values.astype(np.float32))
    assert [len(ways) for *_, ways in results][:2] == [2, 1]
    for values, switches, pooled, ways in results:
        for maps, gradient in ways:
            np.testing.assert_array_equal(maps, put(np.asarray(values), np.asarray(switches), SHAPE))
            np.testing.assert_array_equal(gradient, pooled)


def test_pooling_what_was_unpooled_gives_it_back():
    """Side by side, and of values that win over the zeros."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (2, 7, 9, 3)), jnp.float32)
    pooled, switches = switched(x, (2, 3), (2, 3))
    maps = unpooled(pooled, switches, (7, 9), (2, 3))
    again, switches_again = switched(maps, (2, 3), (2, 3))
    np.testing.assert_array_equal(again, pooled)
    np.testing.assert_array_equal(switches_again, switches)
    assert not maps[:, 6].any()  # the row that remained


@pytest.mark.slow
@pytest.mark.parametrize(("window", "strides", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 3, 1), ((3, 2), 2, 1)])
def test_equals_pytorch(window, strides, padding):
    """Values, switches and gradients; unpooled where one window alone points to a pixel, which PyTorch defines."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (2, 9, 10, 3)).astype(np.float32)  # with equal values: the first wins there too
    pooled, switches = max_pool_with_switches(jnp.asarray(x), window, strides, padding)
    weights = rng.normal(size=pooled.shape).astype(np.float32)
    gradient = jax.vjp(lambda x: max_pool(x, window, strides, padding), jnp.asarray(x))[1](jnp.asarray(weights))[0]

    def nchw(array):
        return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())

    def nhwc(tensor):
        return np.moveaxis(tensor.detach().numpy(), 1, -1)

    images = nchw(x).requires_grad_()
    theirs, indices = functional.max_pool2d(images, window, strides, padding, return_indices=True)
    np.testing.assert_array_equal(pooled, nhwc(theirs))
    np.testing.assert_array_equal(switches, nhwc(indices))
    np.testing.assert_allclose(gradient, nhwc(torch.autograd.grad(theirs, images, nchw(weights))[0]), rtol=1e-5)

    ours, pull = jax.vjp(lambda values: unpool(values, switches, x.shape), jnp.asarray(weights))
    values = nchw(weights).requires_grad_()
    maps = functional.max_unpool2d(values, nchw(switches).long(), window, strides, padding, output_size=x.shape[1:3])
    once = unpool(jnp.ones_like(pooled), switches, x.shape) <= 1
    np.testing.assert_allclose(np.where(once, ours, 0), np.where(once, nhwc(maps), 0), rtol=1e-6)
    theirs = torch.autograd.grad(maps, values, nchw(x))[0]
    np.testing.assert_array_equal(pull(jnp.asarray(x))[0], nhwc(theirs))


@pytest.mark.parametrize("pool", [max_pool, avg_pool, max_pool_with_switches])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [((6, 1), "window of 6 does not fit an input of 5"), ((2, 2, 2), "see padding alone"), ((2, 0), "is no window")],
)
def test_faults_are_one_line(pool, arguments, message):
    with pytest.raises(UserError, match=message):
        pool(jnp.ones((1, 5, 5, 1)), *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((2, 5, 4, 1),), r"must have the batch and the channels of \(1, 2, 2, 1\)"),
        (((5, 6), 2), r"windows of \(2, 2\) side by side make \(2, 3\) values of \(5, 6\), not \(2, 2\)"),
    ],
)
def test_faults_of_unpooling_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        unpool(jnp.ones((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1), int), *arguments)
