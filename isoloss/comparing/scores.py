"""Scores of a predicted distribution against what was measured: draws or quantiles in, one number a point out.

Gneiting & Raftery 2007, Strictly proper scoring rules, JASA 102(477). All are negatively oriented (less is
better) but the log score, which is a log density.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

TAIL = 0.01  # weight of the wide Student-t beside the kernels
TAIL_DF = 3


def crps(draws: Any, y: Any) -> Array:
    r"""Continuous ranked probability score of the empirical distribution of the draws, exact.

    .. math:: \int (F(t) - 1[t \ge y])^2 dt = E|X - y| - \tfrac12 E|X - X'|

    with both means over the draws themselves (no correction for their number). In the unit of y; for one
    draw it is the absolute error.

    Args:
        draws: (K, *X). y: measured, (*X).

    Returns:
        (*X).

    Raises:
        ValueError: no draws, or another shape.

    Example:
        >>> crps([[1.0], [3.0]], [2.0]).tolist()
        [0.5]
    """
    draws, y = _matched(draws, y)
    ordered = np.sort(draws, axis=0)
    k = len(ordered)
    rank = (np.arange(k) + 0.5).reshape(-1, *[1] * y.ndim)
    return np.asarray(2 / k**2 * np.sum((ordered - y) * (k * (y < ordered) - rank), axis=0))


def log_score(draws: Any, y: Any) -> Array:
    r"""Log density at y of a smooth distribution around the draws; more is better.

    .. math:: \log(0.99\, \tfrac1K \sum_k \phi_h(y - x_k) + 0.01\, t_3((y - m)/s)/s)

    Gaussian kernels of Silverman's bandwidth ``h = 0.9 s K^(-1/5)``, ``s`` the lesser of standard deviation
    and interquartile range / 1.349, m the median. Kernels alone would say -100 and less a few bandwidths
    beyond the last draw, where draws know nothing: one per cent of a wide Student-t (3 degrees of freedom)
    keeps one surprise from deciding a mean.

    Args:
        draws: (K, *X). y: measured, (*X).

    Returns:
        (*X), in nats per unit of y; finite for finite input.

    Raises:
        ValueError: no draws, or another shape.

    Example:
        >>> normal = np.random.default_rng(0).normal(size=(20000, 1))
        >>> bool(abs(log_score(normal, [0.0])[0] + 0.5 * np.log(2 * np.pi)) < 0.05)
        True
    """
    draws, y = _matched(draws, y)
    quarter, middle, upper = np.quantile(draws, [0.25, 0.5, 0.75], axis=0)
    wide, robust = np.std(draws, axis=0), (upper - quarter) / 1.349
    spread = np.where(robust > 0, np.minimum(wide, robust), wide)
    spread = np.maximum(spread, 1e-9 * np.maximum(np.abs(middle), np.abs(y)) + 1e-300)
    h = 0.9 * spread * len(draws) ** -0.2
    exponents = -0.5 * ((y - draws) / h) ** 2
    top = exponents.max(axis=0)
    kernels = top + np.log(np.mean(np.exp(exponents - top), axis=0)) - np.log(h * math.sqrt(2 * math.pi))
    z = (y - middle) / spread
    nu = TAIL_DF
    constant = math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2) - 0.5 * math.log(nu * math.pi)
    tail = constant - (nu + 1) / 2 * np.log1p(z * z / nu) - np.log(spread)
    return np.asarray(np.logaddexp(math.log(1 - TAIL) + kernels, math.log(TAIL) + tail))


def pinball(quantiles: Any, levels: Any, y: Any) -> Array:
    r"""Pinball loss of each quantile: what is least, in the mean, at the true quantile.

    .. math:: \rho_\tau(u) = \max(\tau u, (\tau - 1) u),\quad u = y - q_\tau

    The CRPS is twice its mean over all levels. Koenker & Bassett 1978, Econometrica 46(1).

    Args:
        quantiles: (m, *X). levels: in (0, 1), (m,). y: measured, (*X).

    Returns:
        (m, *X), in the unit of y.

    Raises:
        ValueError: shapes differ, or a level outside (0, 1).

    Example:
        >>> pinball([[1.0], [3.0]], [0.1, 0.9], [4.0]).round(3).tolist()
        [[0.3], [0.9]]
    """
    quantiles, y = _matched(quantiles, y)
    levels = np.asarray(levels, dtype=float)
    if levels.shape != quantiles.shape[:1] or not ((levels > 0) & (levels < 1)).all():
        raise ValueError(f"pinball needs one level in (0, 1) a quantile, got {levels.tolist()}")
    u = y - quantiles
    tau = levels.reshape(-1, *[1] * y.ndim)
    return np.asarray(np.maximum(tau * u, (tau - 1) * u))


def interval_score(low: Any, high: Any, y: Any, coverage: float) -> Array:
    r"""Width of the interval, and a fine for what it misses.

    .. math:: (h - l) + \tfrac2\alpha (l - y)_+ + \tfrac2\alpha (y - h)_+,\quad \alpha = 1 - coverage

    Args:
        low, high, y: (*X). coverage: what the interval promises.

    Returns:
        (*X), in the unit of y.

    Raises:
        ValueError: coverage outside (0, 1).

    Example:
        >>> interval_score(1.0, 2.0, 2.1, 0.9).round(3).tolist()
        3.0
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    low, high, y = (np.asarray(value, dtype=float) for value in (low, high, y))
    fine = np.maximum(low - y, 0) + np.maximum(y - high, 0)
    return np.asarray((high - low) + 2 / (1 - coverage) * fine)


def pit(draws: Any, y: Any) -> Array:
    """Where y falls among the draws: the share below it, ties counted half. Uniform if all is right.

    Args:
        draws: (K, *X). y: measured, (*X).

    Returns:
        (*X), in [0, 1].

    Raises:
        ValueError: no draws, or another shape.

    Example:
        >>> pit([[1.0], [2.0], [3.0], [4.0]], [3.5]).tolist()
        [0.75]
    """
    draws, y = _matched(draws, y)
    return np.asarray(np.mean(draws < y, axis=0) + 0.5 * np.mean(draws == y, axis=0))


def coverage_band(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of a share: every p that ``hits`` of ``n`` do not reject. Biometrika 26, 1934.

    Args:
        hits: how many were inside. n: of how many. confidence: of the band.

    Returns:
        Low and high end; exact, so at least ``confidence`` for every p.

    Raises:
        ValueError: not 0 <= hits <= n, n < 1, or confidence outside (0, 1).

    Example:
        >>> [round(end, 3) for end in coverage_band(9, 10)]
        [0.555, 0.997]
    """
    if not 0 <= hits <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(
            f"coverage_band needs 0 <= hits <= n, n >= 1 and 0 < confidence < 1, got {hits}, {n}, {confidence}"
        )
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else _solve(lambda p: _at_most(n - hits, n, 1 - p) - tail)
    high = 1.0 if hits == n else _solve(lambda p: tail - _at_most(hits, n, p))
    return low, high


def _at_most(hits: int, n: int, p: float) -> float:
    """``P(Binomial(n, p) <= hits)``, summed in logs."""
    if p <= 0 or p >= 1:
        return 1.0 if p <= 0 or hits >= n else 0.0
    k, logs = np.arange(hits + 1), _log_factorials(n)
    choose = logs[n] - logs[k] - logs[n - k]
    return min(1.0, float(np.sum(np.exp(choose + k * math.log(p) + (n - k) * math.log1p(-p)))))


@functools.lru_cache(maxsize=64)
def _log_factorials(n: int) -> Array:
    """``log 0!`` to ``log n!``."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def _solve(rising: Any) -> float:
    """Root in (0, 1) of a function that rises, by bisection to the last bit that matters."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return 0.5 * (low + high)


def _matched(draws: Any, y: Any) -> tuple[Array, Array]:
    draws, y = np.asarray(draws, dtype=float), np.asarray(y, dtype=float)
    if draws.ndim == 0 or len(draws) == 0 or draws.shape[1:] != y.shape:
        raise ValueError(f"needed draws or quantiles of shape (K, *{y.shape}), K >= 1, got {draws.shape}")
    return draws, y
