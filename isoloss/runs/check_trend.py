"""takes a Subject, gives the rows whose loss lies far above the robust trend of the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

import numpy as np

from isoloss.runs.check_rows import SETTINGS
from isoloss.runs.check_units import beyond_gap
from isoloss.runs.finding import Finding, Floats, Subject, share

__all__ = ["diverged", "excess"]

_FEWEST = 8
_DEVIATIONS = 6.0
_LEAST = 0.05
_EXPONENTS = (0.15, 0.35, 0.6)


def diverged(s: Subject) -> Iterator[Finding]:
    """``diverged``: rows above the trend by more than 6 robust standard deviations and 5 per cent."""
    if s.signed or s.target in SETTINGS:
        return  # the trend is of logs; and a best setting does not diverge
    good = s.good.copy()
    of = [axis for axis in s.axes if axis not in s.may_be_zero]
    for axis in of:
        # a row in another unit has the leverage to bend the trend to itself and hide what diverged
        good &= ~beyond_gap(s.values[axis], s.good)
    used = np.flatnonzero(good)
    axes = [s.values[axis][used] for axis in of]
    axes = [axis for axis in axes if np.unique(axis).size >= 3]
    if len(used) < _FEWEST or not axes:
        return
    above = excess(axes, s.values[s.target][used])
    high = used[above > 0]
    if len(high) == 0:
        return
    least, most = (f"{100 * np.expm1(v):.3g}" for v in (above[above > 0].min(), above.max()))
    yield Finding(
        "diverged",
        "warning",
        s.rows(high),
        s.target,
        f"{s.target} of {share(len(high), len(used))} lies "
        f"{least if least == most else f'{least} to {most}'} % above the trend of the others in "
        f"{' and '.join(of)}.",
        "a few diverged runs move least squares a long way (five of 245 Chinchilla points move the "
        "optimal model by 40 %); or the law lacks something that these rows share",
        "look at these runs; --drop diverged removes them and says so, and the Huber loss keeps"
        " them with little weight",
    )


def excess(axes: list[Floats], target: Floats) -> Floats:
    """How far each row lies above the trend, in log target, where that is too far; 0 elsewhere.

    Two trends must agree, because either alone mistakes its own misfit for divergence at the edge
    of a design: a power law ``E + sum(c_k x_k**-p)`` with the best p of a few, and, where there
    are rows enough, a quadratic in the logarithms. Both are fitted by iteratively re-weighted
    least squares (absolute deviations first, then Tukey's biweight).

    Args:
        axes: positive predictors, each of shape (n,).
        target: positive, shape (n,).

    Example:
        >>> x = np.geomspace(1e6, 1e9, 20)
        >>> loss = 1.7 + 400 / x**0.34
        >>> loss[3] *= 1.5
        >>> np.flatnonzero(excess([x], loss))
        array([3])
    """
    powers = [_power_trend(axes, target, exponent) for exponent in _EXPONENTS]
    residuals = [min(powers, key=_scale)]
    logs = [np.log(axis) for axis in axes]
    logs = [(z - np.median(z)) / (np.std(z) + 1e-12) for z in logs]
    quadratic = [a * b for a, b in combinations_with_replacement(logs, 2)]
    terms = np.stack([np.ones_like(target), *logs, *quadratic], axis=1)
    if len(target) >= 3 * terms.shape[1]:
        residuals.append(_robust_residuals(terms, np.log(target)))
    above = np.minimum.reduce(residuals)
    limits = [max(_DEVIATIONS * _scale(r), _LEAST) for r in residuals]
    far = np.logical_and.reduce([r > limit for r, limit in zip(residuals, limits, strict=True)])
    return np.where(far, above, 0.0)


def _power_trend(axes: list[Floats], target: Floats, exponent: float) -> Floats:
    """Residuals in log target of a sum of powers, fitted by relative error."""
    terms = [np.ones_like(target), *((axis / np.median(axis)) ** -exponent for axis in axes)]
    relative = np.stack(terms, axis=1) / target[:, None]
    residual = _robust_residuals(relative, np.ones_like(target))
    return -np.log(np.maximum(1 - residual, 1e-9))


def _robust_residuals(terms: Floats, y: Floats) -> Floats:
    weight = np.ones_like(y)
    for _ in range(20):
        residual = _residuals(terms, y, weight)
        size = np.abs(residual)
        weight = 1 / np.maximum(size, 1e-3 * _median(size) + 1e-12)
    for _ in range(30):
        scale = _scale(residual)
        weight = np.where(np.abs(residual) < 4.685 * scale, 1 - (residual / (4.685 * scale)) ** 2, 0) ** 2
        residual = _residuals(terms, y, weight)
    return residual


def _residuals(terms: Floats, y: Floats, weight: Floats) -> Floats:
    # normal equations: six terms at most, scaled alike, and 20 times faster than a decomposition
    weighted = terms * weight[:, None]
    coefficients = np.linalg.lstsq(terms.T @ weighted, weighted.T @ y, rcond=None)[0]
    residual: Floats = y - terms @ coefficients
    return residual


def _scale(residual: Floats) -> float:
    """A standard deviation from the median absolute deviation, never 0."""
    return 1.4826 * _median(np.abs(residual - _median(residual))) + 1e-12


def _median(values: Floats) -> float:
    """numpy's, which takes several times as long for a few rows; a fit asks for some hundred."""
    ordered, n = np.sort(values), len(values)
    return 0.5 * float(ordered[(n - 1) // 2] + ordered[n // 2])
