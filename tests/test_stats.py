"""Every statistic has a law (an identity) and a null (what pure noise gives)."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from intaglio.analyse import stats
from intaglio.findings import Interval

_VALUES = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=40).map(np.array)


def test_robust_z_of_normal_noise_is_a_z_score_and_outliers_do_not_hide_themselves():
    noise = np.random.default_rng(0).normal(3.0, 2.0, size=20_000)
    z = stats.robust_z(noise)
    assert np.std(z) == pytest.approx(1.0, abs=0.03)
    assert (z > 4).mean() < 5e-4
    assert stats.robust_z(np.r_[noise[:50], 1e6])[-1] > 1e4


@given(_VALUES, st.floats(0.1, 10), st.floats(-5, 5))
def test_robust_z_does_not_depend_on_unit_or_origin(values, scale, origin):
    z, moved = stats.robust_z(values), stats.robust_z(np.round(values, 3) * scale + origin)
    if np.isfinite(stats.robust_z(np.round(values, 3))).all() and stats.mad(values) > 0.1:
        np.testing.assert_allclose(moved, stats.robust_z(np.round(values, 3)), rtol=1e-5, atol=1e-5)
    assert z.shape == values.shape


def test_robust_z_without_a_scale_is_unknown_not_infinite():
    assert np.isnan(stats.robust_z(np.array([1.0, 1.0, 1.0, 9.0]))).all()
    assert np.isnan(stats.robust_z(np.array([np.nan]))).all()


@given(_VALUES)
def test_ranks_are_scipys(values):
    np.testing.assert_array_equal(stats.ranks(values), scipy.stats.rankdata(values))


def test_spearman_is_scipys_and_zero_for_noise():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 3000))
    assert stats.spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert stats.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert abs(stats.spearman(x, y)) < 0.06
    assert stats.spearman(x[:4], y[:4]) is None
    assert stats.spearman(np.ones(9), y[:9]) is None


def test_residual_has_nothing_of_the_line_left():
    x = np.arange(20.0)
    y = 3 * x + 1 + np.sin(x)
    left = stats.residual(y, x)
    assert left.mean() == pytest.approx(0, abs=1e-12)
    assert np.corrcoef(left, x)[0, 1] == pytest.approx(0, abs=1e-9)
    assert np.isnan(stats.residual(np.r_[y, np.nan], np.r_[x, 1.0]))[-1]


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    counts = stats.resamples(60, seed=0, times=400)
    covered = 0
    for _ in range(200):
        found = stats.mean_interval(rng.normal(1.0, 2.0, size=60), counts)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_ratio_interval_of_constants_has_no_width_and_is_seeded():
    counts = stats.resamples(10, seed=3)
    assert stats.ratio_interval(np.full(10, 2.0), np.full(10, 4.0), counts) == Interval(0.5, 0.5, 0.5)
    x = np.arange(10.0)
    assert stats.mean_interval(x, counts) == stats.mean_interval(x, stats.resamples(10, seed=3))


def test_unknown_units_are_left_out_and_one_unit_has_no_interval():
    counts = stats.resamples(3, seed=0)
    assert stats.mean_interval(np.array([1.0, np.nan, np.nan]), counts) == Interval(1.0)
    assert stats.mean_interval(np.full(3, np.nan), counts) == Interval(None)


def test_resamples_of_many_units_stay_small():
    assert stats.resamples(100_000, seed=0).shape == (100, 100_000)


def test_sampling_half_width_is_nothing_when_all_was_measured_and_honest_when_not():
    rng = np.random.default_rng(4)
    series = rng.normal(5.0, 1.0, size=200)
    assert stats.sampling_half_width(series, 200) == 0.0
    assert np.isnan(stats.sampling_half_width(series[:1], 200))
    inside = 0
    for _ in range(300):
        sample = rng.choice(series, size=40, replace=False)
        inside += abs(sample.mean() * 200 - series.sum()) <= stats.sampling_half_width(sample, 200)
    assert 0.9 <= inside / 300 <= 0.99


def test_widening_adds_in_quadrature_and_keeps_the_value():
    wide = stats.widen(Interval(10.0, 7.0, 13.0, 0.0), 4.0)
    assert (wide.low, wide.value, wide.high, wide.null) == (5.0, 10.0, 15.0, 0.0)
    assert stats.widen(Interval(10.0, 7.0, 13.0), np.nan) == Interval(10.0)


def test_random_signs_are_fair():
    signs = stats.random_signs(50, seed=0)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.05
