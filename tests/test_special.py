"""Special functions against SciPy's, and against closed forms where SciPy has few digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from isoloss.special import beta_cdf, beta_quantile, student_quantile


def shapes(count, least, most, seed):
    rng = np.random.default_rng(seed)
    return 10 ** rng.uniform(least, most, (count, 2)), rng


def test_the_beta_distribution_is_scipys():
    pairs, rng = shapes(300, -2, 6, 0)
    for a, b in pairs:
        x = float(rng.beta(a, b))
        if 0 < x < 1:
            want = special.betainc(a, b, x)
            # of b near 1 and a of 1e6, one unit in the last digit of x moves the value by 1e-10
            assert beta_cdf(x, a, b) == pytest.approx(want, rel=3e-10), (a, b, x)


def test_its_small_tail_has_digits():
    # I_x(a, 1) = x^a, I_x(1, b) = 1 - (1 - x)^b
    assert beta_cdf(1e-30, 7, 1) == pytest.approx(1e-210, rel=1e-12)
    assert beta_cdf(1e-30, 1, 7) == pytest.approx(7e-30, rel=1e-12)
    assert beta_cdf(0.4, 1e4, 1e4) == pytest.approx(special.betainc(1e4, 1e4, 0.4), rel=1e-10)
    assert (beta_cdf(-1, 2, 3), beta_cdf(0, 2, 3), beta_cdf(1, 2, 3), beta_cdf(2, 2, 3)) == (0, 0, 1, 1)


def test_beta_quantiles_are_scipys_and_turn_back_into_their_probability():
    pairs, rng = shapes(100, -1, 5, 1)
    for a, b in pairs:
        p = float(rng.uniform())
        got = beta_quantile(p, a, b)
        assert got == pytest.approx(special.betaincinv(a, b, p), rel=1e-9), (a, b, p)
        if got < 0.5:  # above it, x itself has too few digits where b is small
            assert beta_cdf(got, a, b) == pytest.approx(p, rel=1e-9)


def test_beta_quantiles_with_a_closed_form():
    for p in (1e-9, 0.025, 0.5, 0.975, 1 - 1e-9):
        assert beta_quantile(p, 7, 1) == pytest.approx(p ** (1 / 7), rel=1e-13)
        assert beta_quantile(p, 1, 7) == pytest.approx(-math.expm1(math.log1p(-p) / 7), rel=1e-12)
    assert beta_quantile(1e-200, 1, 1) == pytest.approx(1e-200, rel=1e-12)
    assert (beta_quantile(0, 2, 3), beta_quantile(1, 2, 3)) == (0, 1)
    assert beta_quantile(0.05, 3e7, 1e8) == pytest.approx(special.betaincinv(3e7, 1e8, 0.05), rel=1e-12)


@pytest.mark.parametrize("df", [1, 2, 3, 7, 30, 1000])
@pytest.mark.parametrize("p", [1e-6, 0.025, 0.3, 0.55, 0.6, 0.95, 0.999, 1 - 1e-6])
def test_quantiles_of_students_t(p, df):
    assert student_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)


def test_quantiles_of_students_t_at_its_middle():
    assert student_quantile(0.5, 3) == 0
    # one degree of freedom: the tangent of pi (p - 1/2)
    assert student_quantile(0.5 + 1e-7, 1) == pytest.approx(math.tan(math.pi * 1e-7), rel=1e-8)


def test_wrong_input_is_refused():
    for call in (lambda: beta_cdf(0.5, 0, 1), lambda: beta_quantile(0.5, 1, math.inf)):
        with pytest.raises(ValueError, match="two positive finite shapes"):
            call()
    with pytest.raises(ValueError, match="between 0 and 1"):
        beta_quantile(1.1, 1, 1)
    with pytest.raises(ValueError, match="within 0 and 1"):
        student_quantile(1.0, 3)
    with pytest.raises(ValueError, match="shapes"):
        student_quantile(0.9, 0)
