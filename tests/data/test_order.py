"""Orders: every example as often as it should be, whatever the batch size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_research.data.order import Sequential, Shuffled, permutation

SIZES = {"num_examples": st.integers(1, 60), "batch_size": st.integers(1, 90)}


def test_permutation_is_the_one_that_runs_were_trained_with():
    assert permutation(10, 0, 0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert permutation(10, 0, 1).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]
    assert permutation(10, 1, 0).tolist() == [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(0, 1000))
def test_permutation_holds_every_example_once(num_examples, seed, epoch):
    assert sorted(permutation(num_examples, seed, epoch)) == list(range(num_examples))


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_each_place_is_as_likely_for_each_example():
    places = np.array([np.argsort(permutation(4, 0, epoch)) for epoch in range(4000)])
    for example in range(4):
        counts = np.bincount(places[:, example], minlength=4)
        # The standard deviation of a count is 27.
        np.testing.assert_allclose(counts, 1000, atol=130)


@given(**SIZES, seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_shuffled_is_the_epochs_one_after_another(num_examples, batch_size, seed, epochs):
    order = Shuffled(num_examples, batch_size, seed)
    steps = -(-epochs * num_examples // batch_size)
    batches = [order(step) for step in range(steps)]
    assert all(mask.all() and len(indices) == len(mask) == batch_size for indices, mask in batches)
    seen = np.concatenate([indices for indices, _ in batches])
    expected = np.concatenate([permutation(num_examples, seed, epoch) for epoch in range(epochs)])
    np.testing.assert_array_equal(seen[: epochs * num_examples], expected)


def test_shuffled_needs_no_earlier_step():
    order = Shuffled(10, 4, 0)
    before = order(7)[0]
    permutation.cache_clear()
    np.testing.assert_array_equal(Shuffled(10, 4, 0)(7)[0], before)


@given(**SIZES)
def test_sequential_is_every_example_once_as_stored(num_examples, batch_size):
    order = Sequential(num_examples, batch_size)
    batches = [order(step) for step in range(len(order))]
    assert np.concatenate([indices[mask] for indices, mask in batches]).tolist() == list(range(num_examples))
    assert all(mask.all() for _, mask in batches[:-1])
    assert batches[-1][1].any()


def test_sequential_pads_with_the_first_example():
    indices, mask = Sequential(5, 4)(1)
    assert indices.tolist() == [4, 0, 0, 0]
    assert mask.tolist() == [True, False, False, False]


@pytest.mark.parametrize("order", [Shuffled(10, 4, 0), Sequential(10, 4)])
def test_a_batch_is_indices_and_a_mask(order):
    indices, mask = order(1)
    assert indices.dtype == np.int64
    assert mask.dtype == bool
