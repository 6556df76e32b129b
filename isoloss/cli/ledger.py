"""``isoloss ledger``: predictions that were written down, and how they came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isoloss.cli.options import Columns, Format, Json, Latex, Markdown, Units, Where, style_of, table
from isoloss.cli.show import Style, Table, for_people, interval, number, say, show, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoloss.study.ledger import Ledger
    from isoloss.study.records import Outcome

SHOWN = 20  # predictions in a table; --json has all


def ledger(
    path: Annotated[str, typer.Argument(metavar="FILE", help="File of `isoloss predict --ledger`.")],
    record: Annotated[
        list[str] | None, typer.Option(metavar="ID=VALUE", help="What a run measured; may be repeated.")
    ] = None,
    outcomes: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Record every row that an open prediction is for.")
    ] = None,
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    measured: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it was measured: 2026-05-01, or with an hour.")
    ] = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="The value replaces a wrong one; both are kept.")
    ] = False,
    coverage: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Of the intervals that are scored.")
    ] = 0.9,
    export: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write every table of the file here as CSV.")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="With --export: Parquet, not CSV.")] = False,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Show how good the predictions written down have been.

    Coverage, sharpness and reliability for each law and distance from the fitted rows, and what is still
    open. With --record or --outcomes, first add what was measured.
    """
    from isoloss.study.ledger import Ledger
    from isoloss.study.matching import matched
    from isoloss.study.store import Store

    style = style_of(md, latex)
    writes = bool(record) or outcomes is not None
    if not writes and (correct or measured is not None):
        raise ValueError(f"{'--correct' if correct else '--measured'} needs --record or --outcomes")
    if parquet and export is None:
        raise ValueError("--parquet needs --export DIR")
    store = Store(path, read_only=True)  # a mistyped path makes no file
    found, said = [], ""
    if record:
        found += [_outcome(text, measured, correct) for text in record]
    if outcomes is not None:
        rows = table(outcomes, columns, where, units, format)
        seen = Ledger.read(store)
        matches = matched(seen, rows, measured)
        found += matches.outcomes
        said = f"; {matches.sentence()}"
        if measured is None:
            said += _older(seen, matches.outcomes, outcomes)
    had = len(store)
    if found:
        Store(path).add_outcomes(found)
    seen = Ledger.read(store, coverage=coverage)
    files = store.export(export, "parquet" if parquet else "csv") if export is not None else ()
    with for_people(json):
        if writes:
            new = len(store) - had
            old = f", {len(found) - new} were there" if len(found) > new else ""
            say(f"recorded {new} outcome{'' if new == 1 else 's'}{old}{said}", style)
        _print(path, seen, style)
        for file in files:
            say(str(file), style)
    if json is not None:
        write_json(json, seen.to_json())
    return 0


def _outcome(text: str, measured: str | None, correct: bool) -> Outcome:
    from isoloss.study.records import Outcome

    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return Outcome(int(name), float(value), measured, "command line", correct)
    except ValueError as error:
        if str(error).startswith(("an outcome needs", "needed a time")):
            raise
        raise ValueError(f"--record needs ID=VALUE, such as 3=2.71, got {text!r}") from None


def _older(ledger: Ledger, found: Sequence[Outcome], source: str) -> str:
    """What to say of a table that was there before the predictions were."""
    from datetime import UTC, datetime
    from pathlib import Path

    changed = datetime.fromtimestamp(Path(source).expanduser().stat().st_mtime, UTC).isoformat()
    taken = {outcome.prediction for outcome in found}
    before = [p["id"] for p in ledger.predictions if p["id"] in taken and changed < p["created"]]
    if not before:
        return ""
    return (
        f". {source} is older than prediction {', '.join(map(str, before[:SHOWN]))}: if it held these values "
        "then, they were known before; say when they were measured with --measured"
    )


def _print(path: str, ledger: Ledger, style: Style) -> None:
    n = len(ledger.predictions)
    counts = ", ".join(f"{len(ledger.which(s))} {s}" for s in ("scored", "open", "late"))
    say(f"{path}: {n} prediction{'' if n == 1 else 's'} of one new run each: {counts}", style)
    if len(ledger.which("scored")):
        _print_scores(ledger, style)
    _print_listed(ledger, "open", style)
    _print_listed(ledger, "late", style)
    corrected = [p["id"] for p, f in zip(ledger.predictions, ledger.fates, strict=True) if f.corrected]
    if corrected:
        say(f"outcome corrected after the fact: prediction {', '.join(map(str, corrected[:SHOWN]))}", style)
    if ledger.clock:
        shown = ", ".join(map(str, ledger.clock[:SHOWN]))
        say(f"the clock went back before entry {shown}: order is by number, not by time", style)


def _print_scores(ledger: Ledger, style: Style) -> None:
    percent = f"{100 * ledger.coverage:g}%"
    headings = [
        "law",
        "distance",
        "n",
        "runs",
        f"in {percent}",
        "share, 95% band",
        "CRPS",
        "CRPS, rel.",
        "error",
        "width",
    ]
    rows = [
        [s.law, s.distance, str(s.n), str(s.runs), str(s.inside), _band(s.inside, s.n, s.low, s.high),
         number(s.crps, 3), *(f"{100 * v:.2g}%" for v in (s.relative_crps, s.relative_error, s.width))]
        for s in ledger.scores()
    ]  # fmt: skip
    show(Table(headings, rows, title="scores"), style)
    say("distance: training cost over that of the dearest fitted row. CRPS: less is better.", style)
    entries = ledger.reliability()
    laws = list(dict.fromkeys(entry.law for entry in entries))
    levels = list(dict.fromkeys(entry.coverage for entry in entries))
    cells = {(e.law, e.coverage): _band(e.inside, e.n, e.low, e.high) for e in entries}
    headings = ["law", *(f"promised {100 * c:g}%" for c in levels), "in tenths of the distribution"]
    rows = [[law, *(cells[law, c] for c in levels), " ".join(map(str, ledger.pit(law)))] for law in laws]
    show(Table(headings, rows, title="reliability"), style)
    held = ledger.promised()
    line = f"as written down: {held['inside']} of {held['n']} inside their interval"
    if held["recalibrated_n"]:
        line += f"; of those recalibrated {held['recalibrated_inside']} of {held['recalibrated_n']}"
    say(line, style)
    for law in ledger.laws:
        say(f"{law} at {100 * ledger.coverage:g}%: {ledger.correction(law).advice()}", style)


def _band(inside: int, n: int, low: float, high: float) -> str:
    return f"{100 * inside / n:.0f}% ({100 * low:.0f} to {100 * high:.0f})"


def _print_listed(ledger: Ledger, status: str, style: Style) -> None:
    from isoloss.runs.units import format_count

    chosen = ledger.which(status)
    if not len(chosen):
        return
    promised = {ledger.predictions[i]["coverage"] for i in chosen[:SHOWN]}
    same = len(promised) == 1
    heading = f"{100 * promised.pop():g}% interval" if same else "interval"
    rows = []
    for i in chosen[:SHOWN]:
        p, fate = ledger.predictions[i], ledger.fates[i]
        at = ", ".join(f"{axis} {format_count(value)}" for axis, value in p["at"].items())
        middle = p["quantiles"][len(p["quantiles"]) // 2]
        what = interval(p["low"], p["high"], 5) + ("" if same else f" at {100 * p['coverage']:g}%")
        what += " *" if p["shift"] is not None else ""
        rows.append(
            [
                str(p["id"]),
                p["created"][:16].replace("T", " "),
                p["law"],
                at,
                number(middle, 5),
                what,
                fate.why or p["note"],
            ]
        )
    last = "why" if status == "late" else "note"
    title = {"open": "open: not measured yet", "late": "late: known before, not scored"}[status]
    show(Table(["id", "written (UTC)", "law", "at", "median", heading, last], rows, title=title), style)
    if any(ledger.predictions[i]["shift"] is not None for i in chosen[:SHOWN]):
        say("*: recalibrated", style)
    if len(chosen) > SHOWN:
        say(f"and {len(chosen) - SHOWN} more, in --json", style)
