"""Whether the scatter of the runs changes with their predicted target, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LEAST = 50  # rows: with fewer a trend of the scatter is rarely more than chance
SURE = 2.5  # standard errors from zero
FAR = 3.0  # times the median: an outlier says nothing of the scatter
# variance over squared mean of |z|, z normal
SCATTER = math.pi / 2 - 1


@dataclass(frozen=True)
class Trend:
    r"""Scatter of a run, :math:`s(f) \propto f^{b}`, constant beyond the fitted rows.

    Attributes:
        slope: b; 0 where the rows do not show that it differs from 0.
        low, high: log of the least and largest predicted target of the rows.
        middle: log target at which s is 1.
        pooled: root mean square of s over the rows.
    """

    slope: float
    low: float
    high: float
    middle: float
    pooled: float = 1.0

    def size(self, predicted: Array) -> Array:
        """s at predicted targets, of their shape."""
        if self.slope == 0.0:
            return np.ones_like(predicted)
        at = np.clip(np.log(np.maximum(predicted, 1e-300)), self.low, self.high)
        return np.asarray(np.exp(self.slope * (at - self.middle)))


def trend(residuals: Array, predicted: Array, weights: Array) -> Trend:
    r"""Fit :math:`E|r| = e^{a + b \log f}` by the exponential likelihood, one convex equation in b.

    .. math:: \min_b \; \log \sum_i w_i |r_i| e^{-b t_i}, \quad t_i = \log f_i - \overline{\log f}

    Args:
        residuals, predicted, weights: (n,); residuals beyond three times their median count as that.

    Example:
        >>> z = np.tile([-1.0, 1.0], 50)
        >>> f = np.repeat(np.linspace(1, 4, 50), 2)
        >>> round(trend(0.01 * f**2 * z, f, np.ones(100)).slope, 2)
        2.0
    """
    size = np.abs(residuals)
    positive = size[size > 0]
    if (predicted <= 0).any():  # a target without a log: its scatter is the same everywhere
        return Trend(0.0, 0.0, 0.0, 0.0)
    logs = np.log(predicted)
    middle = float(np.sum(weights * logs) / np.sum(weights))
    t = logs - middle
    none = Trend(0.0, float(logs.min()), float(logs.max()), middle)
    information = float(np.sum(weights * t**2)) / SCATTER
    if len(size) < LEAST or len(positive) < LEAST or information <= 0:
        return none
    slope = 0.0
    for _ in range(20):  # an outlier is far for its own target, so the cut follows the slope
        flat = size * np.exp(-slope * t)
        flat = np.minimum(flat, FAR * float(np.median(flat[size > 0])))
        pull = weights * flat / np.sum(weights * flat)
        mean = float(np.sum(pull * t))
        bend = float(np.sum(pull * (t - mean) ** 2))
        step = mean / bend if bend > 0 else 0.0
        slope += float(np.clip(step, -2.0, 2.0))
        if abs(step) < 1e-10:
            break
    if abs(slope) * math.sqrt(information) < SURE:
        return none
    pooled = math.sqrt(float(np.sum(weights * np.exp(2 * slope * t)) / np.sum(weights)))
    return Trend(slope, none.low, none.high, middle, pooled)
