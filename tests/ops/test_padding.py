"""`pad` against NumPy's, in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.ops.padding import MODES, pad

NUMPYS = {"zeros": "constant", "edge": "edge", "reflect": "reflect", "symmetric": "symmetric", "circular": "wrap"}


def test_modes_are_the_five_of_the_course():
    assert sorted(MODES) == sorted(NUMPYS)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("zeros", [0, 0, 1, 2, 3, 0, 0]),
        ("edge", [1, 1, 1, 2, 3, 3, 3]),
        ("reflect", [3, 2, 1, 2, 3, 2, 1]),
        ("symmetric", [2, 1, 1, 2, 3, 3, 2]),
        ("circular", [2, 3, 1, 2, 3, 1, 2]),
    ],
)
def test_borders_by_hand(mode, expected):
    assert pad(jnp.array([1, 2, 3]), 2, mode).tolist() == expected


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_equals_numpy(data):
    mode = data.draw(st.sampled_from(sorted(NUMPYS)))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    widths = [
        tuple(data.draw(st.integers(0, size - 1 if mode == "reflect" else size)) for _ in range(2)) for size in shape
    ]
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(pad(jnp.asarray(x), widths, mode), np.pad(x, widths, mode=NUMPYS[mode]))


@pytest.mark.parametrize("widths", [1, (1, 0), [(0, 1), (2, 0)]])
def test_widths_are_numpys(widths):
    x = np.ones((2, 3), np.float32)
    assert pad(jnp.asarray(x), widths).shape == np.pad(x, widths).shape


def test_an_empty_batch_stays_empty():
    for mode in MODES:
        assert pad(jnp.zeros((0, 3)), ((0, 0), (1, 1)), mode).shape == (0, 5)


def test_gradients_add_up_where_values_repeat():
    gradient = jax.grad(lambda x: pad(x, 1, "symmetric").sum())(jnp.ones(3))
    assert gradient.tolist() == [2, 1, 2]  # the first and the last value appear twice


def test_one_value_has_no_mirror_image():
    with pytest.raises(UserError, match="at most 0"):
        pad(jnp.ones(1), 1, "reflect")


@pytest.mark.parametrize(
    ("widths", "mode", "message"),
    [
        (1, "zero", "did you mean 'zeros'"),
        (3, "reflect", "at most 2"),
        (4, "symmetric", "at most 3"),
        (4, "circular", "at most 3"),
        (-1, "zeros", "negative"),
    ],
)
def test_faults_are_one_line(widths, mode, message):
    with pytest.raises(UserError, match=message) as fault:
        pad(jnp.ones(3), widths, mode)
    assert "\n" not in str(fault.value)
