"""Matching against loops; samples against what they must hold, and against chance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.ops.matching import Matches, match, sample

RPN = (0.7, (0.0, 0.3), True)
FAST_RCNN = (0.5, (0.1, 0.5), False)


def expected_matches(overlaps, valid, foreground, background, best_of_each):
    truths, kinds = [], []
    columns = [column for column in range(len(valid)) if valid[column]]
    for row in overlaps:
        best = max(columns, key=lambda column: (row[column], -column), default=None)
        largest = 0 if best is None else row[best]
        truths.append(best if largest else 0)
        first = [row[column] == overlaps[:, column].max() > 0 for column in columns]
        positive = largest >= foreground or (best_of_each and any(first))
        kinds.append((positive, background[0] <= largest < background[1] and not positive))
    return truths, kinds


@pytest.mark.parametrize("rule", [RPN, FAST_RCNN])
def test_matches_are_those_of_loops(rule):
    rng = np.random.default_rng(0)
    overlaps = (rng.integers(0, 11, (60, 12, 4)) / 10 * rng.random((60, 1, 4)).round(1)).astype(np.float32)
    valid = rng.random((60, 4)) < 0.7
    valid[:5] = False
    ours = jax.jit(jax.vmap(lambda overlaps, valid: match(overlaps, valid, *rule)))(overlaps, valid)
    foreground, background, best_of_each = rule
    rule = np.float32(foreground), np.float32(background), best_of_each
    for image in range(60):
        truths, kinds = expected_matches(overlaps[image], valid[image], *rule)
        assert list(zip(ours.positive[image], ours.negative[image], strict=True)) == kinds
        assert ours.truth[image].tolist() == truths
    assert not (ours.positive & ours.negative).any()
    assert {True, False} == set((ours.positive | ours.negative).ravel().tolist())


def test_without_truth_all_is_background():
    nothing = match(jnp.zeros((3, 0)), jnp.zeros(0, bool), *RPN)
    assert nothing.negative.tolist() == [True] * 3
    assert nothing.truth.tolist() == [0] * 3
    assert not match(jnp.ones((3, 2)), jnp.zeros(2, bool), *RPN).positive.any()


@pytest.mark.parametrize(
    ("positives", "negatives", "count", "fraction"),
    [(10, 30, 16, 0.25), (2, 30, 16, 0.25), (20, 5, 16, 0.5), (0, 0, 8, 0.5), (3, 4, 64, 0.25)],
)
def test_samples_hold_what_they_must(positives, negatives, count, fraction):
    kinds = np.random.default_rng(0).permutation(
        [1] * positives + [-1] * negatives + [0] * (50 - positives - negatives)
    )
    matches = Matches(jnp.zeros(50, jnp.int32), jnp.array(kinds == 1), jnp.array(kinds == -1))
    rngs = jax.random.split(jax.random.key(0), 200)
    every, drawn = jax.jit(jax.vmap(lambda rng: sample(rng, matches, count, fraction)))(rngs)
    wanted = min(positives, round(count * fraction))
    size = min(count, wanted + negatives)
    assert (drawn == (np.arange(count) < size)).all()
    assert (kinds[every[:, :wanted]] == 1).all()
    assert (kinds[every[:, wanted:size]] == -1).all()
    assert not every[:, size:].any()
    assert all(len(set(row[:size])) == size for row in every.tolist())
    times = np.bincount(every[:, :size].ravel(), minlength=50)
    for kind, number in ((1, wanted), (-1, size - wanted)):
        total = (kinds == kind).sum()
        if total:  # each as often as any other, within five standard deviations
            share = number / total
            assert abs(times[kinds == kind] / 200 - share).max() <= 5 * np.sqrt(share * (1 - share) / 200)
