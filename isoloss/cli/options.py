"""Options that several verbs share, and the table they describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from isoloss.fitting.result import Fit
    from isoloss.laws.law import Law
    from isoloss.runs import Runs

Columns = Annotated[
    str | None,
    typer.Option(help="Canonical name first: params=N,tokens=D,loss=val_loss.", rich_help_panel="Table"),
]
Where = Annotated[str | None, typer.Option(help="Rows to use: \"dataset == 'c4'\".", rich_help_panel="Table")]
Units = Annotated[
    str | None,
    typer.Option(help="Units of columns: loss=bits/token,params=millions.", rich_help_panel="Table"),
]
Format = Annotated[
    str | None,
    typer.Option("--format", help="csv, tsv, json, jsonl or parquet, where the name does not tell."),
]
Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        help="Write the result here as JSON; - is standard output, tables then go to standard error.",
    ),
]
Markdown = Annotated[bool, typer.Option("--md", help="Print tables as Markdown.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print tables as LaTeX.")]
Coverage = Annotated[float, typer.Option(min=0.01, max=0.999, help="Coverage of intervals.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]


def table(path: str, columns: str | None, where: str | None, units: str | None, format: str | None) -> Runs:
    """The table of runs the options describe; of a store, its finished runs."""
    from isoloss.runs import read

    if _is_store(path):
        if columns or units or format:
            raise ValueError(
                f"{path} is a store, whose columns and units are known: leave out --columns, --units, --format"
            )
        from isoloss.study.store import Store

        runs = Store(path, read_only=True).runs()
        return runs.where(where) if where else runs
    return read(path, columns=columns, where=where, units=units, format=format)


def _is_store(path: str) -> bool:
    """Whether the file is SQLite's; no table is."""
    try:
        with open(path, "rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def law_named(name: str) -> Law:
    """The law, its name as typed on the command line."""
    from isoloss.laws import get

    return get(name)


def style_of(md: bool, latex: bool) -> Any:
    """``"terminal"``, ``"markdown"`` or ``"latex"``."""
    if md and latex:
        raise ValueError("--md and --latex exclude each other: choose one")
    return "markdown" if md else "latex" if latex else "terminal"


def leading_fit(path: str, group: str | None, what: str) -> tuple[Fit, str]:
    """The fit in a file; of a stack its leading one, and a line that says so."""
    from isoloss.comparing.files import load
    from isoloss.comparing.stack import Stack

    found = load(path, group=group)
    if not isinstance(found, Stack):
        return found, ""
    fit, weight = found.leading, max(found.weights)
    return fit, f"{what} needs one law: of the stack the leading one, {fit.law.spec} (weight {weight:.2f})"
