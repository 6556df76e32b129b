"""``isoloss laws``: what might be true."""

from __future__ import annotations

from typing import Annotated

import typer

from isoloss.cli.options import Latex, Markdown, law_named, style_of
from isoloss.cli.show import Table, number, say, show


def laws(
    law: Annotated[str | None, typer.Argument(help="One law in full, or your own FILE.py:Class.")] = None,
    md: Markdown = False,
    latex: Latex = False,
) -> None:
    """List the laws, or show one in full."""
    from isoloss.laws import LAWS, get

    style = style_of(md, latex)
    if law is not None:
        _one(law, md, latex)
        return
    rows = []
    for slug in LAWS:
        entry = get(slug)
        same = f" (same as {entry.alias_of})" if entry.alias_of else ""
        rows.append([slug + same, entry.formula, ", ".join(entry.axes), entry.paper.partition(", arXiv")[0]])
    show(Table(["law", "formula", "inputs", "paper"], rows), style)
    say("One law in full: isoloss laws NAME. Your own: docs/own-law.md.", style)


def _one(name: str, md: bool, latex: bool) -> None:
    import inspect

    from isoloss.laws.law import UNITS

    style, law = style_of(md, latex), law_named(name)
    say(f"{law.spec}: {law.target} = {law.formula}", style)
    say(law.paper, style)
    if law.alias_of:
        say(f"The same hypothesis as {law.alias_of} in other parameters: compare one of the two.", style)
    say("", style)
    say(inspect.getdoc(type(law)) or "", style)
    say("", style)
    inputs = ", ".join(f"{axis} [{UNITS.get(axis, 'as the column')}]" for axis in law.axes)
    say(f"Inputs: {inputs}. Target: {law.target} [{UNITS.get(law.target, 'as the column')}].", style)
    rows = [[p.name, p.meaning, "log" if p.scale == "log" else "linear"] for p in law.parameters]
    show(Table(["parameter", "meaning", "fitted as"], rows), style)
    if law.published:
        rows = [
            [name, *(number(fit.values[p]) for p in law.names), fit.source]
            for name, fit in law.published.items()
        ]
        show(Table(["published", *law.names, "source"], rows), style)
