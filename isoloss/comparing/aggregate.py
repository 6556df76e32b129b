"""Several predictions made one: convex weights on their quantiles, and an empirical correction of the width.

Fakoor, Kim, Mueller, Smola & Tibshirani 2023, Flexible Model Aggregation for Quantile Regression, JMLR,
arXiv:2103.00083: the coarse form, one weight a model. Romano, Patterson & Candes 2019, Conformalized
Quantile Regression, arXiv:1905.03222.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.comparing.scores import pinball

Array = np.ndarray[Any, np.dtype[Any]]


def mixed(quantiles: Any, weights: Any) -> Array:
    """Weighted mean of the models' quantiles, sorted along the levels so that none cross.

    Args:
        quantiles: (J, m, *X). weights: (J,).

    Returns:
        (m, *X).

    Example:
        >>> mixed([[[1.0], [2.0]], [[3.0], [6.0]]], [0.5, 0.5]).tolist()
        [[2.0], [4.0]]
    """
    return np.sort(np.tensordot(np.asarray(weights, float), np.asarray(quantiles, float), axes=1), axis=0)


def simplex_weights(
    quantiles: Any, levels: Any, y: Any, pull: float = 1.0, prior: Any | None = None
) -> Array:
    r"""Weights of the mixture with the least mean pinball loss, pulled towards prior ones.

    .. math:: \min_{w \ge 0, \sum w = 1} \; \overline{\rho}(w) + \frac{pull \cdot s}{\sqrt n} \sum_j w_j \log(w_j/p_j)

    with the mean over levels and points, and s the least mean pinball loss of a single model: a mean over n
    points is known to about ``s / sqrt(n)``, and differences below that should not decide. The problem is
    convex; it is solved by Newton steps on a smoothed form whose smoothing and barrier go to zero, to
    within ``1e-6 s`` of the minimum.

    Args:
        quantiles: (J, m, n). levels: (m,). y: (n,). pull: 0 is none. prior: p, (J,), above 0; default equal.

    Returns:
        (J,), at or above 0, of sum 1.

    Raises:
        ValueError: shapes differ, no points, or values that are not finite.

    Example:
        >>> y = np.linspace(1, 2, 50)
        >>> good, poor = np.stack([y - 0.01, y + 0.01]), np.stack([y + 0.9, y + 1.1])
        >>> simplex_weights([good, poor], [0.25, 0.75], y).round(3).tolist()
        [1.0, 0.0]
    """
    quantiles, y = np.asarray(quantiles, dtype=float), np.asarray(y, dtype=float)
    levels = np.asarray(levels, dtype=float)
    if quantiles.ndim != 3 or quantiles.shape[1:] != (len(levels), len(y)) or not quantiles.size or pull < 0:
        raise ValueError(
            f"needed quantiles (models, {len(levels)} levels, {len(y)} points), at least one of each, and "
            f"pull >= 0; got {quantiles.shape} and {pull}"
        )
    if not (np.isfinite(quantiles).all() and np.isfinite(y).all()):
        raise ValueError("needed finite quantiles and y. Leave out the models or points without a prediction")
    count = len(quantiles)
    start = np.full(count, 1.0) if prior is None else np.asarray(prior, dtype=float)
    if start.shape != (count,) or not (start > 0).all():
        raise ValueError(f"needed {count} prior weights above 0, got {start}")
    weights = start = start / start.sum()
    if count == 1:
        return np.asarray(weights)
    means = np.array([float(np.mean(pinball(q, levels, y))) for q in quantiles])
    # In units of the typical distance, so that the tolerances mean the same for any target.
    unit = float(np.mean(np.abs(y - quantiles)))
    if unit == 0:
        return np.asarray(weights)
    distance = ((y - quantiles) / unit).reshape(count, -1)
    tau = np.broadcast_to(levels[:, None], quantiles.shape[1:]).ravel()
    strength = pull * float(means.min()) / unit / math.sqrt(len(y))
    goal = 1e-7 * max(float(means.min()) / unit, 1e-6)
    smooth = 1.0
    while smooth > goal:
        smooth = max(0.3 * smooth, 0.99 * goal)
        weights = _centre(weights, distance, tau, strength, smooth, start)
    weights = np.where(weights < 1e-6, 0.0, weights)
    return np.asarray(weights / weights.sum())


def _centre(w: Array, distance: Array, tau: Array, strength: float, smooth: float, prior: Array) -> Array:
    """Newton on the simplex; ``smooth`` is the width of the rounded kink and the size of the log barrier."""
    count, n = distance.shape

    def value(w: Array) -> float:
        u = w @ distance
        kink = tau * u + smooth * np.logaddexp(0.0, -u / smooth)
        return float(np.mean(kink) + np.sum(strength * w * np.log(w / prior) - smooth * np.log(w)))

    at = value(w)
    for _ in range(60):
        u = w @ distance
        share = 0.5 * (1 - np.tanh(0.5 * u / smooth))  # logistic of -u / smooth without overflow
        gradient = distance @ (tau - share) / n + strength * (np.log(w / prior) + 1) - smooth / w
        bend = (distance * (share * (1 - share))) @ distance.T / (n * smooth)
        kkt = np.zeros((count + 1, count + 1))
        kkt[:count, :count] = bend + np.diag(strength / w + smooth / w**2)
        kkt[count, :count] = kkt[:count, count] = 1.0
        # Scaled by w: the barrier's curvature spans many orders of magnitude.
        scale = np.append(w, 1.0)
        step = (
            scale
            * np.linalg.lstsq(kkt * np.outer(scale, scale), scale * np.append(-gradient, 0.0), rcond=None)[0]
        )
        step = step[:count] - w * step[:count].sum()
        decrease = -float(gradient @ step)
        if decrease <= 1e-3 * smooth:
            break
        shrinking = step < 0
        length = min(1.0, 0.95 * float(np.min(-w[shrinking] / step[shrinking]))) if shrinking.any() else 1.0
        while length > 1e-12:
            trial = w + length * step
            trial = trial / trial.sum()
            new = value(trial)
            if new <= at - 0.1 * length * decrease:
                break
            length *= 0.5
        else:
            break
        w, at = trial, new
    return w


@dataclass(frozen=True)
class Conformal:
    """How much wider intervals should have been for the held-out runs.

    Attributes:
        shift: share of the interval's width to add at either end; None where there are too few runs.
        coverage: what the corrected interval is for.
        n: held-out runs. needed: the least that allows a correction.
        text: what to tell the reader.
    """

    shift: float | None
    coverage: float
    n: int
    needed: int
    text: str


def conformal(low: Any, high: Any, y: Any, coverage: float) -> Conformal:
    r"""Conformal correction of an interval, in shares of its own width.

    .. math:: s_i = \max(l_i - y_i,\; y_i - h_i) / (h_i - l_i),\quad
        \hat s = s_{(\lceil (n+1)(1-\alpha) \rceil)},\quad [l - \hat s (h - l),\; h + \hat s (h - l)]

    If the runs to come were exchangeable with the held-out ones, the corrected interval would cover with
    probability ``1 - alpha`` to ``1 - alpha + 1/(n+1)``. Runs larger than any yet are not: the correction
    is empirical. Scores are shares of the width because intervals widen with the distance. With fewer than
    ``1/alpha - 1`` runs the interval would be infinite: then there is none.

    Args:
        low, high: interval of each held-out run, (n,). y: measured, (n,). coverage: ``1 - alpha``.

    Raises:
        ValueError: coverage outside (0, 1).

    Example:
        >>> conformal([0.0] * 4, [1.0] * 4, [0.5] * 4, 0.9).text
        'too few held-out runs to calibrate: needs 9 for 90 %, got 4'
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    low, high, y = (np.asarray(value, dtype=float) for value in (low, high, y))
    n = len(y)
    needed = math.ceil(1 / (1 - coverage) - 1 - 1e-9)
    if n < needed:
        text = f"too few held-out runs to calibrate: needs {needed} for {100 * coverage:g} %, got {n}"
        return Conformal(None, coverage, n, needed, text)
    width = np.maximum(high - low, 1e-12 * np.maximum(np.abs(y), 1e-300))
    scores = np.sort(np.maximum(low - y, y - high) / width)
    shift = float(scores[min(math.ceil((n + 1) * coverage - 1e-9), n) - 1])
    return Conformal(shift, coverage, n, needed, f"empirical, from {n} held-out runs")


def widened(draws: Any, conformal: Conformal) -> Array:
    """Draws (K, *X) stretched about their median so that both ends of the interval move by the shift.

    Never narrowed: a run farther out than any held back deserves no less doubt than the models have.

    Example:
        >>> c = Conformal(0.5, 0.8, 20, 4, "")
        >>> widened([[0.0], [1.0], [2.0], [3.0], [4.0]], c).ravel().round(2).tolist()
        [-2.0, 0.0, 2.0, 4.0, 6.0]
    """
    draws = np.array(draws, dtype=float)
    if conformal.shift is None or conformal.shift <= 0:
        return np.asarray(draws)
    tails = [(1 - conformal.coverage) / 2, 0.5, (1 + conformal.coverage) / 2]
    low, middle, high = np.quantile(draws, tails, axis=0)
    extra = conformal.shift * (high - low)
    up = 1 + extra / np.maximum(high - middle, 1e-300)
    down = 1 + extra / np.maximum(middle - low, 1e-300)
    return np.asarray(middle + (draws - middle) * np.where(draws > middle, up, down))
