"""Sizes of windows against counting them."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.ops import geometry
from cnn_research.ops.geometry import (
    ceil_padding,
    explicit_padding,
    multiply_accumulates,
    output_size,
    pair,
    receptive_field,
    same_padding,
)


@given(
    size=st.integers(1, 20),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 6),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    dilation=st.integers(1, 3),
)
def test_output_size_counts_the_windows_that_fit(size, kernel, stride, before, after, dilation):
    starts = range(-before, size + after, stride)
    count = sum(start + dilation * (kernel - 1) < size + after for start in starts)
    if count:
        assert output_size(size, kernel, stride, (before, after), dilation) == count
    else:
        with pytest.raises(UserError, match="does not fit"):
            output_size(size, kernel, stride, (before, after), dilation)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "expected"),
    [
        (32, 5, 1, 0, 28),  # LeNet-5, C1
        (227, 11, 4, 0, 55),  # AlexNet, conv1
        (55, 3, 2, 0, 27),  # AlexNet, overlapping pooling
        (224, 3, 1, 1, 224),  # VGG
        (224, 7, 2, 3, 112),  # ResNet, conv1
    ],
)
def test_sizes_of_the_papers(size, kernel, stride, padding, expected):
    assert output_size(size, kernel, stride, padding) == expected


def test_a_window_too_large_names_the_size_that_fits():
    with pytest.raises(UserError, match=r"window of 7 does not fit an input of 3 .* at least 5"):
        output_size(3, 7, 1, 1)


@pytest.mark.parametrize("numbers", [(0, 1, 0), (3, 0, 0), (3, 1, -1)])
def test_numbers_out_of_range_are_refused(numbers):
    with pytest.raises(UserError, match="is no window"):
        output_size(5, *numbers)


@given(size=st.integers(1, 40), kernel=st.integers(1, 9), dilation=st.integers(1, 3))
def test_same_padding_keeps_the_size_and_odd_kernels_symmetric(size, kernel, dilation):
    before, after = same_padding(kernel, dilation)
    assert output_size(size, kernel, 1, (before, after), dilation) == size
    assert after - before == (dilation * (kernel - 1)) % 2


@given(size=st.integers(1, 40), kernel=st.integers(1, 6), stride=st.integers(1, 7))
def test_ceil_padding_reaches_every_value_that_a_step_does(size, kernel, stride):
    # As many steps as it takes to have the end in sight, but none to beyond it.
    starts = [0]
    while starts[-1] + kernel < size and starts[-1] + stride < size:
        starts.append(starts[-1] + stride)
    before, after = ceil_padding(size, kernel, stride)
    if kernel - size >= stride:  # Caffe's formula gives no window
        assert (before, after) == (0, 0)
    else:
        assert (before, after) == (0, max(0, starts[-1] + kernel - size))
        assert output_size(size, kernel, stride, (before, after)) == len(starts)


@pytest.mark.parametrize(
    ("size", "kernel", "expected"),
    [(32, 3, 16), (16, 3, 8), (54, 3, 27), (55, 3, 27), (112, 3, 56), (7, 3, 3), (2, 3, 1), (14, 2, 7), (15, 2, 8)],
)
def test_sizes_of_caffe(size, kernel, expected):
    assert output_size(size, kernel, 2, ceil_padding(size, kernel, 2)) == expected


def test_explicit_padding_in_every_form():
    assert explicit_padding("same", (7, 4)) == ((3, 3), (1, 2))
    assert explicit_padding("same", 3, (1, 2)) == ((1, 1), (2, 2))
    assert explicit_padding("valid", 7) == ((0, 0), (0, 0))
    assert explicit_padding(2, 7) == ((2, 2), (2, 2))
    assert explicit_padding(((1, 2), (3, 4)), 7) == ((1, 2), (3, 4))


@pytest.mark.parametrize(("padding", "message"), [("smae", "did you mean 'same'"), (-1, "negative")])
def test_paddings_that_are_none_are_refused(padding, message):
    with pytest.raises(UserError, match=message):
        explicit_padding(padding, 3)


def test_pair():
    assert pair(3) == (3, 3)
    assert pair((1, 2)) == (1, 2)


def test_examples_of_the_docstrings():
    result = doctest.testmod(geometry)
    assert result.attempted >= 4
    assert not result.failed


def pixels(unit, windows):
    """Returns the pixels that a unit after a chain of windows is made from, by following every tap back."""
    seen = {unit}
    for kernel, stride, dilation in reversed(windows):
        seen = {position * stride + tap * dilation for position in seen for tap in range(kernel)}
    return seen


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2)), max_size=4))
def test_receptive_field_follows_every_tap(windows):
    first, second = (pixels(unit, windows) for unit in (0, 1))
    assert receptive_field(windows) == (max(first) + 1, min(second))


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], (1, 1)),
        ([(5, 1), (2, 2), (5, 1), (2, 2), (5, 1)], (32, 4)),  # LeNet-5 at C5
        ([(11, 4), (3, 2), (5, 1), (3, 2), (3, 1), (3, 1), (3, 1), (3, 2)], (195, 32)),  # AlexNet at pool5
        # ResNet-50 of TensorFlow-Slim, where the last block of a stage takes the stride: 483 in the table of Araujo,
        # Norris & Sim 2019, "Computing receptive fields of convolutional neural networks", doi:10.23915/distill.00021.
        (
            [(7, 2), (3, 2), *2 * [(3, 1)], (3, 2), *3 * [(3, 1)], (3, 2), *5 * [(3, 1)], (3, 2), *3 * [(3, 1)]],
            (483, 32),
        ),
        ([(3, 1, 1), (3, 1, 2), (3, 1, 4), (3, 1, 8)], (31, 1)),  # dilated by powers of two: 2^5 - 1
    ],
)
def test_receptive_fields_of_the_papers(windows, expected):
    assert receptive_field(windows) == expected


@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.integers(1, 2),
    channels=st.integers(1, 3),
    features=st.integers(1, 3),
)
def test_multiply_accumulates_counts_the_loops_of_a_convolution(size, kernel, groups, channels, features):
    """`channels` and `features` are those of one group."""
    axes = (*size, *kernel, groups, channels, features)
    loops = sum(1 for _ in itertools.product(*map(range, axes)))
    assert multiply_accumulates((*kernel, channels, groups * features), size) == loops
