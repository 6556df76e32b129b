"""The best combination of further axes: every combination is a row of the search on the plane.

A row is a theta and a combination; its size and tokens are found as ever. An axis that is searched continuously adds
points of a log grid to the rows, and a golden section around the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.planning.axes import Settled, Tied
from isoloss.planning.costs import Cost
from isoloss.planning.search import Optima, best_loss, cheapest
from isoloss.planning.surface import Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 8192  # rows at once: what stays in the cache
GRID = 16  # points of a span, at first; of each of two, their square root more
FINE = 1e-7  # where one span's section ends, in ln
SWEEPS = 14  # over two spans in turn, each within a bracket that narrows
NARROWER = 0.6
FULL = 100_000  # rows of draws that are solved, at most; of a wanted loss a tenth
SLOWER = (1, 4 * GRID, 40 * GRID)  # times a row takes longer with so many axes that are searched
PILOT = 40  # draws in which every combination is tried
NEAR = 4.0  # standard deviations: a combination further behind in the pilot is left out
RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Goal:
    """What is made small: the loss (``cost`` None), or a cost at a wanted loss."""

    cost: Cost | None
    loss: float | None

    def solve(self, surface: Surface, limits: Limits) -> Optima:
        """The optimum of every row on the plane."""
        if self.cost is None or self.loss is None:
            return best_loss(surface, limits)
        return cheapest(surface, limits, self.cost, self.loss)

    def objective(self, limits: Limits, found: Optima) -> Array:
        """Its value at each row's optimum, (R,): the loss, or the log of the cost; infinite where there is none."""
        if self.cost is None:
            values = found.loss
        else:
            with np.errstate(all="ignore"):
                point = limits.point(found.params[:, None], found.tokens[:, None])
                values = np.log(np.broadcast_to(self.cost.value(point), (len(found.x), 1))[:, 0])
        return np.where(np.isnan(values), np.inf, values)


@dataclass(frozen=True, eq=False)
class Rows:
    """Optima of many rows, with the objective and the values of the searched axes, each (R,)."""

    optima: Optima
    objective: Array
    spans: Mapping[Tied, Array]


def solve_rows(surface: Surface, limits: Limits, settled: Settled, goal: Goal) -> Rows:
    """The optimum of every row over size, tokens and the searched axes.

    Args:
        surface: its rows are thetas, with the chosen axes in ``others``.
        limits: with the same ``others``.
        settled: for the spans.
        goal: what is made small.
    """
    blocks = [
        _solve_block(surface.rows_at(rows), limits.rows_at(rows), settled, goal)
        for rows in _blocks(len(surface.theta), 1 if not settled.spans else GRID)
    ]
    optima = Optima(
        *(np.concatenate([getattr(b.optima, name) for b in blocks]) for name in ("x", "d", "loss"))
    )
    spans = {tied: np.concatenate([b.spans[tied] for b in blocks]) for tied in settled.spans}
    return Rows(optima, np.concatenate([b.objective for b in blocks]), spans)


def _blocks(count: int, each: int) -> list[Array]:
    step = max(1, BLOCK // each)
    return [np.arange(i, min(i + step, count)) for i in range(0, count, step)]


def _solve_block(surface: Surface, limits: Limits, settled: Settled, goal: Goal) -> Rows:
    at = _searched(surface, limits, settled, goal) if settled.spans else {}
    surface, limits = _with(surface, at), _with_limits(limits, at)
    optima = goal.solve(surface, limits)
    return Rows(optima, goal.objective(limits, optima), at)


def _searched(surface: Surface, limits: Limits, settled: Settled, goal: Goal) -> dict[Tied, Array]:
    """The best values of the searched axes, each (R,)."""
    rows = len(surface.theta)
    many = GRID if len(settled.spans) == 1 else int(GRID**0.75)
    ends = {tied: (np.log(span.low), np.log(span.high)) for tied, span in settled.spans.items()}
    lines = [np.linspace(low, high, many) for low, high in ends.values()]
    mesh = np.stack([axis.ravel() for axis in np.meshgrid(*lines, indexing="ij")])  # (spans, M)
    again = np.repeat(np.arange(rows), mesh.shape[1])
    tried = {tied: np.exp(np.tile(mesh[j], rows)) for j, tied in enumerate(ends)}

    def value(s: Surface, m: Limits, at: Mapping[Tied, Array]) -> Array:
        s, m = _with(s, at), _with_limits(m, at)
        return goal.objective(m, goal.solve(s, m))

    first = value(surface.rows_at(again), limits.rows_at(again), tried).reshape(rows, -1)
    best = np.argmin(first, axis=1)
    now = {tied: mesh[j, best] for j, tied in enumerate(ends)}
    width = {tied: (high - low) / (many - 1) for tied, (low, high) in ends.items()}
    alone = len(ends) == 1
    for _ in range(1 if alone else SWEEPS):
        for tied, (low, high) in ends.items():

            def along(s: Array, tied: Tied = tied) -> Array:
                here = {**now, tied: s}
                return value(surface, limits, {name: np.exp(v) for name, v in here.items()})

            left, right = np.maximum(now[tied] - width[tied], low), np.minimum(now[tied] + width[tied], high)
            now[tied] = _golden(along, left, right, FINE if alone else 0.01 * width[tied])
            width[tied] *= NARROWER
    return {tied: np.clip(np.exp(now[tied]), span.low, span.high) for tied, span in settled.spans.items()}


def _golden(value: Callable[[Array], Array], low: Array, high: Array, within: float) -> Array:
    """Where ``value`` is least in [low, high], (R,), to ``within``: a golden section, and the ends."""
    ends = (low, high)
    a, b = high - RATIO * (high - low), low + RATIO * (high - low)
    fa, fb = value(a), value(b)
    for _ in range(max(int(np.ceil(np.log(within / np.max(high - low)) / np.log(RATIO))), 1)):
        left = fa <= fb
        low, high = np.where(left, low, a), np.where(left, b, high)
        a, b = np.where(left, high - RATIO * (high - low), b), np.where(left, a, low + RATIO * (high - low))
        new = value(np.where(left, a, b))
        fa, fb = np.where(left, new, fb), np.where(left, fa, new)
    middle = 0.5 * (low + high)
    tried = np.stack([middle, *ends])
    levels = np.stack([value(place) for place in tried])
    return np.asarray(np.take_along_axis(tried, np.argmin(levels, axis=0)[None], axis=0)[0])


def _with(surface: Surface, at: Mapping[Tied, Array]) -> Surface:
    return replace(surface, others=_more(surface.others, at)) if at else surface


def _with_limits(limits: Limits, at: Mapping[Tied, Array]) -> Limits:
    return replace(limits, others=_more(limits.others, at)) if at else limits


def _more(others: Mapping[str, Any], at: Mapping[Tied, Array]) -> dict[str, Any]:
    return {**others, **{axis: values[:, None] for tied, values in at.items() for axis in tied}}


@dataclass(frozen=True, eq=False)
class Tried:
    """Every combination in the plug-in law, and the promising ones in the draws.

    Attributes:
        combinations: (C, number of options).
        plug_in: of each, (C,).
        best: which one is the plan's.
        kept: those solved in the draws, row numbers of ``combinations``.
        own: of each kept one in each draw, objective and spans (kept, K); None without draws.
    """

    combinations: Array
    plug_in: Rows
    best: int
    kept: Array
    own: Rows | None

    def of_draws(self) -> Array:
        """Objective of the kept combinations in the draws, (kept, K)."""
        return np.empty((len(self.kept), 0)) if self.own is None else self.own.objective


def try_all(surface: Surface, draws: Array, limits: Limits, settled: Settled, goal: Goal) -> Tried:
    """The plug-in optimum of every combination, and the optima of the draws for those that may be best in one.

    All combinations are solved in a pilot of 40 draws. One whose mean distance from the best of the draw is more
    than four standard deviations of that distance above zero is left out of the rest: it would be best in about one
    draw of 30,000. The best for each single value stays in. Where more than 100,000 rows are left (10,000 for a
    wanted loss), the draws are thinned evenly.

    Args:
        surface: one theta, the best; without the chosen axes.
        draws: (K, P).
        limits: without the chosen axes.
        settled: the choices.
        goal: what is made small.
    """
    table = settled.combinations()
    first = _of(surface, surface.theta, table, limits, settled, goal)
    plug_in = Rows(
        Optima(*(getattr(first.optima, name)[:, 0] for name in ("x", "d", "loss"))),
        first.objective[:, 0],
        {tied: values[:, 0] for tied, values in first.spans.items()},
    )
    best = int(np.argmin(plug_in.objective))
    needed = {best} | {
        i for per_value in best_of_values(table, plug_in.objective) for i in per_value.values()
    }
    if len(draws) < 2 or not np.isfinite(plug_in.objective).any():
        return Tried(table, plug_in, best, np.array(sorted(needed)), None)
    budget = (FULL if goal.cost is None else FULL // 10) // SLOWER[len(settled.spans)]
    near = np.array(sorted(needed | set(np.argsort(plug_in.objective)[: max(budget // PILOT, 1)].tolist())))
    if len(near) > len(needed):
        pilot = _of(surface, _thin(draws, PILOT), table[near], limits, settled, goal).objective
        near = np.array(sorted(needed | set(near[_promising(pilot)].tolist())))
    own = _of(surface, _thin(draws, max(budget // len(near), PILOT)), table[near], limits, settled, goal)
    return Tried(table, plug_in, best, near, own)


def best_of_values(table: Array, objective: Array) -> list[dict[float, int]]:
    """Per option, value -> the best combination with that value."""
    out = []
    for column in table.T:
        rows = {float(v): np.flatnonzero(column == v) for v in np.unique(column)}
        out.append({v: int(at[np.argmin(objective[at])]) for v, at in rows.items()})
    return out


def _promising(pilot: Array) -> Array:
    """Which combinations may be best in some draw, from their objectives (C, K) in a few."""
    known = np.isfinite(pilot).any(axis=0)
    if not known.any():
        return np.ones(len(pilot), dtype=bool)
    gap = pilot[:, known] - pilot[:, known].min(axis=0)
    out = np.zeros(len(pilot), dtype=bool)
    for i, row in enumerate(gap):
        finite = row[np.isfinite(row)]
        out[i] = bool(len(finite)) and finite.mean() <= NEAR * finite.std() + 1e-12
    return np.asarray(out | (gap == 0).any(axis=1))


def _thin(draws: Array, most: int) -> Array:
    """At most so many of the draws, evenly."""
    if len(draws) <= most:
        return draws
    return np.asarray(draws[np.linspace(0, len(draws) - 1, most).round().astype(int)])


def _of(surface: Surface, theta: Array, table: Array, limits: Limits, settled: Settled, goal: Goal) -> Rows:
    """Every combination of the table with every theta, results (C, K)."""
    count, many = len(table), len(theta)
    others = settled.others(np.repeat(table, many, axis=0))
    rows = solve_rows(
        replace(surface, theta=np.tile(theta, (count, 1)), others=others),
        replace(limits, others=others),
        settled,
        goal,
    )
    shape = (count, many)
    optima = Optima(*(getattr(rows.optima, name).reshape(shape) for name in ("x", "d", "loss")))
    spans = {tied: values.reshape(shape) for tied, values in rows.spans.items()}
    return Rows(optima, rows.objective.reshape(shape), spans)
