"""``isoloss versus``: two training procedures by their fitted laws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isoloss.cli.options import Json, Latex, Markdown, Seed, leading_fit, style_of
from isoloss.cli.show import (
    Style,
    Table,
    check_writable,
    findings,
    for_people,
    interval,
    number,
    say,
    show,
    write_json,
)

if TYPE_CHECKING:
    from isoloss.comparing.versus_result import Point, Versus


def versus(
    first: Annotated[str, typer.Argument(metavar="FIT_A", help="File of `isoloss fit --json`.")],
    second: Annotated[str, typer.Argument(metavar="FIT_B", help="Another, or the same with --groups.")],
    at: Annotated[
        str | None, typer.Option(help="Rank at these FLOPs, or amounts of the common axis: 1e21,1e22.")
    ] = None,
    stretch: Annotated[
        float, typer.Option(help="No ranking beyond this many times the largest run of either.")
    ] = 10.0,
    coverage: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="Of intervals; default the fits'.")
    ] = None,
    names: Annotated[str | None, typer.Option(help="Of the two, for tables: old,new.")] = None,
    groups: Annotated[str | None, typer.Option(help="Which fits of `isoloss fit --by`: old,new.")] = None,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Compare two training procedures by their fitted laws.

    Over compute along each one's own optimum, or over the axis both laws read: who is lower, where they
    cross, how many times the compute the second needs. "Not resolved" is an answer. Exit 3 if a fit
    determines nothing.
    """
    from isoloss.comparing.versus import versus as compare
    from isoloss.runs.units import parse_count

    style = style_of(md, latex)
    chosen = _two(groups, "--groups") if groups else (None, None)
    if json is not None:
        check_writable(json)
    read = [
        leading_fit(path, group, f"{path}: a comparison of procedures")
        for path, group in zip((first, second), chosen, strict=True)
    ]
    called = _two(names, "--names") if names else _two(groups, "--groups") if groups else ("A", "B")
    scales = [parse_count(part) for part in at.split(",")] if at else None
    found = compare(
        read[0][0], read[1][0], at=scales, stretch=stretch, coverage=coverage, seed=seed, names=called
    )
    with for_people(json):
        for note in dict.fromkeys(note for _, note in read if note):
            say(note, style)
        _print(found, style)
    if json is not None:
        write_json(json, found.to_json())
    return 0


def _two(text: str, option: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise ValueError(
            f"{option} needs two words with a comma between, got {text!r}. Write {option} old,new"
        )
    return parts[0], parts[1]


def _print(found: Versus, style: Style) -> None:
    from isoloss.runs.units import format_count

    a, b = found.names
    own = ", each along its own compute-optimal frontier" if found.scale == "flops" else ""
    unit = f" [{found.unit}]" if found.unit else ""
    say(
        f"{a} ({found.laws[0]}) against {b} ({found.laws[1]}): {found.target}{unit} over {found.scale}{own}",
        style,
    )
    ranges = [
        f"{name} from {format_count(low)} to {format_count(high)}"
        for name, (low, high) in zip(found.names, found.observed, strict=True)
    ]
    shared = "nowhere"
    if found.overlap:
        shared = f"from {format_count(found.overlap[0])} to {format_count(found.overlap[1])}"
    say(f"rows: {', '.join(ranges)}; both have rows {shared}", style)
    percent = f"{100 * found.coverage:g}%"
    headings = [
        found.scale,
        a,
        b,
        f"{a} - {b}, {percent}",
        f"{b} needs, times, {percent}",
        f"P({a} lower)",
        "lower",
    ]
    show(Table(headings, [_row(found, p) for p in found.points]), style)
    if found.asked:
        show(Table(headings, [_row(found, p) for p in found.asked], title="asked"), style)
    for point in found.asked:
        say(f"{format_count(point.scale)}: {_ranking(found, point)}", style)
    say(f"crossing: {found.crossing_text()}", style)
    say(
        f"{found.pairs} pairs of draws, {found.pairing}; no ranking beyond {found.stretch:g} times the rows of either",
        style,
    )
    findings(found.warnings, style)


def _row(found: Versus, point: Point) -> list[str]:
    from isoloss.runs.units import format_count

    return [
        format_count(point.scale),
        number(point.loss_a.value),
        number(point.loss_b.value),
        interval(point.difference.low, point.difference.high, 3),
        interval(point.multiplier.low, point.multiplier.high, 3),
        f"{point.p_a_lower:.2f}",
        found.named(point.verdict),
    ]


def _ranking(found: Versus, point: Point) -> str:
    if point.verdict == "not resolved":
        return f"not resolved: {point.reason}"
    return f"{found.named(point.verdict)} is lower: {point.reason}"
