"""The main job, on real text: run a ladder, predict runs of eight times its compute, train them, compare.

    make demo

Everything it does is `isoloss study run demo/study.toml`; here only the picture and the plan come after. What
was interrupted goes on; what was finished is done anew.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import webbrowser
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from rich.console import Console

import isoloss
from demo.picture import draw
from isoloss.cli import run as command
from isoloss.study.progress import read_status

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "demo" / "study.toml"
OUT = ROOT / "out"
FURTHER = 100.0  # the plan at the end is for so many times the compute of the dearest run


def main() -> int:
    """Run the demo; returns 0 whether or not the intervals hold: that is the measurement."""
    console = Console(width=None if sys.stdout.isatty() else 110, markup=False, highlight=False)
    began = time.monotonic()
    os.chdir(ROOT)
    OUT.mkdir(exist_ok=True)
    study = isoloss.Study.read(STUDY)
    verb = "resume" if study.store_path.exists() else "run"
    if verb == "resume" and not read_status(study).left:
        _forget(study)
        verb = "run"
    page, saved = OUT / "demo.html", OUT / "demo.fit.json"
    study_file, page_file, fit_file = (str(path.relative_to(ROOT)) for path in (STUDY, page, saved))
    words = ["study", verb, study_file, "--report", page_file, "--fit", fit_file]
    console.rule(f"isoloss {' '.join(words)}", characters="-")
    code = command(words)
    if code:
        return code

    fit = isoloss.load(saved)
    assert isinstance(fit, isoloss.Fit)  # of the file's first law
    runs = isoloss.Store(study.store_path, read_only=True).runs(study.name)
    targets = {run.key for run in study.plan()[-1].runs}
    small = runs.take([key not in targets for key in runs["run"]])
    large = runs.take([key in targets for key in runs["run"]])
    console.rule("and what next", characters="-")
    flops = FURTHER * float(small["flops"].max())
    console.print(f"for {flops:.1e} FLOPs, a hundred times the dearest run of the ladder:")
    try:
        console.print(str(isoloss.plan(fit, isoloss.Budget(flops=flops))))
    except isoloss.NoAnswer as reason:
        console.print(f"no answer: {reason}")
    picture = OUT / "demo.png"
    draw(fit, small, large, picture)
    for path in (picture, page):
        console.print(f"{path.relative_to(ROOT)}")
    console.print(f"{time.monotonic() - began:.0f} s")
    if sys.stdout.isatty() and (os.environ.get("DISPLAY") or sys.platform in ("darwin", "win32")):
        webbrowser.open(page.as_uri())
    return 0


def _forget(study: isoloss.Study) -> None:
    """Remove what an earlier, finished demo left; nothing else is in these files."""
    shutil.rmtree(study.folder_path, ignore_errors=True)
    for ending in ("", "-wal", "-shm"):
        study.store_path.with_name(study.store_path.name + ending).unlink(missing_ok=True)


if __name__ == "__main__":
    raise SystemExit(main())
