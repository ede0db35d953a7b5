"""Pooling against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.ops.pooling import avg_pool, global_avg_pool, max_pool


def windows(x, window, strides, padding, fill):
    """Yields the place and the values of each window, as loops find them."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    height, width = ((padded.shape[1 + axis] - window[axis]) // strides[axis] + 1 for axis in (0, 1))
    values = np.empty((len(x), height, width, x.shape[-1], window[0] * window[1]))
    for row, column in np.ndindex(height, width):
        top, left = row * strides[0], column * strides[1]
        patch = padded[:, top : top + window[0], left : left + window[1]]
        values[:, row, column] = np.moveaxis(patch, -1, 1).reshape(values[:, row, column].shape)
    return values


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_equals_loops(data):
    window = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    strides = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple((data.draw(st.integers(0, extent - 1)), data.draw(st.integers(0, extent - 1))) for extent in window)
    shape = (data.draw(st.integers(0, 2)), *(extent + data.draw(st.integers(0, 3)) for extent in window), 2)
    x = np.random.default_rng(data.draw(st.integers(0, 2**16))).normal(size=shape).astype(np.float32)
    seen = windows(x, window, strides, padding, np.nan)
    arguments = (jnp.asarray(x), window, strides, padding)
    np.testing.assert_array_equal(max_pool(*arguments), np.nanmax(seen, -1))
    np.testing.assert_allclose(avg_pool(*arguments), np.nan_to_num(seen).mean(-1), rtol=1e-5, atol=1e-6)
    excluded = avg_pool(*arguments, count_include_pad=False)
    np.testing.assert_allclose(excluded, np.nanmean(seen, -1), rtol=1e-5, atol=1e-6)


def test_gradients_go_to_the_largest_and_to_all():
    x = jnp.array([[1.0, 2.0], [4.0, 3.0]]).reshape(1, 2, 2, 1)
    largest = jax.grad(lambda x: max_pool(x, 2, 2).sum())(x)
    assert largest.ravel().tolist() == [0, 0, 1, 0]
    assert jax.grad(lambda x: avg_pool(x, 2, 2).sum())(x).ravel().tolist() == [0.25] * 4


def test_means_of_bfloat16_are_added_up_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0, jnp.bfloat16)  # bfloat16 alone counts to 256
    assert avg_pool(x, 64, 64).dtype == jnp.bfloat16
    assert avg_pool(x, 64, 64).item() == 1
    assert global_avg_pool(x).item() == 1


def test_global_average():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(global_avg_pool(jnp.asarray(x)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [((6, 1), "window of 6 does not fit an input of 5"), ((2, 2, 2), "see padding alone"), ((2, 0), "is no window")],
)
def test_faults_are_one_line(pool, arguments, message):
    with pytest.raises(UserError, match=message):
        pool(jnp.ones((1, 5, 5, 1)), *arguments)
