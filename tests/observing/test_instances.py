"""The task law per instance: against direct integration, planted tasks, and its limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from isoloss.errors import NoAnswer
from isoloss.observing import Population, fit_instances, linearity
from isoloss.observing.instances import _posterior

SIZES = np.geomspace(3e7, 2.4e9, 6)
MIDDLE = float(np.exp(np.log(SIZES).mean()))
X = np.log(SIZES / MIDDLE)


def planted(seed: int, count: int = 60, samples: int = 200, bend: float = 0.0):
    """Counts of passes, and the mean rate at ten billion under the law."""
    rng = np.random.default_rng(seed)
    a, alpha = rng.normal(1.2, 1.0, (count, 1)), rng.normal(0.35, 0.08, (count, 1))
    rates = np.exp(-np.exp(a - alpha * X + bend * X**2))
    ahead = math.log(1e10 / MIDDLE)
    return rng.binomial(samples, rates), float(np.exp(-np.exp(a - alpha * ahead)).mean())


def marginal(population: Population, r, k) -> float:
    """Log likelihood of all instances by a fine grid over (a, alpha): slow and obvious."""
    a = np.linspace(-5, 8, 105)[:, None]
    alpha = np.linspace(-0.3, 1.0, 131)[None]
    prior = stats.multivariate_normal(population.mean, population.cov).pdf(
        np.stack(np.broadcast_arrays(a, alpha), -1)
    )
    p = np.exp(-np.exp(np.clip(a[..., None] - alpha[..., None] * X, -700, 40)))
    total = 0.0
    for row in r:
        logs = stats.binom.logpmf(row, k, np.clip(p, 1e-300, 1 - 1e-16)).sum(axis=-1)
        total += math.log(np.sum(np.exp(logs) * prior))
    return total


def test_the_population_is_at_the_maximum_of_the_marginal_likelihood():
    r, _ = planted(3, count=20, samples=100)
    found = fit_instances(SIZES, r, 100, resamples=1).population
    best = marginal(found, r, 100)
    sd = np.sqrt(np.diag(found.cov))
    for i in range(2):
        for sign in (-1, 1):
            moved = found.mean.copy()
            moved[i] += sign * 0.3 * sd[i]
            assert marginal(Population(moved, found.cov), r, 100) < best
            scale = np.ones(2)
            scale[i] = 1.35**sign
            assert marginal(Population(found.mean, found.cov * np.outer(scale, scale)), r, 100) < best


def test_posterior_means_are_those_of_a_grid():
    population = Population(np.array([1.0, 0.4]), np.array([[1.0, 0.05], [0.05, 0.02]]))
    r = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 5, 9, 30], [50, 50, 50, 50, 50, 50]])
    found = _posterior(population, X, r.astype(float), 50.0 - r)
    got = np.einsum("ig,igd->id", found.weights, found.nodes)
    a, alpha = np.meshgrid(np.linspace(-6, 8, 561), np.linspace(-0.6, 1.4, 401), indexing="ij")
    prior = stats.multivariate_normal(population.mean, population.cov).logpdf(np.stack([a, alpha], -1))
    p = np.exp(-np.exp(a[..., None] - alpha[..., None] * X))
    for i, row in enumerate(r):
        logs = prior + stats.binom.logpmf(row, 50, np.clip(p, 1e-300, 1 - 1e-16)).sum(axis=-1)
        w = np.exp(logs - logs.max())
        want = [np.sum(w * a) / w.sum(), np.sum(w * alpha) / w.sum()]
        np.testing.assert_allclose(got[i], want, atol=0.02)


def test_a_well_measured_instance_is_fitted_as_by_itself():
    # so many samples that the population cannot matter: scipy's plain maximum likelihood
    c, alpha, k = 700.0, 0.37, 10_000_000
    r = np.round(np.exp(-c * SIZES[None] ** -alpha) * k)
    fit = fit_instances(SIZES, np.round(np.vstack([r, r * 0.9, r * 0.8])), k, resamples=1)

    def minus(theta):
        p = np.exp(-np.exp(theta[0] - theta[1] * np.log(SIZES)))
        return -np.sum(r * np.log(p) + (k - r) * np.log1p(-p)) / k

    want = optimize.minimize(
        minus, [math.log(c), alpha], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-14}
    )
    assert fit.log_c[0] == pytest.approx(want.x[0], abs=2e-3)
    assert fit.alpha[0] == pytest.approx(want.x[1], abs=2e-4)


def test_planted_tasks_are_predicted_within_their_intervals():
    inside, errors = 0, []
    for seed in range(6):
        r, truth = planted(seed, count=40)
        found = fit_instances(SIZES, r, 200, resamples=12, seed=seed).predict(1e10)
        inside += found.low <= truth <= found.high
        errors.append(found.value - truth)
    assert inside >= 3  # of 6 at 90 %: fewer has probability 0.001
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(6)
    assert np.std(errors) < 0.02


def test_instances_that_never_pass_count_as_such():
    r, truth = planted(2, samples=30)
    fit = fit_instances(SIZES, r, 30, resamples=5)
    never = r.sum(axis=1) == 0
    assert fit.unsolved == never.sum() > 3
    dropped = fit_instances(SIZES, r[~never], 30, resamples=5)
    kept = fit.predict(1e10).value
    assert abs(kept - truth) < abs(dropped.predict(1e10).value - truth)
    assert fit.log_c[never].min() > np.median(fit.log_c)


def test_cells_that_were_not_measured_say_nothing():
    r, _ = planted(1, count=20)
    k = np.full(r.shape, 200)
    k[:, 5] = 0
    r[:, 5] = 0
    with_hole = fit_instances(SIZES, r, k, resamples=2)
    without = fit_instances(SIZES[:5], r[:, :5], 200, resamples=2)
    assert with_hole.predict(1e10).value == pytest.approx(without.predict(1e10).value, abs=0.003)


def test_the_same_seed_gives_the_same_interval():
    r, _ = planted(0, count=10)
    first, second = (
        fit_instances(SIZES, r, 200, resamples=5, seed=4).predict(1e10, seed=2) for _ in range(2)
    )
    assert first == second
    assert first != fit_instances(SIZES, r, 200, resamples=5, seed=5).predict(1e10, seed=2)


@pytest.mark.parametrize(("bend", "verdict"), [(-0.05, "accelerated"), (0.05, "slowed")])
def test_a_planted_bend_is_found(bend, verdict):
    r, _ = planted(0, count=40, bend=bend)
    found = linearity(SIZES, r, 200, resamples=20)
    assert found.verdict == verdict
    assert found.growth.value == pytest.approx(-2 * bend * np.ptp(X), abs=0.12)


def test_a_straight_task_is_rarely_called_bent():
    wrong = 0
    for seed in range(5):
        r, _ = planted(seed, count=25)
        wrong += linearity(SIZES, r, 200, resamples=12, seed=seed).verdict != "no bend seen"
    assert wrong <= 3  # 4 of 5 at 10 % each: probability 0.0005; 12 resamples make it rather more


def test_bad_counts_and_questions_without_answer():
    r, _ = planted(0, count=6)
    with pytest.raises(ValueError, match="shape"):
        fit_instances(SIZES[:3], r, 200)
    with pytest.raises(ValueError, match="0 <= passes"):
        fit_instances(SIZES, r, 10)
    with pytest.raises(ValueError, match="counts, not rates"):
        fit_instances(SIZES, r / 200, 1)
    with pytest.raises(ValueError, match="two different sizes"):
        fit_instances(np.full(6, 1e8), r, 200)
    with pytest.raises(NoAnswer, match="no model passed"):
        fit_instances(SIZES, np.zeros((3, 6)), 10)
    with pytest.raises(NoAnswer, match="every sample passed"):
        fit_instances(SIZES, np.full((3, 6), 10), 10)
    with pytest.raises(NoAnswer, match="two sizes"):
        linearity(SIZES[:2], r[:, :2], 200)
    with pytest.raises(NoAnswer, match="bootstrap"):
        linearity(SIZES, r[:4], 200)
    with pytest.raises(ValueError, match="positive size"):
        fit_instances(SIZES, r, 200, resamples=1).predict(-1)
    with pytest.raises(NoAnswer, match="no resamples"):
        fit_instances(SIZES, r, 200, resamples=1).predict(1e10)
    with pytest.raises(
        NoAnswer, match="5 instances"
    ):  # drawing four anew shows little of where they come from
        fit_instances(SIZES, r[:4], 200, resamples=2).predict(1e10)
    with pytest.raises(ValueError, match="two resamples"):
        linearity(SIZES, r, 200, resamples=0)
