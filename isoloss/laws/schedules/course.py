"""A schedule seen from some of its steps: its sum, and what the changes of the rate before each step weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoloss.laws.schedules.schedule import Schedule

Array = np.ndarray[Any, np.dtype[Any]]

MERGE = 0.125  # steps taken together, as a share of how long ago they were
TINY = 1e-300  # a rate of 0, at the last step: its power stays finite
NOISE = 1e-13  # of the peak: a change below is rounding


@dataclass(frozen=True, eq=False)
class Course:
    r"""What a law needs to know of one schedule at n steps.

    A law of schedules sums over the changes of the rate, ``sum_k (eta_(k-1) - eta_k) g(k, t)``. Its ``g`` changes
    slowly with the age ``t - k`` of a change, so neighbouring changes are taken together as one, at their mean
    place: groups of at most ``merge`` times their age, so that recent changes stay single. A sudden change stays
    exact at any age, because its neighbours are 0. With ``merge = 0`` every change stands alone.

    Attributes:
        steps: shape (n,).
        sums: ``S_1(t) = sum of the rates of steps 1 to t``, (n,).
        rows: which of the n steps a group of changes is seen from, (M,), rising.
        drops: ``eta_(k-1) - eta_k`` summed over the group, (M,).
        ages: mean of ``t - k + 1``, (M,).
        gaps: mean of ``S_1(t) - S_1(k-1)``, (M,).
        log_rates: mean of ``log eta_k``, (M,).
    """

    steps: Array
    sums: Array
    rows: Array
    drops: Array
    ages: Array
    gaps: Array
    log_rates: Array

    starts: Array = field(init=False)  # where the groups of each step that has any begin
    having: Array = field(init=False)  # those steps

    def __post_init__(self) -> None:
        having, starts = np.unique(self.rows, return_index=True)
        object.__setattr__(self, "having", having)
        object.__setattr__(self, "starts", starts)

    def total(self, weights: Array) -> Array:
        """Sum over the groups of each step: (M,) to (n,)."""
        out = np.zeros(len(self.steps))
        if len(self.rows):
            out[self.having] = np.add.reduceat(weights, self.starts)
        return out


def course(schedule: Schedule, steps: Any, merge: float = MERGE, warmup: bool = True) -> Course:
    """The schedule seen from ``steps``, (n,); the changes of its warm-up left out if ``warmup`` is false.

    Raises:
        ValueError: a step is outside 1 to T.

    Example:
        >>> seen = course(Schedule.two_stage(steps=6, peak=2.0, end=1.0, at=3), [2, 5])
        >>> seen.sums.tolist(), seen.rows.tolist(), seen.drops.tolist(), seen.gaps.tolist()
        ([4.0, 7.0], [1], [1.0], [3.0])
    """
    wanted = np.atleast_1d(np.asarray(steps, dtype=float))
    if wanted.ndim != 1 or len(wanted) == 0:
        raise ValueError(f"needed steps in one row, got an array of shape {wanted.shape}")
    bad = ~((wanted >= 1) & (wanted <= schedule.steps) & (wanted == np.round(wanted)))
    if bad.any():
        raise ValueError(
            f"needed whole steps from 1 to {schedule.steps}, the last of the schedule, got {wanted[bad][0]:g}"
        )
    at = wanted.astype(int)
    changes = schedule.rates[:-1] - schedule.rates[1:]  # of step k at index k - 1
    changes[np.abs(changes) <= NOISE * schedule.peak] = 0.0
    if not warmup:
        changes[: schedule.warmup] = 0.0
    logs = np.log(np.maximum(schedule.rates[1:], TINY))
    walls = _walls(changes, logs, schedule.warmup, merge)
    places = np.arange(1, schedule.steps + 1)
    # Sums up to k of the changes and of what they weigh; a group's are differences.
    kept = [changes, changes * places, changes * schedule.sums[:-1], changes * logs]
    total, place, before, log = (np.concatenate([[0.0], np.cumsum(part)]) for part in kept)
    count = np.concatenate([[0], np.cumsum(changes != 0)])
    rows, lows, highs = [], [], []
    for i, t in enumerate(at):
        edges = _edges(int(t), walls, merge)
        low, high = edges[:-1], edges[1:]
        some = count[high] > count[low]
        rows.append(np.full(int(some.sum()), i))
        lows.append(low[some])
        highs.append(high[some])
    row, low, high = (np.concatenate(part).astype(int) for part in (rows, lows, highs))
    drop = total[high] - total[low]
    single = high - low == 1
    # one change is what it is; differences of long sums would blur it
    drop[single] = changes[low[single]]

    def mean(sums: Array, exact: Array, ends: tuple[Array, Array]) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            middle = (sums[high] - sums[low]) / drop
        least, most = np.minimum(*ends), np.maximum(*ends)
        return np.where(single, exact, np.clip(np.nan_to_num(middle, nan=0.0), least, most))

    sums, age = schedule.sums, at[row] + 1.0
    return Course(
        at.astype(float),
        sums[at],
        row,
        drop,
        age - mean(place, places[low], (places[low], places[high - 1])),
        sums[at[row]] - mean(before, sums[low], (sums[low], sums[high - 1])),
        mean(log, logs[low], (logs[low], logs[high - 1])),
    )


def joined(parts: Sequence[tuple[Array, Course]]) -> Course:
    """Several courses as one: each with the places that its steps take among all, which together are 0 to n-1."""
    n = sum(len(places) for places, _ in parts)
    steps, sums = np.empty(n), np.empty(n)
    for places, part in parts:
        steps[places], sums[places] = part.steps, part.sums
    rows = np.concatenate([places[part.rows] for places, part in parts])
    order = np.argsort(rows, kind="stable")

    def all_of(name: str) -> Array:
        return np.asarray(np.concatenate([getattr(part, name) for _, part in parts])[order])

    return Course(
        steps, sums, rows[order], all_of("drops"), all_of("ages"), all_of("gaps"), all_of("log_rates")
    )


def _walls(changes: Array, logs: Array, warmup: int, merge: float) -> Array:
    """Steps after which no group goes on: the warm-up's end, where the rate turns, and where it has changed much."""
    signs = np.sign(changes)
    live = np.flatnonzero(signs)
    turns = live[1:][signs[live[1:]] != signs[live[:-1]]]
    bins = np.floor(logs / (2 * merge)) if merge > 0 else logs
    return np.unique(np.concatenate([turns, [warmup], np.flatnonzero(np.diff(bins)) + 1]))


def _edges(t: int, walls: Array, merge: float) -> Array:
    """Ends of the groups of steps 1 to t: (low, high] for neighbours, rising."""
    if merge <= 0:
        return np.arange(t + 1)
    alone = int(np.ceil(1.0 / merge))
    ages = [*range(min(alone, t) + 1)]
    if t > alone:
        count = int(np.ceil(np.log(t / alone) / np.log1p(merge)))
        ages += np.ceil(alone * (1.0 + merge) ** np.arange(1, count + 1)).astype(int).tolist()
    edges = t - np.minimum(np.array(ages), t)
    return np.unique(np.concatenate([edges, walls[walls < t]]))
