import numpy as np
import pytest
import scipy.ndimage
from sklearn.metrics.cluster import pair_confusion_matrix

from cnn_research.metrics.membranes import best_rand_f_score, cells, rand_f_score, warp, warping_error


def picture(*rows):
    """Dots are interior, hashes membrane."""
    return np.array([[character == "." for character in row] for row in rows])


TWO = picture("...#...", "...#...", "...#...", "...#...")
GAP = picture("...#...", "...#...", ".......", "...#...")
BENT = picture("..#....", "..#....", "...#...", "...#...")
WIDE = picture("..###..", "..###..", "..###..", "..###..")


def test_cells_meet_at_edges_and_not_at_corners():
    assert cells(picture(".#", "#.")).tolist() == [[1, 0], [0, 2]]
    assert cells(GAP).max() == 1


def test_thin_membranes_part_the_same_cells():
    assert cells(WIDE).max() == cells(WIDE, thin=True).max() == 2
    assert (cells(WIDE, thin=True) == 0).sum() < (cells(WIDE) == 0).sum()


def test_rand_f_score_agrees_with_scikit_learns_pairs():
    """Where each pixel of a predicted membrane is named a cell of its own."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (2, 9, 8))
    counts = truth > 0
    alone = np.where(predicted == 0, 100 + np.arange(truth.size).reshape(truth.shape), predicted)
    pairs = pair_confusion_matrix(truth[counts], alone[counts])  # of different pixels, in both orders
    number = counts.sum()
    together = pairs[1, 1] + number
    expected = 2 * together / (pairs[1].sum() + pairs[:, 1].sum() + 2 * number)
    assert rand_f_score(truth, predicted) == pytest.approx(expected)


def test_rand_f_score_in_simple_cases():
    truth = cells(TWO)
    assert rand_f_score(truth, truth) == 1
    assert rand_f_score(truth, 7 * truth) == 1
    # All 24 pixels alone.
    assert rand_f_score(truth, 0 * truth) == pytest.approx(2 * 24 / (24 + 288))
    # Both cells of 12 pixels become one: Σ p² = 2 · 12², Σ s² = 24², Σ t² = 2 · 12².
    assert rand_f_score(truth, cells(GAP)) == pytest.approx(2 * 288 / (576 + 288))
    assert np.isnan(rand_f_score(np.zeros((3, 3), int), truth[:3, :3]))


def test_best_threshold_is_found():
    probabilities = np.where(TWO, 0.9, 0.25)
    probabilities[2, 3] = 0.45  # a weak place of the membrane
    score, threshold = best_rand_f_score([TWO], [probabilities], thresholds=(0.3, 0.6, 0.95))
    assert (score, threshold) == (1, 0.6)
    with pytest.raises(ValueError, match="shorter"):
        best_rand_f_score([TWO, GAP], [probabilities])


def test_warping_forgives_bending_and_counts_gaps():
    assert warping_error(TWO, BENT) == 0
    assert warping_error(TWO, WIDE) == 0
    assert warping_error(TWO, GAP) == 1 / 28
    assert warping_error(TWO, picture(*["......."] * 4)) > 0
    speck = TWO.copy()
    speck[1, 1] = False
    assert warping_error(TWO, speck) == 1 / 28


def topology(interior):
    """The numbers of cells and of membranes, with membrane around the image."""
    membranes = np.pad(~interior, 1, constant_values=True)
    return scipy.ndimage.label(interior)[1], scipy.ndimage.label(membranes, np.ones((3, 3)))[1]


def test_warping_keeps_the_topology_and_ends_where_no_flip_does():
    rng = np.random.default_rng(1)
    moved = 0
    for share in np.linspace(0.2, 0.8, 30):
        truth, predicted = rng.random((2, 6, 7)) < share
        warped = warp(truth, predicted)
        moved += (warped != truth).sum()
        assert topology(warped) == topology(truth)
        assert ((warped == truth) | (warped == predicted)).all()
        for place in map(tuple, np.argwhere(warped != predicted)):
            flipped = warped.copy()
            flipped[place] ^= True
            assert topology(flipped) != topology(truth)
    assert moved > 100
