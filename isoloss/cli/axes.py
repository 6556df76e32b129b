"""The further axes of a plan, what each is worth in every other, and where its numbers come from, as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from isoloss.cli.show import Style, Table, interval, number, say, show

if TYPE_CHECKING:
    from collections.abc import Sequence


def axis_rows(document: dict[str, Any]) -> list[list[str]]:
    """Rows of the table of the plan: further axes, epochs, learning rate and batch."""
    entries = [
        *((f"{a['name']} ({a['how']})", a["value"]) for a in document["axes"] if a["how"] != "left-out"),
        *([("epochs", document["epochs"])] if document["epochs"] else []),
        *((entry["name"], entry["over_optima"]) for entry in document["tuned"]),
    ]
    return [
        [
            name,
            _amount(q["value"]),
            "—"
            if q["low"] is None or "(held)" in name
            else f"{_amount(q['low'])} to {'no limit' if q['high'] is None else _amount(q['high'])}",
        ]
        for name, q in entries
    ]


def print_axes(document: dict[str, Any], style: Style) -> None:
    """Every value that could have been chosen, the laws of hyper-parameters, and where each slot comes from."""
    aim = document["objective"]["minimise"]
    gap = "more loss" if aim == "loss" else f"more {aim.replace('_', ' ')}"
    rows = []
    for axis in document["axes"]:
        for other in axis["alternatives"]:
            rows.append(
                [
                    f"{axis['name']} {other['value']:g}"
                    + (" *" if other["value"] == axis["value"]["value"] else ""),
                    _gap(other["gap"]["value"], aim),
                    _ends(other["gap"], aim),
                    "—" if other["p_best"] is None else f"{other['p_best']:.1%}",
                    _gap(other["expected_regret"], aim),
                ]
            )
    if rows:
        head = f"{100 * document['coverage']:g}% interval"
        show(Table(["choice (* the plan's)", gap, head, "best in", "expected regret"], rows), style)
    by_default = [axis["name"] for axis in document["axes"] if axis["by_default"]]
    if by_default:
        say(f"values of {', '.join(by_default)} are the defaults: --choose or --hold names others", style)
    for axis in document["axes"]:
        if axis["how"] == "left-out":
            say(f"{axis['name']} is left out: the law at its reference, that of tuned runs", style)
    for entry in document["tuned"]:
        q = entry["value"]
        more = (
            "" if q["low"] is None else f", at the planned point {_amount(q['low'])} to {_amount(q['high'])}"
        )
        valid = f". Valid for: {entry['valid_for']}" if entry["valid_for"] else ""
        say(f"{entry['name']} by {entry['law']}{more}{valid}", style)
    _print_slots(document["slots"], style)
    for pair in document["assumed_separable"]:
        say(f"assumed separable: {pair[0]} and {pair[1]}", style)


def _print_slots(slots: Sequence[dict[str, str]], style: Style) -> None:
    """Which slots are fitted and which are not; nothing where all are of one kind."""
    kinds: dict[str, list[str]] = {}
    for slot in slots:
        origin = f" from {slot['origin']}" if slot["origin"] else ""
        kinds.setdefault(slot["status"] + origin, []).append(slot["name"])
    if len(kinds) > 1:
        say("; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items()), style)


def print_between(document: dict[str, Any], style: Style) -> None:
    """Per cent of each axis for one per cent of each other, and the steps of choices; only where there are more than two."""
    names = list(dict.fromkeys(rate["of"] for rate in document["rates_between"]))
    if len(names) > 2:
        values = {(rate["of"], rate["per"]): rate["rate"] for rate in document["rates_between"]}
        rows = [[per, *("1" if of == per else _cell(values[of, per], "\n") for of in names)] for per in names]
        show(Table(["1 % more, for % of", *names], rows, "Exchange at the same loss"), style)
    rows = [
        [
            f"{step['axis']} {step['value']:g} to {step['to']:g}",
            number(step["loss"]["value"], 3),
            _ends(step["loss"], "loss"),
            _cell(step["params"]),
            _cell(step["tokens"]),
        ]
        for step in document["steps"]
    ]
    if rows:
        head = f"{100 * document['coverage']:g}% interval"
        show(Table(["step at the plan", "loss", head, "as params times", "as tokens times"], rows), style)


def _cell(q: dict[str, float | None], apart: str = " ") -> str:
    """A value, and its interval where there is one."""
    low, high = q["low"], q["high"]
    if low is None or high is None:
        return number(q["value"], 3)
    return f"{number(q['value'], 3)}{apart}({interval(low, high, 3)})"


def _amount(value: float | None) -> str:
    from isoloss.runs.units import format_count

    if value is None:
        return "—"
    return format_count(value) if value >= 1 else number(value, 3)


def _gap(value: float | None, aim: str) -> str:
    """A loss as it is, a cost in per cent."""
    if value is None:
        return "—"
    return number(value, 3) if aim == "loss" else f"{100 * value:.3g}%"


def _ends(q: dict[str, float | None], aim: str) -> str:
    low, high = q["low"], q["high"]
    if low is None:
        return "—"
    return f"{_gap(low, aim)} to {'no limit' if high is None else _gap(high, aim)}"
