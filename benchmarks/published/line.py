"""One line of the page: a published number, ours, and why where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import page

Array = np.ndarray[Any, np.dtype[Any]]
HEAD = ("what", "source", "published", "isoloss", "difference", "why")
SAME = "same digits"


def arxiv(number: str) -> str:
    """A link to the paper."""
    return f"[arXiv:{number}](https://arxiv.org/abs/{number})"


def count(value: float) -> str:
    """A large number as on the page: ``5.76e23``."""
    return f"{value:.4g}".replace("e+", "e")


def percent(share: float) -> str:
    """Two digits, a sign, no power of ten above a hundredth."""
    value = 100 * share
    return f"{value:+.0f} %" if abs(value) >= 100 else f"{value:+.2g} %"


@dataclass(frozen=True)
class Line:
    """One published number and ours, as printed."""

    what: str
    source: str
    published: str
    ours: str
    difference: str
    why: str = ""


@dataclass(frozen=True)
class Section:
    """The lines of one paper, under a heading and a sentence on what they are."""

    title: str
    about: str
    lines: Sequence[Line]

    def text(self) -> str:
        """Heading, sentence, table."""
        rows = [[getattr(line, name) for name in FIELDS] for line in self.lines]
        return f"### {self.title}\n\n{self.about}\n\n{page.table(HEAD, rows, (2, 3, 4))}"


FIELDS = ("what", "source", "published", "ours", "difference", "why")


def line(
    what: str, source: str, published: str, ours: float, why: str = "", interval: Sequence[float] = ()
) -> Line:
    """A line that compares at the printed digits of ``published``; ``why`` shows only where they differ.

    Raises:
        ValueError: the numbers differ and nothing says why.
    """
    digits = Digits.of(published)
    value = float(published.replace(",", ""))
    shown = digits.show(ours)
    if interval:
        shown += f" ({digits.show(interval[0])} to {digits.show(interval[1])})"
    if digits.agree(value, ours):
        return Line(what, source, published, shown, SAME)
    if not why:
        raise ValueError(f"{what}: published {published}, ours {ours:.6g}, and no reason why. Give one")
    return Line(what, source, published, shown, percent(ours / value - 1), why)


def ends(what: str, source: str, published: tuple[str, str], ours: Sequence[float] | Array, why: str) -> Line:
    """A line of an interval: the difference is that of the widths."""
    low, high = (Digits.of(end) for end in published)
    values = [float(end.replace(",", "")) for end in published]
    said, found = f"{published[0]} to {published[1]}", f"{low.show(ours[0])} to {high.show(ours[1])}"
    if low.agree(values[0], ours[0]) and high.agree(values[1], ours[1]):
        return Line(what, source, said, found, SAME)
    wider = (ours[1] - ours[0]) / (values[1] - values[0])
    change = f"{percent(wider - 1)} wide" if wider < 10 else f"{wider:.3g} times as wide"
    return Line(what, source, said, found, change, why)


@dataclass(frozen=True)
class Digits:
    """How a number is printed: decimals of the mantissa, and the power of ten behind it."""

    decimals: int
    power: int
    scientific: bool
    figures: int
    commas: bool

    @staticmethod
    def of(printed: str) -> Digits:
        """Read from a printed number such as ``0.0257``, ``12,530`` or ``1.21e20``."""
        mantissa, mark, power = printed.replace(",", "").partition("e")
        figures = len(mantissa.replace(".", "").lstrip("-0"))
        decimals = len(mantissa.partition(".")[2])
        return Digits(decimals, int(power or 0), bool(mark), figures, "," in printed)

    def agree(self, value: float, ours: float) -> bool:
        """Whether ours rounds to the printed number."""
        return abs(ours - value) <= 0.5 * 10.0 ** (self.power - self.decimals) * (1 + 1e-6)

    def show(self, ours: float) -> str:
        """Ours with the printed digits, and one more where they are few."""
        decimals = self.decimals + (self.figures < 4 and (self.decimals > 0 or self.scientific))
        text = f"{ours / 10.0**self.power:{',' if self.commas else ''}.{decimals}f}"
        return f"{text}e{self.power}" if self.scientific else text
