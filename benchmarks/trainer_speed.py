"""How much of the machine's matrix rate the reference trainer keeps busy, and whether its losses are right.

    python -m benchmarks.trainer_speed [--quick] [--out docs/benchmarks.md]

Three measurements. *Rate*: model FLOPs (forward and backward, causal half of the attention) over CPU seconds of
one thread, divided by the rate of a 2048 x 2048 float32 product taken in turn with it in the same process; 1 is
what a float32 machine could reach at most. *Side by side*: two processes of one thread each against one.
*Losses*: the same set-up, text and seeds as `examples/trainer.py`, which was written before and by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import page

ROOT = Path(__file__).parents[1]
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SHAPES: tuple[dict[str, Any], ...] = (
    {"width": 64},
    {"width": 128},
    {"width": 192},
    {"width": 192, "batch_tokens": 8192},
    {"width": 192, "batch_tokens": 8192, "head_size": 64},
    {"width": 192, "optimizer": "muon", "batch_tokens": 8192},
    {"width": 256},
)
ROUNDS, QUICK_ROUNDS = 15, 3
SIDE = 2048
# What examples/trainer.py does, in this one's words; its text is passed on as it is.
SAME = {
    **{"layers": 2, "batch_tokens": 512, "seq_len": 64, "tied": True, "schedule": "linear", "head_size": 16},
    **{"qk_norm": False, "dtype": "float32", "eval_bytes": 131072, "noise_every": 0},
}
SEEDS = (0, 1, 2)


def product_rate() -> float:
    """FLOPs a CPU second of one float32 product."""
    import torch

    a, b = torch.randn(2, SIDE, SIDE)
    began = time.process_time()
    a @ b
    return 2 * SIDE**3 / (time.process_time() - began)


def measure_rates(rounds: int) -> list[dict[str, Any]]:
    """Every shape in both types, in turn with the product: (shape, dtype, params, rate, product's rate)."""
    from isoloss.trainers import gpt
    from isoloss.trainers.gpt_settings import flops_per_token

    product_rate()
    found = []
    for shape in SHAPES:
        for dtype in ("float32", "bfloat16"):
            config = {"tokens": 10**8, "dtype": dtype, **shape}
            settings = gpt.Settings.read(config)
            steps = max(2, 8192 // settings.batch_tokens)
            with tempfile.TemporaryDirectory() as folder:
                run = gpt.Run(settings, Path(folder))
                rates, products = [], []
                for turn in range(rounds + 2):
                    began = time.process_time()
                    for _ in range(steps):
                        run.train_step(10**6)
                    seconds = time.process_time() - began
                    if turn >= 2:
                        rates.append(flops_per_token(settings) * settings.batch_tokens * steps / seconds)
                        products.append(product_rate())
            found.append(
                {
                    "config": config,
                    "params": gpt.axes(config)["params"],
                    "rate": statistics.median(rates),
                    "product": statistics.median(products),
                    "seconds": 1e6 * flops_per_token(settings) / statistics.median(rates),
                }
            )
    return found


def measure_side_by_side() -> float:
    """Wall-clock throughput of two processes over that of one."""

    def seconds(count: int) -> float:
        command = [sys.executable, "-m", "benchmarks.trainer_speed", "--worker"]
        environment = {**os.environ, **THREADS}
        workers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
            for _ in range(count)
        ]
        return statistics.mean(float(worker.communicate()[0]) for worker in workers)

    return 2 * seconds(1) / seconds(2)


def worker() -> None:
    """Wall seconds of a fixed piece of training, after the set-up."""
    from isoloss.trainers import gpt

    with tempfile.TemporaryDirectory() as folder:
        run = gpt.Run(gpt.Settings.read({"width": 192, "tokens": 10**8}), Path(folder))
        for _ in range(20):
            run.train_step(10**6)
        began = time.perf_counter()
        for _ in range(200):
            run.train_step(10**6)
        print(time.perf_counter() - began)


def measure_losses(width: int, tokens: int, lr: float) -> list[tuple[float, float]]:
    """(the baseline's loss, ours) for each seed, on the same text."""
    from examples.trainer import Config, corpus, train  # the only place that knows where it lives
    from isoloss.trainers import gpt
    from isoloss.trainers.text import Text

    theirs = corpus()
    text = Text(
        np.frombuffer(theirs.train, dtype=np.uint8),
        np.frombuffer(theirs.validation, dtype=np.uint8),
        theirs.sha256,
    )
    pairs = []
    for seed in SEEDS:
        row = train(Config(width=width, layers=SAME["layers"], tokens=tokens, lr=lr, seed=seed))
        warmup = round(0.05 * (tokens // SAME["batch_tokens"]))
        config = {**SAME, "width": width, "tokens": tokens, "lr": lr, "seed": seed, "warmup": warmup}
        with tempfile.TemporaryDirectory() as folder:
            run = gpt.Run(gpt.Settings.read(config), Path(folder), text)
            *_, (_, last) = run.measurements()
        pairs.append((float(row["loss"]), float(last["loss"])))
    return pairs


def text_of(rates: list[dict[str, Any]], scaling: float, pairs: list[tuple[float, float]], setup: str) -> str:
    """The page's text."""
    rows = []
    for one in rates:
        config = {name: value for name, value in one["config"].items() if name not in ("tokens", "dtype")}
        rows.append(
            [
                ", ".join(f"{name} {value}" for name, value in config.items()),
                f"{one['params']:,}",
                one["config"]["dtype"],
                f"{one['rate'] / 1e9:.0f}",
                f"{one['product'] / 1e9:.0f}",
                f"{one['rate'] / one['product']:.2f}",
                f"{one['seconds']:.1f}",
            ]
        )
    head = [
        "settings",
        "parameters",
        "products in",
        "GFLOP/s",
        "2048² float32",
        "ratio",
        "CPU s per 1M bytes",
    ]
    baseline, ours = (np.array(values) for values in zip(*pairs, strict=True))
    losses = page.table(
        ["trainer", *(f"seed {seed}" for seed in SEEDS), "mean", "s.d."],
        [
            [name, *(f"{loss:.4f}" for loss in values), f"{values.mean():.4f}", f"{values.std(ddof=1):.4f}"]
            for name, values in (("examples/trainer.py", baseline), ("isoloss.trainers.gpt", ours))
        ],
        range(1, 6),
    )
    noise = float(np.sqrt((baseline.var(ddof=1) + ours.var(ddof=1)) / len(SEEDS)))
    return "\n\n".join(
        [
            f"Two layers, windows of 64 bytes, one thread. {page.machine()}",
            page.table(head, rows, range(3, 7)),
            f"Two runs side by side, one thread each: {scaling:.2f} times the throughput of one.",
            f"Losses of equal set-ups ({setup}); difference of the means "
            f"{ours.mean() - baseline.mean():+.4f}, its standard error {noise:.4f}:",
            losses,
        ]
    )


def main() -> None:
    """Measure and print, or write the page's block."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shorter runs")
    parser.add_argument("--out", type=Path, help="page to write between its trainer_speed markers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker()
        return
    if any(os.environ.get(name) != value for name, value in THREADS.items()):
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.trainer_speed", *sys.argv[1:]],
            {**os.environ, **THREADS},
        )
    width, tokens, lr = 64, 100_000 if given.quick else 600_000, 0.01
    pairs = measure_losses(width, tokens, lr)
    rates = measure_rates(QUICK_ROUNDS if given.quick else ROUNDS)
    setup = (
        f"width {width}, {tokens:,} bytes, rate {lr}, " + json.dumps(SAME["schedule"]) + " schedule, float32"
    )
    text = text_of(rates, measure_side_by_side(), pairs, setup)
    if given.out:
        page.put(given.out, "trainer_speed", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
