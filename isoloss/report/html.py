"""Takes a head and sections, gives them as one page that holds everything: style, pictures, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from isoloss.report.blocks import Cautions, Section


@dataclass(frozen=True)
class Head:
    """What stands above the sections.

    Attributes:
        title: of the browser's window.
        kind: what sort of page it is: ``report on a fit``.
        heading: what it is about.
        formula: a line below the heading, or nothing.
        mark: class of the verdict, for its colour; empty: there is none.
        verdict, meaning: the result in a word, and what it means.
        quiet: what is said where there are no findings.
        rest: where rows are that a long table does not show.
    """

    title: str
    kind: str
    heading: str
    formula: str
    mark: str
    verdict: str
    meaning: str
    quiet: str
    rest: str


def _unbroken(value: object) -> object:
    """No line ends between a number and its per cent sign."""
    return value.replace(" %", "\u00a0%") if type(value) is str else value


def html(head: Head, short: Sequence[str], found: Cautions, sections: Sequence[Section]) -> str:
    """The page as text.

    Args:
        head: above all.
        short: the answer in a few lines.
        found: findings, told before the sections.
        sections: numbered in their order.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    held = files("isoloss.report")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_unbroken
    )
    template = environment.from_string(held.joinpath("page.html.j2").read_text(encoding="utf-8"))
    style = held.joinpath("page.css").read_text(encoding="utf-8")
    return template.render(
        head=head, short=short, found=found, sections=sections, style=Markup(style), markup=Markup
    )
