"""Sizes of windows against counting them."""

import doctest
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.ops import geometry
from cnn_research.ops.geometry import (
    ceil_padding,
    explicit_padding,
    fitting_sizes,
    multiply_accumulates,
    output_size,
    pair,
    receptive_field,
    remainder,
    same_padding,
    transposed_output_size,
)

# Of windows that may have gaps between their taps and between each other.
kernels, strides, dilations = st.integers(1, 5), st.integers(1, 6), st.integers(1, 3)
paddings = st.tuples(st.integers(0, 4), st.integers(0, 4))


def places(size, kernel, stride, padding, dilation):
    """Returns what each window that fits sees, as places along an axis, negative or beyond its end in the padding."""
    before, after = padding
    seen = [[start + dilation * tap for tap in range(kernel)] for start in range(-before, size + after, stride)]
    return [window for window in seen if window[-1] < size + after]


@settings(max_examples=300)
@given(st.integers(1, 20), kernels, strides, paddings, dilations)
def test_output_size_counts_the_windows_that_fit(size, kernel, stride, padding, dilation):
    window = (kernel, stride, padding, dilation)
    if seen := places(size, *window):
        assert output_size(size, *window) == len(seen)
        assert remainder(size, *window) == size + padding[1] - 1 - seen[-1][-1]
    else:
        for function in (output_size, remainder):
            with pytest.raises(UserError, match="does not fit"):
                function(size, *window)


@settings(max_examples=300)
@given(st.integers(1, 12), kernels, strides, paddings, dilations, st.integers(0, 5))
def test_transposed_output_size_holds_all_stamps(size, kernel, stride, padding, dilation, more):
    before, after = padding
    stamped = {stride * start + dilation * tap for start in range(size) for tap in range(kernel)}
    left = max(stamped) + 1 - before - after + more
    window = (kernel, stride, padding)
    if more >= max(stride, dilation):
        with pytest.raises(UserError, match=f"output padding {more} is out of range"):
            transposed_output_size(size, *window, more, dilation)
    elif left < 1:
        with pytest.raises(UserError, match="leave nothing"):
            transposed_output_size(size, *window, more, dilation)
    else:
        assert transposed_output_size(size, *window, more, dilation) == left


@settings(max_examples=300)
@given(st.integers(1, 40), kernels, strides, paddings, dilations)
def test_the_remainder_is_the_output_padding_that_leads_back(size, kernel, stride, padding, dilation):
    window = (kernel, stride, padding)
    if places(size, *window, dilation):
        small, rest = (function(size, *window, dilation) for function in (output_size, remainder))
        assert transposed_output_size(small, *window, rest, dilation) == size
        assert [output_size(size - rest + more, *window, dilation) for more in range(stride)] == [small] * stride


@pytest.mark.slow
def test_transposed_output_sizes_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    rng = random.Random(0)
    for _ in range(300):
        size, kernel, stride, dilation = (rng.randint(1, last) for last in (9, 5, 4, 3))
        padding, more = rng.randint(0, 3), rng.randint(0, 4)
        window = (kernel, stride, padding, more)
        layer = torch.nn.ConvTranspose1d(1, 1, *window, dilation=dilation)
        try:
            theirs = layer(torch.empty(1, 1, size)).shape[-1]
        except RuntimeError:
            theirs = 0
        try:
            ours = transposed_output_size(size, *window, dilation)
        except UserError:
            ours = 0
        assert ours == theirs, (size, *window, dilation)


chains = st.lists(st.tuples(kernels, st.integers(1, 3), paddings, dilations), max_size=3)


@settings(max_examples=200)
@given(chains, st.lists(st.integers(1, 60), max_size=20))
def test_fitting_sizes_have_windows_to_the_end_of_every_map(windows, sizes):
    def fits(size):
        for window in windows:
            seen = places(size, *window)
            if not seen or seen[-1][-1] != size + window[2][1] - 1:
                return False
            size = len(seen)
        return True

    assert fitting_sizes(iter(windows), iter(sizes)) == [size for size in sizes if fits(size)]


@pytest.mark.parametrize(
    ("windows", "fitting"),
    [
        ([], [222, 223, 224, 225, 226, 227]),
        (5 * [(2, 2)], [224]),  # VGG
        ([(11, 4), (3, 2), (5, 1, 2), (3, 2), *3 * [(3, 1, 1)], (3, 2)], [227]),  # AlexNet
        ([(7, 2, 3), *4 * [(3, 2, 1)]], [225]),  # ResNet, along its 3x3 convolutions
        ([(7, 2, 3), (3, 2, 1), *3 * [(1, 2)]], [225]),  # and along its shortcuts
        ([(7, 2, 3), *4 * [(3, 2, (0, 1))]], [223]),  # padded at the end alone
        ([(300, 1)], []),  # fits into none
    ],
)
def test_fitting_sizes_of_the_papers(windows, fitting):
    assert fitting_sizes(windows, range(222, 228)) == fitting


def test_unets_sizes_are_those_that_its_paper_says():
    """ "It is important to select the input tile size such that all 2x2 max-pooling operations are applied to a layer
    with an even x- and y-size": its 572 is one, and gives 388.
    """
    level = [(3, 1), (3, 1)]
    down = [*4 * [*level, (2, 2)], *level]
    assert 572 in fitting_sizes(down, range(600))
    size = 572
    for window in down:
        size = output_size(size, *window)
    for _ in range(4):
        size = transposed_output_size(size, 2, stride=2) - 4
    assert size == 388


def test_windows_that_are_none_fit_no_size():
    with pytest.raises(UserError, match="is no window"):
        fitting_sizes([(3, 0)], [5])


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


@pytest.mark.parametrize("function", [output_size, transposed_output_size, remainder])
@pytest.mark.parametrize("numbers", [(0, 1, 0), (3, 0, 0), (3, 1, -1)])
def test_numbers_out_of_range_are_refused(function, numbers):
    with pytest.raises(UserError, match="is no window"):
        function(5, *numbers)


@given(size=st.integers(1, 40), kernel=st.integers(1, 9), dilation=st.integers(1, 3))
def test_same_padding_keeps_the_size_and_odd_kernels_symmetric(size, kernel, dilation):
    before, after = same_padding(kernel, dilation)
    assert output_size(size, kernel, 1, (before, after), dilation) == size
    for stride in range(2, 6):
        assert output_size(size, kernel, stride, (before, after), dilation) == math.ceil(size / stride)
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
