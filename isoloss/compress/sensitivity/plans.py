"""How well a score of whole plans orders their measured losses: rank correlations, also at equal size, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoloss.compress.sensitivity.ranking import Array, spearman

DRAWS = 1000
NUMBERS = 1 << 21  # comparisons at a time


@dataclass(frozen=True)
class Judged:
    """How well a score orders plans.

    Attributes:
        rho: Spearman's correlation of score and loss; the larger score is the worse plan, so 1 is best.
        low, high: of its interval, over resampled plans.
        partial: the same given size: what is left of it when ranks of sizes are taken out of both.
        partial_low, partial_high: of its interval.
        count: plans.
    """

    rho: float
    low: float
    high: float
    partial: float
    partial_low: float
    partial_high: float
    count: int


def judge(
    scores: Sequence[float] | Array,
    losses: Sequence[float] | Array,
    sizes: Sequence[float] | Array,
    coverage: float = 0.9,
    seed: int = 0,
) -> Judged:
    """Rank correlations of scores and measured losses of the same plans.

    Args:
        scores: the larger, the worse.
        losses: measured.
        sizes: bits.
        coverage: of the intervals.
        seed: of the plans drawn.

    Raises:
        ValueError: other lengths, or fewer than four plans.

    Example:
        >>> sizes = [1, 2, 3, 4, 5, 6]
        >>> found = judge([-s for s in sizes], [6, 5, 4, 2, 3, 1], sizes)  # a score that knows nothing but size
        >>> round(found.rho, 3), found.partial
        (0.943, nan)
    """
    own = [np.asarray(values, dtype=float) for values in (scores, losses, sizes)]
    if len({len(values) for values in own}) != 1 or len(own[0]) < 4:
        raise ValueError(
            f"needed scores, losses and sizes of the same four plans or more, got {[len(v) for v in own]}"
        )
    at = np.random.default_rng(seed).integers(0, len(own[0]), (DRAWS, len(own[0])))
    ranks = [_ranks(values[at]) for values in own]
    ab, ac, bc = (_correlations(ranks[i], ranks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = (1 - ac**2) * (1 - bc**2)
        given = np.where(rest > 1e-12, (ab - ac * bc) / np.sqrt(np.maximum(rest, 1e-300)), np.nan)
    given = np.where(np.ptp(own[2][at], axis=1) == 0, ab, given)
    tails = [(1 - coverage) / 2, (1 + coverage) / 2]
    ends: list[float] = []
    for drawn in (ab, given):
        known = drawn[~np.isnan(drawn)]
        ends += [float(x) for x in np.quantile(known, tails)] if len(known) else [math.nan, math.nan]
    return Judged(spearman(own[0], own[1]), ends[0], ends[1], partial(*own), ends[2], ends[3], len(own[0]))


def _ranks(values: Array) -> Array:
    """Ranks within each row, ties sharing their mean rank."""
    rows = max(1, NUMBERS // values.shape[1] ** 2)
    parts = []
    for start in range(0, len(values), rows):
        own = values[start : start + rows]
        below = (own[:, :, None] > own[:, None, :]).sum(axis=2)
        parts.append(below + ((own[:, :, None] == own[:, None, :]).sum(axis=2) + 1) / 2)
    found: Array = np.concatenate(parts)
    return found


def _correlations(a: Array, b: Array) -> Array:
    """Pearson's of each row; NaN where one side is constant."""
    off = [own - own.mean(axis=1, keepdims=True) for own in (a, b)]
    size = np.sqrt((off[0] ** 2).sum(axis=1) * (off[1] ** 2).sum(axis=1))
    found: Array = np.where(size > 0, (off[0] * off[1]).sum(axis=1) / np.where(size > 0, size, 1), np.nan)
    return found


def partial(a: Array, b: Array, given: Array) -> float:
    r"""Spearman's correlation given a third: :math:`(r_{ab} - r_{ac} r_{bc}) / \sqrt{(1 - r_{ac}^2)(1 - r_{bc}^2)}`.

    Without ``given`` where that is constant; NaN where it says all about one side.

    Example:
        >>> a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
        >>> round(partial(a, b, np.ones(4)), 3)
        0.8
    """
    ab, ac, bc = spearman(a, b), spearman(a, given), spearman(b, given)
    if math.isnan(ac) or math.isnan(bc):
        return ab if len(set(given.tolist())) == 1 else math.nan
    rest = (1 - ac * ac) * (1 - bc * bc)
    return (ab - ac * bc) / math.sqrt(rest) if rest > 1e-12 else math.nan
