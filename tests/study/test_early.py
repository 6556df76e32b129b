"""Early stops: the outlook is a t interval, and hopeless means worse than another at the same point."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from isoloss.study import early
from isoloss.study.records import LEVELS

ABOUT = {"at": {"params": 1.0}, "study": "s", "target": "loss", "unit": "", "coverage": 0.9}


def test_the_outlook_is_the_predictive_t_interval():
    rng = np.random.default_rng(0)
    watched = rng.uniform(2, 4, 9)
    ends = watched * np.exp(-0.4 + 0.05 * rng.standard_normal(9))
    found = early.outlook("k", 3.0, list(zip(watched, ends, strict=True)), **ABOUT)
    deltas = np.log(ends / watched)
    spread = deltas.std(ddof=1) * math.sqrt(1 + 1 / 9)
    wanted = 3.0 * np.exp(deltas.mean() + spread * stats.t.ppf(LEVELS, 8))
    np.testing.assert_allclose(found.quantiles, wanted, rtol=1e-6)
    ends_ = 3.0 * np.exp(deltas.mean() + spread * stats.t.ppf([0.05, 0.95], 8))
    np.testing.assert_allclose([found.low, found.high], ends_, rtol=1e-6)


def test_it_covers_what_it_promises():
    rng = np.random.default_rng(1)
    inside, sims = 0, 600
    for _ in range(sims):
        deltas = -0.5 + 0.1 * rng.standard_normal(7)
        found = early.outlook("k", 2.0, [(1.0, math.exp(d)) for d in deltas[:6]], **ABOUT)
        inside += found.low <= 2.0 * math.exp(deltas[6]) <= found.high
    assert abs(inside / sims - 0.9) < 4 * math.sqrt(0.09 / sims)


def test_runs_are_hopeless_only_against_their_own_point():
    def look(key, place, low, high):
        return {"key": key, "at": {"params": place}, "low": low, "high": high}

    looks = [look("a", 1, 1.0, 1.2), look("b", 1, 1.1, 1.5), look("c", 1, 1.21, 1.3), look("d", 2, 5.0, 6.0)]
    assert early.hopeless(looks) == ("c",)
    assert early.hopeless(looks[::-1]) == ("c",)


def test_too_little_history_and_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="needed 3 finished runs"):
        early.outlook("k", 1.0, [(1.0, 1.0)] * 2, **ABOUT)
    with pytest.raises(ValueError, match="positive"):
        early.outlook("k", 1.0, [(1.0, -1.0)] * 3, **ABOUT)
