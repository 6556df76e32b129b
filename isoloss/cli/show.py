"""Tables and findings as a terminal, Markdown or LaTeX shows them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from isoloss.files import json_text, refuse_unwritable, write_atomically
from isoloss.report.words import interval as interval
from isoloss.report.words import number as number
from isoloss.report.words import plural as plural

Style = Literal["terminal", "markdown", "latex"]
WIDTH = 110  # of tables that do not go to a terminal


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; columns of numbers are right-aligned."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    words: Sequence[str] = ()  # headings of columns that are words, though some may begin with a number

    def is_numeric(self, column: int) -> bool:
        """Whether every cell of the column begins like a number."""
        if self.headings[column] in self.words:
            return False
        cells = [row[column] for row in self.rows]
        return bool(cells) and all(cell[:1] in "0123456789-+—" or cell == "inf" for cell in cells)


def show(table: Table, style: Style) -> None:
    """Print a table."""
    if style == "markdown":
        print(_markdown(table), end="\n\n")  # what follows at once would be one more row
    elif style == "latex":
        print(_latex(table))
    else:
        _rich(table)


def say(text: str, style: Style = "terminal") -> None:
    """Print a line that belongs to the result."""
    print(f"% {text}" if style == "latex" and text else text)


def findings(entries: Sequence[Any], style: Style) -> None:
    """Print findings: what, why it matters, what to do."""
    for entry in entries:
        rows = _rows(entry.rows)
        mark = {"error": "ERROR", "warning": "warning", "note": "note"}[entry.level]
        for line in (
            f"{mark} [{entry.code}]{rows} {entry.text}",
            f"    why: {entry.why}",
            f"    do:  {entry.do}",
        ):
            say(line, style)


def _rows(rows: Sequence[int]) -> str:
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:8])) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return f" row{'s' if len(rows) > 1 else ''} {shown}:"


def for_people(json: str | None) -> contextlib.AbstractContextManager[object]:
    """Where tables go: standard output, or standard error when ``--json -`` takes the former."""
    return contextlib.redirect_stdout(sys.stderr) if json == "-" else contextlib.nullcontext()


def check_writable(path: str) -> None:
    """Refuse a place that cannot be written before the long work, not after it."""
    if path != "-":
        refuse_unwritable(Path(path))


def write_json(path: str, document: dict[str, Any]) -> None:
    """Write a result for machines, atomically; ``-`` is standard output."""
    text = json_text(document)
    if path == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(path), text)


def progress(total_hint: int) -> tuple[Callable[[str, int, int], None] | None, Callable[[], None]]:
    """A progress callback and what ends it; silent unless a person watches and the work is long."""
    if not sys.stderr.isatty() or total_hint < 500:
        return None, lambda: None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    tasks: dict[str, Any] = {}
    bar.start()

    def advance(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    return advance, bar.stop


def _rich(table: Table) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    out = RichTable(title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(table.headings):
        out.add_column(heading, justify="right" if table.is_numeric(i) else "left", overflow="fold")
    for row in table.rows:
        out.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False)
    console.print(out)


def _markdown(table: Table) -> str:
    cells = [[_plain(cell) for cell in row] for row in (table.headings, *table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.headings))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in cells]
    rule = " | ".join("-" * (w - 1) + (":" if table.is_numeric(i) else "-") for i, w in enumerate(widths))
    title = [f"**{table.title}**", ""] if table.title else []
    return "\n".join([*title, f"| {lines[0]} |", f"| {rule} |", *(f"| {line} |" for line in lines[1:])])


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _latex(table: Table) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\^{}", "—": "---"}
    special |= {"\\": r"\textbackslash{}", "<": r"\textless{}", ">": r"\textgreater{}"}

    def escape(cell: str) -> str:
        return "".join(special.get(c, c) for c in cell)

    body = [" & ".join(map(escape, row)) + r" \\" for row in (table.headings, *table.rows)]
    align = "".join("r" if table.is_numeric(i) else "l" for i in range(len(table.headings)))
    head = [f"% {table.title}"] if table.title else []
    top, rule = rf"\begin{{tabular}}{{{align}}}", r"\hline"
    return "\n".join([*head, top, rule, body[0], rule, *body[1:], rule, r"\end{tabular}"])
