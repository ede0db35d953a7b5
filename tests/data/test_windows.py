"""Random windows that the host cuts: their sizes, their places, and what they depend on."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from cnn_research.data.windows import DRAWS, RandomWindows

AREA = RandomWindows(seed=3, area=(0.08, 1.0))


def draw(windows, size, result, count=4000):
    """Many windows, [count, 4]: top, left, height, width."""
    return np.array([windows(size, result, row) for row in windows.draws(0, count).tolist()])


def test_draws_are_those_of_seed_step_and_position():
    draws = AREA.draws(5, 16)
    assert draws.shape == (16, DRAWS)
    np.testing.assert_array_equal(AREA.draws(5, 64)[:16], draws)  # whatever the size of the global batch
    for other in (AREA.draws(6, 16), RandomWindows(seed=4).draws(5, 16)):
        assert not np.isin(other, draws).any()
    assert len(np.unique(draws)) == draws.size


def test_a_run_goes_on_with_the_same_windows_in_every_version():
    windows = [AREA((375, 500), (224, 224), draws) for draws in AREA.draws(7, 3).tolist()]
    assert windows == [(135, 87, 201, 173), (1, 100, 369, 365), (3, 27, 363, 467)]


def test_draws_are_uniform_and_not_those_of_the_order():
    draws = AREA.draws(0, 2000)
    assert scipy.stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    ordering = np.random.Philox(key=[3, 0]).random_raw(100_000) >> np.uint64(11)
    assert not np.isin((draws * 2**53).astype(np.uint64), ordering).any()


def test_areas_and_aspect_ratios_are_those_that_are_asked_for():
    windows = RandomWindows(seed=1, area=(0.1, 0.4), aspect_ratio=(0.5, 2.0))  # so small that the first draw fits
    _, _, height, width = draw(windows, (1000, 1000), (8, 8)).T
    area, aspect = height * width / 1e6, np.log2(width / height)
    assert scipy.stats.kstest(area, scipy.stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    assert scipy.stats.kstest(aspect, scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_every_place_of_a_window_is_alike():
    windows = RandomWindows(seed=1, short_side=(8, 8))
    drawn = draw(windows, (8, 12), (6, 6))
    assert (drawn[:, 2:] == 6).all()
    counts = np.zeros((3, 7))
    np.add.at(counts, tuple(drawn[:, :2].T), 1)
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_areas_are_of_the_whole_photograph_and_not_of_a_square():
    drawn = draw(AREA, (300, 900), (8, 8))
    assert (drawn[:, 1] + drawn[:, 3]).max() > 880
    assert drawn[:, 1].min() == 0


def test_what_never_fits_becomes_the_largest_that_does():
    """A strip 100 times as wide as it is high, of which ten draws between 3/4 and 4/3 rarely fit."""
    windows = RandomWindows(seed=0, area=(0.9, 1.0), aspect_ratio=(3 / 4, 4 / 3))
    drawn = draw(windows, (10, 1000), (8, 8), 50)
    assert (drawn[:, 2:] == (10, 13)).all()
    assert len(np.unique(drawn[:, 1])) > 30


@pytest.mark.parametrize(("size", "short_side"), [((375, 500), (256, 480)), ((500, 375), (256, 256))])
def test_the_shorter_side_is_brought_to_length_before_a_window_is_cut(size, short_side):
    windows = RandomWindows(seed=2, short_side=short_side)
    drawn = draw(windows, size, (224, 224))
    assert (drawn[:, 2] == drawn[:, 3]).all()
    lengths = 224 * 375 / drawn[:, 2]
    low, high = short_side
    assert lengths.min() == pytest.approx(low, rel=0.005)
    assert lengths.max() == pytest.approx(high, rel=0.005)
    if high > low:
        assert scipy.stats.kstest(lengths, scipy.stats.uniform(low, high - low).cdf).statistic < 0.03
    share = drawn[:, int(np.argmax(size))] / (500 - drawn[:, 2])
    assert scipy.stats.kstest(share, "uniform").statistic < 0.03


@settings(deadline=None, max_examples=300)
@given(
    st.tuples(st.integers(1, 700), st.integers(1, 700)),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from([AREA, RandomWindows(seed=0, area=(1e-6, 1e-6)), RandomWindows(seed=0, short_side=(300, 900))]),
    st.integers(0, 99),
)
def test_a_window_lies_in_the_photograph(size, result, windows, position):
    top, left, height, width = windows(size, result, windows.draws(0, 100)[position].tolist())
    assert height >= 1
    assert width >= 1
    assert 0 <= top <= size[0] - height
    assert 0 <= left <= size[1] - width


def test_the_device_draws_windows_of_the_same_sizes():
    """The two write one distribution down twice."""
    import jax

    from cnn_research.data import crops

    image = np.stack(np.meshgrid(np.arange(60.0), np.arange(80.0), indexing="ij"), axis=-1).astype(np.float32)
    crop = jax.vmap(
        lambda key: crops.random_resized_crop(key, jax.numpy.array(image), AREA.area, AREA.aspect_ratio, (60, 80))
    )
    cut = jax.jit(crop, compiler_options={"xla_backend_optimization_level": 0})(
        jax.random.split(jax.random.key(0), 600)
    )
    heights, widths = (np.ptp(cut[..., axis], axis=(1, 2)) + 1 for axis in (0, 1))
    drawn = draw(AREA, (60, 80), (60, 80))
    assert scipy.stats.ks_2samp(heights, drawn[:, 2]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(widths, drawn[:, 3]).pvalue > 1e-3
