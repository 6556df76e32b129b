"""What a study costs besides its runs: the executor and the store around 2-second rungs, and reading 10,000 runs.

``python -m benchmarks.study_overhead [--runs 10] [--stored 10000] [--out docs/benchmarks.md]``, about 3 minutes
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import machine, put, table
from isoloss.study import steps
from isoloss.study.store import Store
from isoloss.study.study import Study

POINTS = 20  # yields of a run
READERS = (
    ("study status", ["study", "status", "{study}"]),
    ("ledger", ["ledger", "{store}"]),
    ("ledger --export", ["ledger", "{store}", "--export", "{folder}"]),
    ("check --law power(tokens)", ["check", "{store}", "--law", "power(tokens)"]),
    ("fit power --uncertainty laplace", ["fit", "power(tokens)", "{store}", "--uncertainty", "laplace"]),
)  # fmt: skip


def train(config: dict[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """Busy for ``seconds`` of CPU, with as many yields as a real run; says how long it was at work itself."""
    began = time.perf_counter()
    for step in range(1, POINTS + 1):
        until = time.process_time() + config["seconds"] / POINTS
        while time.process_time() < until:
            sum(range(2000))
        yield step, {"loss": 1.0 + 1.0 / step, "done": step / POINTS, "own": time.perf_counter() - began}


def overhead(runs: int, seconds: float, workers: int, root: Path) -> tuple[float, float]:
    """(wall seconds of a rung that are not its runs', share of them), with warm workers.

    A first rung warms the workers; the second is timed from its beginning until its last run is in the store. With
    several workers each has its own share of the runs, and the wall is compared with the longest share.
    """
    study = Study(
        name=f"w{workers}", root=root, trainer={"run": f"{__file__}:train"}, workers={"count": workers},
        rungs=[{"seconds": 0.2, "tokens": list(range(1, workers + 1))}, {"seconds": seconds, "tokens": list(range(101, 101 + runs))}],
        objective={"laws": ["power(tokens)"]},
    )  # fmt: skip
    began, ended = [0.0], [0.0]

    def tell(step: steps.Step) -> None:
        if isinstance(step, steps.Began):
            began[0] = time.perf_counter()
        elif isinstance(step, steps.Ended):
            ended[0] = time.perf_counter()

    told = study.run(tell)
    wall = ended[0] - began[0]
    store = Store(study.store_path, read_only=True)
    own = [e["measured"]["own"] for e in store.run_entries(study.name) if e["axes"]["seconds"] == seconds]
    assert told.complete
    assert len(own) == runs
    return wall - sum(own) / workers, (wall - sum(own) / workers) / (sum(own) / workers)


def fill(path: Path, runs: int, name: str) -> None:
    """A store of as many runs, each with a curve, and a tenth as many predictions."""
    rng = np.random.default_rng(0)
    store = Store(path)
    study = declared(path, runs, name)
    for run in study.plan()[0].runs:
        tokens = float(run.settings["tokens"])
        loss = (1.5 + 40 * tokens**-0.3) * float(np.exp(0.01 * rng.standard_normal()))
        store.add_run(
            name, run.key, axes={"tokens": tokens}, measured={"loss": loss}, costs={"cpu_seconds": 2.0},
            config=dict(run.settings), units={"loss": "nats/token", "tokens": "count"},
            curves={"loss": (list(range(POINTS)), [loss + 1 / (1 + k) for k in range(POINTS)])},
        )  # fmt: skip


def declared(path: Path, runs: int, name: str) -> Study:
    return Study(
        name=name, root=path.parent, store=path.name, trainer={"run": f"{__file__}:train"},
        rungs=[{"tokens": [1000 + k for k in range(runs)]}], objective={"laws": ["power(tokens)"]},
    )  # fmt: skip


def read_times(path: Path, runs: int, name: str) -> list[tuple[str, float, float]]:
    """(command, wall seconds, CPU seconds) of each command that reads, a process each, start-up included."""
    toml = path.with_suffix(".toml")
    toml.write_text(
        f'name = "{name}"\nstore = "{path.name}"\n[trainer]\nrun = "{__file__}:train"\n[objective]\nlaws = ["power(tokens)"]\n'
        f"[[rungs]]\ntokens = {[1000 + k for k in range(runs)]}\n",
        encoding="utf-8",
    )
    found = []
    for what, words in READERS:
        names = {"study": str(toml), "store": str(path), "folder": str(path.parent / "out")}
        command = [sys.executable, "-m", "isoloss", *(word.format(**names) for word in words)]
        before, began = os.times(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall, after = time.perf_counter() - began, os.times()
        if done.returncode:
            raise RuntimeError(f"{what}: {done.stderr}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        found.append((what, wall, cpu))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_overhead", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="of 2 seconds each")
    parser.add_argument("--stored", type=int, default=10_000, help="runs in the store that is read")
    parser.add_argument("--out", type=Path, help="page to put the tables into")
    args = parser.parse_args()
    lines = [machine(), ""]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = []
        for workers in (1, 2):
            lost, share = overhead(args.runs, 2.0, workers, root)
            rows.append(
                [
                    str(workers),
                    str(args.runs),
                    f"{1000 * lost * workers / args.runs:.1f}",
                    f"{100 * share:.2f} %",
                ]
            )
        lines += [table(["workers", "2-second runs", "ms a run", "of the runs' own time"], rows), ""]
        began = time.perf_counter()
        fill(root / "many.db", args.stored, "many")
        lines.append(
            f"A store of {args.stored:,} runs with curves of {POINTS} points took {time.perf_counter() - began:.0f} s to fill."
        )
        rows = [
            [f"`isoloss {what}`", f"{wall:.2f}", f"{cpu:.2f}"]
            for what, wall, cpu in read_times(root / "many.db", args.stored, "many")
        ]
        lines += ["", table([f"command, {args.stored:,} runs stored", "wall s", "CPU s"], rows)]
    text = "\n".join(lines)
    print(text)
    if args.out:
        put(args.out, "study overhead", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
