"""``isoloss level``: from how much of a learning curve its end can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isoloss.cli.options import (
    Columns,
    Coverage,
    Format,
    Json,
    Latex,
    Markdown,
    Seed,
    Units,
    Where,
    law_named,
    style_of,
    table,
)
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
    from isoloss.comparing.level import Level


def level(
    law: Annotated[str, typer.Argument(help="Of one axis, with a floor: hestness, m3(flops), ...")],
    path: Annotated[str, typer.Argument(metavar="TABLE", help="csv, tsv, json, jsonl or parquet.")],
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    tolerance: Annotated[
        float, typer.Option(help="How far apart asymptotes that agree may be, in the target's unit.")
    ] = 0.01,
    patience: Annotated[int, typer.Option(min=1, help="Further prefixes that confirm the level.")] = 3,
    least: Annotated[
        int | None, typer.Option(help="Different sizes in the first prefix; default parameters + 2.")
    ] = None,
    at: Annotated[str | None, typer.Option(help="Size to predict at: 2T; default the largest.")] = None,
    draws: Annotated[int, typer.Option(min=2, help="Joint draws of each prefix.")] = 100,
    coverage: Coverage = 0.9,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Say from how much of a learning curve its end can be told.

    Refits the law to growing prefixes of the rows until its asymptote stays put. Exit 3 if it never does.
    """
    from isoloss.comparing.level import level as find_level
    from isoloss.errors import NoAnswer
    from isoloss.runs.units import parse_count

    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    found = find_level(
        law_named(law), table(path, columns, where, units, format), tolerance=tolerance, patience=patience,
        least=least, at=None if at is None else parse_count(at), draws=draws, coverage=coverage, seed=seed,
    )  # fmt: skip
    with for_people(json):
        _print(found, style)
    if json is not None:
        write_json(json, found.to_json())
    if found.known is None:
        raise NoAnswer(found.reason, found.needed)
    return 0


def _print(found: Level, style: Style) -> None:
    from isoloss.runs.units import format_count

    axis, target, share = found.law.axes[0], found.law.target, f"{100 * found.coverage:g}% interval"
    point = f"{format_count(found.at)} {axis}"
    say(
        f"{found.law.spec}: {target} = {found.law.formula}; {len(found.prefixes)} prefix{'' if len(found.prefixes) == 1 else 'es'}, tolerance "
        f"{found.tolerance:g}, patience {found.patience}, seed {found.seed}",
        style,
    )
    marks = {"level": found.omega, "stop": found.stop, "known": found.known}
    rows = []
    for i, p in enumerate(found.prefixes):
        row = [str(p.rows), format_count(p.upto)]
        if p.identified:
            row += [number(p.asymptote), number(p.stderr, 2), interval(p.low, p.high), number(p.predicted)]
            row += [", ".join(name for name, at in marks.items() if at == i)]
        else:
            row += ["—", "—", "—", "—", "open"]
        rows.append(row)
    headings = ["rows", f"{axis} up to", "asymptote", "s.e.", share, f"at {format_count(found.at)}", ""]
    show(Table(headings, rows), style)
    if not all(p.identified for p in found.prefixes):
        say("open: the rows leave the parameters open, so there is no asymptote to compare.", style)
    at = found.reached
    if at is not None and found.share is not None:
        say(
            f"asymptote {number(at.asymptote)} ({share} {interval(at.low, at.high)}), known from {at.rows} of "
            f"{found.prefixes[-1].rows} rows, at {found.share:.2g} of the largest {axis}",
            style,
        )
        measured = ""
        if found.measured is not None:
            held = at.predicted_low <= found.measured <= at.predicted_high
            measured = f"; measured {number(found.measured)}, {'inside' if held else 'OUTSIDE'}"
        say(
            f"{target} at {point}: {number(at.predicted)} "
            f"({share} {interval(at.predicted_low, at.predicted_high)}){measured}",
            style,
        )
    for entry in found.removed:
        say(f"removed row {entry.row} [{entry.code}] {entry.why}", style)
    findings(found.warnings, style)
