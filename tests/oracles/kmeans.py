"""k-means on a line the slow way: in exact fractions, over all partitions or by the plain recursion."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

Numbers = Sequence[float]


def merged(x: Numbers, w: Numbers) -> list[tuple[Fraction, Fraction]]:
    """Distinct numbers with weight, ascending, and their weights."""
    total: dict[Fraction, Fraction] = {}
    for number, weight in zip(x, w, strict=True):
        if weight > 0:
            total[Fraction(number)] = total.get(Fraction(number), Fraction(0)) + Fraction(weight)
    return sorted(total.items())


def spread(points: list[tuple[Fraction, Fraction]]) -> Fraction:
    """Sum of weight times squared distance from the weighted mean."""
    total = sum(w for _, w in points)
    mean = sum(x * w for x, w in points) / total
    return sum((w * (x - mean) ** 2 for x, w in points), Fraction(0))


def least_of_all(x: Numbers, w: Numbers, levels: int) -> Fraction:
    """The least cost over every partition into runs of neighbours."""
    points = merged(x, w)
    count = min(levels, len(points))
    return min(
        sum((spread(points[i:j]) for i, j in itertools.pairwise((0, *cuts, len(points)))), Fraction(0))
        for cuts in itertools.combinations(range(1, len(points)), count - 1)
    )


def least_by_recursion(x: Numbers, w: Numbers, levels: int) -> Fraction:
    """The same by ``D_k(j) = min_i D_(k-1)(i) + c(i, j)``, all i and j tried."""
    points = merged(x, w)
    n = len(points)
    sums = [
        list(itertools.accumulate((w * x**power for x, w in points), initial=Fraction(0)))
        for power in range(3)
    ]
    cost = {}
    for i, j in itertools.combinations(range(n + 1), 2):
        w, wx, wxx = (s[j] - s[i] for s in sums)
        cost[i, j] = wxx - wx * wx / w
    least: list[Fraction | None] = [Fraction(0), *[None] * n]
    for _ in range(min(levels, n)):
        least = [None] + [
            min((least[i] + cost[i, j] for i in range(j) if least[i] is not None), default=None)  # type: ignore[operator]
            for j in range(1, n + 1)
        ]
    assert least[n] is not None
    return least[n]


def cost_of(x: Numbers, w: Numbers, centres: Numbers, codes: Sequence[int]) -> Fraction:
    """What a table and its codes lose."""
    return sum(
        (
            Fraction(b) * (Fraction(a) - Fraction(centres[k])) ** 2
            for a, b, k in zip(x, w, codes, strict=True)
        ),
        Fraction(0),
    )
