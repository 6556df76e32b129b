"""What a page is made of: sections of sentences, pictures, tables and findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from isoloss.runs import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONG = 200  # rows of a table shown; the rest is counted


@dataclass(frozen=True)
class Picture:
    """A picture as SVG text, with what it shows for those who do not see it.

    Attributes:
        svg: the ``<svg>`` element.
        caption: the sentence below it.
        width: of the drawing in inches, for the width on the page.
    """

    svg: str
    caption: str
    width: float
    kind: str = field(default="picture", init=False)


@dataclass(frozen=True)
class Row:
    """Pictures that stand beside each other where there is room."""

    pictures: tuple[Picture, ...]
    kind: str = field(default="row", init=False)


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first cell of a row names it.

    Attributes:
        caption: what the table holds.
        headings: one per column.
        rows: cells, all text.
        numeric: columns that are right-aligned.
        more: rows that are not shown.
        folds: whether it scrolls within its own frame where it is long.
    """

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[int, ...] = ()
    more: int = 0
    folds: bool = True
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Cautions:
    """Findings, those of one code together."""

    groups: tuple[tuple[Finding, ...], ...]
    kind: str = field(default="cautions", init=False)


@dataclass(frozen=True)
class Code:
    """A command to repeat something."""

    text: str
    kind: str = field(default="code", init=False)


Part = Picture | Row | Table | Cautions | Code


@dataclass(frozen=True)
class Section:
    """One numbered section: what is seen, in a sentence or two, then the parts that show it."""

    slug: str
    title: str
    said: tuple[str, ...]
    parts: tuple[Part, ...] = ()


def table(
    caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()
) -> Table:
    """A table of at most ``LONG`` rows.

    Example:
        >>> table("t", ["a"], [[str(i)] for i in range(300)]).more
        100
    """
    shown = tuple(tuple(row) for row in rows[:LONG])
    return Table(caption, tuple(headings), shown, tuple(numeric), max(0, len(rows) - LONG))


def cautions(found: Sequence[Finding]) -> Cautions:
    """Findings in the order error, warning, note, those of one code and advice together."""
    order = {"error": 0, "warning": 1, "note": 2}
    groups: dict[tuple[str, str], list[Finding]] = {}
    for entry in sorted(found, key=lambda entry: order[entry.level]):
        groups.setdefault((entry.code, entry.why), []).append(entry)
    return Cautions(tuple(tuple(group) for group in groups.values()))


def picture(
    draw: Callable[[Figure], None],
    name: str,
    alt: str,
    caption: str,
    size: tuple[float, float] = (5.2, 3.8),
) -> Picture:
    """A figure of ``size`` inches, filled by ``draw``, as SVG.

    The draw functions write titles for pictures that stand alone; on a page the caption says it, so the
    titles are taken off.
    """
    from matplotlib.figure import Figure

    from isoloss.report.svg import plain_style, svg

    with plain_style():
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.set_title("", loc="left")
        return Picture(svg(figure, name, alt), caption, size[0])
