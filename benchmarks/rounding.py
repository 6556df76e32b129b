"""What learned rounding is worth: losses of blocks, what is learned, grids, at two to four bits; learned and judged anew.

    python -m benchmarks.rounding [--nets gpt,resnet20] [--steps 100] [--out docs/rounding.md]

A byte GPT trained here (`benchmarks.hawq.gpt`) and a ResNet-20 for CIFAR-10. Calibration, choice and report are three
sets of data: defaults are set by the first half of the test data, which is printed too; the page has the other half.
About five CPU minutes, on one thread.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import hawq, page
from benchmarks.networks import CIFAR, Absent, batches, pictures, resnet
from isoloss.compress import Choice, compress
from isoloss.compress.blockwise import LOSSES, Blockwise
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.subject import Batch, Subject

GRIDS = {"uniform": ("int{}/mse2", "gptq"), "table": ("table{}", "lut-feedback")}
LEARNED = {
    "roundings": {"values": 0.0},
    "values": {"rounding": False, "values": 0.003},
    "both": {},
}  # values are scales, or entries of tables
SURE = 1.645  # of a normal: 90 %


@dataclass(frozen=True, eq=False)
class Case:
    """A trained network and three sets of data."""

    net: str
    model: nn.Module
    calibration: Sequence[Batch]
    choice: Batch
    report: Batch
    grids: Sequence[str]
    bits: Sequence[int]


def gpt() -> Case:
    own = hawq.gpt(0)
    [(x, y)] = own.calibration.batches
    (a, b), (c, d) = own.test.batches
    return Case("gpt", own.calibration.model, batches(x, y, 4), (a, b), (c, d), list(GRIDS), (2, 3, 4))


def resnet20() -> Case:
    x, y = pictures("sets/cifar10-jpeg/train6000.npz", 0, 96, CIFAR)
    tests = [pictures("sets/cifar10-jpeg/test.npz", first, 200, CIFAR) for first in (0, 200)]
    return Case("resnet20", resnet(20), batches(x, y, 8), *tests, ["uniform"], (2, 3))


NETS: dict[str, Callable[[], Case]] = {"gpt": gpt, "resnet20": resnet20}


@dataclass(frozen=True)
class Row:
    """What a way of rounding came to: CPU seconds, and of each half KL with its standard error, and the rise of the loss."""

    net: str
    grid: str
    bits: int
    what: str
    learned: str
    seconds: float
    of: Mapping[str, tuple[float, float, float]]


@torch.no_grad()
def judged(model: nn.Module, original: nn.Module, batch: Batch) -> tuple[float, float, float]:
    """KL [nats] with its standard error over examples, and the rise of the loss."""
    x, y = batch
    p, q = original(x).log_softmax(-1), model(x).log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1).reshape(len(x), -1).mean(1)
    losses = [float(F.nll_loss(z.flatten(0, -2), y.flatten())) for z in (p, q)]
    return float(each.mean()), float(each.std() / len(each) ** 0.5), losses[1] - losses[0]


def ways(grid: str, steps: int) -> list[tuple[str, str, str, Blockwise | None]]:
    """(what, what is learned, solver, block) of every row."""
    start = GRIDS[grid][1]
    rows: list[tuple[str, str, str, Blockwise | None]] = [
        ("no learning", "", "nearest" if grid == "uniform" else "kmeans", None),
        ("no learning", "", start, None),
        ("layer", "roundings", "adaround", None),
    ]
    usual = Blockwise(loss="mse", steps=steps)
    for loss in LOSSES:
        for learned, settings in LEARNED.items():
            if loss == "mse" or learned == "both":
                how = replace(usual, loss=loss, **settings)  # type: ignore[arg-type]
                rows.append((f"block, {loss}", learned, start, how))
    return rows


def measured(case: Case, steps: int) -> list[Row]:
    out = []
    inputs = [x for x, _ in case.calibration]
    for grid in case.grids:
        for bits in case.bits:
            for what, learned, solver, how in ways(grid, steps):
                work, began = copy.deepcopy(case.model), time.process_time()
                subject = Subject(work, case.calibration, CrossEntropy())
                format = GRIDS[grid][0].format(bits)
                compress(work, Choice(format, solver), inputs, blockwise=how, subject=subject)
                seconds = time.process_time() - began
                of = {half: judged(work, case.model, getattr(case, half)) for half in ("choice", "report")}
                out.append(
                    Row(
                        case.net,
                        grid,
                        bits,
                        f"{what}, `{solver}`" if how is None else what,
                        learned,
                        seconds,
                        of,
                    )
                )
                print(case.net, grid, bits, what, learned, of, f"{seconds:.1f} s", flush=True)
    return out


def tables(rows: Sequence[Row], half: str) -> str:
    out = []
    for net in dict.fromkeys(row.net for row in rows):
        for grid in dict.fromkeys(row.grid for row in rows if row.net == net):
            own = [row for row in rows if (row.net, row.grid) == (net, grid)]
            bits = list(dict.fromkeys(row.bits for row in own))
            lines = []
            for what, learned in dict.fromkeys((row.what, row.learned) for row in own):
                found = [row for row in own if (row.what, row.learned) == (what, learned)]
                cells = [
                    f"{kl:.4f} ± {SURE * se:.4f}, {rise:+.4f}"
                    for kl, se, rise in (row.of[half] for row in found)
                ]
                lines.append([what, learned, *cells, f"{statistics.mean(row.seconds for row in found):.1f}"])
            head = ["loss", "learned", *(f"`{GRIDS[grid][0].format(b)}`" for b in bits), "CPU s"]
            out.append(f"{net}, {grid}:\n\n" + page.table(head, lines, tuple(range(2, len(head)))))
    return "\n\n".join(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables and put them into a page, each network's in its place."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for net in given.nets.split(","):
        began = time.process_time()
        try:
            rows = measured(NETS[net](), given.steps)
        except Absent as why:
            print(f"Not measured, {net}: {why}.")
            continue
        print(tables(rows, "choice"))
        text = tables(rows, "report")
        text += (
            f"\n\n{page.machine()} torch {torch.__version__}; {given.steps} steps a block; "
            f"{time.process_time() - began:.0f} CPU seconds in all, load of the machine {os.getloadavg()[0]:.1f}."
        )
        if given.out:
            page.put(given.out, f"rounding {net}", text)
        print(text)


if __name__ == "__main__":
    main()
