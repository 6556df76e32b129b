"""Bjorck et al. 2025, Scaling Optimal LR Across Token Horizons, arXiv:2409.19913: the best rate of one sweep."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 2000
LEAST = 5  # runs that make an interval: fewer resamples than that are all nearly the same parabola


def sweep_optimum(lr: Any, loss: Any, *, coverage: float = 0.9, seed: int = 0) -> Measured:
    r"""Where a parabola in the log of the learning rate has its minimum, with the points drawn anew.

    .. math:: L = a + b \ln\eta + c \ln^2\eta,\quad \eta^* = e^{-b/(2c)}

    All points count alike, so give those near the minimum; of one whole grid, or of several,
    :func:`isoloss.observing.grid_optima` chooses them itself. A resample of fewer than three rates makes no
    parabola and is not used. One whose parabola opens downwards knows no minimum: it counts as one at 0 for the
    lower end and at infinity for the upper. The drawing knows nothing of how few points there are: with five or
    six, intervals are too narrow, and below five there is none.

    Args:
        lr: learning rate of each run, of one size, batch and number of tokens.
        loss: its final loss.
        coverage: of the interval.
        seed: of the draws.

    Returns:
        The best rate. An optimum outside the rates has no value (NaN); its interval is one-sided, from the edge. With
        fewer than five runs the ends are NaN.

    Raises:
        ValueError: rates or losses that are not finite, rates at or below 0, lengths that differ.
        NoAnswer: fewer than three rates, or no minimum.

    Example:
        >>> u = np.log([1, 2, 4, 8, 16])
        >>> print(sweep_optimum(np.exp(u), 2 + 0.1 * (u - 1.2) ** 2))
        3.32 (90% interval 3.32 to 3.32; parabola in ln lr; points drawn anew)
    """
    rates, values = (np.asarray(entry, dtype=float).ravel() for entry in (lr, loss))
    if len(rates) != len(values) or not (np.isfinite(rates) & (rates > 0) & np.isfinite(values)).all():
        raise ValueError(
            f"needed a finite loss for every rate above 0, got {len(rates)} rates and {len(values)} losses. Leave "
            "diverged runs out"
        )
    if not 0 < coverage < 1:
        raise ValueError(f"needed coverage between 0 and 1, got {coverage}")
    order = np.lexsort([values, rates])
    u, y = np.log(rates[order]), values[order]
    if len(np.unique(u)) < 3:
        raise NoAnswer(f"{len(np.unique(u))} learning rates do not make a parabola", "three, better seven")
    middle = float(u.mean())
    found = _minima(u[None] - middle, y[None])[0]
    if math.isnan(found):
        raise NoAnswer(
            "the loss has no minimum in the log of the rate", "rates on both sides of the best one"
        )
    how = "parabola in ln lr; points drawn anew"
    best = found + middle
    if best < u.min():
        return Measured(math.nan, 0.0, math.exp(u.min()), coverage, f"below the rates; {how}")
    if best > u.max():
        return Measured(math.nan, math.exp(u.max()), math.inf, coverage, f"above the rates; {how}")
    if len(u) < LEAST:
        few = f"not resolved: a parabola through {len(u)} runs leaves too little to judge it by"
        return Measured(math.exp(best), math.nan, math.nan, coverage, few)
    picks = np.random.default_rng(seed).integers(0, len(u), (DRAWS, len(u)))
    picks = picks[[len(np.unique(row)) >= 3 for row in u[picks]]]
    drawn = _minima(u[picks] - middle, y[picks]) + middle
    unknown = np.isnan(drawn)
    ends = [
        float(np.quantile(np.where(unknown, side, drawn), p, method="higher" if side > 0 else "lower"))
        for side, p in ((-np.inf, (1 - coverage) / 2), (np.inf, (1 + coverage) / 2))
    ]
    low, high = (math.exp(e) if e < 700 else math.inf for e in ends)
    return Measured(math.exp(best), low, high, coverage, how)


def _minima(u: Array, y: Array) -> Array:
    """Where the parabolas of several samples (k, n), of three rates or more, have their minima; NaN where none."""
    powers = np.stack([np.ones_like(u), u, u**2], axis=-1)
    normal = np.einsum("kni,knj->kij", powers, powers)
    right = np.einsum("kni,kn->ki", powers, y)
    _, b, c = np.linalg.solve(normal, right[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(c > 0, -b / (2 * c), np.nan))
