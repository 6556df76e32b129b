"""The scatter of the runs against their predicted target."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

import isoloss
from isoloss.fitting.noise import trend


def planted(slope, n=400, seed=0, outliers=0):
    rng = np.random.default_rng(seed)
    f = np.exp(rng.uniform(0, 1.5, n))
    r = 0.01 * f**slope * rng.normal(size=n)
    r[:outliers] += 0.5
    return r, f, np.ones(n)


@pytest.mark.parametrize("slope", [-2.0, 0.8, 3.0])
def test_a_planted_trend_comes_back(slope):
    found = trend(*planted(slope))
    assert found.slope == pytest.approx(slope, abs=4 * np.sqrt((np.pi / 2 - 1) / (400 * 1.5**2 / 12)))


def test_it_is_the_minimum_of_the_exponential_likelihood():
    r, f, w = planted(1.0)
    t = np.log(f) - np.mean(np.log(f))
    flat = np.abs(r) * np.exp(-trend(r, f, w).slope * t)
    cut = np.minimum(flat, 3 * np.median(flat)) * np.exp(trend(r, f, w).slope * t)
    best = optimize.minimize_scalar(
        lambda b: np.log(np.sum(cut * np.exp(-b * t))), bounds=(-5, 5), method="bounded"
    )
    assert trend(r, f, w).slope == pytest.approx(best.x, abs=1e-4)


def test_outliers_make_no_trend():
    r, f, w = planted(0.0, outliers=20)
    assert trend(r, f, w).slope == 0.0


def test_equal_scatter_shows_a_trend_about_as_often_as_it_should():
    """2.5 standard errors: 1.2 % of the tables."""
    shown = sum(trend(*planted(0.0, n=120, seed=seed)).slope != 0 for seed in range(400))
    assert shown <= 13  # of Binomial(400, 0.0124) beyond with chance 1e-3


def test_few_rows_have_no_trend():
    assert trend(*planted(3.0, n=40)).slope == 0.0


def test_a_new_run_scatters_as_its_neighbours_do():
    """Noise of 4 % at high loss and 1 % at low: the interval of a dear run is that of 1 %."""
    rng = np.random.default_rng(1)
    tokens = np.geomspace(1e6, 1e10, 400)
    level = 40 * tokens**-0.2
    sd = 0.01 * (level / level[-1]) ** (np.log(4) / np.log(level[0] / level[-1]))
    table = {"tokens": tokens, "loss": level * np.exp(sd * rng.normal(size=400))}
    found = isoloss.fit("power", table, draws=200, sensitivity=False, objective=isoloss.StudentT())
    for at, wanted in ((1e6, 0.04), (1e10, 0.01)):
        run = np.log(found.predict(of="run", tokens=at, coverage=0.9).draws[:, 0])
        assert np.std(run) == pytest.approx(wanted, rel=0.25)
    beyond = np.log(found.predict(of="run", tokens=1e12).draws[:, 0])
    pooled = np.sqrt(np.mean(sd**2))
    assert np.std(beyond) == pytest.approx(pooled, rel=0.25)  # outside the rows never less than theirs
