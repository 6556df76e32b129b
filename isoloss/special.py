"""The beta and Student distributions, which NumPy does not have; the tests hold them against SciPy."""

from __future__ import annotations

import math
from functools import lru_cache

_TERMS = 100_000  # of the continued fraction, which takes about sqrt(a + b) of them


def beta_cdf(x: float, a: float, b: float) -> float:
    r"""Distribution function of Beta(a, b) at x: the regularised incomplete beta function :math:`I_x(a, b)`.

    Continued fraction 8.17.22 of the Digital Library of Mathematical Functions, by the modified Lentz method, on
    the side of the mean where it converges fast. Its factor is written as a deviance (Loader 2000), so that
    counts of 1e8 cost no digits.

    Raises:
        ValueError: a or b is not positive and finite.

    Example:
        >>> round(beta_cdf(0.5, 2, 3), 6)  # at least 2 heads of 4: 11/16
        0.6875
    """
    _check(a, b)
    if x <= 0:
        return 0.0
    return _cdf(x, 1.0 - x, a, b) if x < 1 else 1.0


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Quantile of Beta(a, b); the logarithm is halved, so that a quantile of 1e-200 has its digits too.

    Raises:
        ValueError: the probability is not between 0 and 1, or a shape is not positive.

    Example:
        >>> round(beta_quantile(0.05, 1, 10), 6), round(1 - 0.95**0.1, 6)
        (0.005116, 0.005116)
    """
    _check(a, b)
    if not 0 <= probability <= 1:
        raise ValueError(f"a probability lies between 0 and 1, got {probability}")
    if probability in (0.0, 1.0):
        return float(probability)
    if probability <= _cdf(0.5, 0.5, a, b):
        return _lower_half(probability, a, b, from_above=False)
    return 1.0 - _lower_half(probability, b, a, from_above=True)


@lru_cache(maxsize=4096)  # the same few levels, again and again
def student_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t, through the beta distribution of t^2 / (freedom + t^2).

    Raises:
        ValueError: the probability is not strictly between 0 and 1, or freedom is not positive.

    Example:
        >>> round(student_quantile(0.95, 4), 4)
        2.1318
    """
    if not 0 < probability < 1:
        raise ValueError(f"a quantile of Student's t needs a probability within 0 and 1, got {probability}")
    if probability == 0.5:
        return 0.0
    both = 2.0 * min(probability, 1.0 - probability)  # weight of both tails
    _check(freedom / 2, 0.5)
    # freedom / (freedom + t^2) or its complement, whichever is small and so has its digits
    if both <= _cdf(0.5, 0.5, freedom / 2, 0.5):
        small = _lower_half(both, freedom / 2, 0.5, from_above=False)
        size = math.sqrt(freedom * (1.0 - small) / small)
    else:
        small = _lower_half(both, 0.5, freedom / 2, from_above=True)
        size = math.sqrt(freedom * small / (1.0 - small))
    return math.copysign(size, probability - 0.5)


def _check(a: float, b: float) -> None:
    if not (0 < a < math.inf and 0 < b < math.inf):
        raise ValueError(f"a beta distribution needs two positive finite shapes, got {a} and {b}")


def _lower_half(weight: float, a: float, b: float, *, from_above: bool) -> float:
    """The x up to one half with that weight below it, or above it."""
    if weight > 0.5:  # the smaller tail has the digits
        weight, from_above = 1.0 - weight, not from_above
    low, high = -745.0, math.log(0.5)
    while low < (middle := 0.5 * (low + high)) < high:
        x = math.exp(middle)
        below = _cdf(1.0 - x, x, b, a) > weight if from_above else _cdf(x, 1.0 - x, a, b) < weight
        low, high = (middle, high) if below else (low, middle)
    return math.exp(middle)


def _cdf(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b), ``rest`` = 1 - x given with its own digits."""
    if x * (a + b + 2) <= a + 1:
        return min(1.0, _series(x, rest, a, b))
    return 1.0 - min(1.0, _series(rest, x, b, a))


def _series(x: float, rest: float, a: float, b: float) -> float:
    """x^a (1-x)^b / (a B(a, b)) over the continued fraction."""
    if x == 0:
        return 0.0
    total = a + b
    log_factor = 0.5 * math.log(b / (2 * math.pi * a * total))
    log_factor += _stirling(total) - _stirling(a) - _stirling(b)
    log_factor -= _deviance(a, total * x) + _deviance(b, total * rest)
    # Lentz: value = 1 / (1 + d_1 / (1 + d_2 / ...)), here the denominator.
    value, c, d = 1.0, 1.0, 0.0
    for k in range(1, _TERMS):
        m, odd = divmod(k, 2)
        if odd:
            step = -(a + m) * (total + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            step = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / ((1.0 + step * d) or 1e-300)
        c = (1.0 + step / c) or 1e-300
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log_factor) / value


def _deviance(observed: float, expected: float) -> float:
    """observed log(observed / expected) + expected - observed, without cancellation where the two are near."""
    if expected == 0:
        return math.inf
    if abs(observed - expected) > 0.1 * (observed + expected):
        return observed * math.log(observed / expected) + expected - observed
    # log(o / e) = 2 artanh(v), v = (o - e) / (o + e)
    v = (observed - expected) / (observed + expected)
    out, power = (observed - expected) * v, 2.0 * observed * v
    for k in range(3, 60, 2):
        power *= v * v
        if abs(power) < 1e-17 * out:
            break
        out += power / k
    return out


def _stirling(z: float) -> float:
    """log Gamma(z) - (z - 1/2) log z + z - log(2 pi) / 2."""
    if z < 10:
        return math.lgamma(z) - (z - 0.5) * math.log(z) + z - 0.5 * math.log(2 * math.pi)
    w = 1.0 / (z * z)
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w / 1188)))) / z
