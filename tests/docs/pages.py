"""Runs the code blocks of a page, in order, in one namespace and one folder.

- ```` ```python ```` runs; with ``title="my_laws.py"`` it is written to that file instead, as is ```` ```toml ````. A
  ```` ```text ```` block right below is what it prints.
- ```` ```console ````: each line ``$ isoloss ...`` runs in this process; the lines below it are what it prints
  (standard output, then standard error). ``$ echo $?`` prints the last exit code.
- In an output a line ``...`` stands for any lines.
- ``<!-- table: runs.csv = laws/chinchilla/points.csv -->`` puts a published table, which is no part of the project, into
  the folder; where it is not beside the checkout the page is not run.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```[ ]*$", re.S | re.M)
TABLE = re.compile(r"^<!-- table: (\S+) = (\S+) -->$", re.M)
TABLES = ROOT.parent / "shared" / "data"
SAME = 0.01  # printed numbers may differ by this share between machines


@dataclass(frozen=True)
class Block:
    """A fenced block: language, title, text, and where the text lies in the page."""

    language: str
    title: str | None
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Output:
    """What a page says something prints, what it prints, and where the page says it."""

    what: str
    said: str
    printed: str
    start: int
    end: int


def page_paths() -> list[Path]:
    """Every page with blocks to run."""
    return [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.is_file()]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match[2])
        found.append(Block(match[1], title[1] if title else None, match[3], match.start(3), match.end(3)))
    return found


def absent_tables(path: Path) -> list[str]:
    """Published tables that a page reads and that are not beside this checkout."""
    return [
        place
        for _, place in TABLE.findall(path.read_text(encoding="utf-8"))
        if not (TABLES / place).is_file()
    ]


def run_page(path: Path, folder: Path) -> Iterator[Output]:
    """Run a page in ``folder``, giving each output as it comes.

    Raises:
        AssertionError: a block fails; it names the block.
    """
    (folder / "examples").symlink_to(ROOT / "examples")
    text = path.read_text(encoding="utf-8")
    for name, place in TABLE.findall(text):
        (folder / name).symlink_to(TABLES / place)
    namespace: dict[str, Any] = {"__name__": "__page__"}
    found = blocks(text)
    for block, after in zip(found, [*found[1:], None], strict=False):
        if block.language in ("python", "toml") and block.title:
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            line = text.count("\n", 0, block.start)
            printed = _run_python("\n" * line + block.text, f"{path.name}", namespace, folder)
            between = text[block.end : after.start].partition("\n")[2] if after else ""
            if after and after.language == "text" and not between.rpartition("```text")[0].strip():
                yield Output(block.text.strip(), after.text, printed, after.start, after.end)
        elif block.language == "console":
            yield from _run_console(block, folder)


def _run_python(code: str, name: str, namespace: dict[str, Any], folder: Path) -> str:
    out = io.StringIO()
    sys.path.insert(0, str(folder))  # as where a person starts python there
    try:
        with chdir(folder), redirect_stdout(out):
            exec(compile(code, name, "exec"), namespace)
    finally:
        sys.path.remove(str(folder))
    return out.getvalue()


def _run_console(block: Block, folder: Path) -> Iterator[Output]:
    code = 0
    pieces = re.split(r"^(\$ .*\n)", block.text, flags=re.M)
    at = block.start + len(pieces[0])
    assert not pieces[0].strip(), f"a console block must begin with '$ ': {block.text!r}"
    for line, said in zip(pieces[1::2], pieces[2::2], strict=True):
        words = shlex.split(line[2:])
        assert words[0] == "isoloss" or words == ["echo", "$?"], f"cannot run {line!r} here"
        if words[0] == "isoloss":
            code, printed = run_command(words[1:], folder)
        else:
            printed = f"{code}\n"
        at += len(line)
        yield Output(line.strip(), said, printed, at, at + len(said))
        at += len(said)


def run_command(words: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and text of ``isoloss WORDS``, trailing blanks cut."""
    from isoloss.cli import run

    out, err = io.StringIO(), io.StringIO()
    with (
        chdir(folder),
        mock.patch.dict(os.environ, {"COLUMNS": "100"}),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        code = run(words)
    return code, out.getvalue() + err.getvalue()


def tidy(text: str) -> list[str]:
    """Lines without trailing blanks, without blank lines at the ends or in a row."""
    lines: list[str] = []
    for line in (entry.rstrip() for entry in text.splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def agrees(said: str, printed: str) -> bool:
    """Whether the printed text is what the page says, ``...`` standing for any lines."""
    return _match(tidy(said), tidy(printed))


def _match(said: list[str], printed: list[str]) -> bool:
    if not said:
        return not printed
    if said[0].strip() == "...":
        return any(_match(said[1:], printed[k:]) for k in range(len(printed) + 1))
    return bool(printed) and _same_line(said[0], printed[0]) and _match(said[1:], printed[1:])


def _same_line(said: str, printed: str) -> bool:
    a, b = said.split(), printed.split()
    return len(a) == len(b) and all(map(_same_word, a, b))


def _same_word(said: str, printed: str) -> bool:
    if said == printed or (set(said) == set(printed) == {"─"}):
        return True
    try:
        x, y = (float(word.strip("(),;:%x[]")) for word in (said, printed))
    except ValueError:
        return False
    return abs(x - y) <= SAME * max(abs(x), abs(y))


def renewed(said: str, printed: str) -> str:
    """The output as a page should say it: lines before the first and behind the last ``...`` keep their number.

    What stands between two of them is found again by the first words of its lines.

    Raises:
        ValueError: it is not.
    """
    new = tidy(printed)
    parts: list[list[str]] = [[]]
    for line in tidy(said):
        if line.strip() == "...":
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) > 2 and agrees(said, printed):
        new = tidy(said)
    elif len(parts) > 2 or (len(parts) == 2 and len(new) >= sum(map(len, parts))):
        new = _with_gaps(parts, new)
    return "".join(line + "\n" for line in new)


def _with_gaps(parts: list[list[str]], new: list[str]) -> list[str]:
    at, end = len(parts[0]), len(new) - len(parts[-1])
    found = new[:at]
    for part in parts[1:-1]:
        alike = {
            k: sum(a.split()[:1] == b.split()[:1] for a, b in zip(part, new[k:], strict=False) if a)
            for k in range(at, end - len(part) + 1)
        }
        best = max(alike, key=lambda k: alike[k], default=at)
        if not alike.get(best):
            raise ValueError(
                "\n".join(["cannot find these lines, mend this output by hand:", *part, "in", *new])
            )
        found += ["...", *new[best : best + len(part)]]
        at = best + len(part)
    return [*found, "...", *new[end:]]
