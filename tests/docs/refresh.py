"""``python -m tests.docs.refresh [PAGE ...]``: write the outputs on the pages anew, in place."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

from tests.docs.pages import Output, absent_tables, agrees, page_paths, renewed, run_page


def main(names: list[str]) -> None:
    """Refresh the named pages, or all."""
    wanted = {Path(name).name for name in names}
    unknown = wanted - {path.name for path in page_paths()}
    if unknown:
        raise SystemExit(f"no such page: {', '.join(sorted(unknown))}")
    for path in page_paths():
        if names and path.name not in wanted:
            continue
        if absent := absent_tables(path):
            print(f"{path.name}: left as it is, {', '.join(absent)} not beside this checkout")
            continue
        with tempfile.TemporaryDirectory() as folder:
            outputs = list(run_page(path, Path(folder)))
        text = path.read_text(encoding="utf-8")
        fresh = rewritten(text, outputs)
        stale = sum(not agrees(output.said, output.printed) for output in outputs)
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
        print(f"{path.name}: {len(outputs)} outputs, {stale} were stale")


def rewritten(text: str, outputs: list[Output]) -> str:
    """The page with every output as it is printed now."""
    for output in reversed(outputs):
        ending = "\n" if output.said.endswith("\n\n") and output.said.strip() else ""
        text = text[: output.start] + renewed(output.said, output.printed) + ending + text[output.end :]
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
