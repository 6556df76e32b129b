"""Sampling until enough passes: unbiased by enumeration, intervals exact by enumeration; pass@k by subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from isoloss.observing import at_least_one, pass_at_k, pass_until


def outcomes(p: float, wanted: int, cap: int):
    """Every end of the capped experiment: passes, samples, probability."""
    for k in range(wanted, cap + 1):
        yield wanted, k, stats.binom.pmf(wanted - 1, k - 1, p) * p
    for r in range(wanted):
        yield r, cap, stats.binom.pmf(r, cap, p)


@pytest.mark.parametrize("p", [0.003, 0.05, 0.3, 0.9, 1.0])
@pytest.mark.parametrize(("wanted", "cap"), [(2, 5), (2, 60), (5, 40), (10, 10)])
def test_the_estimate_is_unbiased_at_any_cap(p, wanted, cap):
    ends = list(outcomes(p, wanted, cap))
    assert sum(w for *_, w in ends) == pytest.approx(1, abs=1e-12)
    mean = sum(w * pass_until(r, k, wanted=wanted).unbiased.value for r, k, w in ends)
    assert mean == pytest.approx(p, rel=1e-9)


@pytest.mark.parametrize(("wanted", "bias"), [(2, 1.93), (10, 1.11)])
def test_the_papers_estimate_is_too_high(wanted, bias):
    p = 0.01
    assert pass_until(wanted, 77, wanted=wanted).ml == wanted / 77
    k = np.arange(wanted, 20_000)
    mean = np.sum(stats.nbinom.pmf(k - wanted, wanted, p) * wanted / k)
    assert mean / p == pytest.approx(bias, abs=0.006)


@pytest.mark.parametrize("p", [0.02, 0.1, 0.35, 0.8])
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_the_interval_covers_at_least_as_often_as_it_says_on_each_side(p, coverage):
    below = above = 0.0
    for r, k, w in outcomes(p, 4, 50):
        found = pass_until(r, k, wanted=4, coverage=coverage).unbiased
        below += w * (p < found.low)
        above += w * (p > found.high)
    assert below <= (1 - coverage) / 2 + 1e-12
    assert above <= (1 - coverage) / 2 + 1e-12


def test_the_ends_are_where_the_tails_are_exact():
    low, high = (lambda m: (m.low, m.high))(pass_until(4, 33, wanted=4).unbiased)
    assert stats.binom.sf(3, 33, low) == pytest.approx(0.05)  # 4 passes within 33
    assert stats.binom.cdf(3, 32, high) == pytest.approx(0.05)  # not 4 within 32
    low, high = (lambda m: (m.low, m.high))(pass_until(2, 50, wanted=4).unbiased)
    want = stats.binomtest(2, 50).proportion_ci(0.9, "exact")
    assert (low, high) == pytest.approx((want.low, want.high))
    none, all_ = pass_until(0, 1000, wanted=4), pass_until(4, 4, wanted=4)
    assert none.unbiased.high == pytest.approx(1 - 0.05 ** (1 / 1000))
    assert (none.unbiased.low, none.unbiased.value, none.stopped) == (0, 0, False)
    assert (all_.unbiased.value, all_.unbiased.high, all_.stopped) == (1, 1, True)
    assert all_.unbiased.low == pytest.approx(0.05**0.25)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1, 5, 1), "2 or more"),
        ((6, 9, 5), "stops at the 5th"),
        ((3, 2, 5), "0 <= passes"),
        ((0, 0, 5), "a sample"),
        ((2.5, 9, 5), "whole number of passes"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, message):
    passes, samples, wanted = counts
    with pytest.raises(ValueError, match=message):
        pass_until(passes, samples, wanted=wanted)


def test_at_least_one_is_a_share_of_subsets():
    for n, c, k in [(5, 2, 1), (6, 2, 3), (6, 5, 3), (7, 0, 4), (7, 1, 7), (4, 4, 2)]:
        drawn = [any(i < c for i in pick) for pick in itertools.combinations(range(n), k)]
        assert at_least_one(n, c, k) == pytest.approx(np.mean(drawn), abs=1e-14)
    big = 1 - math.comb(9_990, 100) / math.comb(10_000, 100)
    assert at_least_one(10_000, 10, 100) == pytest.approx(big, rel=1e-10)
    np.testing.assert_allclose(at_least_one([3, 5], [1, 1], 3), [1, 0.6], rtol=1e-14)


def test_pass_at_k_is_unbiased_and_has_its_interval():
    n, k, p = 9, 4, 0.23
    weights = stats.binom.pmf(np.arange(n + 1), n, p)
    assert weights @ at_least_one(n, np.arange(n + 1), k) == pytest.approx(1 - (1 - p) ** k, rel=1e-12)
    ends = stats.binomtest(3, 20).proportion_ci(0.9, "exact")
    one = pass_at_k(20, 3, 5)
    assert (one.low, one.high) == pytest.approx((1 - (1 - ends.low) ** 5, 1 - (1 - ends.high) ** 5))
    assert (pass_at_k(20, 0, 5).low, pass_at_k(20, 20, 5).high) == (0, 1)
    values = at_least_one(10, [0, 3, 5, 10, 1, 2], 2)
    many = pass_at_k(10, [0, 3, 5, 10, 1, 2], 2)
    assert many.value == pytest.approx(values.mean())
    # the bootstrap's spread is the standard deviation of a mean, n in the denominator
    half = stats.norm.ppf(0.95) * values.std() / math.sqrt(6)
    assert many.high - many.low == pytest.approx(2 * half, rel=0.1)
    assert pass_at_k(10, [0, 3, 5, 10, 1, 2], 2) == many


def test_a_benchmark_that_nobody_solves_may_be_solved_a_little():
    """No resample of zeros shows anything else; a mean m leaves all n at 0 with at most (1 - m)^n."""
    none, all_ = pass_at_k(10, [0] * 30, 1), pass_at_k(10, [10] * 30, 1)
    assert (none.value, none.low) == (0, 0)
    assert (1 - none.high) ** 30 == pytest.approx(0.05)
    assert (all_.value, all_.high, all_.low) == pytest.approx((1, 1, 1 - none.high))


def test_counts_of_tries_are_checked():
    for arguments, message in (
        ((3, 1, 4), "whole k from 1"),
        ((3, 4, 2), "0 <= correct"),
        ((3, 0.5, 2), "whole"),
        ((3, 1, 1.5), "whole k"),
        (("a", 1, 1), "counts"),
        (([], [], 1), "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            at_least_one(*arguments)
