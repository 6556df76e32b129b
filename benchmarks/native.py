"""What native code is worth to whole solvers: CPU time of one thread, with it and with ISOLOSS_NATIVE=off.

    python -m benchmarks.native [--shapes 576x576 1536x576] [--out docs/native.md]

Weights and inputs are random, inputs correlated. Both are measured in processes of their own, one after the other for
each case, and the least of a few runs counts: what else the machine does mostly adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.page import machine, put, table
from isoloss.compress import formats, solvers
from isoloss.compress.statistics import Statistics

CASES = (
    ("gptq", "int4/g128/asym"),
    ("gptq(rounds=2)", "int4/g128/asym"),
    ("adaround(steps=20)", "int4/g128/asym"),
    ("lut-feedback", "table3"),
    ("kmeans", "table3"),
)
ROUNDS = 2  # of both processes in turn


def seconds(solver: str, format: str, rows: int, columns: int) -> float:
    """CPU seconds of one solve, after a small one that loads what is used."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    x = torch.randn(2 * columns, columns, generator=generator) @ (mix + torch.eye(columns))
    weight = torch.randn(rows, columns, generator=generator)
    found, kind = solvers.get(solver), formats.get(format)
    facts = Statistics("layer", len(x), (x.T @ x / len(x))[None])
    small = Statistics("layer", 9, torch.eye(128)[None])
    found.solve(weight[:8, :128], kind, small)
    began = time.process_time()
    found.solve(weight, kind, facts)
    return time.process_time() - began


def child(words: list[str], native: bool) -> float:
    """The same in a process of its own."""
    setting = {} if native else {"ISOLOSS_NATIVE": "off"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.native", "--child", *words],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **setting},
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print, and write the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["576x576", "1536x576"])
    parser.add_argument("--cases", nargs="+", type=int, default=list(range(len(CASES))), help="by number")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=4)
    given = parser.parse_args()
    if given.child:
        solver, format, rows, columns = given.child
        print(json.dumps(seconds(solver, format, int(rows), int(columns))))
        return
    lines = []
    for shape in given.shapes:
        rows, columns = shape.split("x")
        for solver, format in (CASES[i] for i in given.cases):
            words = [solver, format, rows, columns]
            tries = [(child(words, True), child(words, False)) for _ in range(ROUNDS)]
            own, without = (min(pair[i] for pair in tries) for i in (0, 1))
            lines.append([f"`{solver}`", f"`{format}`", f"{rows} × {columns}", f"{own:.2f}", f"{without:.2f}", f"{without / own:.1f}"])  # fmt: skip
            print(*lines[-1], flush=True)
    head = ["solver", "format", "weight", "native [CPU s]", "without [CPU s]", "ratio"]
    text = f"{table(head, lines, (3, 4, 5))}\n\n{machine()} torch {torch.__version__}."
    if given.out:
        put(given.out, "native", text)


if __name__ == "__main__":
    main()
