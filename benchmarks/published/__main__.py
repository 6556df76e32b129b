"""Our numbers beside the published ones, from the public tables.

python -m benchmarks.published [--out docs/published.md]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import page
from benchmarks.published import besiroglu, gadre, henighan, hoffmann, muennighoff, optima, porian
from benchmarks.published.line import SAME, Section


def sections() -> list[Section]:
    """In the order of the page."""
    return [
        *besiroglu.sections(),
        *hoffmann.sections(),
        optima.section(),
        *porian.sections(),
        gadre.section(),
        muennighoff.section(),
        *henighan.sections(),
    ]


def text(found: list[Section]) -> str:
    """The page's tables under a line that counts."""
    lines = [line for section in found for line in section.lines]
    printed = [line for line in lines if line.source[0].isdigit()]  # a paper by its arXiv number
    same = sum(line.difference == SAME for line in printed)
    count = (
        f"{len(printed)} published numbers: {same} come back to every printed digit, {len(printed) - same} say why not. "
        f"{len(lines) - len(printed)} more lines stand against closed forms and simulations."
    )
    return "\n\n".join([count, *(section.text() for section in found)])


def main() -> None:
    """The command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, help="page to write between its published markers")
    given = parser.parse_args()
    written = text(sections())
    print(written)
    if given.out:
        page.put(given.out, "published", written)


if __name__ == "__main__":
    main()
