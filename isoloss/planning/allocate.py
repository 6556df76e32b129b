"""One option for each of many items, so that their losses add up to the least that the budgets allow.

Bits per layer, rank per adapter, tokens per source, trials per rung are this one problem:

.. math:: \\min_{o} \\sum_i \\ell_{i,o_i} \\quad\\text{subject to}\\quad \\sum_i r^{(k)}_{i,o_i} \\le R_k

It assumes that what an option does to one item does not depend on the others: measure a few of the answers whole. It
knows nothing of laws, fits or runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.planning.multiple_choice import ROUNDING, STATES, WIDEST, added_up, least_sum, undominated

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Option:
    """One way to treat one item.

    Attributes:
        item: what is treated: a layer, an adapter, a source.
        name: of the option: ``"4"`` for four bits. Tied items take options of one name.
        loss: what it adds to the sum that is made small, in any unit; may be negative.
        uses: budget -> what it takes of it; not negative.

    Raises:
        ValueError: a number is not finite, or negative where it may not be.

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
        for what, value in self.uses.items():
            if value < 0:
                raise ValueError(f"{self.item}, {self.name}: needed {what} of 0 or more, got {value}")


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
        gap: by how much less than ``loss`` an unseen choice might come to; 0 where this one is proved the best.
    """

    chosen: Mapping[str, str]
    loss: float
    uses: Mapping[str, float]
    limits: Mapping[str, float]
    least: Mapping[str, float]
    needed: Mapping[str, float] = field(default_factory=dict)
    gap: float = 0.0

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
            return (
                f"Allocated(nothing fits: {f'needed {wanted}' if wanted else 'several limits are too low'})"
            )
        counts: dict[str, int] = {}
        for name in self.chosen.values():
            counts[name] = counts.get(name, 0) + 1
        options = ", ".join(f"{number} x {name}" for name, number in sorted(counts.items()))
        spent = "".join(
            f", {name} {value:.6g}" + (f" of {self.limits[name]:.6g}" if name in self.limits else "")
            for name, value in self.uses.items()
        )
        unsure = f", not proved: at most {self.gap:.2g} above the least" if self.gap else ""
        return f"Allocated(loss {self.loss:.6g}{unsure}{spent}; {options})"


def allocate(
    options: Sequence[Option], limits: Mapping[str, float], ties: Sequence[Sequence[str]] = ()
) -> Allocated:
    """The choice of one option per item with the least sum of losses within all limits, and the proof that it is.

    Lagrange multipliers give a bound from below and take away the options that no better choice can contain. What is
    left is added up item by item; a partial sum is dropped where another is no worse in everything, or where its bound
    is no less than the best choice known. The answer is the least up to the rounding of sums (1e-12 of their span) and
    within every limit up to the same (1e-12 of the limit). Of several choices with the same loss one is given.

    Args:
        options: of all items; every item has at least one.
        limits: budget -> the most that all items may take of it. A budget without a limit is only added up.
        ties: groups of items that must take options of the same name. Groups that share an item are one.

    Raises:
        ValueError: options repeat or do not name every budget; a limit names none, or is not finite; tied items are
            unknown or do not offer the same options.
        NoAnswer: with several limits, the widest search did not tell whether anything fits.

    Source: the problem as in Yao et al. 2021, HAWQ-V3, arXiv:2011.10680, for any items, budgets and ties; bounds:
        Fisher 1981, The Lagrangian relaxation method, Management Science 27 (1).

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
    found = _solved(problem, problem.losses, limits)
    if found is not None:
        return _told(problem, found[0], limits, found[1])
    needed: dict[str, float] = {}
    for name in limits:
        others = {other: limit for other, limit in limits.items() if other != name}
        thrifty = _solved(problem, problem.column(name), others)
        needed[name] = math.inf if thrifty is None else problem.totals(thrifty[0])[1][name]
    return Allocated({}, math.nan, {}, dict(limits), problem.least(), needed)


def pareto(
    options: Sequence[Option],
    along: str,
    limits: Mapping[str, float] | None = None,
    ties: Sequence[Sequence[str]] = (),
) -> tuple[Allocated, ...]:
    """Every choice that is the best for some limit on one budget: the whole frontier, not its convex hull.

    With a limit between two neighbours the left one is the best. Without other limits all come from one pass
    (Nemhauser and Ullmann); with them each is a solve, from the loosest limit down.

    Args:
        options, ties: as :func:`allocate`.
        along: the budget.
        limits: on other budgets, and on this one where the frontier shall end before its own.

    Returns:
        From the least total of ``along`` to the least loss; totals rise and losses fall strictly. Empty where nothing
        fits in the limits.

    Raises:
        ValueError: as :func:`allocate`; no budget ``along``.
        NoAnswer: there are more than a million partial sums: too many items whose uses share no unit.

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
    others = {name: limit for name, limit in limits.items() if name != along}
    if others:
        return _strict(_one_by_one(problem, along, limits, others), along)
    top = np.array([_cap(limits[along]) if along in limits else math.inf])
    column = problem.column(along)
    every = [np.arange(len(loss)) for loss in problem.losses]
    nothing = [np.zeros(len(loss)) for loss in problem.losses]
    front = added_up(problem.losses, [use[:, None] for use in column], top, every, nothing, math.inf, STATES)
    if front.left_out < math.inf:
        raise NoAnswer(
            f"the frontier needs more than {STATES} partial sums",
            "what the options use in a coarser unit, or `allocate` at the limits that matter",
        )
    ends = [_told(problem, front.picked(end), limits) for end in range(len(front.sums))]
    return _strict(ends, along)


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

    def column(self, budget: str) -> list[Array]:
        """Per group what its options take of one budget."""
        return [use[:, self.budgets.index(budget)] for use in self.uses]

    def least(self) -> dict[str, float]:
        """The least total of every budget."""
        return {
            name: self.totals([int(use.argmin()) for use in self.column(name)])[1][name]
            for name in self.budgets
        }


def _problem(
    options: Sequence[Option], limits: Mapping[str, float], ties: Sequence[Sequence[str]]
) -> _Problem:
    if not options:
        raise ValueError("needed at least one option, got none")
    table: dict[str, dict[str, Option]] = {}
    for option in options:
        if option.name in table.setdefault(option.item, {}):
            raise ValueError(
                f"{option.item} has two options named {option.name!r}. Do: give each its own name"
            )
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
        if not math.isfinite(limit):
            raise ValueError(f"needed a finite limit on {name}, got {limit}. Do: leave out what has no limit")
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
        keep = undominated(numbers)
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


def _solved(
    problem: _Problem, goal: Sequence[Array], limits: Mapping[str, float]
) -> tuple[list[int], float] | None:
    """Option per group with the least sum of ``goal`` within the limits, and the gap; None where nothing fits.

    Whether anything fits is the same question with one budget less: the least of that budget within the others.
    """
    if not limits:
        return [int(value.argmin()) for value in goal], 0.0
    *others, last = limits
    found = _solved(problem, problem.column(last), {name: limits[name] for name in others})
    if found is None:
        return None
    start, gap = found
    needed = problem.totals(start)[1][last]
    if needed > _cap(limits[last]):
        if needed - gap <= _cap(limits[last]):
            raise NoAnswer(
                f"{WIDEST} partial sums did not tell whether anything fits in all limits",
                "one limit less, or what the options use in a coarser unit",
            )
        return None
    return _from(problem, goal, limits, start)


def _from(
    problem: _Problem, goal: Sequence[Array], limits: Mapping[str, float], start: list[int]
) -> tuple[list[int], float]:
    """The least from a choice that is known to fit, and the gap."""
    columns = [problem.budgets.index(name) for name in limits]
    least = np.array([use[:, columns].min(0) for use in problem.uses])
    room = np.array([_cap(limit) for limit in limits.values()]) - least.sum(0)
    extra = [use[:, columns] - low for use, low in zip(problem.uses, least, strict=True)]
    return least_sum(goal, extra, np.maximum(room, 0.0), start)


def _one_by_one(
    problem: _Problem, along: str, limits: Mapping[str, float], others: Mapping[str, float]
) -> list[Allocated]:
    """The best for ever lower limits on ``along``, each just below what the last one took."""
    thrifty = _solved(problem, problem.column(along), others)
    if thrifty is None:
        return []
    least = problem.totals(thrifty[0])[1][along]
    ends: list[Allocated] = []
    top = limits.get(along, math.inf)
    while least <= _cap(top):
        held = {**others, along: top} if math.isfinite(top) else dict(others)
        picked, gap = _from(problem, problem.losses, held, thrifty[0])
        ends.append(_told(problem, picked, limits, gap))
        top = ends[-1].uses[along] * (1 - 4 * ROUNDING)
        if ends[-1].uses[along] <= 0:
            break
    return ends


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


def _told(
    problem: _Problem, picked: Sequence[int], limits: Mapping[str, float], gap: float = 0.0
) -> Allocated:
    loss, totals = problem.totals(picked)
    return Allocated(problem.chosen(picked), loss, totals, dict(limits), problem.least(), {}, gap)


def _cap(limit: float) -> float:
    return limit + ROUNDING * abs(limit)


def _sum(values: Sequence[float]) -> float:
    """Of integers an integer, else rounded once."""
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)
