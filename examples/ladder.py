"""Takes the grid below, gives the tables in `examples/`: one row for each finished run.

    python -m examples.ladder --out examples             # everything, 17 minutes of one core
    python -m examples.ladder --out examples --resume    # only the runs the tables do not have yet

Four tables with the same columns:

`stdlib_lr_sweep.csv`   learning rates at a few sizes and lengths: what `peak_rate` is read off
`stdlib_ladder.csv`     what a law is fitted to: sizes crossed with lengths, never one fixed ratio
                        of tokens to parameters, some points three times over
`stdlib_held_back.csv`  the rung nobody fits: 4.8 times the compute of the dearest fitted run
`stdlib_outside.csv`    runs too small or too short for L = E + A/N^alpha + B/D^beta to hold: with
                        them its residuals are three times those without. Measured, not fitted

`params` is every parameter and `flops` is 6 * params * tokens (`examples.trainer` says why the two
belong together and what they leave out); `tokens` is bytes seen, none of them twice; `loss` is the
validation loss after the last step, nats per byte; `seconds` is CPU time, evaluation included.
"""

from __future__ import annotations

import argparse
import csv
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from examples.trainer import Config, Row, train

Finished = Callable[[int, int, Row], None]
"""Called as finished(runs done, runs in all, row of the run)."""

LAYERS = 2  # at every width: depth is not an axis here
BATCH = 512  # bytes per step
LENGTHS = tuple(round(200 * 10 ** (i / 6)) * BATCH for i in range(9))  # 102k ... 2.2M bytes


# ----------------------------------------------------------------------------------------- grid


def peak_rate(width: int, tokens: int) -> float:
    """Peak learning rate, 0.015 (48 / width)^0.6 (475k / tokens)^0.25.

    Least squares through the five optima of `stdlib_lr_sweep.csv`, each the vertex of a parabola in
    log rate through the best rate and its neighbours. By those parabolas the rule costs at most
    0.016 nats at any of them, where two seeds differ by 0.01. Past width 96 it is extrapolated.
    """
    return 0.015 * math.pow(48 / width, 0.6) * math.pow(475e3 / tokens, 0.25)


def config(width: int, tokens: int, seed: int = 0) -> Config:
    return Config(width, LAYERS, tokens, lr=float(f"{peak_rate(width, tokens):.3g}"), seed=seed)


def lr_sweep() -> list[Config]:
    """Five rates, a factor of two apart, at three widths, and at two more lengths of one width."""
    points = ((16, 4), (48, 4), (96, 4), (32, 0), (32, 6))
    rates = (0.004, 0.008, 0.016, 0.032, 0.064)
    return [Config(w, LAYERS, LENGTHS[i], lr) for w, i in points for lr in rates]


def grid(reach: dict[int, int], again: Iterable[tuple[int, int]] = ()) -> list[Config]:
    """Each width at LENGTHS[2] to LENGTHS[reach], and points `again` with two more seeds."""
    runs = [config(w, d) for w, last in reach.items() for d in LENGTHS[2 : last + 1]]
    runs += [config(w, LENGTHS[i], seed) for w, i in again for seed in (1, 2)]
    return sorted(runs, key=lambda c: c.flops)


def ladder() -> list[Config]:
    """Five widths crossed with up to seven lengths, under one cap on compute, cheapest first."""
    reach = {32: 8, 48: 7, 64: 6, 80: 5, 96: 4}
    return grid(reach, again=((32, 6), (48, 2), (64, 4), (96, 2)))


def outside() -> list[Config]:
    """Where the law above stops holding: a width of one attention head, and runs of 200 steps."""
    runs = [config(16, LENGTHS[i]) for i in (0, 2, 4, 6, 8)]
    runs += [config(16, LENGTHS[4], seed) for seed in (1, 2)]
    return runs + [config(w, LENGTHS[0]) for w in (32, 48, 64, 80, 96)]


def held_back() -> list[Config]:
    """4.8 times the dearest fitted compute: at the largest fitted width, and at a larger one."""
    longer, wider = 4700 * BATCH, 2700 * BATCH
    return [config(96, longer), config(96, longer, seed=1), config(128, wider)]


def short_ladder() -> tuple[list[Config], Config]:
    """A ladder of about two minutes on two cores, and its held-back rung of four times the compute.

    For a machine whose Python, and so whose text, is not that of the tables. On the tables' text these
    20 runs are about the least that determine the law: half as many leave the floor open.
    """
    return grid({32: 7, 48: 6, 64: 5, 80: 4, 96: 3}), config(80, 3720 * BATCH)


TABLES = {
    "stdlib_lr_sweep.csv": lr_sweep,
    "stdlib_ladder.csv": ladder,
    "stdlib_held_back.csv": held_back,
    "stdlib_outside.csv": outside,
}


# ---------------------------------------------------------------------------------------- tables


def run_id(config: Config) -> str:
    """Names a run by everything that is varied in these tables."""
    return f"w{config.width}-{config.tokens // 1000}k-lr{config.lr:g}-s{config.seed}"


def train_one(config: Config) -> Row:
    return {"run": run_id(config)} | train(config)


def read_table(path: Path) -> list[Row]:
    """The rows of a table, numbers still as text; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file)]


def write_table(path: Path, rows: list[Row]) -> None:
    """Writes beside the file and moves into place, so that a reader never sees half a table."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def fill(path: Path, configs: list[Config], finished: Finished | None = None) -> list[Row]:
    """Trains, in this process, the configs the table lacks; the table is rewritten after each.

    Rows are in the order of `configs`; rows of runs that are not among them stay, at the end.
    """
    order = {run_id(c): i for i, c in enumerate(configs)}
    rows = read_table(path)
    have = {row["run"] for row in rows}
    todo = [c for c in configs if run_id(c) not in have]
    for done, c in enumerate(todo, start=1):
        row = train_one(c)
        rows.append(row)
        rows.sort(key=lambda r: order.get(str(r["run"]), len(order)))
        write_table(path, rows)
        if finished is not None:
            finished(done, len(todo), row)
    return rows


def train_all(configs: Iterable[Config], workers: int = 2, finished: Finished | None = None) -> list[Row]:
    """Trains configs over worker processes of one thread each; rows in the order of `configs`.

    The dearest go first, so that no worker is left alone with a long run at the end.
    """
    configs = list(configs)
    rows: dict[int, Row] = {}
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),  # a forked torch can deadlock
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        dearest_first = sorted(range(len(configs)), key=lambda i: -configs[i].flops)
        index = {pool.submit(train_one, configs[i]): i for i in dearest_first}
        for future in as_completed(index):
            rows[index[future]] = row = future.result()
            if finished is not None:
                finished(len(rows), len(configs), row)
    return [rows[i] for i in range(len(configs))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.ladder", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--only", choices=TABLES, action="append", help="one table; may be repeated")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.only or list(TABLES)
    for path in (args.out / name for name in names):
        if path.exists() and not args.resume:
            parser.error(f"{path} exists: --resume adds the runs it lacks; or remove it first")
    for name in names:

        def say(done: int, total: int, row: Row, name: str = name) -> None:
            line = f"{name} {done}/{total} {row['run']}: {row['loss']:.4f}, {row['seconds']:.1f} s"
            print(line, file=sys.stderr, flush=True)

        fill(args.out / name, TABLES[name](), say)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
