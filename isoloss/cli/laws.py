"""``isoloss laws``: what might be true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import Json, Latex, Markdown, law_named, style_of
from isoloss.cli.show import Style, Table, for_people, number, say, show, write_json

if TYPE_CHECKING:
    from isoloss.laws.law import Law
    from isoloss.laws.parts.part import Part
    from isoloss.laws.schedules.schedule_law import ScheduleLaw

    Piece = Law | Part | ScheduleLaw

SCHEMA = "isoloss/laws/1"


def laws(
    law: Annotated[
        str | None,
        typer.Argument(
            help="One law, factor or term in full; your own FILE.py:Class; or a composed law, 'hoffmann * precision'."
        ),
    ] = None,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> None:
    """List the laws, factors and terms, or show one in full."""
    from isoloss.laws import LAWS, get
    from isoloss.laws.parts import FACTORS, TERMS
    from isoloss.laws.schedules import SCHEDULE_LAWS

    style = style_of(md, latex)
    if law is not None:
        piece = _piece(law)
        with for_people(json):
            _show(piece, style)
        if json is not None:
            write_json(json, {"schema": SCHEMA, "laws": [_document(piece)]})
        return
    pieces: list[Piece] = [*map(get, LAWS), *map(_piece, (*FACTORS, *TERMS))]
    rows = []
    for piece in pieces:
        same = getattr(piece, "alias_of", None)
        name = piece.slug + (f" (same as {same})" if same else "")
        rows.append(
            [
                name,
                kind_of(piece),
                piece.formula,
                ", ".join(_inputs(piece)),
                piece.paper.partition(", arXiv")[0],
            ]
        )
    with for_people(json):
        show(Table(["law", "kind", "formula", "inputs", "paper"], rows), style)
        say(
            "One in full: isoloss laws NAME. Your own: docs/own-law.md. Factors and terms: docs/composing.md.",
            style,
        )
        say(f"Of learning-rate schedules, by isoloss schedule: {', '.join(SCHEDULE_LAWS)}.", style)
    if json is not None:
        write_json(json, {"schema": SCHEMA, "laws": [_document(piece) for piece in pieces]})


def _piece(name: str) -> Piece:
    """The law, factor or term of that name, or law of schedules.

    Raises:
        ValueError: none of that name.
    """
    import re

    from isoloss.laws import parts, schedules

    slug = re.sub(r"\(.*", "", name).strip().lower().replace("_", "-")
    if slug in schedules.SCHEDULE_LAWS:
        return schedules.get(slug)
    known = {**parts.FACTORS, **parts.TERMS}
    if slug not in known:
        try:
            return law_named(name)
        except ValueError as error:
            if "no law named" not in str(error) or ":" in name:
                raise
            raise ValueError(
                f"{error}. Factors: {', '.join(parts.FACTORS)}. Terms: {', '.join(parts.TERMS)}"
            ) from None
    columns = re.search(r"\((.*)\)", name)
    part: Part = getattr(parts, known[slug])(tuple(re.findall(r"\w+", columns[1])) if columns else ())
    return part


def kind_of(piece: Piece) -> str:
    """What it is to a composed law: ``law``, ``link``, ``factor of params``, ``term``; or ``law of schedules``."""
    from isoloss.laws.parts.part import Factor, Part
    from isoloss.laws.schedules.schedule_law import ScheduleLaw

    if isinstance(piece, Factor):
        return f"factor of {piece.scales}"
    if isinstance(piece, Part):
        return "term"
    if isinstance(piece, ScheduleLaw):
        return "law of schedules"
    return "link" if piece.axes == ("loss",) else "law"


def _inputs(piece: Piece) -> tuple[str, ...]:
    from isoloss.laws.parts.part import Part

    return piece.reads if isinstance(piece, Part) else piece.axes


def _document(piece: Piece) -> dict[str, Any]:
    from isoloss.laws.parts.composed import Composed

    published = {name: {"values": dict(f.values), "source": f.source} for name, f in piece.published.items()}
    origins = (
        [slug for slug, _ in piece.slots]
        if isinstance(piece, Composed)
        else [piece.slug] * len(piece.parameters)
    )
    return {
        "name": piece.spec,
        "kind": kind_of(piece),
        "target": getattr(piece, "target", None),
        "formula": piece.formula,
        "inputs": list(_inputs(piece)),
        "paper": piece.paper,
        "parameters": [
            {
                "name": p.name,
                "of": origin,
                "meaning": p.meaning,
                "scale": p.scale,
                "low": p.low,
                "high": p.high,
            }
            for p, origin in zip(piece.parameters, origins, strict=True)
        ],
        "published": published,
        "assumed_separable": [list(pair) for pair in getattr(piece, "assumed_separable", ())],
    }


def _show(piece: Piece, style: Style) -> None:
    import inspect

    from isoloss.laws.law import UNITS, Law
    from isoloss.laws.parts.composed import Composed
    from isoloss.laws.parts.part import Factor, Part

    if not isinstance(piece, Part):
        say(f"{piece.spec}: {piece.target} = {piece.formula}", style)
    else:
        what = f"{piece.scales} times" if isinstance(piece, Factor) else "the loss plus"
        say(f"{piece.spec}: {what} {piece.formula}", style)
    say(piece.paper, style)
    if isinstance(piece, Law) and piece.alias_of:
        say(f"The same hypothesis as {piece.alias_of} in other parameters: compare one of the two.", style)
    say("", style)
    if not isinstance(piece, Composed):
        say(inspect.getdoc(type(piece)) or "", style)
        say("", style)
    inputs = ", ".join(f"{axis} [{UNITS.get(axis, 'as the column')}]" for axis in _inputs(piece))
    if not isinstance(piece, Part):
        say(f"Inputs: {inputs}. Target: {piece.target} [{UNITS.get(piece.target, 'as the column')}].", style)
    else:
        say(f"Inputs: {inputs}. Changes nothing at: {piece.reference}.", style)
    document = _document(piece)
    headings = ["parameter", "meaning", "fitted as"]
    rows = [[p.name, p.meaning, "log" if p.scale == "log" else "linear"] for p in piece.parameters]
    if isinstance(piece, Composed):
        headings.insert(1, "of")
        for row, entry in zip(rows, document["parameters"], strict=True):
            row.insert(1, entry["of"])
    show(Table(headings, rows), style)
    if piece.published:
        fits = piece.published
        values = [
            [p.name, *(number(fit.values[p.name]) if p.name in fit.values else "—" for fit in fits.values())]
            for p in piece.parameters
        ]
        show(Table(["published", *fits], values), style)
        for name, fit in fits.items():
            say(f"{name}: {fit.source}", style)
