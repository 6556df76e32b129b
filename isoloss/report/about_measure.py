"""Takes what was measured of models, gives a page of tables with the roofline of the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoloss.files import refuse_unwritable, write_atomically
from isoloss.report.blocks import Code, Part, Section, Table, cautions, picture, table
from isoloss.report.html import Head, html
from isoloss.report.rooflines import draw_roofline
from isoloss.report.words import amount, listed, number, plural

if TYPE_CHECKING:
    from isoloss.measure.measurement import Measurement
    from isoloss.measure.measuring import Measured
    from isoloss.measure.misnomer import Comparison
    from isoloss.measure.roofline import Roofline
    from isoloss.measure.traffic import Traffic

OPERATORS = 12  # operators in the table of what is moved


def write_measured(
    found: Sequence[Measured],
    path: str | Path,
    roof: Roofline | None = None,
    side: Comparison | None = None,
    command: str = "",
) -> Path:
    """Write one HTML page about what was measured; it holds everything, like that of a fit.

    Args:
        found: of each model.
        path: of the page.
        roof: of the machine, for the picture.
        side: costs of several models side by side.
        command: that writes the page again.

    Raises:
        ValueError: nothing was measured, or the file cannot be written.
    """
    if not found:
        raise ValueError("needed something that was measured, got nothing")
    place = Path(path)
    refuse_unwritable(place)
    write_atomically(place, measured_html(found, roof, side, command))
    return place


def measured_html(
    found: Sequence[Measured], roof: Roofline | None = None, side: Comparison | None = None, command: str = ""
) -> str:
    """The page as text, see :func:`write_measured`."""
    sections: list[Section] = []
    for at, one in enumerate(found):
        sections.append(_values(one, at))
        moved: Any = one.results.get("traffic")
        if moved is not None:
            sections.append(_traffic(one.name, moved, roof, at))
    if side is not None:
        sections.append(_side(side))
    if command:
        sections.append(Section("making", "How this page was made", (), (Code(command),)))
    findings = [f for one in found for f in one.findings] + list(side.findings if side is not None else ())
    names = listed([one.name for one in found])
    head = Head(
        title=f"{names}: measured", kind="measurements of a model" if len(found) == 1 else "measurements of models",
        heading=names, formula="", mark="", verdict="", meaning="", quiet="No probe gave a warning.",
        rest="the JSON file",
    )  # fmt: skip
    return html(head, _short(found), cautions(findings), sections)


def _short(found: Sequence[Measured]) -> tuple[str, ...]:
    said = []
    for one in found:
        known = {each.name: each for each in one.measurements if not each.of}
        parts = [f"{label} {_short_value(known[name])}" for name, label in WORDS.items() if name in known]
        if parts:
            said.append(f"{one.name}: {'; '.join(parts)}.")
        if one.failed:
            said.append(
                f"{one.name}: {plural(len(one.failed), 'probe')} could not run; the reasons stand below."
            )
    return tuple(said)


WORDS = {
    "params": "parameters",
    "flops_forward": "forward",
    "memory_peak": "a training step takes",
    "latency": "latency of one example",
    "throughput": "throughput",
    "energy": "energy",
    "hessian_trace": "trace of the Hessian",
    "hessian_eigenvalue_1": "its largest eigenvalue",
    "noise_scale": "noise scale",
}


PREFIXED = {
    "byte": "B",
    "FLOP/example": "FLOP/example",
    "count": "",
}  # units that are read with a letter before them
LETTERS = ("", "k", "M", "G", "T", "P")


def _short_value(each: Measurement) -> str:
    """For a sentence: ``455.4 MB``, ``22.71 M``, ``2866 ± 130 nats``."""
    if math.isnan(each.value):
        return "not resolved"
    if each.unit in PREFIXED and abs(each.value) >= 1e4:
        power = min(int(math.log10(abs(each.value))) // 3, len(LETTERS) - 1)
        return f"{number(each.value / 1000**power, 4)} {LETTERS[power]}{PREFIXED[each.unit]}"
    sure = f" ± {number(each.se, 2)}" if 0 < each.se < math.inf else ""
    return f"{amount(each.value, 4)}{sure}{'' if each.unit == 'count' else f' {each.unit}'}"


def _values(one: Measured, at: int) -> Section:
    said = [f"{note[:1].upper()}{note[1:]}." for note in one.notes]
    said += [f"{each.probe} could not be measured: {each.why.rstrip('.')}." for each in one.failed]
    parts: list[Part] = []
    heads = ("measured", "value", "s.e.", "unit", "CPU s", "how")
    whole = [_row(each) for each in one.measurements if not each.of]
    if whole:
        parts.append(Table(f"Of {one.name}", heads, tuple(whole), (1, 2, 4), folds=False))
    parts += _inner([each for each in one.measurements if each.of])
    return Section(f"measured-{at}", f"Measured of {one.name}", tuple(said), tuple(parts))


def _inner(found: Sequence[Measurement]) -> list[Part]:
    """A row for every layer or operator, a column for every quantity; those of the same parts in one table."""
    columns: dict[tuple[str, str], dict[str, Measurement]] = {}
    for each in found:
        columns.setdefault((each.name, each.unit), {})[each.of] = each
    groups: dict[frozenset[str], list[tuple[str, str]]] = {}
    for column, cells in columns.items():
        groups.setdefault(frozenset(cells), []).append(column)
    parts: list[Part] = []
    for together in groups.values():
        rows = [(of, *(_cell(columns[column][of]) for column in together)) for of in columns[together[0]]]
        heads = ("of", *(f"{name} [{unit}]" if unit else name for name, unit in together))
        parts.append(table(_caption(columns[together[0]]), heads, rows, range(1, len(heads))))
    return parts


def _caption(cells: dict[str, Measurement]) -> str:
    """What the parts are, and how they were measured where that is the same for all."""
    ways = {each.how for each in cells.values()}
    return f"Of {plural(len(cells), 'part')}" + (f": {ways.pop()}" if len(ways) == 1 and ways != {""} else "")


def _cell(each: Measurement) -> str:
    return amount(each.value, 5) + (f" ± {number(each.se, 2)}" if 0 < each.se < math.inf else "")


def _row(each: Measurement) -> tuple[str, ...]:
    name = f"{each.name} of {each.of}" if each.of else each.name
    sure = "exact" if each.se == 0 else "not known" if math.isnan(each.se) else number(each.se, 2)
    sure = "" if math.isnan(each.value) else sure
    cost = number(each.spent.cpu_seconds, 2)
    return name, amount(each.value, 5), sure, each.unit or "1", cost, each.how


def _traffic(name: str, moved: Traffic, roof: Roofline | None, at: int) -> Section:
    whole = moved.total()
    said = [
        f"{moved.what[:1].upper()}{moved.what[1:]}: {whole.moved / 1e6:.4g} MB moved between {whole.calls} operators, "
        f"{number(whole.intensity, 3)} FLOP per byte. Nothing is assumed to be fused or to stay in a cache."
    ]
    parts: list[Part] = []
    if roof is not None:
        if moved.ceiling is not None:
            share = whole.floor / whole.seconds
            said.append(
                f"By the roofline it takes {1e3 * whole.floor:.3g} ms or more, and took {1e3 * whole.seconds:.3g} ms: "
                f"{share:.0%} of what the machine reaches."
            )
        busy = max((load for load in roof.load if not math.isnan(load)), default=math.nan)
        said.append(
            f"The roofline was measured on {roof.day} with {plural(len(roof.ceilings), 'ceiling')}, load {number(busy, 2)}."
        )
        parts.append(
            picture(
                lambda figure: draw_roofline(figure.subplots(), roof, moved), f"roofline{at}",
                "FLOP per second over FLOP per byte: the machine's ceilings, and where operators lie below them.",
                "Operators below the machine's measured ceilings; the red line is that of the model's type and threads.",
                (6.4, 4.2),
            )
        )  # fmt: skip
    rows = [
        (
            each.name, str(each.calls), number(each.flops / 1e6, 4) if each.flops else "0",
            number(each.moved / 1e6, 4), number(each.intensity, 3) if each.flops else "0", number(1e3 * each.seconds, 3), number(1e3 * each.floor, 3),
        )
        for each in moved.operators[:OPERATORS]
    ]  # fmt: skip
    heads = ("operator", "calls", "MFLOP", "MB", "FLOP/byte", "ms", "least ms")
    parts.append(table("What moves most", heads, rows, (1, 2, 3, 4, 5, 6)))
    return Section(f"traffic-{at}", f"Bytes moved by {name}", tuple(said), tuple(parts))


def _side(side: Comparison) -> Section:
    said = ("Costs that rank two models in opposite order, beyond noise, are named.",)
    rows = [
        (
            f"{cost} [{side.units[cost]}]",
            *(amount(float(side.values[i, j]), 4) for i in range(len(side.models))),
        )
        for j, cost in enumerate(side.costs)
    ]
    parts: list[Part] = [
        table("Costs side by side", ("cost", *side.models), rows, range(1, len(side.models) + 1))
    ]
    clashes = [
        (f"{c.first} against {c.second}", c.by, f"{c.saved:.3g}×", c.against, f"{c.paid:.3g}×")
        for c in side.contradictions
    ]
    if clashes:
        heads = ("models", "cheaper by", "factor", "dearer by", "factor")
        parts.append(table("Contradictions", heads, clashes, (2, 4)))
    return Section("side", "Side by side", said, tuple(parts))
