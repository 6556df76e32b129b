"""One option for each of many items, so that their losses add up to the least that the budgets allow.

Bits per layer, rank per adapter, tokens per source, trials per rung are this one problem:

.. math:: \\min_{o} \\sum_i \\ell_{i,o_i} \\quad\\text{subject to}\\quad \\sum_i r^{(k)}_{i,o_i} \\le R_k

It assumes that what an option does to one item does not depend on the others: measure a few of the answers whole. This
module imports nothing else of the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ROUNDING = 1e-12  # a total within this share of a limit is within the limit: sums are rounded
SPAN = 1e6  # what losses and limits are scaled to for HiGHS, whose tolerances are absolute: 1e-6
STATES = 2_000_000  # partial sums that `pareto` keeps at most


@dataclass(frozen=True)
class Option:
    """One way to treat one item.

    Attributes:
        item: what is treated: a layer, an adapter, a source.
        name: of the option: ``"4"`` for four bits. Tied items take options of one name.
        loss: what it adds to the sum that is made small, in any unit; may be negative.
        uses: budget -> what it takes of it.

    Raises:
        ValueError: a number is not finite.

    Example:
        >>> Option("layer1.conv1", "4 bit", loss=0.46, uses={"bytes": 18432})
        Option(item='layer1.conv1', name='4 bit', loss=0.46, uses={'bytes': 18432})
    """

    item: str
    name: str
    loss: float
    uses: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, value in {"loss": self.loss, **self.uses}.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.item}, {self.name}: needed a finite {what}, got {value}")


@dataclass(frozen=True, eq=False)
class Allocated:
    """What was chosen, or that nothing can be.

    Attributes:
        chosen: item -> name of its option, items in the order in which they were given; empty where nothing fits.
        loss: the sum of the losses; NaN where nothing fits.
        uses: budget -> the total taken of it; empty where nothing fits.
        limits: as given.
        least: budget -> the least total that any choice takes of it, whatever it takes of the others.
        needed: where nothing fits: budget -> the limit at which something would, the other limits as they are;
            infinite where no amount of this one alone helps. Else empty.
    """

    chosen: Mapping[str, str]
    loss: float
    uses: Mapping[str, float]
    limits: Mapping[str, float]
    least: Mapping[str, float]
    needed: Mapping[str, float] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """Whether there is a choice within all limits."""
        return not self.needed

    def __repr__(self) -> str:
        if self.needed:
            wanted = " or ".join(
                f"{name} {value:.6g} (limit {self.limits[name]:.6g})"
                for name, value in self.needed.items()
                if math.isfinite(value)
            )
            return f"Allocated(nothing fits: {f'needed {wanted}' if wanted else 'more than one limit is too low'})"
        counts: dict[str, int] = {}
        for name in self.chosen.values():
            counts[name] = counts.get(name, 0) + 1
        options = ", ".join(f"{number} x {name}" for name, number in sorted(counts.items()))
        spent = "".join(
            f", {name} {value:.6g}" + (f" of {self.limits[name]:.6g}" if name in self.limits else "")
            for name, value in self.uses.items()
        )
        return f"Allocated(loss {self.loss:.6g}{spent}; {options})"


def allocate(
    options: Sequence[Option], limits: Mapping[str, float], ties: Sequence[Sequence[str]] = ()
) -> Allocated:
    """The choice of one option per item with the least sum of losses within all limits.

    A mixed-integer linear program, solved by HiGHS to a gap of 0. What HiGHS accepts within its tolerance and exact
    sums do not is excluded and the program solved again, so that an answer is within every limit up to rounding
    (1e-12). Of several choices with the same loss one is given.

    Args:
        options: of all items; every item has at least one.
        limits: budget -> the most that all items may take of it. A budget without a limit is only added up.
        ties: groups of items that must take options of the same name. Groups that share an item are one.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: options repeat or do not name every budget; a limit names none; tied items are unknown or do not
            offer the same options.
        RuntimeError: HiGHS stopped without an answer; the message is its own.

    Source: the program is that of Yao et al. 2021, HAWQ-V3, arXiv:2011.10680, for any items, budgets and ties; HiGHS:
        Huangfu and Hall 2018, Mathematical Programming Computation 10.

    Example:
        >>> bits = [Option("a", "4", 0.9, {"bytes": 50}), Option("a", "8", 0.1, {"bytes": 100}),
        ...         Option("b", "4", 0.3, {"bytes": 20}), Option("b", "8", 0.0, {"bytes": 40})]
        >>> allocate(bits, {"bytes": 120})
        Allocated(loss 0.4, bytes 120 of 120; 1 x 4, 1 x 8)
        >>> allocate(bits, {"bytes": 120}, ties=[("a", "b")]).chosen
        {'a': '4', 'b': '4'}
        >>> allocate(bits, {"bytes": 60})
        Allocated(nothing fits: needed bytes 70 (limit 60))
    """
    problem = _problem(options, limits, ties)
    picked = _solved(problem, problem.losses, limits)
    if picked is not None:
        return _told(problem, picked, limits)
    needed: dict[str, float] = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        column = problem.budgets.index(name)
        thrifty = _solved(problem, [use[:, column] for use in problem.uses], others)
        needed[name] = math.inf if thrifty is None else problem.totals(thrifty)[1][name]
    return Allocated({}, math.nan, {}, dict(limits), problem.least(), needed)


def pareto(
    options: Sequence[Option],
    along: str,
    limits: Mapping[str, float] | None = None,
    ties: Sequence[Sequence[str]] = (),
) -> tuple[Allocated, ...]:
    """Every choice that is the best for some limit on one budget: the whole frontier, not its convex hull.

    Items are added one by one; of the partial sums those are kept that no other beats in the loss and in every budget
    that counts. No solver is needed. Between two neighbours of the answer the left one is the best.

    Args:
        options, ties: as :func:`allocate`.
        along: the budget.
        limits: on other budgets, or on this one.

    Returns:
        From the least total of ``along`` to the least loss; totals rise and losses fall strictly. Empty where nothing
        fits in the limits.

    Raises:
        ValueError: as :func:`allocate`; no budget ``along``.
        RuntimeError: there are more than two million partial sums: too many items with sizes that share no unit.

    Source: Nemhauser and Ullmann 1969, Management Science 15 (9).

    Example:
        >>> bits = [Option("a", "4", 0.9, {"bytes": 50}), Option("a", "8", 0.1, {"bytes": 100}),
        ...         Option("b", "4", 0.3, {"bytes": 20}), Option("b", "8", 0.0, {"bytes": 40})]
        >>> [(point.uses["bytes"], round(point.loss, 2)) for point in pareto(bits, "bytes")]
        [(70, 1.2), (90, 0.9), (120, 0.4), (140, 0.1)]
    """
    limits = dict(limits or {})
    problem = _problem(options, limits, ties)
    if along not in problem.budgets:
        raise ValueError(
            f"the options name no budget {along!r}; there are: {', '.join(problem.budgets) or 'none'}"
        )
    counted = [along, *(name for name in limits if name != along)]
    columns = [problem.budgets.index(name) for name in counted]
    rest = np.array([use[:, columns].min(0) for use in problem.uses])
    rest = np.cumsum(rest[::-1], 0)[::-1]  # the least that this group and all after it take
    caps = np.array([_cap(limits[name]) if name in limits else math.inf for name in counted])
    sums = np.zeros((1, 1 + len(columns)))  # loss, totals
    trail: list[tuple[Array, Array]] = []  # per group: index of the state before, option
    for g, (loss, uses) in enumerate(zip(problem.losses, problem.uses, strict=True)):
        added = np.column_stack([loss, uses[:, columns]])
        grown = (sums[:, None] + added[None]).reshape(-1, sums.shape[1])
        after = rest[g + 1] if g + 1 < len(rest) else 0.0
        within = np.flatnonzero((grown[:, 1:] + after <= caps + ROUNDING * np.abs(rest[0])).all(1))
        if not len(within):
            return ()
        keep = within[_undominated(grown[within])]
        if len(keep) > STATES:
            raise RuntimeError(
                f"more than {STATES} partial sums after {g + 1} of {len(rest)} groups of items: round what the options "
                "use to a coarser unit, or ask `allocate` at the limits that matter"
            )
        trail.append((keep // len(added), keep % len(added)))
        sums = grown[keep]
    ends = [_told(problem, picked, limits) for picked in _traced(trail)]
    return _strict([end for end in ends if _within(end.uses, limits)], along)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Groups of tied items, as numbers.

    Attributes:
        items: all, in the order in which they were given.
        group: item -> its group.
        names: per group its options that are beaten by no other of the same group.
        losses, uses: per group, of its items together: (options,), (options, budgets).
        budgets: names.
        table: item -> option -> Option.
    """

    items: tuple[str, ...]
    group: Mapping[str, int]
    names: list[list[str]]
    losses: list[Array]
    uses: list[Array]
    budgets: tuple[str, ...]
    table: Mapping[str, Mapping[str, Option]]

    def chosen(self, picked: Sequence[int]) -> dict[str, str]:
        return {item: self.names[self.group[item]][picked[self.group[item]]] for item in self.items}

    def totals(self, picked: Sequence[int]) -> tuple[float, dict[str, float]]:
        """Loss and totals, each rounded once."""
        taken = [self.table[item][name] for item, name in self.chosen(picked).items()]
        totals = {name: _sum([option.uses[name] for option in taken]) for name in self.budgets}
        return _sum([option.loss for option in taken]), totals

    def least(self) -> dict[str, float]:
        lowest = [[int(use[:, k].argmin()) for use in self.uses] for k in range(len(self.budgets))]
        return {name: self.totals(lowest[k])[1][name] for k, name in enumerate(self.budgets)}


def _problem(
    options: Sequence[Option], limits: Mapping[str, float], ties: Sequence[Sequence[str]]
) -> _Problem:
    if not options:
        raise ValueError("needed at least one option, got none")
    table: dict[str, dict[str, Option]] = {}
    for option in options:
        if option.name in table.setdefault(option.item, {}):
            raise ValueError(f"{option.item} has two options named {option.name!r}. Do: give each its own name")
        table[option.item][option.name] = option
    budgets = tuple(options[0].uses)
    for option in options:
        if set(option.uses) != set(budgets):
            raise ValueError(
                f"{option.item}, {option.name} uses {sorted(option.uses)}, {options[0].item}, {options[0].name} "
                f"{sorted(budgets)}. Do: give every option the same budgets, 0 where it takes nothing"
            )
    for name, limit in limits.items():
        if name not in budgets:
            raise ValueError(
                f"the options name no budget {name!r}; there are: {', '.join(budgets) or 'none'}"
            )
        if math.isnan(limit):
            raise ValueError(f"needed a number as the limit on {name}, got {limit}")
    group = _groups(list(table), ties)
    names: list[list[str]] = []
    losses: list[Array] = []
    uses: list[Array] = []
    for g in range(max(group.values()) + 1):
        members = [item for item in table if group[item] == g]
        offered = list(table[members[0]])
        for item in members[1:]:
            if set(table[item]) != set(offered):
                raise ValueError(
                    f"{members[0]} and {item} are tied and offer different options: {offered} and {list(table[item])}"
                )
        # With the loss as the first column, an option beaten in all columns is never needed.
        rows = [
            [
                _sum([table[item][name].loss for item in members]),
                *(_sum([table[item][name].uses[b] for item in members]) for b in budgets),
            ]
            for name in offered
        ]
        numbers = np.array(rows, dtype=float)
        keep = _undominated(numbers)
        names.append([offered[k] for k in keep])
        losses.append(numbers[keep, 0])
        uses.append(numbers[keep, 1:])
    return _Problem(tuple(table), group, names, losses, uses, budgets, table)


def _groups(items: Sequence[str], ties: Sequence[Sequence[str]]) -> dict[str, int]:
    """Item -> number of its group, groups in the order of their first items."""
    together = {item: {item} for item in items}
    for tie in ties:
        unknown = [item for item in tie if item not in together]
        if unknown:
            raise ValueError(f"a tie names {unknown[0]!r}, which no option is of")
        joined = set().union(*(together[item] for item in tie))
        together |= dict.fromkeys(joined, joined)
    numbers: dict[int, int] = {}
    return {item: numbers.setdefault(id(together[item]), len(numbers)) for item in items}


def _solved(problem: _Problem, goal: Sequence[Array], limits: Mapping[str, float]) -> list[int] | None:
    """Option per group with the least sum of ``goal`` within the limits; None where nothing is within them."""
    columns = [problem.budgets.index(name) for name in limits]
    uses = [use[:, columns] for use in problem.uses]
    least = np.array([use.min(0) for use in uses])
    room = np.array([_cap(limit) for limit in limits.values()]) - least.sum(0)
    if (room < -ROUNDING * np.abs(least).sum(0)).any():
        return None
    if not limits:
        return [int(value.argmin()) for value in goal]
    # Everything counted from the least of its group: what an option takes alone must leave room for the others.
    extra = [use - low for use, low in zip(uses, least, strict=True)]
    open_ = [np.flatnonzero((use <= room + ROUNDING * np.abs(least).sum(0)).all(1)) for use in extra]
    if any(len(some) == 0 for some in open_):
        return None
    starts = np.cumsum([0, *(len(some) for some in open_)])
    size = int(starts[-1])
    cost = np.concatenate([value[some] - value[some].min() for value, some in zip(goal, open_, strict=True)])
    span = sum(float(np.ptp(value[some])) for value, some in zip(goal, open_, strict=True))
    rows = np.concatenate([use[some] for use, some in zip(extra, open_, strict=True)]).T
    heaviest = np.array([use[some].max(0) for use, some in zip(extra, open_, strict=True)]).sum(0)
    binding = [k for k in range(len(columns)) if heaviest[k] > room[k]]
    if not binding:
        return [int(some[value[some].argmin()]) for value, some in zip(goal, open_, strict=True)]
    ones = np.zeros((len(open_), size))
    for g in range(len(open_)):
        ones[g, starts[g] : starts[g + 1]] = 1
    scale = [SPAN / room[k] if room[k] > 0 else 1.0 for k in binding]
    held = np.array([rows[k] * s for k, s in zip(binding, scale, strict=True)])
    tops = np.array([max(room[k], 0.0) * s for k, s in zip(binding, scale, strict=True)])
    refused: list[Array] = []  # choices that only HiGHS's tolerance let through
    while True:
        picked = _milp(cost * (SPAN / span if span else 1.0), ones, held, tops, refused)
        if picked is None:
            return None
        taken = [int(np.argmax(picked[starts[g] : starts[g + 1]])) for g in range(len(open_))]
        chosen = [int(open_[g][k]) for g, k in enumerate(taken)]
        if _within(problem.totals(chosen)[1], limits):
            return chosen
        line = np.zeros(size)
        line[starts[:-1] + taken] = 1
        refused.append(line)


def _milp(cost: Array, ones: Array, held: Array, tops: Array, refused: Sequence[Array]) -> Array | None:
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError:
        raise ImportError(
            "an allocation needs SciPy's HiGHS: pip install 'isoloss[allocate]'; `pareto` works without"
        ) from None

    constraints = [LinearConstraint(ones, 1, 1), LinearConstraint(held, -np.inf, tops)]
    if refused:
        constraints.append(LinearConstraint(np.array(refused), -np.inf, len(ones) - 1))
    found = milp(
        cost, constraints=constraints, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), options={"mip_rel_gap": 0}
    )
    if found.status == 2:
        return None
    if found.x is None or found.status != 0:
        raise RuntimeError(f"HiGHS gave no answer: {found.message}")
    picked: Array = found.x
    return picked


def _undominated(rows: Array) -> Array:
    """Indices of the rows that no other is below in all columns; of equal rows the first. In order of the second column."""
    if rows.shape[1] == 1:
        return np.array([int(rows[:, 0].argmin())])
    order = np.lexsort((*(rows[:, k] for k in range(rows.shape[1] - 1, 1, -1)), rows[:, 0], rows[:, 1]))
    ranked = rows[order]
    if rows.shape[1] == 2:
        best = np.minimum.accumulate(ranked[:, 0])
        return order[np.concatenate([[True], ranked[1:, 0] < best[:-1]])]
    kept = np.empty((0, rows.shape[1]))
    indices: list[Array] = []
    for at in range(0, len(ranked), 256):  # sorted, so that a row is beaten only by one before it
        part = ranked[at : at + 256]
        free = ~_beaten(part, kept)
        part, where = part[free], order[at : at + 256][free]
        inner = (part[None, :] <= part[:, None]).all(2)
        alive = ~np.tril(inner, -1).any(1)
        kept = np.concatenate([kept, part[alive]])
        indices.append(where[alive])
    return np.concatenate(indices)


def _beaten(rows: Array, kept: Array) -> Array:
    out = np.zeros(len(rows), dtype=bool)
    for at in range(0, len(kept), 4096):
        out |= (kept[at : at + 4096][None] <= rows[:, None]).all(2).any(1)
    return out


def _traced(trail: Sequence[tuple[Array, Array]]) -> list[list[int]]:
    """The options of every state at the end."""
    at = np.arange(len(trail[-1][0]))
    picked = []
    for before, option in reversed(trail):
        picked.append(option[at])
        at = before[at]
    return [[int(k) for k in row] for row in np.array(picked[::-1]).T]


def _strict(ends: list[Allocated], along: str) -> tuple[Allocated, ...]:
    """In order, without what differs from a better one only by rounding."""
    tolerance = ROUNDING * max((abs(end.loss) for end in ends), default=0.0)
    kept: list[Allocated] = []
    for end in sorted(ends, key=lambda end: (end.uses[along], end.loss)):
        if kept and end.loss >= kept[-1].loss - tolerance:
            continue
        if kept and end.uses[along] <= kept[-1].uses[along] + ROUNDING * abs(kept[-1].uses[along]):
            kept.pop()
        kept.append(end)
    return tuple(kept)


def _told(problem: _Problem, picked: Sequence[int], limits: Mapping[str, float]) -> Allocated:
    loss, totals = problem.totals(picked)
    return Allocated(problem.chosen(picked), loss, totals, dict(limits), problem.least())


def _within(totals: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    return all(totals[name] <= _cap(limit) for name, limit in limits.items())


def _cap(limit: float) -> float:
    return limit + ROUNDING * abs(limit) if math.isfinite(limit) else limit


def _sum(values: Sequence[float]) -> float:
    """Of integers an integer, else rounded once."""
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)
