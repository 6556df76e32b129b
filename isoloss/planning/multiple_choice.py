"""One option per group, the least sum of a goal within several budgets: the search behind :mod:`isoloss.planning.allocate`.

Numbers only; nothing here knows what they stand for. Exact up to the rounding of sums. A mixed-integer solver such as
SciPy's HiGHS holds limits to an absolute 1e-6: where a limit is met almost exactly it goes over it, or finds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ROUNDING = 1e-12  # what the rounding of sums may be, as a share of them
WIDTH = 64  # partial sums with which the search begins; it widens until nothing was left out
WIDEST = 1 << 18  # partial sums at which it gives up the proof: some ten seconds
STATES = 1 << 20  # partial sums of a whole frontier, at most
STEPS = 300  # of the multipliers, at most


def least_sum(
    goal: Sequence[Array], uses: Sequence[Array], room: Array, start: list[int]
) -> tuple[list[int], float]:
    """Exact up to rounding: wider and wider, until nothing that could be better was left out.

    Args:
        goal: per group (options,).
        uses: per group (options, budgets), counted from the least of the group.
        room: (budgets,), of the sums of ``uses``.
        start: a choice within it.
    """
    tolerance = ROUNDING * sum(float(np.ptp(value)) for value in goal)
    kept = [np.flatnonzero((use <= room).all(1)) for use in uses]
    best, multipliers, width = list(start), np.zeros(len(room)), WIDTH
    while True:
        multipliers, best = _multipliers(goal, uses, room, kept, best, multipliers)
        worst = _total(goal, best) - tolerance
        price = [value[k] + use[k] @ multipliers for value, use, k in zip(goal, uses, kept, strict=True)]
        excess = [p - p.min() for p in price]
        floor = sum(float(p.min()) for p in price) - float(multipliers @ room)
        if floor >= worst:
            return best, 0.0
        kept = [k[floor + more < worst] for k, more in zip(kept, excess, strict=True)]
        excess = [more[floor + more < worst] for more in excess]
        front = added_up(goal, uses, room, kept, excess, worst - floor, width)
        if len(front.sums) and front.sums[:, 0].min() < worst:
            best = front.picked(int(front.sums[:, 0].argmin()))
        if floor + front.left_out >= _total(goal, best) - tolerance:
            return best, 0.0
        if width >= WIDEST:
            return best, _total(goal, best) - floor - front.left_out
        width *= 8


def _total(goal: Sequence[Array], picked: Sequence[int]) -> float:
    return math.fsum(float(value[k]) for value, k in zip(goal, picked, strict=True))


def _multipliers(
    goal: Sequence[Array],
    uses: Sequence[Array],
    room: Array,
    kept: Sequence[Array],
    best: list[int],
    start: Array,
) -> tuple[Array, list[int]]:
    """Prices of the budgets with a high bound from below, by Polyak's subgradient steps; a better choice if one is met."""
    groups, most = len(goal), max(len(k) for k in kept)
    loss = np.full((groups, most), np.inf)
    use = np.zeros((groups, most, len(room)))
    scale = np.where(room > 0, room, 1.0)
    for g, k in enumerate(kept):
        loss[g, : len(k)] = goal[g][k]
        use[g, : len(k)] = uses[g][k] / scale
    top, value, everyone = room / scale, _total(goal, best), np.arange(groups)
    price = highest_at = start * scale
    highest, step, idle = -math.inf, 1.0, 0
    for _ in range(STEPS):
        cost = loss + use @ price
        picked = cost.argmin(1)
        used = use[everyone, picked].sum(0)
        bound = float(cost[everyone, picked].sum() - price @ top)
        if (used <= top).all() and loss[everyone, picked].sum() < value:
            best = [int(k[p]) for k, p in zip(kept, picked, strict=True)]
            value = _total(goal, best)
        slope = used - top
        if bound > highest:
            highest, highest_at, idle = bound, price, 0
        elif (idle := idle + 1) == 15:
            step, idle, price = step / 2, 0, highest_at
            continue
        if not slope.any() or value <= bound or step < 1e-4:
            break
        price = np.maximum(price + step * (value - bound) / float(slope @ slope) * slope, 0.0)
    return highest_at / scale, best


@dataclass(frozen=True, eq=False)
class Front:
    """Choices for all groups that no other beats.

    Attributes:
        sums: (choices, 1 + budgets): goal, uses.
        order: of the groups.
        trail: per group in this order: index of the partial choice before, option.
        left_out: the least excess over the bound of what was left out because there was too much; infinite: nothing.
    """

    sums: Array
    order: Sequence[int]
    trail: Sequence[tuple[Array, Array]]
    left_out: float

    def picked(self, end: int) -> list[int]:
        out = [0] * len(self.order)
        for g, (before, option) in zip(reversed(self.order), reversed(self.trail), strict=True):
            out[g] = int(option[end])
            end = int(before[end])
        return out


def added_up(
    goal: Sequence[Array],
    uses: Sequence[Array],
    room: Array,
    kept: Sequence[Array],
    excess: Sequence[Array],
    most: float,
    width: int,
) -> Front:
    """Group by group, the partial sums that may still be the best.

    Args:
        goal, uses, room: as :func:`least_sum`.
        kept: per group the options to take.
        excess: of each over the bound from below; what comes to ``most`` or more is dropped.
        width: partial sums to keep, those with the least excess.
    """
    # The widest choices first, so that there are few partial sums until the last groups.
    second = [float(np.partition(more, 1)[1]) if len(more) > 1 else math.inf for more in excess]
    order = sorted(range(len(goal)), key=lambda g: -second[g])
    least = np.array([uses[g][kept[g]].min(0) for g in order])
    after = np.concatenate([np.cumsum(least[::-1], 0)[::-1][1:], np.zeros((1, len(room)))])
    sums, over, left_out = np.zeros((1, 1 + len(room))), np.zeros(1), math.inf
    trail: list[tuple[Array, Array]] = []
    for g, rest in zip(order, after, strict=True):
        options = kept[g]
        added = np.column_stack([goal[g][options], uses[g][options]])
        total_over = (over[:, None] + excess[g]).reshape(-1)
        grown = (sums[:, None] + added).reshape(-1, sums.shape[1])
        within = np.flatnonzero((total_over < most) & (grown[:, 1:] + rest <= room).all(1))
        at = within[undominated(grown[within])] if len(within) else within
        if len(at) > width:
            ranked = at[np.argsort(total_over[at], kind="stable")]
            left_out = min(left_out, float(total_over[ranked[width]]))
            at = ranked[:width]
        sums, over = grown[at], total_over[at]
        trail.append((at // len(options), options[at % len(options)]))
    return Front(sums, order, trail, left_out)


def undominated(rows: Array) -> Array:
    """Indices of rows that are not above another in all columns; of equal rows the first.

    With more than two columns and many rows only those are compared that agree in all columns but the first: a
    dominated row that is kept costs time, nothing else.
    """
    if rows.shape[1] == 1:
        return np.array([int(rows[:, 0].argmin())])
    order = np.lexsort((rows[:, 0], *rows.T[:0:-1]))
    ranked = rows[order]
    free = np.ones(len(rows), dtype=bool)
    if rows.shape[1] == 2:
        free[1:] = ranked[1:, 0] < np.minimum.accumulate(ranked[:, 0])[:-1]
    elif len(rows) > 1000:
        free[1:] = (ranked[1:, 1:] != ranked[:-1, 1:]).any(1)
    else:  # sorted, so that a row is above only what comes before it
        above = np.tri(len(rows), k=-1, dtype=bool)
        for column in ranked.T:
            above &= column[None, :] <= column[:, None]
        free = ~np.any(above, axis=1)
    found: Array = order[free]
    return found
