"""Variables chosen, compared and averaged, against sums written out."""

import numpy as np
import pytest

from cnn_research.analysis import weights
from cnn_research.errors import UserError

FIRST = {
    "params": {"conv1": {"kernel": np.full((2, 2), 3.0, np.float32), "bias": np.zeros(4, np.float32)},
               "stage1": {"head": {"kernel": np.ones(2, np.float32)}}},
    "batch_stats": {"conv1": {"mean": np.array([1.0, 2.0], np.float32)}},
}  # fmt: skip
SECOND = {
    "params": {"conv1": {"kernel": np.full((2, 2), 4.0, np.float32), "bias": np.zeros(4, np.float32)},
               "stage1": {"head": {"kernel": np.ones(2, np.float32)}}},
    "batch_stats": {"conv1": {"mean": np.array([3.0, 2.0], np.float32)}},
}  # fmt: skip


def test_distances_by_layer():
    distances = weights.layer_distances(FIRST, SECOND)
    assert [tuple(each) for each in distances] == [
        ("conv1 (batch_stats)", 2.0, pytest.approx(2 / 5**0.5), 2.0),
        ("conv1", 2.0, pytest.approx(2 / 6), 1.0),
        ("stage1/head", 0.0, 0.0, 0.0),
    ]
    with pytest.raises(UserError, match="missing params/conv1/bias"):
        weights.layer_distances(FIRST, {"params": {"conv1": {"kernel": np.ones((2, 2))}}})


def test_the_average_is_the_mean():
    mean = weights.average([FIRST, SECOND, SECOND])
    assert mean["params"]["conv1"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(mean["params"]["conv1"]["kernel"], np.full((2, 2), 11 / 3), rtol=1e-6)
    np.testing.assert_allclose(mean["batch_stats"]["conv1"]["mean"], [7 / 3, 2], rtol=1e-6)
    with pytest.raises(UserError, match="nothing to average"):
        weights.average([])
    with pytest.raises(UserError, match="not the same"):
        weights.average([FIRST, {"params": {}}])


def test_parameters_by_path():
    assert weights.select(FIRST, "params/conv1/kernel").keys() == {"params/conv1/kernel"}
    assert weights.select(FIRST, "kernel$").keys() == {"params/conv1/kernel", "params/stage1/head/kernel"}
    with pytest.raises(UserError, match="no path of a parameter matches 'conv7'"):
        weights.select(FIRST, "conv7")
    with pytest.raises(UserError, match="is no regular expression"):
        weights.select(FIRST, "(")
