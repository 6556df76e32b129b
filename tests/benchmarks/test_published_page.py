"""The page of published numbers: how a line compares, that the page is whole, and that it keeps step."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.published import henighan, muennighoff, optima, porian
from benchmarks.published.line import SAME, ends, line

PAGE = Path(__file__).parents[2] / "docs" / "published.md"
HEAD = "| what | source | published | isoloss | difference | why |"


def tables(text: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of cells."""
    found: dict[str, list[list[str]]] = {}
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        rows = part.partition(HEAD)[2].strip().splitlines()[1:]
        cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row.startswith("| ")]
        found[part.partition("\n")[0]] = cells
    return found


def test_a_line_compares_at_the_printed_digits():
    assert line("a", "p", "0.46", 0.4649).difference == SAME
    assert line("a", "p", "12,530", 12530.4).ours == "12,530"
    assert line("a", "p", "1.21e20", 1.2149e20).difference == SAME
    off = line("a", "p", "1.21e20", 1.331e20, "other points", (1.2e20, 1.4e20))
    assert (off.ours, off.difference) == ("1.331e20 (1.200e20 to 1.400e20)", "+10 %")
    assert off.why == "other points"


def test_a_difference_needs_a_reason_and_agreement_shows_none():
    with pytest.raises(ValueError, match="no reason why"):
        line("a", "p", "0.46", 0.51)
    assert line("a", "p", "0.46", 0.4601, "unused").why == ""


def test_intervals_compare_by_width():
    same = ends("a", "p", ("0.317", "0.373"), (0.3168, 0.3727), "unused")
    assert (same.difference, same.why) == (SAME, "")
    assert ends("a", "p", ("1.0", "2.0"), (1.0, 2.5), "why").difference == "+50 % wide"
    assert ends("a", "p", ("0.454", "0.455"), (0.50, 0.53), "why").difference == "30 times as wide"


def test_the_closed_form_is_the_minimum_over_sizes():
    theta = np.array([1.8, 480.0, 2100.0, 0.35, 0.37])
    n = np.geomspace(1e8, 1e11, 200_001)
    loss = theta[0] + theta[1] * n ** -theta[3] + theta[2] * (1e21 / 6 / n) ** -theta[4]
    assert float(optima.closed_form(theta, 1e21)) == pytest.approx(n[np.argmin(loss)], rel=1e-4)


def test_effective_tokens_of_no_repetition_are_the_tokens():
    theta = np.array([1.87, 521.0, 1488.0, 0.3527, 0.3527, 5.31, 1e7])  # decay so late that there is none
    assert muennighoff.worth(theta, 4) == pytest.approx(4.0, rel=1e-4)


def test_akima_finds_the_minimum_of_a_smooth_curve():
    n = np.geomspace(1e7, 1e9, 9)
    runs = {"flops": np.full(9, 1e18), "params": n, "loss": 3 + 0.1 * np.log(n / 2e8) ** 2}
    assert porian.akima(runs, 1e18) == pytest.approx(2e8, rel=0.03)
    runs["loss"] = 3 - 0.1 * np.log(n)
    assert porian.akima(runs, 1e18) is None


def test_the_page_is_whole():
    found = tables(PAGE.read_text(encoding="utf-8"))
    papers = ("Besiroglu", "Hoffmann", "Porian", "Gadre", "Muennighoff", "Henighan")
    assert all(any(paper in title for title in found) for paper in papers)
    assert all(len(rows) >= 4 for rows in found.values())
    for title, rows in found.items():
        for row in rows:
            *filled, why = row
            assert all(filled), (title, row)
            assert filled[-1] == SAME or why, (title, row)


def test_the_page_keeps_step():
    """The sections that need no table, anew; numbers in prose as they stand."""
    text = PAGE.read_text(encoding="utf-8")
    assert optima.section().text() in text
    assert henighan.formula().text() in text
    assert henighan.exponents().text() in text
