"""Weights against a linear program, conformal coverage against its theorem."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog

from isoloss.comparing.aggregate import Conformal, conformal, mixed, simplex_weights, widened
from isoloss.comparing.scores import pinball

LEVELS = np.linspace(0.05, 0.95, 19)


def models(count: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of normal forecasters, each with errors and a width of its own, and what happened."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    centre = (
        y + rng.normal(size=(count, n)) * rng.uniform(0.3, 1, (count, 1)) + 0.3 * rng.normal(size=(count, 1))
    )
    width = rng.uniform(0.3, 1, (count, 1, 1))
    return centre[:, None, :] + width * stats.norm.ppf(LEVELS)[None, :, None], y


def loss(weights: np.ndarray, quantiles: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(pinball(np.tensordot(weights, quantiles, axes=1), LEVELS, y)))


@pytest.mark.parametrize(("count", "n", "seed"), [(2, 10, 1), (3, 16, 2), (5, 40, 3), (6, 60, 4)])
def test_without_the_pull_the_weights_solve_the_linear_program(count, n, seed):
    quantiles, y = models(count, n, seed)
    size = quantiles[0].size
    costs = np.concatenate([np.zeros(count), np.repeat(LEVELS, n), np.repeat(1 - LEVELS, n)]) / size
    rows = np.hstack([quantiles.reshape(count, -1).T, np.eye(size), -np.eye(size)])
    one = np.concatenate([np.ones(count), np.zeros(2 * size)])
    exact = linprog(costs, A_eq=np.vstack([rows, one]), b_eq=np.append(np.tile(y, len(LEVELS)), 1.0))
    weights = simplex_weights(quantiles, LEVELS, y, pull=0.0)
    assert loss(weights, quantiles, y) == pytest.approx(exact.fun, rel=1e-7)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_weights_lie_on_the_simplex_and_do_not_see_the_unit(scale):
    quantiles, y = models(4, 20, 7)
    weights = simplex_weights(quantiles * scale, LEVELS, y * scale)
    assert weights == pytest.approx(simplex_weights(quantiles, LEVELS, y), abs=1e-4)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)


def test_the_pull_draws_towards_equal_and_fades_with_points():
    quantiles, y = models(3, 12, 5)
    distance = [np.abs(simplex_weights(quantiles, LEVELS, y, pull) - 1 / 3).sum() for pull in (0.0, 1.0, 1e4)]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 1e-2
    many = np.tile(quantiles, (1, 1, 400)), np.tile(y, 400)
    free, pulled = (simplex_weights(many[0], LEVELS, many[1], pull) for pull in (0.0, 1.0))
    assert np.abs(free - pulled).max() < 0.05


def test_one_perfect_model_gets_all_the_weight():
    quantiles, y = models(3, 15, 6)
    quantiles[1] = y
    assert simplex_weights(quantiles, LEVELS, y)[1] > 0.999


@given(st.integers(0, 10_000))
def test_mixtures_never_cross(seed):
    quantiles, y = models(3, 8, seed)
    quantiles = np.random.default_rng(seed).permuted(quantiles, axis=1)
    assert (np.diff(mixed(quantiles, simplex_weights(quantiles, LEVELS, y)), axis=0) >= 0).all()


def test_conformal_coverage_is_that_of_the_theorem():
    # 1 - a to 1 - a + 1/(n+1), here exactly ceil((n+1)(1-a))/(n+1), for exchangeable continuous scores
    rng = np.random.default_rng(2)
    for n, coverage in ((9, 0.9), (20, 0.9), (33, 0.8)):
        hits, times = 0, 4000
        for _ in range(times):
            width = rng.uniform(0.5, 2, n + 1)  # too narrow: the shift must widen
            y = width * rng.standard_t(3, n + 1)
            low, high = -0.5 * width, 0.5 * width
            shift = conformal(low[:n], high[:n], y[:n], coverage).shift
            hits += low[n] - shift * 2 * high[n] <= y[n] <= high[n] + shift * 2 * high[n]
        truth = np.ceil((n + 1) * coverage - 1e-9) / (n + 1)
        assert coverage - 1e-9 <= truth <= coverage + 1 / (n + 1)
        assert abs(hits / times - truth) < 4 * np.sqrt(truth * (1 - truth) / times)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19)])
def test_too_few_runs_make_no_correction_and_say_so(coverage, needed):
    few = conformal(np.zeros(needed - 1), np.ones(needed - 1), np.zeros(needed - 1), coverage)
    assert few.shift is None
    assert f"needs {needed} for {100 * coverage:g} %" in few.text
    assert conformal(np.zeros(needed), np.ones(needed), np.zeros(needed), coverage).shift is not None


def test_widening_moves_both_ends_by_the_shift_and_never_narrows():
    draws = np.random.default_rng(0).gamma(2.0, size=(5000, 3))
    ends = [np.quantile(draws, q, axis=0) for q in (0.05, 0.95)]
    wide = widened(draws, Conformal(0.3, 0.9, 20, 9, ""))
    width = ends[1] - ends[0]
    assert np.quantile(wide, 0.05, axis=0) == pytest.approx(ends[0] - 0.3 * width, abs=1e-3)
    assert np.quantile(wide, 0.95, axis=0) == pytest.approx(ends[1] + 0.3 * width, abs=1e-3)
    assert np.median(wide, axis=0) == pytest.approx(np.median(draws, axis=0), abs=1e-3)
    for shift in (None, -0.2, 0.0):
        assert (widened(draws, Conformal(shift, 0.9, 20, 9, "")) == draws).all()


def test_bad_input_is_named():
    quantiles, y = models(2, 5, 0)
    with pytest.raises(ValueError, match="needed quantiles"):
        simplex_weights(quantiles[:, :, :4], LEVELS, y)
    with pytest.raises(ValueError, match="finite"):
        simplex_weights(quantiles * np.nan, LEVELS, y)
    with pytest.raises(ValueError, match="coverage"):
        conformal([0.0], [1.0], [0.5], 1.0)


def test_without_evidence_the_weights_are_the_prior_ones_and_with_it_they_are_not():
    y = np.linspace(1, 2, 40)
    same = np.stack([y - 0.1, y + 0.1])
    prior = [0.7, 0.2, 0.1]
    got = simplex_weights([same, same, same], [0.25, 0.75], y, prior=prior)
    assert got == pytest.approx(prior, abs=1e-4)
    perfect = np.stack([y - 1e-4, y + 1e-4])
    got = simplex_weights([same, same, perfect], [0.25, 0.75], y, prior=prior)
    assert got[2] > 0.999
    with pytest.raises(ValueError, match="prior weights above 0"):
        simplex_weights([same, same], [0.25, 0.75], y, prior=[1.0, 0.0])
