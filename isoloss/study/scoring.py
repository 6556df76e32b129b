"""takes quantiles and what was measured, gives scores: arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.comparing.scores import pinball

Array = np.ndarray[Any, np.dtype[Any]]


def crps_of_quantiles(quantiles: Any, levels: Any, y: Any) -> Array:
    r"""Continuous ranked probability score from quantiles: twice the mean pinball loss over all levels.

    .. math:: CRPS = 2 \int_0^1 \rho_\tau(y - q_\tau)\, d\tau

    by the trapezoidal rule; beyond the outermost levels the quantiles stay as they are there. Laio & Tamea
    2007, Hydrol. Earth Syst. Sci. 11. In the unit of y; where all quantiles are equal, the absolute error.

    Args:
        quantiles: (m, *X). levels: rising, in (0, 1), (m,). y: (*X).

    Raises:
        ValueError: shapes differ, or a level outside (0, 1).

    Example:
        >>> crps_of_quantiles([[1.0], [1.0], [1.0]], [0.1, 0.5, 0.9], [3.0]).round(9).tolist()
        [2.0]
    """
    losses = pinball(quantiles, levels, y)
    quantiles, y = np.asarray(quantiles, dtype=float), np.asarray(y, dtype=float)
    first, last = np.maximum(quantiles[0] - y, 0.0), np.maximum(y - quantiles[-1], 0.0)
    steps = np.diff(np.concatenate([[0.0], np.asarray(levels, dtype=float), [1.0]]))
    sums = np.concatenate([[first], losses]) + np.concatenate([losses, [last]])
    return np.asarray(np.tensordot(steps, sums, axes=1))


def pit_of_quantiles(quantiles: Any, levels: Any, y: Any) -> Array:
    """The level at which y lies among the quantiles; uniform over [0, 1] if all is right.

    Between two quantiles it is interpolated, on several equal ones it is the middle of their levels, beyond
    the outermost half way to 0 or 1.

    Args:
        quantiles: (m, n), rising along m. levels: (m,). y: (n,).

    Example:
        >>> pit_of_quantiles([[1.0, 1, 1], [2.0, 2, 2]], [0.2, 0.8], [1.5, 0.0, 2.0]).round(3).tolist()
        [0.5, 0.1, 0.8]
    """
    q, tau, y = (np.asarray(v, dtype=float) for v in (quantiles, levels, y))
    below, up_to = np.sum(q < y, axis=0), np.sum(q <= y, axis=0)
    tau = np.concatenate([[0.0], tau, [1.0]])  # entry k + 1 is level k
    q = np.concatenate([q[:1], q, q[-1:]])
    at = np.arange(len(y))
    low, high = q[below, at], q[np.minimum(below + 1, len(q) - 1), at]
    share = np.where(high > low, (y - low) / np.where(high > low, high - low, 1.0), 0.5)
    between = tau[below] + share * (tau[np.minimum(below + 1, len(tau) - 1)] - tau[below])
    outside = (below == 0) | (below == len(tau) - 2)
    half = 0.5 * (tau[below] + tau[np.minimum(below + 1, len(tau) - 1)])
    tied = 0.5 * (tau[np.minimum(below + 1, len(tau) - 1)] + tau[up_to])
    return np.asarray(np.where(up_to > below, tied, np.where(outside, half, between)))


def interval_of_quantiles(quantiles: Any, levels: Any, coverage: float) -> tuple[Array, Array]:
    """Central interval of ``coverage``, interpolated between the levels.

    Args:
        quantiles: (m, n). levels: (m,).

    Returns:
        low and high, (n,).

    Raises:
        ValueError: the levels do not reach that far.

    Example:
        >>> interval_of_quantiles([[1.0], [2.0], [3.0]], [0.1, 0.5, 0.9], 0.4)
        (array([1.5]), array([2.5]))
    """
    q, tau = np.asarray(quantiles, dtype=float), np.asarray(levels, dtype=float)
    widest = float(min(1 - 2 * tau[0], 2 * tau[-1] - 1))
    if not 0 < coverage <= widest + 1e-12:
        raise ValueError(
            f"the quantiles kept allow a coverage up to {widest:g}, got {coverage:g}. Do: ask for less"
        )
    ends = []
    for level in ((1 - coverage) / 2, (1 + coverage) / 2):
        k = int(np.clip(np.searchsorted(tau, level - 1e-12), 1, len(tau) - 1))
        share = np.clip((level - tau[k - 1]) / (tau[k] - tau[k - 1]), 0.0, 1.0)
        ends.append(np.asarray((1 - share) * q[k - 1] + share * q[k]))
    return ends[0], ends[1]
