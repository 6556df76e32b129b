"""A format for each layer: the least loss within a size, the least size within a loss, and what lies between.

Scores of a sensitivity are added up and one format is taken for each layer by :mod:`isoloss.planning.allocate`. That
they add up is an assumption: where the method knows what errors of several layers do together it is used; in any case
choices can be measured whole, and corrected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from isoloss.compress.candidates import Candidates
from isoloss.compress.costs import Limit
from isoloss.compress.sensitivity.changes import Change, changes
from isoloss.compress.sensitivity.scores import Scores
from isoloss.compress.variants import Variant, table
from isoloss.compress.variants import words as words
from isoloss.errors import NoAnswer
from isoloss.measure.subject import Subject
from isoloss.planning.allocate import Allocated, Option, allocate
from isoloss.runs import Runs

TRIES = 8  # choices that are measured to meet a limit on the loss
CLOSE = 0.05  # of the limit: near enough
ROUNDS = 10  # of choosing anew with the terms between layers
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Mixed:
    """A choice of a format for each layer.

    Attributes:
        plan: layer -> format.
        added: the sum of the layers' scores.
        together: what the method says of the choice as a whole; the sum where it knows layers by themselves.
        bits: stored bits of these layers.
        weights: numbers that they hold.
        bytes: of all tensors, those not encoded too.
        change: what it does to loss and outputs where that was measured, each layer as fitted by itself.
    """

    plan: Mapping[str, str]
    added: float
    together: float
    bits: int
    weights: int
    bytes: int
    change: Change | None = None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights."""
        return self.bits / self.weights

    def __repr__(self) -> str:
        measured = "" if self.change is None else f", measured {self.change.rise:+.4g} ± {self.change.se:.2g}"
        return (
            f"Mixed({self.bits_per_weight:.4g} bits a weight, {self.bytes:,} bytes, foretold {self.together:.4g}"
            f"{measured}; {words(self.plan)})"
        )


def best(
    candidates: Candidates,
    scores: Scores,
    bits: float | None = None,
    size: float | None = None,
    ties: Sequence[Sequence[str]] = (),
    limits: Mapping[str, Limit] | None = None,
) -> Mixed:
    """The formats with the least sum of scores within a size; with the terms between layers, where they are known.

    With those terms the problem is no sum. It is solved as one again and again: each layer's score is what it adds to
    the choice at hand, and a new choice is kept as long as it foretells less. Terms are many and examples few: they are
    used where a choice by one half of the examples foretells less on the other half with them than without.

    Args:
        candidates: layers, formats, sizes.
        scores: of the same candidates.
        bits: most stored bits for each weight of these layers.
        size: most bytes of all tensors.
        ties: groups of layers that must take the same format.
        limits: budget -> its limit: of bit operations (:func:`isoloss.compress.costs.bops`), of seconds that were measured.

    Raises:
        ValueError: no limit; a budget that says nothing of some layer and format.
        NoAnswer: no choice is small enough; says the least possible.

    Example:
        >>> import torch
        >>> from isoloss.compress import Choice, find
        >>> from isoloss.compress.candidates import candidates
        >>> from isoloss.compress.sensitivity.output_error import score
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Linear(8, 64))
        >>> tried = candidates(net, find(net).layers, [Choice("int2"), Choice("int4")], [torch.randn(32, 64)])
        >>> best(tried, score(None, tried), bits=4.2).plan
        {'0': 'int2', '1': 'int4'}
    """
    others = dict(limits or {})
    most = {"bits": stored(candidates, bits, size)} if bits is not None or size is not None else {}
    most |= {name: one.most for name, one in others.items()}
    if not most:
        raise ValueError("needed a limit on bits or bytes, got none")
    found = allocate(_options(candidates, scores.table, others), most, ties)
    if not found.feasible:
        raise too_small(candidates, found)
    plan = dict(found.chosen)
    if scores.along is not None:
        better = _with_terms(candidates, scores, plan, most, ties, others)
        if better != plan and _holds(candidates, scores, most, ties, others):
            plan = better
    return _mixed(candidates, scores, plan)


def stored(candidates: Candidates, bits: float | None, size: float | None) -> float:
    """Most bits of the encoded weights within so many a weight and so many bytes of all tensors."""
    limit = math.inf if bits is None else bits * candidates.weights
    if size is not None:
        limit = min(limit, 8 * (size - candidates.plain_bytes))
    return max(limit, 0.0)


def too_small(candidates: Candidates, found: Allocated) -> NoAnswer:
    """Says the least that is possible of what is limited."""
    if set(found.limits) == {"bits"}:
        least = found.least["bits"]
        return NoAnswer(
            "no choice of these formats is so small",
            f"at least {least / candidates.weights:.4g} bits a weight, {least // 8 + candidates.plain_bytes:,.0f} bytes "
            f"with the {candidates.plain_bytes:,} of what is not encoded",
        )
    alone = [f"{name} {found.least[name]:,.4g}" for name in found.limits]
    enough = [f"{name} {value:,.4g}" for name, value in found.needed.items() if math.isfinite(value)]
    return NoAnswer(
        f"no choice of these formats keeps all limits; the least of each alone are {', '.join(alone)}",
        f"with the other limits as they are, {' or '.join(enough)}"
        if enough
        else "higher limits, of several",
    )


def _options(
    candidates: Candidates, table: Mapping[str, Mapping[str, float]], limits: Mapping[str, Limit]
) -> list[Option]:
    return [
        Option(
            name,
            format,
            value,
            {"bits": candidates.of[name][format].encoded.bits}
            | {budget: limit.uses(budget, name, format) for budget, limit in limits.items()},
        )
        for name, own in table.items()
        for format, value in own.items()
    ]


def _mixed(
    candidates: Candidates, scores: Scores, plan: Mapping[str, str], change: Change | None = None
) -> Mixed:
    bits = candidates.bits(plan)
    return Mixed(
        dict(plan),
        scores.added(plan),
        scores.together(plan),
        bits,
        candidates.weights,
        bits // 8 + candidates.plain_bytes,
        change,
    )


def _holds(
    candidates: Candidates,
    scores: Scores,
    most: Mapping[str, float],
    ties: Sequence[Sequence[str]],
    limits: Mapping[str, Limit],
) -> bool:
    """Whether the terms between layers pay on examples that they were not taken from: each half chooses, the other judges."""
    assert scores.along is not None
    gain = 0.0
    for half in range(2):
        own, other = (
            {
                name: {format: v[i::2] for format, v in formats.items()}
                for name, formats in scores.along.items()
            }
            for i in (half, 1 - half)
        )
        table = {
            name: {format: 0.5 * float(v.square().sum()) for format, v in formats.items()}
            for name, formats in own.items()
        }
        plan = dict(allocate(_options(candidates, table, limits), most, ties).chosen)
        chooses, judges = (replace(scores, table=table, along=one) for one in (own, other))
        better = _with_terms(candidates, chooses, plan, most, ties, limits)
        gain += judges.together(plan) - judges.together(better)
    return gain > 0


def _with_terms(
    candidates: Candidates,
    scores: Scores,
    plan: dict[str, str],
    most: Mapping[str, float],
    ties: Sequence[Sequence[str]],
    limits: Mapping[str, Limit],
) -> dict[str, str]:
    """A choice that foretells less as a whole, if there is one nearby."""
    assert scores.along is not None
    for _ in range(ROUNDS):
        total = sum(scores.along[name][format] for name, format in plan.items())
        table: dict[str, dict[str, float]] = {}
        for name, own in scores.along.items():
            others = total - own[plan[name]]
            base = float(others.square().sum())
            table[name] = {
                format: 0.5 * (float((others + v).square().sum()) - base) for format, v in own.items()
            }
        found = dict(allocate(_options(candidates, table, limits), most, ties).chosen)
        if scores.together(found) >= scores.together(plan):
            break
        plan = found
    return plan


def smallest(
    candidates: Candidates, scores: Scores, rise: float, ties: Sequence[Sequence[str]] = ()
) -> Allocated:
    """The formats with the least bits whose scores add up to no more than ``rise``; scores below 0 count as 0."""
    options = [
        Option(name, format, float(candidates.of[name][format].encoded.bits), {"rise": max(value, 0.0)})
        for name, own in scores.table.items()
        for format, value in own.items()
    ]
    return allocate(options, {"rise": rise}, ties)


def within(
    subject: Subject,
    candidates: Candidates,
    scores: Scores,
    rise: float,
    ties: Sequence[Sequence[str]] = (),
    progress: Progress | None = None,
) -> Mixed:
    """The least size whose loss is measured to rise by no more than ``rise``.

    Choices are foretold and measured in turn: what was measured corrects what is asked of the scores next.

    Args:
        subject: model, data on which the loss is measured, loss.
        candidates, scores: of the same model.
        rise: of the loss, at most, in its own unit.
        ties: groups of layers that must take the same format.
        progress: (what, measured, at most).

    Raises:
        ValueError: a limit that is not above 0.
        NoAnswer: the loss rises by more with every choice that was measured; says by how much at the least.
    """
    if not rise > 0:
        raise ValueError(f"needed a rise of the loss above 0, got {rise:g}")
    values = [max(v, 0.0) for own in scores.table.values() for v in own.values()]
    low, high = 0.0, math.fsum(values)  # of what is asked of the scores: met, and not met
    asked = rise if scores.unit else high / 2
    kept: Mixed | None = None
    least = math.inf
    seen: dict[tuple[str, ...], Mixed] = {}
    for i in range(TRIES):
        if progress is not None:
            progress("measuring choices", i, TRIES)
        found = smallest(candidates, scores, asked, ties)
        if found.feasible:
            plan = dict(found.chosen)
            key = tuple(plan.values())
            if key not in seen:
                seen[key] = _mixed(candidates, scores, plan, changes(subject, candidates, [plan])[0])
            mixed = seen[key]
            assert mixed.change is not None
            measured = mixed.change.rise
            least = min(least, measured)
            if measured <= rise:
                low = asked
                if kept is None or mixed.bits < kept.bits:
                    kept = mixed
                if measured >= (1 - CLOSE) * rise or asked >= high:
                    break
            else:
                high = asked
            ratio = rise / measured if measured > 0 else 4.0
            asked *= min(max(ratio, 0.125), 8.0)
        else:
            low, asked = asked, min(next(iter(found.needed.values())) * 1.001, high)
        if not low < asked < high:
            asked = math.sqrt(low * high) if low > 0 else high / 8
    if kept is None:
        kept = _most(subject, candidates, scores, rise, min(least, math.inf))
    return kept


def _most(subject: Subject, candidates: Candidates, scores: Scores, rise: float, least: float) -> Mixed:
    """Every layer in the format that changes its weight least, if that keeps the limit."""
    plan = {name: min(own, key=lambda f: own[f].distance) for name, own in candidates.of.items()}
    change = changes(subject, candidates, [plan])[0]
    if change.rise > rise:
        least = min(least, change.rise)
        raise NoAnswer(
            f"the loss rises by {least:.3g} or more with every choice that was measured, and {rise:g} is allowed",
            f"a limit above {least:.3g}, or formats of more bits",
        )
    return _mixed(candidates, scores, plan, change)


def corrected(
    subject: Subject,
    candidates: Candidates,
    scores: Scores,
    mixed: Mixed,
    limit: float | None = None,
    rounds: int = 1,
    progress: Progress | None = None,
) -> Mixed:
    """A choice no larger whose loss is measured to rise less, from measurements around one.

    In each round every layer takes its next smaller and next larger format while the others stay as chosen, and the
    loss is measured: two forward passes for each layer. Those are the scores of a choice among neighbours, which is
    measured whole and kept if the loss is less.

    Args:
        subject: model, data on which the loss is measured, loss.
        candidates, scores: of the same model.
        mixed: the choice to begin with.
        limit: most stored bits; those of the choice if not given.
        rounds: at most.
        progress: (what, passes done, passes in all).
    """
    limit = mixed.bits if limit is None else limit
    if mixed.change is None:
        change = changes(subject, candidates, [mixed.plan])[0]
        mixed = _mixed(candidates, scores, mixed.plan, change)
    for _ in range(rounds):
        assert mixed.change is not None
        near = [
            (name, format)
            for name, now in mixed.plan.items()
            for format in _neighbours(candidates, name, now)
        ]
        plans = [{**mixed.plan, name: format} for name, format in near]
        measured = changes(subject, candidates, plans, progress)
        table = {name: {format: 0.0} for name, format in mixed.plan.items()}
        for (name, format), change in zip(near, measured, strict=True):
            table[name][format] = change.rise - mixed.change.rise
        plan = dict(allocate(_options(candidates, table, {}), {"bits": limit}).chosen)
        change = changes(subject, candidates, [plan])[0]
        if change.rise >= mixed.change.rise:
            break
        mixed = _mixed(candidates, scores, plan, change)
    return mixed


def _neighbours(candidates: Candidates, name: str, format: str) -> list[str]:
    """The formats next to this one in size."""
    own = candidates.of[name]
    order = sorted(own, key=lambda f: own[f].encoded.bits)
    at = order.index(format)
    return [order[i] for i in (at - 1, at + 1) if 0 <= i < len(order)]


def by_size(candidates: Candidates, scores: Scores, points: int = 8) -> tuple[Mixed, ...]:
    """The best choices of sizes from the least to the most.

    A size for which nothing is foretold to be better than what is smaller has none.

    Args:
        candidates, scores: of the same model.
        points: sizes, evenly spaced in bits.

    Raises:
        ValueError: fewer than two points.
    """
    if points < 2:
        raise ValueError(f"needed at least two points, got {points}")
    ends = [
        sum(pick(one.encoded.bits for one in own.values()) for own in candidates.of.values())
        for pick in (min, max)
    ]
    limits = [ends[0] + (ends[1] - ends[0]) * i / (points - 1) for i in range(points)]
    chosen: dict[tuple[str, ...], Mixed] = {}
    for limit in limits:  # rising
        mixed = best(candidates, scores, bits=limit / candidates.weights * (1 + 1e-12))
        if all(mixed.together < other.together for other in chosen.values()):
            chosen[tuple(mixed.plan.values())] = mixed
    return tuple(chosen.values())


def frontier(
    subject: Subject,
    candidates: Candidates,
    scores: Scores,
    points: int = 8,
    progress: Progress | None = None,
) -> Runs:
    """Sizes from the least to the most, each with its best choice measured: a row for each, the model itself the last.

    Args:
        subject: model, data on which the loss is measured, loss.
        candidates, scores: of the same model.
        points: sizes, evenly spaced in bits.
        progress: (what, passes done, passes in all).

    Returns:
        A table as :func:`isoloss.compress.variants.table` makes it.

    Raises:
        ValueError: fewer than two points.
    """
    return table(subject, variants(by_size(candidates, scores, points), candidates), progress=progress)


def variants(found: Sequence[Mixed], candidates: Candidates) -> list[Variant]:
    """Choices as rows of such a table."""
    return [
        Variant(f"mixed {one.bits_per_weight:.4g} bits", candidates, one.plan, one.together) for one in found
    ]
