"""Sizes of windows against counting them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.ops.geometry import explicit_padding, output_size, pair, same_padding


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
