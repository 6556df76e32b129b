"""Tables in Markdown, put between two marker comments of a page so that prose can stand around them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; columns numbered in ``right`` are right-aligned."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *rows])


def machine() -> str:
    """Processor and versions, because seconds mean nothing without them."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    return f"{_processor()}; Python {platform.python_version()}, {libraries}; one BLAS thread."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers ``name`` in the page; add them at the end if absent."""
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    page = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin in page and end in page:
        before, rest = page.split(begin, 1)
        after = rest.split(end, 1)[1]
    else:
        before, after = (page.rstrip("\n") + "\n\n").lstrip("\n"), "\n"
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
