"""The noise scale grows as the loss falls: small language models measured while they train.

    python -m benchmarks.noise [--quick] [--out docs/measure-inverse.md] [--picture docs/images/noise_scale.png]

Byte-level GPTs of the reference trainer (`isoloss.trainers.gpt`), two widths and two seeds, four micro-batches a
step. `isoloss.measure.noise.Meter` is attached from outside; the trainer is as it is. Over each doubling of the steps
the table has the mean training loss and the noise scale, in tokens, with its interval. The rank correlation is over all
windows of all runs, its interval from drawing whole runs anew. Also measured: what the meter costs, in turns with and
without it, and McCandlish et al.'s claim against the loss alone: the same loss in models of other widths.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS, SEEDS = (32, 96), (0, 1)
EDGES = (25, 50, 100, 200, 400, 800)
MICRO, MICROS = 512, 4


@dataclass(frozen=True)
class Window:
    """A stretch of a run."""

    width: int
    seed: int
    until: int
    loss: float
    value: float
    low: float
    high: float


def train(width: int, seed: int, edges: tuple[int, ...]) -> list[Window]:
    """One run, a window after each edge but the first."""
    from isoloss.errors import NoAnswer
    from isoloss.measure.noise import Meter
    from isoloss.trainers import gpt

    found = []
    with tempfile.TemporaryDirectory() as folder:
        run = _run(gpt, width, seed, edges[-1], folder)
        with Meter(run.parameters, window=edges[-1]) as meter:
            for start, stop in itertools.pairwise((0, *edges)):
                before = run.meters["loss"]
                for _ in range(stop - start):
                    run.train_step(edges[-1])
                    meter.step([MICRO] * MICROS)
                loss = (run.meters["loss"] - before) / (stop - start)
                try:
                    scale = meter.noise().scale
                    ends = (scale.value, scale.low, scale.high)
                except NoAnswer:
                    ends = (np.nan, np.nan, np.nan)
                if start:
                    found.append(Window(width, seed, stop, loss, *ends))
                meter.clear()
    return found


def _run(gpt: Any, width: int, seed: int, steps: int, folder: str) -> Any:
    config = {
        "width": width, "seed": seed, "tokens": steps * MICRO * MICROS, "batch_tokens": MICRO * MICROS,
        "micro_tokens": MICRO, "noise_every": 0, "schedule": "constant", "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    return gpt.Run(gpt.Settings.read(config), Path(folder))


def overhead(rounds: int) -> tuple[float, float, float]:
    """CPU time of steps with the meter over that without, in turns: median and quartiles of the ratios."""
    from isoloss.measure.noise import Meter
    from isoloss.trainers import gpt

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        run = _run(gpt, WIDTHS[-1], 0, 10**6, folder)

        def steps(meter: Meter | None) -> float:
            began = time.process_time()
            for _ in range(4):
                run.train_step(10**6)
                if meter is not None:
                    meter.step([MICRO] * MICROS)
            return time.process_time() - began

        steps(None)
        for _ in range(rounds):
            plain = steps(None)
            with Meter(run.parameters) as meter:
                ratios.append(steps(meter) / plain)
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def grown(windows: list[Window]) -> list[tuple[float, float]]:
    """Of every run, how much larger the noise scale of its last resolved window is than its first: the least and the
    most that the two intervals leave."""
    found = []
    for _, group in itertools.groupby(windows, key=lambda w: (w.width, w.seed)):
        own = [w for w in group if np.isfinite(w.high)]
        found.append((own[-1].low / own[0].high, own[-1].high / own[0].low))
    return found


def ranks(values: Any) -> Any:
    return np.argsort(np.argsort(values)).astype(float)


def correlation(windows: list[Window]) -> float:
    """Spearman's, of loss and noise scale."""
    return float(np.corrcoef(ranks([w.loss for w in windows]), ranks([w.value for w in windows]))[0, 1])


def correlated(windows: list[Window], draws: int = 4000) -> tuple[float, float, float]:
    """Rank correlation and its 90 % interval, whole runs drawn anew."""
    runs = [list(group) for _, group in itertools.groupby(windows, key=lambda w: (w.width, w.seed))]
    rng = np.random.default_rng(0)
    drawn = [
        correlation([w for i in rng.integers(len(runs), size=len(runs)) for w in runs[i]])
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [0.05, 0.95])
    return correlation(windows), float(low), float(high)


def draw(windows: list[Window], path: Path) -> None:
    """Loss against noise scale, a colour for each width."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, width in enumerate(sorted({w.width for w in windows})):
        own = [w for w in windows if w.width == width]
        x, y = [w.loss for w in own], np.array([w.value for w in own])
        top = np.array([w.high if np.isfinite(w.high) else w.value for w in own])
        axes.errorbar(
            x,
            y,
            yerr=[y - [w.low for w in own], top - y],
            fmt="o",
            ms=4,
            lw=0.8,
            color=f"C{i}",
            label=f"width {width}",
        )
    axes.set(yscale="log", xlabel="training loss (nats per byte)", ylabel="noise scale (tokens)")
    axes.invert_xaxis()
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def measure(quick: bool, picture: Path | None) -> str:
    """The table, the correlation, the cost."""
    import torch

    from benchmarks import page
    from isoloss.measure.latency import load

    torch.set_num_threads(1)
    before = load()
    edges, seeds = (EDGES[:4], SEEDS[:1]) if quick else (EDGES, SEEDS)
    windows = [w for width in WIDTHS for seed in seeds for w in train(width, seed, edges)]
    hidden = [w for w in windows if np.isnan(w.value)]
    windows = [w for w in windows if not np.isnan(w.value)]
    rows = []
    for width in WIDTHS:
        for until in edges[1:]:
            own = [w for w in windows if (w.width, w.until) == (width, until)]
            if own:
                rows.append([
                    str(width), f"{until // 2} to {until}", f"{np.mean([w.loss for w in own]):.3f}",
                    ", ".join(f"{w.value:.0f} ({w.low:.0f} to {w.high:.0f})" for w in own),
                ])  # fmt: skip
    if picture:
        draw(windows, picture)
    value, low, high = correlated(windows)
    cost, cheap, dear = overhead(3 if quick else 15)
    growth = ", ".join(f"{least:.1f} to {most:.1f}" for least, most in grown(windows))
    each = [correlated([w for w in windows if w.width == width]) for width in WIDTHS]
    text = [
        page.table(
            ["width", "steps", "loss", "noise scale in tokens, each seed (90 % interval)"], rows, (0, 2)
        ),
        f"Rank correlation of loss and noise scale over {len(windows)} windows: {value:.2f} (90 % interval {low:.2f} to "
        f"{high:.2f}); within one width {', '.join(f'{e[0]:.2f}' for e in each)}. Windows where noise hid the gradient: "
        f"{len(hidden)}. From the first to the last resolved window of each run it grows by a factor of {growth} (ends of "
        f"both intervals). A step with the meter takes {cost:.3f} of the CPU time of one without (quartiles {cheap:.3f} to "
        f"{dear:.3f}, width {WIDTHS[-1]}).",
        f"{page.machine()} Load on {os.cpu_count()} cores {before:.1f} before, {load():.1f} after.",
    ]
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one seed, short runs")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    text = measure(args.quick, args.picture)
    print(text)
    if args.out:
        from benchmarks import page

        page.put(args.out, "noise", text)


if __name__ == "__main__":
    main()
