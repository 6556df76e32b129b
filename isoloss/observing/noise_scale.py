"""McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162: the noise of gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured
from isoloss.special import student_quantile

Array = np.ndarray[Any, np.dtype[Any]]

BLOCKS = 20


@dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale and the two quantities whose ratio it is.

    Attributes:
        scale: tr(Sigma)/|G|^2, in the unit of the batches; its upper end is inf where the signal is not told
            from zero.
        signal: |G|^2, squared norm of the true gradient. spread: tr(Sigma), of the per-example covariance.
        steps, blocks: steps measured, and blocks of them that the intervals are from.
    """

    scale: Measured
    signal: Measured
    spread: Measured
    steps: int
    blocks: int

    def __str__(self) -> str:
        return f"noise scale {self.scale}"


def gradient_noise_scale(
    small: Any,
    big: Any,
    small_batch: float,
    big_batch: float,
    *,
    blocks: int = BLOCKS,
    coverage: float = 0.9,
) -> NoiseScale:
    r"""The gradient noise scale from squared gradient norms at two batch sizes, step by step.

    .. math:: \mathcal{G}^2 = \frac{B|G_B|^2 - b|G_b|^2}{B - b}, \quad
        \mathcal{S} = \frac{|G_b|^2 - |G_B|^2}{1/b - 1/B}, \quad
        B_{simple} = \frac{\overline{\mathcal{S}}}{\overline{\mathcal{G}^2}}

    Both are unbiased at every step, their ratio is not: each is averaged over the steps, then divided. Steps
    close in time are alike, so the intervals are from means of consecutive blocks, by Student's t; of the ratio by
    Fieller's theorem, which knows that a small denominator leaves the upper end open.

    Args:
        small, big: |G_b|^2 and |G_B|^2 per step, (n,). The large gradient may be the mean of the small
            ones of that step; then give the mean of their squared norms as ``small``.
        small_batch, big_batch: b < B, tokens or examples.
        blocks: at most; too short a block hides correlation between steps.
        coverage: of the intervals.

    Raises:
        ValueError: unequal lengths, norms that are negative or not finite, or not b < B.
        NoAnswer: fewer than four steps, or the mean of signal or spread is not positive.

    Example:
        >>> found = gradient_noise_scale([3.0, 2.8, 3.1, 3.1], [2.0, 1.9, 2.05, 2.05], 50, 100)
        >>> found.spread.value, round(found.signal.value, 6), round(found.scale.value, 6)
        (100.0, 1.0, 100.0)
    """
    first, second = (np.asarray(entry, dtype=float).ravel() for entry in (small, big))
    if len(first) != len(second):
        raise ValueError(f"needed both norms at every step, got {len(first)} and {len(second)}")
    if not 0 < small_batch < big_batch < math.inf:
        raise ValueError(f"needed 0 < small_batch < big_batch, got {small_batch} and {big_batch}")
    if not 0 < coverage < 1 or blocks < 4:
        raise ValueError(
            f"needed coverage between 0 and 1 and at least 4 blocks, got {coverage} and {blocks}"
        )
    if not all((np.isfinite(entry) & (entry >= 0)).all() for entry in (first, second)):
        raise ValueError("needed squared norms finite and at or above 0. Leave out the steps that overflowed")
    signal = (big_batch * second - small_batch * first) / (big_batch - small_batch)
    spread = (first - second) / (1 / small_batch - 1 / big_batch)
    return noise_of_steps(signal, spread, blocks=blocks, coverage=coverage)


def noise_of_steps(signal: Any, spread: Any, *, blocks: int = BLOCKS, coverage: float = 0.9) -> NoiseScale:
    """The noise scale from unbiased estimates of |G|^2 and tr(Sigma), one of each a step.

    Args:
        signal, spread: per step, (n,); single ones may be negative.
        blocks, coverage: as :func:`gradient_noise_scale`.

    Raises:
        NoAnswer: fewer than four steps, or the mean of signal or spread is not positive.

    Example:
        >>> found = noise_of_steps([0.9, 1.1, 1.0, 1.0], [105.0, 95.0, 100.0, 100.0])
        >>> round(found.scale.value, 6)
        100.0
    """
    both = np.asarray([signal, spread], dtype=float)
    steps = both.shape[1]
    if steps < 4:
        raise NoAnswer(f"{steps} steps give no interval", "at least four steps, better some hundred")
    parts = min(blocks, steps)
    means = np.array([[np.mean(piece) for piece in np.array_split(entry, parts)] for entry in both])
    t = student_quantile((1 + coverage) / 2, parts - 1)
    how = f"means of {parts} blocks of steps"
    return noise_of_means(both.mean(axis=1), np.cov(means) / parts, t, coverage, how, steps, parts)


def noise_of_means(
    centre: Any, covariance: Any, t: float, coverage: float, how: str, steps: int, blocks: int
) -> NoiseScale:
    """The noise scale from estimates of |G|^2 and tr(Sigma) and the covariance of the two.

    Args:
        centre: (2,), signal and spread. covariance: (2, 2).
        t: quantile for the intervals, of the ratio by Fieller's theorem.
        coverage, how, steps, blocks: to be told.

    Raises:
        NoAnswer: signal or spread is not positive.
    """
    if centre[0] <= 0:
        raise NoAnswer(
            f"noise hides the gradient: its squared norm is estimated as {centre[0]:.3g}",
            "more steps, or a larger big batch",
        )
    if centre[1] <= 0:
        raise NoAnswer(
            f"the two batches differ by no noise: tr(Sigma) is estimated as {centre[1]:.3g}",
            "more steps, or batches further apart",
        )
    each = [
        Measured(float(m), float(m - t * math.sqrt(v)), float(m + t * math.sqrt(v)), coverage, how)
        for m, v in zip(centre, np.diag(covariance), strict=True)
    ]
    low, high = fieller(centre[1], centre[0], covariance[1, 1], covariance[0, 0], covariance[0, 1], t)
    scale = Measured(
        float(centre[1] / centre[0]), max(low, 0.0), high, coverage, f"ratio of means, Fieller, {how}"
    )
    return NoiseScale(scale, each[0], each[1], steps, blocks)


def fieller(
    above: float, below: float, above_variance: float, below_variance: float, covariance: float, t: float
) -> tuple[float, float]:
    r"""Interval of a ratio of two means: :math:`\{\rho : (a - \rho b)^2 \le t^2 (v_a - 2\rho v_{ab} + \rho^2 v_b)\}`.

    Args:
        above, below: the means; ``below`` positive.
        above_variance, below_variance, covariance: of the means.
        t: quantile.

    Returns:
        Both ends; the upper is inf where ``below`` is not told from zero, the lower -inf where nothing bounds it.

    Example:
        >>> fieller(2.0, 1.0, 0.25, 0.0, 0.0, 2.0)
        (1.0, 3.0)
    """
    square = below**2 - t**2 * below_variance
    cross = above * below - t**2 * covariance
    rest = above**2 - t**2 * above_variance
    inside = cross**2 - square * rest
    if square > 0:  # then inside >= 0, up to rounding
        root = math.sqrt(max(inside, 0.0))
        return (cross - root) / square, (cross + root) / square
    if inside <= 0 or square == 0:
        return -math.inf, math.inf
    # Everything but an open stretch between the roots: one-sided only where the estimate lies above it.
    upper = max((cross - math.sqrt(inside)) / square, (cross + math.sqrt(inside)) / square)
    return (upper if above / below >= upper else -math.inf), math.inf
