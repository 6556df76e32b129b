"""Hoffmann et al. 2022: three approaches to the optimal size, on the points that can be read off a figure."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import isoloss
from benchmarks import tables
from benchmarks.published.besiroglu import exponent, points, refit
from benchmarks.published.line import Array, Line, Section, arxiv, line

PAPER = "2203.15556"
BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)
NAMES = {"params": "params", "tokens": "tokens", "flops": "flops", "loss": "loss_nats"}
EIGHTY = [0.1, 0.9]
SIZES = {
    "1B": (1e9, "1.21e20", "20.2e9"),
    "10B": (1e10, "1.23e22", "205.1e9"),
    "67B": (67e9, "5.76e23", "1.5e12"),
    "175B": (175e9, "3.85e24", "3.7e12"),
}


def sections() -> list[Section]:
    """Exponents by each approach, and the table of optimal sizes."""
    about = (
        f"{arxiv(PAPER)}. `N_opt` grows as C^a, `D_opt` as C^b. The runs are not public: ours are from points read "
        "off figure 4. In brackets the 10th to 90th percentile of the bootstrap, as theirs."
    )
    sizes = (
        f"{arxiv(PAPER)}, table of optimal sizes by approach 1 (paper: FLOPs and tokens). Ours at the same size: by the "
        "refit of the 240 points (approach 3 done to its minimum, 80 % interval) and by our envelope."
    )
    return [
        Section("Hoffmann et al. 2022, three approaches", about, list(approaches())),
        Section("Hoffmann et al. 2022, optimal sizes", sizes, list(optimal_sizes())),
    ]


@functools.cache
def read_off() -> dict[str, Array]:
    """The 240 points with their FLOPs."""
    return tables.needed("chinchilla/points.csv", NAMES, {"outlier_excluded": "0"})


@functools.cache
def envelope() -> Any:
    """Approach 1 on final points."""
    return isoloss.envelope(read_off(), coverage=0.8, draws=200)


def approaches() -> Iterator[Line]:
    """Exponents of size and tokens, approaches 1 to 3."""
    first = "no training curve is public: envelope of the 240 final points"
    yield from pair("1: envelope", ("0.50 (0.488 to 0.502)", "0.50 (0.501 to 0.512)"), envelope(), first)
    second = ("0.49 (0.462 to 0.534)", "0.51 (0.483 to 0.529)")
    found = isoloss.isoflop(read_off(), budgets=BUDGETS, tolerance=0.2, coverage=0.8)
    used = sum(entry.runs for entry in found.optima)
    yield from pair(
        "2: IsoFLOP, 240 points", second, found,
        f"read off a figure, FLOPs within 20 % of {len(found.optima)} budgets: {used} points",
    )  # fmt: skip
    other = tables.needed("chinchilla/isoflops_scalefit_extraction.csv", {**NAMES, "flops": "flops_budget"})
    found = isoloss.isoflop(other, coverage=0.8)
    budgets = len(np.unique(other["flops"]))
    why = f"another reading of the figure: {len(found.optima)} of {budgets} budgets have the minimum inside"
    yield from pair("2: IsoFLOP, other extraction", second, found, why)
    draws = exponent(refit().draws)
    a = float(exponent(refit().theta))
    low, high = np.quantile(draws, EIGHTY)
    third = "theirs is not the minimum: the optimiser stopped early (Besiroglu et al. 2024)"
    source = f"{PAPER}, section 3.3"
    yield with_interval("3: fit, a", source, "0.46 (0.454 to 0.455)", a, third, (low, high))
    yield with_interval("3: fit, b", source, "0.54 (0.542 to 0.543)", 1 - a, third, (1 - high, 1 - low))


def pair(name: str, published: tuple[str, str], found: Any, why: str) -> Iterator[Line]:
    """Lines of a and b of one allocation."""
    section = {"1": "3.1", "2": "3.2"}[name[0]]
    for letter, text in zip("ab", published, strict=True):
        got = getattr(found, letter)
        source = f"{PAPER}, section {section}"
        yield with_interval(f"{name}, {letter}", source, text, got.value, why, (got.low, got.high))


def with_interval(
    what: str, source: str, published: str, ours: float, why: str, interval: tuple[float, float]
) -> Line:
    """A line whose published number carries an interval in brackets."""
    number = published.partition(" ")[0]
    holds = "holds" if interval[0] <= float(number) <= interval[1] else "does not hold"
    found = line(what, source, number, ours, f"{why}; our interval {holds} theirs", interval)
    return Line(found.what, source, published, found.ours, found.difference, found.why)


def optimal_sizes() -> Iterator[Line]:
    """FLOPs and tokens at which a size is optimal."""
    found, curve = refit(), envelope()
    inside = points()["params"].max()
    a = float(exponent(found.theta))
    for name, (size, flops, tokens) in SIZES.items():
        own = float(needed_flops(found.theta, size))
        low, high = np.quantile(needed_flops(found.draws, size), EIGHTY)
        holds = "holds" if low <= float(flops) <= high else "does not hold"
        where = "within the runs" if size <= inside else f"{size / inside:.2g} times the largest run"
        why = f"a {a:.3f} for their 0.50; {where}; our interval {holds} theirs"
        per = 6 * size
        yield line(f"{name}: FLOPs, refit", PAPER, flops, own, why, (low, high))
        yield line(f"{name}: tokens, refit", PAPER, tokens, own / per, why, (low / per, high / per))
        own = (size / curve.params_scale) ** (1 / curve.a.value)
        why = f"final points, not curves: a {curve.a.value:.3f} for their 0.50"
        yield line(f"{name}: FLOPs, envelope", PAPER, flops, own, why)
        yield line(f"{name}: tokens, envelope", PAPER, tokens, curve.tokens_scale * own**curve.b.value, why)


def needed_flops(theta: Array, size: float) -> Array:
    """The training FLOPs at which ``size`` is optimal; theta (..., 5)."""
    _, a, b, alpha, beta = (theta[..., i] for i in range(5))
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    flops: Array = 6 * (size / ratio) ** ((alpha + beta) / beta)
    return flops
