"""Best learning rate and batch of a pair of size and tokens, predicted from the grids of other pairs.

``python -m benchmarks.learning_rate [--out docs/learning-rate.md]``: about a minute of CPU
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks.page import put, table
from benchmarks.tables import LAWS
from isoloss.fitting.result import Fit
from isoloss.observing import Optima, grid_optima

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[float, float]

GRIDS = LAWS.parent / "hpo" / "steplaw" / "dense.csv"
SEQUENCE = 2048
AXES = ("params_nonembedding", "tokens")
DRAWS = 10_000  # of the bootstrap over pairs


@dataclass(frozen=True, eq=False)
class Grid:
    """One pair of size and tokens: rates, batches in tokens, smoothed losses of its runs."""

    pair: Pair
    lr: Array
    batch: Array
    loss: Array

    @property
    def best(self) -> int:
        """The cell of the least loss."""
        return int(np.argmin(self.loss))


Method = Callable[[Sequence[Grid], Pair], tuple[float, float]]


def grids() -> list[Grid]:
    """The grids of Li et al., by FLOPs.

    Raises:
        FileNotFoundError: the table is absent.
    """
    if not GRIDS.is_file():
        raise FileNotFoundError(f"needed the public table {GRIDS}, got nothing there. Put it there")
    found: dict[Pair, list[tuple[float, float, float]]] = {}
    with GRIDS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pair = float(row["params"]), float(row["tokens"])
            cell = float(row["lr"]), SEQUENCE * float(row["batch_sequences"]), float(row["smooth_loss"])
            found.setdefault(pair, []).append(cell)
    return [
        Grid(pair, *(np.array(column) for column in zip(*cells, strict=True)))
        for pair, cells in sorted(found.items(), key=lambda entry: entry[0][0] * entry[0][1])
    ]


def optima(train: Sequence[Grid]) -> Optima:
    """The best setting of each grid, by one surface for all."""
    lengths = [len(grid.lr) for grid in train]
    by = {name: np.repeat([grid.pair[i] for grid in train], lengths) for i, name in enumerate(AXES)}
    lr, loss, batch = (
        np.concatenate([getattr(grid, name) for grid in train]) for name in ("lr", "loss", "batch")
    )
    return grid_optima(lr, loss, batch, by)


def cells(train: Sequence[Grid]) -> dict[str, list[float]]:
    """The cell of the least loss of each grid: what a regression usually reads."""
    return {
        **{name: [grid.pair[i] for grid in train] for i, name in enumerate(AXES)},
        "lr": [float(grid.lr[grid.best]) for grid in train],
        "batch_tokens": [float(grid.batch[grid.best]) for grid in train],
    }


def at(fit: Fit, pair: Pair) -> float:
    """The law of a fit at a pair."""
    return float(
        fit.law.evaluate(fit.theta, **{a: v for a, v in zip(AXES, pair, strict=True) if a in fit.law.axes})
    )


def regressed(
    batch: str, best: Callable[[Sequence[Grid]], Mapping[str, Any]], draws: int = 0
) -> Callable[..., Any]:
    """Power laws of rate and batch through the best settings that ``best`` finds."""

    def fits(train: Sequence[Grid]) -> tuple[Fit, Fit]:
        rows = best(train)
        lr, size = (isoloss.fit(law, rows, draws=draws, sensitivity=False) for law in ("step-law", batch))
        return lr, size

    return fits


def by_fits(fits: Callable[[Sequence[Grid]], tuple[Fit, Fit]]) -> Method:
    """What the fits say of a pair."""
    return lambda train, pair: tuple(at(fit, pair) for fit in fits(train))  # type: ignore[return-value]


def copied(train: Sequence[Grid], pair: Pair) -> tuple[float, float]:
    """The best cell of the smallest grid there is."""
    first = train[0]
    return float(first.lr[first.best]), float(first.batch[first.best])


def printed(train: Sequence[Grid], pair: Pair) -> tuple[float, float]:
    """The published law; it was fitted to these grids among others."""
    laws = [isoloss.laws.get(name) for name in ("step-law", "step-law-batch")]
    point = dict(zip(AXES, pair, strict=True))
    lr, batch = (float(law.evaluate(law.theta("li-2025"), **{a: point[a] for a in law.axes})) for law in laws)
    return lr, batch


def surface(train: Sequence[Grid]) -> dict[str, list[float]]:
    """Optima of the shared surface as a table."""
    return optima(train).table()


METHODS: dict[str, Method] = {
    "copy the smallest": copied,
    "power law, best cells": by_fits(regressed("step-law-batch", cells)),
    "the same, batch of N too": by_fits(regressed("step-law-batch-nd", cells)),
    "optima of the surface": by_fits(regressed("step-law-batch", surface)),
    "optima, batch of N too": by_fits(regressed("step-law-batch-nd", surface)),
}
OURS, PLAIN = "optima, batch of N too", "power law, best cells"


def nearest(grid: Grid, lr: float, batch: float) -> float:
    """Excess over the grid's least loss, in per cent, at the cell nearest in logs."""
    gap = np.hypot(np.log(grid.lr / lr), np.log(grid.batch / batch))
    return 100 * float(grid.loss[np.argmin(gap)] / grid.loss.min() - 1)


def between(grid: Grid, lr: float, batch: float) -> float:
    """The same, interpolated bilinearly in logs between the four cells around; absent cells are left out."""
    total = weight = 0.0
    ends = [_around(np.unique(axis), value) for axis, value in ((grid.lr, lr), (grid.batch, batch))]
    for rate, one in ends[0]:
        for size, other in ends[1]:
            here = (grid.lr == rate) & (grid.batch == size)
            if here.any():
                total += one * other * float(grid.loss[here].mean())
                weight += one * other
    return 100 * (total / weight / float(grid.loss.min()) - 1) if weight > 0 else np.nan


def _around(levels: Array, value: float) -> list[tuple[float, float]]:
    """The two levels around a value and their weights; the edge alone beyond it."""
    value = float(np.clip(value, levels[0], levels[-1]))
    above = int(np.clip(np.searchsorted(levels, value), 1, len(levels) - 1))
    low, high = levels[above - 1], levels[above]
    share = float(np.log(value / low) / np.log(high / low))
    return [(float(low), 1 - share), (float(high), share)]


def held_out(every: Sequence[Grid], held: Sequence[Grid], method: Method) -> Array:
    """(len(held), 2): excess at the nearest cell and between cells, the held grids unseen."""
    train = [grid for grid in every if grid not in held]
    return np.array(
        [[score(grid, *method(train, grid.pair)) for score in (nearest, between)] for grid in held]
    )


def left_out(every: Sequence[Grid], method: Method) -> Array:
    """The same, each grid left out alone."""
    return np.concatenate([held_out(every, [grid], method) for grid in every])


def difference(a: Array, b: Array) -> tuple[float, float, float]:
    """Mean of a - b over pairs, and its 90 % interval by resamples of the pairs."""
    gap = a - b
    picks = np.random.default_rng(0).integers(0, len(gap), (DRAWS, len(gap)))
    low, high = np.quantile(gap[picks].mean(axis=1), [0.05, 0.95])
    return float(gap.mean()), float(low), float(high)


def inside(every: Sequence[Grid]) -> tuple[int, int]:
    """How often the 90 % interval of a new optimum holds what the left-out grid shows alone, of rate and batch."""
    fits = regressed("step-law-batch-nd", surface, draws=1000)
    counts = [0, 0]
    whole = optima(every).grids
    for grid in every:
        pair = fits([other for other in every if other is not grid])
        mine = next(g for g in whole if tuple(g.at.values()) == grid.pair)
        for i, (fit, seen) in enumerate(zip(pair, (mine.lr, mine.batch), strict=True)):
            told = fit.predict(of="run", **dict(zip(AXES, grid.pair, strict=True)))
            counts[i] += bool(told.low[0] <= seen.value <= told.high[0])  # type: ignore[union-attr]
    return counts[0], counts[1]


def fixed_batch(every: Sequence[Grid]) -> list[list[str]]:
    """Exponents of size and tokens in the best rate, at each batch alone and at the best batch."""
    out = []
    for batch in np.unique(np.concatenate([grid.batch for grid in every])):
        lines = [g for g in every if np.sum((g.batch == batch) & np.isfinite(g.loss)) >= 5]
        if len(lines) < 10:
            continue
        keep = [g.batch == batch for g in lines]
        rows = grid_optima(
            np.concatenate([g.lr[k] for g, k in zip(lines, keep, strict=True)]),
            np.concatenate([g.loss[k] for g, k in zip(lines, keep, strict=True)]),
            by={
                name: np.concatenate([np.full(k.sum(), g.pair[i]) for g, k in zip(lines, keep, strict=True)])
                for i, name in enumerate(AXES)
            },
            least=5,
        ).table()  # fmt: skip
        out.append([f"{batch / SEQUENCE:.0f} sequences", *exponents(rows)])
    return [*out, ["the best one", *exponents(surface(every))]]


def exponents(rows: Mapping[str, Any]) -> list[str]:
    """Of a step-law through the rows."""
    fit = isoloss.fit("step-law", rows, draws=1000, sensitivity=False)
    cells = [fit.parameters[name] for name in ("a", "b")]
    return [f"{e.value:+.2f} ({e.low:+.2f} to {e.high:+.2f})" for e in cells]


def sections(every: list[Grid]) -> list[str]:
    """The tables of the page."""
    scores = {name: left_out(every, method) for name, method in METHODS.items()}
    pairs = [
        [
            f"{g.pair[0] / 1e6:.0f}M",
            f"{g.pair[1] / 1e9:.3g}B",
            *(f"{scores[name][i, 0]:.3f}" for name in METHODS),
        ]
        for i, g in enumerate(every)
    ]
    means = [["mean", "", *(f"**{scores[name][:, 0].mean():.3f}**" for name in METHODS)]]
    means.append(["mean, interpolated", "", *(f"{scores[name][:, 1].mean():.3f}" for name in METHODS)])
    public = np.array([[score(g, *printed(every, g.pair)) for score in (nearest, between)] for g in every])
    own, plain, copy = (scores[name] for name in (OURS, PLAIN, "copy the smallest"))
    lines = []
    for label, other in (("copy the smallest", copy), ("power law, best cells", plain)):
        for i, how in enumerate(("nearest cell", "interpolated")):
            mean, low, high = difference(own[:, i], other[:, i])
            lines.append([f"less than {label}, {how}", f"{-mean:.3f}", f"{-high:.3f} to {-low:.3f}"])
    by_size = sorted(every, key=lambda g: g.pair)
    cuts = {
        "3 of the most FLOPs (and tokens)": every[-3:], "5 of the most FLOPs (and tokens)": every[-5:],
        "2 of the largest size": by_size[-2:], "6 of the two largest sizes": by_size[-6:],
    }  # fmt: skip
    ahead = []
    for label, held in cuts.items():
        found = [held_out(every, held, method).mean(axis=0) for method in METHODS.values()]
        ahead.append([label, *(f"{near:.3f} / {mid:.3f}" for near, mid in found)])
    rate, batch = inside(every)
    return [
        f"{len(every)} pairs, {sum(len(g.lr) for g in every)} runs. Excess over the least loss of the left-out grid, in %, at "
        "the cell nearest to what was predicted:",
        table(["size", "tokens", *METHODS], [*pairs, *means], right=range(1, 2 + len(METHODS))),
        f"The published law, which was fitted to these grids and more: {public[:, 0].mean():.3f} at the nearest cell, "
        f"{public[:, 1].mean():.3f} interpolated. 90 % intervals of a new optimum, from the other 13 pairs, hold the best "
        f"rate of the left-out grid {rate} times of {len(every)}, the best batch {batch} times.",
        table(
            [f"mean excess of *{OURS}*", "percentage points", "90 % interval over pairs"], lines, right=(1,)
        ),
        "The largest pairs held back together; nearest cell / interpolated:",
        table(["held back", *METHODS], ahead, right=range(1, 1 + len(METHODS))),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables, or put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="the page whose marked parts are replaced")
    chosen = parser.parse_args(argv)
    try:
        every = grids()
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        return
    parts = {
        "left-out": "\n\n".join(sections(every)),
        "fixed-batch": table(
            ["batch", "exponent of size", "exponent of tokens"], fixed_batch(every), right=(1, 2)
        ),
    }
    for name, text in parts.items():
        if chosen.out:
            put(Path(chosen.out), name, text)
        else:
            print(text, end="\n\n")


if __name__ == "__main__":
    main()
