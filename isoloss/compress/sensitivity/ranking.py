"""How well one method's scores order layers and formats as another's: Spearman's correlation with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.compress.sensitivity.scores import Scores, Table

DRAWS = 1000
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Agreement:
    """How well two methods agree.

    Attributes:
        layers: Spearman's correlation over the layers at the same format, averaged over the formats: what a choice
            between layers of equal bits can use.
        low, high: of an interval for it, over resampled layers.
        all: over all pairs of layer and format; most of it is that fewer bits are worse.
        count: layers.
        coverage: of the interval.
    """

    layers: float
    low: float
    high: float
    all: float
    count: int
    coverage: float


def agreement(
    scores: Scores | Table, other: Scores | Table, coverage: float = 0.9, seed: int = 0
) -> Agreement:
    """Spearman's rank correlations of two tables of scores.

    Args:
        scores, other: of the same layers and formats.
        coverage: of the interval; layers are drawn with replacement.
        seed: of the draws.

    Raises:
        ValueError: other layers or formats, or fewer than three layers.

    Example:
        >>> a = {"x": {"int4": 1.0}, "y": {"int4": 2.0}, "z": {"int4": 3.0}}
        >>> b = {"x": {"int4": 0.1}, "y": {"int4": 0.3}, "z": {"int4": 0.2}}
        >>> round(agreement(a, b).layers, 3)
        0.5
    """
    one, two = (found.table if isinstance(found, Scores) else found for found in (scores, other))
    names = list(one)
    formats = list(one[names[0]]) if names else []
    if len(names) < 3:
        raise ValueError(f"needed at least three layers to rank, got {len(names)}")
    if set(names) != set(two) or any(set(own) != set(formats) for own in (*one.values(), *two.values())):
        raise ValueError("needed the same layers and formats in both tables")
    a, b = (np.array([[table[n][f] for f in formats] for n in names]) for table in (one, two))
    drawn = means(resampled(a, b, times(len(names), seed)))
    drawn = drawn[~np.isnan(drawn)]
    tail = (1 - coverage) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (math.nan, math.nan)
    return Agreement(
        float(means(resampled(a, b, np.ones((1, len(names)))))[0]),
        float(low),
        float(high),
        spearman(a.ravel(), b.ravel()),
        len(names),
        coverage,
    )


def times(rows: int, seed: int) -> Array:
    """How often each row is drawn when as many are drawn with replacement: (draws, rows)."""
    at = np.random.default_rng(seed).integers(0, rows, (DRAWS, rows))
    return np.stack([np.bincount(own, minlength=rows) for own in at]).astype(float)


def resampled(a: Array, b: Array, counts: Array) -> Array:
    """Spearman's correlation of the columns of two tables in which each row stands so many times.

    The rank of a row is half more than the rows below it and half of those equal to it, itself counted.

    Args:
        a, b: (rows, columns).
        counts: (draws, rows).

    Returns:
        (draws, columns); NaN where one side is constant.

    Example:
        >>> a, b = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([[1.0], [3.0], [2.0], [4.0]])
        >>> resampled(a, b, np.array([[1.0, 1, 1, 1], [2, 0, 0, 2]])).round(3).tolist()
        [[0.8], [1.0]]
    """
    found = np.full((len(counts), a.shape[1]), math.nan)
    total = counts.sum(axis=1, keepdims=True)
    for k in range(a.shape[1]):
        off = []
        for values in (a[:, k], b[:, k]):
            above = (values[:, None] < values) + 0.5 * (
                values[:, None] == values
            )  # [j, i]: row i above row j
            ranks = counts @ above + 0.5
            off.append(ranks - (counts * ranks).sum(axis=1, keepdims=True) / total)
        size = np.sqrt((counts * off[0] ** 2).sum(axis=1) * (counts * off[1] ** 2).sum(axis=1))
        np.divide((counts * off[0] * off[1]).sum(axis=1), size, out=found[:, k], where=size > 0)
    return found


def means(found: Array) -> Array:
    """The mean of each row over what is known in it; NaN where nothing is."""
    known = ~np.isnan(found)
    out: Array = np.full(len(found), math.nan)
    count = known.sum(axis=1)
    np.divide(np.where(known, found, 0.0).sum(axis=1), count, out=out, where=count > 0)
    return out


def spearman(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Pearson's correlation of the ranks, ties sharing their mean rank; NaN where one side is constant.

    Example:
        >>> round(spearman([1, 2, 3, 4], [1, 3, 2, 4]), 3)
        0.8
    """
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (a, b)]
    off = [own - own.mean() for own in ranks]
    size = math.sqrt(float((off[0] ** 2).sum() * (off[1] ** 2).sum()))
    return float((off[0] * off[1]).sum()) / size if size else math.nan


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Array = (ends - (counts - 1) / 2)[inverse]
    return found
