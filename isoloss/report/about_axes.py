"""Takes a plan, gives the parts of the page on its further axes: choices, exchange between all axes, what is borrowed."""

from __future__ import annotations

import math

from isoloss.planning.result import Plan, Quantity
from isoloss.report.blocks import Part, table
from isoloss.report.canvas import named
from isoloss.report.words import interval, listed, number


def axes_said(found: Plan) -> tuple[str, ...]:
    """Sentences on what was chosen, left out, taken from others and assumed."""
    said = []
    for axis in found.axes:
        best = max(axis.alternatives, key=lambda a: a.p_best if a.p_best == a.p_best else -1.0, default=None)
        if axis.how == "chosen" and best is not None and not math.isnan(best.p_best):
            own = next(a for a in axis.alternatives if a.value == axis.value.value)
            said.append(
                f"{axis.name} {axis.value.value:g} is the best choice in {own.p_best:.0%} of the draws."
            )
    out = [axis.name for axis in found.axes if axis.how == "left-out"]
    if out:
        said.append(f"{listed(out)} left out: the law at its reference, that of tuned runs.")
    for entry in found.tuned:
        valid = f" Valid for: {entry.valid_for}" if entry.valid_for else ""
        said.append(f"{entry.name} is by {entry.law}, not by this law.{valid}")
    origins: dict[str, list[str]] = {}
    for slot in found.slots:
        if slot.status == "borrowed":
            origins.setdefault(slot.origin, []).append(slot.name)
    if origins and len(found.slots) > sum(map(len, origins.values())):
        parts = [f"{listed(names)} from {origin}" for origin, names in origins.items()]
        said.append(f"Borrowed, not fitted to these runs: {'; '.join(parts)}.")
    if found.assumed_separable:
        said.append(f"Assumed separable: {'; '.join(f'{a} and {b}' for a, b in found.assumed_separable)}.")
    return tuple(said)


def choice_parts(found: Plan) -> list[Part]:
    """Every value that could have been chosen, beside the plan's."""
    aim = found.objective.minimise
    rows = [
        (
            f"{axis.name} {other.value:g}{' (the plan’s)' if other.value == axis.value.value else ''}",
            _gap(other.gap.value, aim), _ends(other.gap, aim),
            "—" if math.isnan(other.p_best) else f"{other.p_best:.0%}", _gap(other.expected_regret, aim),
        )
        for axis in found.axes
        for other in axis.alternatives
    ]  # fmt: skip
    if not rows:
        return []
    gap = "more loss" if aim == "loss" else f"more {aim.replace('_', ' ')}"
    heads = ("choice", gap, f"{100 * found.coverage:g}% interval", "best in", "expected regret")
    return [
        table("What could have been chosen, size and tokens at the best for it", heads, rows, (1, 2, 3, 4))
    ]


def between_parts(found: Plan) -> list[Part]:
    """The matrix of exchange between all axes, and the steps of choices; nothing for a law of two axes."""
    parts: list[Part] = []
    names = list(dict.fromkeys(rate.of for rate in found.rates_between))
    if len(names) > 2:
        values = {(rate.of, rate.per): rate.rate for rate in found.rates_between}
        rows = [
            (named(per), *("1" if of == per else _cell(values[of, per]) for of in names)) for per in names
        ]
        heads = ("for 1 % more", *(f"% of {named(of)}" for of in names))
        parts.append(
            table("Exchange between all axes at the same loss", heads, rows, tuple(range(1, len(heads))))
        )
    rows = [
        (f"{step.axis} {step.value:g} to {step.to:g}", _signed(number(step.loss.value, 3)), _ends(step.loss, "loss"),
         _cell(step.params, 3), _cell(step.tokens, 3))
        for step in found.steps
    ]  # fmt: skip
    if rows:
        heads = (
            "step at the plan",
            "loss",
            f"{100 * found.coverage:g}% interval",
            "as parameters times",
            "as tokens times",
        )
        parts.append(table("What a step of a choice is worth", heads, rows, (1, 2, 3, 4)))
    return parts


def _cell(q: Quantity, digits: int = 2) -> str:
    ends = "" if math.isnan(q.low) else f" ({interval(q.low, q.high, digits)})"
    return _signed(number(q.value, 3) + ends)


def _gap(value: float, aim: str) -> str:
    return _signed(number(value, 3) if aim == "loss" or not math.isfinite(value) else f"{100 * value:.3g}%")


def _ends(q: Quantity, aim: str) -> str:
    if math.isnan(q.low):
        return "—"
    if aim == "loss" or not math.isfinite(q.high):
        return _signed(interval(q.low, q.high, 3))
    return _signed(f"{100 * q.low:.3g}% to {100 * q.high:.3g}%")


def _signed(text: str) -> str:
    return text.replace("-", "−")
