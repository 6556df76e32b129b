"""Exact k-means on a line in NumPy: layers of dynamic programming, for installs without native code.

Layer k holds the least cost of k levels for the first j points of a row. Best starts of the last run never move back as j
grows, nor as k does, so that those of all j, and of many rows at once, are found by halving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.native.kmeans import Floats

Array = NDArray[np.float64]
Places = NDArray[np.int64]

LOST_SHARE = 2.0**-48
_BLOCK = 1 << 13  # points worked on at once: their arrays stay in the cache


def kmeans_rows(
    x: Floats, weights: Floats | None, centres: Array, codes: NDArray[np.uint8], cost: Array
) -> None:
    """What ``native.kmeans.kmeans_rows`` does, with the same arguments.

    Example:
        >>> centres, codes, cost = np.empty((1, 2)), np.empty((1, 3), np.uint8), np.empty(1)
        >>> kmeans_rows(np.array([[1.0, 5.0, 2.0]]), None, centres, codes, cost)
        >>> centres.tolist(), codes.tolist(), cost.tolist()
        ([[1.5, 5.0]], [[0, 1, 0]], [0.5])
    """
    step = max(1, _BLOCK // x.shape[1])
    for first in range(0, len(x), step):
        rows = [
            _points(x[row], None if weights is None else weights if weights.ndim == 1 else weights[row])
            for row in range(first, min(first + step, len(x)))
        ]
        for row, (points, path) in enumerate(zip(rows, _partitions(rows, centres.shape[1]), strict=True)):
            _finish(
                points, path, centres[first + row], codes[first + row], cost[first + row : first + row + 1]
            )


@dataclass(frozen=True, eq=False)
class _Points:
    """A row as distinct, weighed points: scaled by powers of two, ascending."""

    x: Array  # all numbers of the row, scaled
    w: Array  # all weights of the row, scaled
    scale: float
    weigh: float
    point: Places  # of each number: its point, -1 if its weight is lost
    value: Array
    mass: Array

    def sums(self) -> tuple[Array, Array, Array]:
        """Prefix sums outward from the weighted median, so that far numbers take no digits from the middle."""
        half = np.cumsum(self.mass)
        middle = min(int(np.searchsorted(half, half[-1] / 2)), len(half) - 1)
        at = self.value - self.value[middle]
        terms = np.stack([self.mass, self.mass * at, self.mass * at * at])
        sums = np.zeros((3, len(at) + 1))
        sums[:, middle + 1 :] = np.cumsum(terms[:, middle:], axis=1)
        sums[:, :middle] = -np.cumsum(terms[:, :middle][:, ::-1], axis=1)[:, ::-1]
        return sums[0], sums[1], sums[2]


def _unit(most: float) -> float:
    """The power of two that brings ``most`` to [1/2, 1)."""
    return 1.0 if most == 0 else float(np.ldexp(1.0, -int(np.clip(np.frexp(most)[1], -1000, 1000))))


def _points(x: Floats, weights: Floats | None) -> _Points:
    wide = x.astype(np.float64)
    scale = _unit(float(np.abs(wide).max()))
    given = np.ones_like(wide) if weights is None else weights.astype(np.float64)
    weigh = _unit(float(given.max()))
    heavy = given * weigh if given.max() > 0 else np.ones_like(wide)
    counts = heavy > heavy.sum() * LOST_SHARE
    value, inverse = np.unique(wide[counts], return_inverse=True)
    point = np.full(len(wide), -1)
    point[counts] = inverse
    mass = np.bincount(inverse, heavy[counts], len(value)).astype(np.float64)
    return _Points(wide * scale, given * weigh, scale, weigh, point, value * scale, mass)


def _partitions(rows: list[_Points], levels: int) -> list[Places]:
    """Boundaries of the best runs of each row."""
    paths: list[Places] = [np.arange(len(points.value) + 1) for points in rows]
    hard = [i for i, points in enumerate(rows) if len(points.value) > levels]
    if hard:
        for i, path in zip(hard, _Layers.of([rows[i] for i in hard]).paths(levels), strict=True):
            paths[i] = path
    return paths


@dataclass(frozen=True, eq=False)
class _Layers:
    """Rows end to end: boundary j of row r lies at ``start[r] + j``, j = 0 .. ``m[r]``."""

    start: Places
    m: Places
    w: Array
    wx: Array
    wxx: Array

    @classmethod
    def of(cls, rows: list[_Points]) -> _Layers:
        m = np.array([len(points.value) for points in rows])
        sums = zip(*(points.sums() for points in rows), strict=True)
        return cls(np.cumsum(m + 1) - (m + 1), m, *(np.concatenate(s) for s in sums))

    def paths(self, levels: int) -> list[Places]:
        own = np.repeat(self.start, self.m + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            least = self._cost(own, np.arange(len(own)))
        least[self.start] = 0
        begins = [own]
        for k in range(2, levels + 1):
            least, begin = self._layer(least, begins[-1], k, last=k == levels)
            begins.append(begin)
        end = self.start + self.m
        path = [end]
        for begin in reversed(begins):
            path.append(begin[path[-1]])
        return list((np.stack(path[::-1]) - self.start).T)

    def _cost(self, i: Places, j: Places) -> Array:
        w, wx = self.w[j] - self.w[i], self.wx[j] - self.wx[i]
        return (self.wxx[j] - self.wxx[i]) - wx * wx / w

    def _layer(self, least: Array, previous: Places, k: int, last: bool) -> tuple[Array, Places]:
        """Least cost of k runs up to every boundary, and where the last of them begins; of the ends alone if ``last``."""
        found, begin = np.full(len(least), np.inf), np.zeros(len(least), np.int64)
        first, end = self.start + k, self.start + self.m
        self._fill(least, previous, end, first - 1, end - 1, found, begin)
        if last:
            return found, begin
        step = 1 << int(np.max(end - first)).bit_length()
        while step:
            counts = np.maximum(0, (end - first + step) // (2 * step))
            row = np.repeat(np.arange(len(counts)), counts)
            j = first[row] - 1 + step + 2 * step * _within(counts)
            inner = j < end[row]
            row, j = row[inner], j[inner]
            low = np.where(j - step < first[row], first[row] - 1, begin[np.maximum(j - step, 0)])
            high = np.minimum(begin[np.minimum(j + step, end[row])], j - 1)
            self._fill(least, previous, j, low, high, found, begin)
            step //= 2
        return found, begin

    def _fill(
        self,
        least: Array,
        previous: Places,
        j: Places,
        low: Places,
        high: Places,
        found: Array,
        begin: Places,
    ) -> None:
        """Best starts in [low, high] for each end j."""
        if not len(j):
            return
        low = np.minimum(np.maximum(low, previous[j]), high)
        counts = high - low + 1
        i = np.repeat(low, counts) + _within(counts)
        value = least[i] + self._cost(i, np.repeat(j, counts))
        heads = np.cumsum(counts) - counts
        lowest = np.minimum.reduceat(value, heads)
        hits = np.flatnonzero(value == np.repeat(lowest, counts))
        found[j] = lowest
        begin[j] = i[hits[np.searchsorted(hits, heads)]]


def _within(counts: Places) -> Places:
    """0 .. count - 1 for each count, end to end."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _finish(p: _Points, path: Places, centres: Array, codes: NDArray[np.uint8], cost: NDArray[Any]) -> None:
    """Centres, codes and cost of a row from its boundaries."""
    used = min(len(path) - 1, len(centres))
    run = np.repeat(np.arange(used), np.diff(path[: used + 1]))
    base = p.value[path[:used]]
    offset = np.bincount(run, p.mass * (p.value - base[run]), used) / np.bincount(run, p.mass, used)
    found = base + np.minimum(offset, p.value[path[1 : used + 1] - 1] - base)
    code = np.where(p.point >= 0, run[p.point], 0)
    away = p.point < 0
    if away.any():
        right = np.clip(np.searchsorted(found, p.x[away]), 1, max(1, used - 1))
        left = right - 1
        nearer = p.x[away] - found[left] > found[np.minimum(right, used - 1)] - p.x[away]
        code[away] = np.where(nearer, np.minimum(right, used - 1), left)
    codes[:] = code
    cost[0] = float((p.w * (p.x - found[code]) ** 2).sum()) / p.weigh / p.scale / p.scale
    centres[:used] = found / p.scale
    centres[used:] = centres[used - 1]
