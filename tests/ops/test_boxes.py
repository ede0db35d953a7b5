"""Boxes against sets of pixels, loops and torchvision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.ops import boxes
from cnn_research.ops.boxes import BLOCK

# Outside of a program every operation of theirs would be compiled on its own.
encode, decode = (jax.jit(function, static_argnums=2) for function in (boxes.encode, boxes.decode))
THRESHOLDS = np.array([0, 0.25, 1 / 3, 0.5, 0.7, 0.9, 1], np.float32)


def whole_boxes(rng, count, side=8, smallest=0):
    """Returns boxes whose corners are whole numbers: their areas, and with them IoU, are not rounded."""
    low = rng.integers(0, side - smallest + 1, (count, 2))
    high = low + rng.integers(smallest, side + 1, (count, 2))
    return np.concatenate([low, np.minimum(high, side)], axis=1).astype(np.float32)


def pixels(box):
    ymin, xmin, ymax, xmax = map(int, box)
    return {(y, x) for y in range(ymin, ymax) for x in range(xmin, xmax)}


def test_overlaps_are_those_of_sets_of_pixels():
    a, b = (whole_boxes(np.random.default_rng(seed), count) for seed, count in ((0, 40), (1, 60)))
    iou, giou = jax.jit(lambda a, b: (boxes.iou(a, b), boxes.giou(a, b)))(a, b)
    for i, j in np.ndindex(len(a), len(b)):
        both, either = len(pixels(a[i]) & pixels(b[j])), len(pixels(a[i]) | pixels(b[j]))
        expected = both / either if either else 0
        assert iou[i, j] == pytest.approx(expected)
        around = np.prod(np.maximum(a[i], b[j])[2:] - np.minimum(a[i], b[j])[:2])
        assert giou[i, j] == pytest.approx(expected - ((around - either) / around if around else 0), abs=1e-6)


def test_overlaps_of_pairs_broadcast():
    a, b = (jnp.array(whole_boxes(np.random.default_rng(seed), 6).reshape(2, 3, 4)) for seed in (0, 1))
    for matrix, of_pairs in ((boxes.iou, boxes.iou_of_pairs), (boxes.giou, boxes.giou_of_pairs)):
        pairs, rows, whole = jax.jit(
            lambda a, b, matrix=matrix, of_pairs=of_pairs: (
                of_pairs(a, b),
                of_pairs(a[:, :, None], b[:, None]),
                matrix(a.reshape(6, 4), b.reshape(6, 4)),
            )
        )(a, b)
        np.testing.assert_allclose(pairs.ravel(), np.diag(whole), atol=1e-6)
        np.testing.assert_allclose(rows[1], whole[3:, 3:], atol=1e-6)


def test_giou_draws_boxes_that_are_apart_together_and_is_finite_without_area():
    gradient = jax.jit(jax.value_and_grad(boxes.giou_of_pairs))
    left, right, nothing = jnp.array([0.0, 0, 2, 2]), jnp.array([0.0, 5, 2, 7]), jnp.zeros(4)
    value, slope = gradient(left, right)
    assert value == pytest.approx(8 / 14 - 1)
    assert slope[3] > 0  # its right side is to go right
    value, slope = gradient(nothing, nothing)
    assert value == 0
    assert jnp.isfinite(slope).all()


def test_area_is_never_negative():
    assert boxes.area(jnp.array([[1.0, 1, 3, 5], [3, 1, 1, 5], [2, 2, 2, 5], [5, 5, 1, 1]])).tolist() == [8, 0, 0, 0]


def test_encoding_is_the_papers():
    anchor, box = jnp.array([10.0, 20, 30, 60]), jnp.array([15.0, 20, 25, 100])  # centres (20, 40) and (20, 60)
    expected = [0, 20 / 40, math.log(10 / 20), math.log(80 / 40)]
    np.testing.assert_allclose(encode(box, anchor), expected, rtol=1e-6)
    weights = (10.0, 10.0, 5.0, 5.0)
    np.testing.assert_allclose(encode(box, anchor, weights), np.multiply(expected, weights), rtol=1e-6)


def test_decoding_undoes_encoding():
    rng = np.random.default_rng(0)
    some, anchors = (whole_boxes(rng, 50, side=40, smallest=1).reshape(5, 10, 4) for _ in range(2))
    some[0, 0, 2:] = some[0, 0, :2]  # without area
    for weights in ([], [(10.0, 10.0, 5.0, 5.0)]):
        there = encode(some, anchors, *weights)
        assert jnp.isfinite(there).all()
        np.testing.assert_allclose(decode(there, anchors, *weights), some, atol=1e-4)


def test_decoding_limits_growth():
    anchor = jnp.array([0.0, 0, 16, 16])
    grown = decode(jnp.array([0, 0, 1e4, math.log(3)]), anchor, (1.0, 1.0, 1.0, 1.0))
    np.testing.assert_allclose(grown[2:] - grown[:2], [1000, 48], rtol=1e-5)
    grown = boxes.decode(jnp.array([0, 0, 1e4, 5e4]), anchor, (1.0, 1.0, 5.0, 5.0), largest_growth=4.0)
    np.testing.assert_allclose(grown, [-24, -24, 40, 40], rtol=1e-5)


def test_clip():
    outside = jnp.array([[-3.0, 2, 5, 30], [12, -9, 20, -1], [1, 2, 3, 4]])
    assert boxes.clip(outside, 10, 20.0).tolist() == [[0, 2, 5, 20], [10, 0, 10, 0], [1, 2, 3, 4]]


def greedy(some, scores, threshold, most, classes, valid):
    """Returns the indices that non-maximum suppression chooses, one box after the other."""
    height, width = (np.maximum(some[:, 2 + axis] - some[:, axis], 0) for axis in (0, 1))
    waiting = sorted(np.flatnonzero(valid).tolist(), key=lambda i: (-scores[i], i))
    chosen = []
    while waiting and len(chosen) < most:
        best, *rest = waiting
        chosen.append(best)
        low, high = np.maximum(some[best, :2], some[rest, :2]), np.minimum(some[best, 2:], some[rest, 2:])
        both = np.prod(np.maximum(high - low, 0), axis=1)
        union = height[best] * width[best] + height[rest] * width[rest] - both
        goes = (both / np.where(union > 0, union, 1) > threshold) & (classes[rest] == classes[best])
        waiting = [i for i, out in zip(rest, goes, strict=True) if not out]
    return chosen


def nms_cases(count):
    """Boxes at random, crowded ones, all the same ones, and a chain in which each overlaps those beside it."""
    rng = np.random.default_rng(0)
    places = np.arange(count, dtype=np.float32)
    chain = np.stack([0 * places, places, 0 * places + 1, places + 3], axis=1)
    some = [whole_boxes(rng, count, 60, 1), whole_boxes(rng, count, 12), np.tile([[1, 2, 5, 7]], (count, 1)), chain]
    # Few different scores: most are ties.
    scores = [rng.random(count), rng.integers(0, 9, count), np.ones(count), -places]
    return np.stack(some).astype(np.float32), np.stack(scores).astype(np.float32)


@pytest.mark.parametrize(("count", "most"), [(2 * BLOCK + 44, 2 * BLOCK + 44), (2 * BLOCK + 44, 20), (9, 30)])
def test_nms_is_greedy_at_every_threshold(count, most):
    some, scores = nms_cases(count)
    rng = np.random.default_rng(1)
    scores[0, rng.integers(count, size=5)] = np.nan
    classes, valid = rng.integers(0, 3, (4, count)), rng.random((4, count)) < 0.8
    plain = [np.zeros((4, count), int), np.ones((4, count), bool)]

    @jax.jit
    def every(*case):
        of_thresholds = jax.vmap(boxes.nms, (None, None, 0, None, None, None))
        return jax.vmap(lambda b, s, c, v: of_thresholds(b, s, THRESHOLDS, most, c, v))(*case)

    for classes, valid in (plain, [classes, valid]):  # noqa: B020
        indices, chosen = every(some, scores, classes, valid)
        for case, place in np.ndindex(indices.shape[:2]):
            there = valid[case] & ~np.isnan(scores[case])
            expected = greedy(some[case], scores[case], THRESHOLDS[place], most, classes[case], there)
            assert indices[case, place].tolist() == expected + [0] * (most - len(expected))
            assert chosen[case, place].tolist() == [True] * len(expected) + [False] * (most - len(expected))


def test_nms_by_default_takes_every_box_and_no_class():
    some, scores = (x[0] for x in nms_cases(30))
    indices, chosen = boxes.nms(jnp.array(some), jnp.array(scores), 0.3, 30)
    expected = greedy(some, scores, 0.3, 30, np.zeros(30), np.ones(30, bool))
    assert indices[chosen].tolist() == expected


def test_nms_wants_an_output():
    with pytest.raises(UserError, match="1 or more"):
        boxes.nms(jnp.zeros((2, 4)), jnp.zeros(2), 0.5, 0)


@pytest.mark.slow
def test_overlaps_encoding_and_nms_are_torchvisions(torchvision):
    import torch
    from torchvision.models.detection._utils import BoxCoder

    rng = np.random.default_rng(0)
    a, b = (whole_boxes(rng, 50, 30, 1) for _ in range(2))
    theirs_a, theirs_b = (torch.tensor(x[:, [1, 0, 3, 2]]) for x in (a, b))
    for ours, theirs in ((boxes.iou, torchvision.ops.box_iou), (boxes.giou, torchvision.ops.generalized_box_iou)):
        np.testing.assert_allclose(jax.jit(ours)(a, b), theirs(theirs_a, theirs_b), atol=1e-6)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    offsets = encode(a, b, (10.0, 10.0, 5.0, 5.0))
    np.testing.assert_allclose(offsets, coder.encode_single(theirs_a, theirs_b)[:, [1, 0, 3, 2]], atol=1e-5)
    large = 10 * rng.normal(size=(50, 4)).astype(np.float32)
    decoded = coder.decode_single(torch.tensor(large[:, [1, 0, 3, 2]]), theirs_b)[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(decode(large, b, (10.0, 10.0, 5.0, 5.0)), decoded, rtol=1e-5, atol=1e-3)
    if torchvision.extension._has_ops():
        scores = rng.permutation(50).astype(np.float32)
        indices, chosen = boxes.nms(jnp.array(a), jnp.array(scores), 0.4, 50)
        assert indices[chosen].tolist() == torchvision.ops.nms(theirs_a, torch.tensor(scores), 0.4).tolist()
