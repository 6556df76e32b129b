"""Scores against closed forms, integrals and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from isoloss.comparing.scores import coverage_band, crps, interval_score, log_score, pinball, pit

finite = st.floats(-1e3, 1e3, allow_nan=False)


def test_crps_of_many_normal_draws_is_the_closed_form():
    # Gneiting & Raftery 2007: sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi))
    draws = stats.norm.ppf((np.arange(20000) + 0.5) / 20000)[:, None] * 0.3 + 2.0
    y = np.array([1.0, 1.9, 2.0, 2.3, 4.0])
    z = (y - 2.0) / 0.3
    closed = 0.3 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert crps(np.repeat(draws, 5, axis=1), y) == pytest.approx(closed, abs=2e-4)


@given(arrays(float, 7, elements=finite), finite)
def test_crps_is_its_definition_by_pairs(draws, y):
    slow = np.mean(np.abs(draws - y)) - 0.5 * np.mean(np.abs(draws[:, None] - draws[None, :]))
    assert crps(draws, y) == pytest.approx(slow, abs=1e-9)


def test_crps_is_twice_the_mean_pinball_over_the_levels():
    rng = np.random.default_rng(3)
    draws, y = rng.gamma(2.0, size=(500, 4)), rng.gamma(2.0, size=4)
    levels = (np.arange(20000) + 0.5) / 20000
    quantiles = np.quantile(draws, levels, axis=0, method="inverted_cdf")
    assert 2 * pinball(quantiles, levels, y).mean(axis=0) == pytest.approx(crps(draws, y), rel=1e-3)


def test_log_score_of_many_draws_is_the_density():
    draws = np.random.default_rng(0).normal(3.0, 0.05, size=(40000, 5))
    y = np.array([2.9, 2.96, 3.0, 3.03, 3.1])
    assert log_score(draws, y) == pytest.approx(stats.norm.logpdf(y, 3.0, 0.05), abs=0.06)


def test_log_score_integrates_to_one_and_is_finite_far_out():
    draws = np.random.default_rng(0).normal(size=(200, 1))
    grid = np.linspace(-200, 200, 20001)  # ten to a kernel's width
    density = np.exp(log_score(np.repeat(draws, len(grid), axis=1), grid))
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-4)
    far = log_score(np.repeat(draws, 3, axis=1), np.array([10.0, 1e3, 1e6]))
    assert np.isfinite(far).all()
    assert (np.diff(far) < 0).all()
    assert np.isfinite(log_score(np.full((50, 1), 2.0), np.array([3.0]))).all()


@given(arrays(float, (9, 3), elements=finite), arrays(float, 3, elements=finite))
def test_sorting_crossed_quantiles_never_raises_the_mean_pinball(quantiles, y):
    levels = np.linspace(0.1, 0.9, 9)
    before = pinball(quantiles, levels, y).mean(axis=0)
    after = pinball(np.sort(quantiles, axis=0), levels, y).mean(axis=0)
    assert (after <= before + 1e-9).all()


def test_interval_score_is_pinball_at_its_ends():
    low, high, y = 1.0, 2.0, np.array([0.5, 1.5, 2.7])
    ends = pinball(np.array([[low] * 3, [high] * 3]), [0.1, 0.9], y).sum(axis=0)
    assert interval_score(low, high, y, 0.8) == pytest.approx(2 / 0.2 * ends)


def test_pit_counts_ties_half_and_is_uniform_for_the_truth():
    assert pit(np.array([[1.0], [2.0], [2.0], [5.0]]), [2.0]).tolist() == [0.5]
    rng = np.random.default_rng(1)
    values = pit(rng.normal(size=(2000, 500)), rng.normal(size=500))
    assert stats.kstest(values, "uniform").pvalue > 0.01


@pytest.mark.parametrize("n", [1, 7, 40, 1000])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_clopper_pearson_is_the_beta_quantile(n, confidence):
    tail = (1 - confidence) / 2
    for hits in {0, 1, n // 3, n - 1, n}:
        low, high = coverage_band(hits, n, confidence)
        assert low == pytest.approx(stats.beta.ppf(tail, hits, n - hits + 1) if hits else 0.0, abs=1e-12)
        assert high == pytest.approx(
            stats.beta.ppf(1 - tail, hits + 1, n - hits) if hits < n else 1.0, abs=1e-12
        )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="needed draws"):
        crps(np.zeros((4, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="needed draws"):
        pit(np.zeros((0, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="one level"):
        pinball(np.zeros((2, 1)), [0.1, 1.0], np.zeros(1))
    with pytest.raises(ValueError, match="coverage"):
        interval_score(0, 1, 0.5, 1.0)
    with pytest.raises(ValueError, match="coverage_band"):
        coverage_band(3, 2)
