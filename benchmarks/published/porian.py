"""Porian et al. 2024: fifteen exponents of the optimal size, by lines and from the raw points."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from scipy.interpolate import Akima1DInterpolator

import isoloss
from benchmarks import tables
from benchmarks.published.line import Array, Line, Section, arxiv, count, line

PAPER = "2406.19146"
KEY = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
DATASETS = {"rw": "RefinedWeb", "owt2": "OpenWebText2"}
PER_GAP = 25
LOGS = isoloss.LeastSquares(residual="log")
# The paper's route from Kaplan to tuned, RefinedWeb: weighted exponent, and the size that it gives Chinchilla's budget.
MAIN = {
    ("rw", "base", "long", "kaplan", "kaplan", "train"): ("0.835", "3T", 3e12),
    ("rw", "base", "long", "kaplan", "standard", "val"): ("0.706", "787B", 787e9),
    ("rw", "base", "short", "kaplan", "standard", "val"): ("0.602", "292B", 292e9),
    ("rw", "base", "short", "chinchilla", "standard", "val"): ("0.571", "183B", 183e9),
    ("rw", "tuned", "short", "const", "standard", "val"): ("0.497", "77B", 77e9),
}
BUDGET = 5.88e23
Key = tuple[str, ...]


def sections() -> list[Section]:
    """Lines through their optima, unweighted and weighted; then from the raw points by two routes."""
    folder = (
        f"{arxiv(PAPER)}. Settings are data, hyper-parameters, warm-up, decay, parameters counted, split."
    )
    through = list(interpolated())
    ours = list(parabolas())
    gaps = np.array([gap for gap, *_ in ours])
    held = sum(holds for _, holds, _ in ours)
    return [
        Section(
            "Porian et al. 2024, line through their optima",
            f"{folder} `isoloss.fit` of `power(flops)`, least squares in logs, to the optima in the authors' repository.",
            list(lines(weighted=False)),
        ),
        Section(
            "Porian et al. 2024, weighted line",
            f"{arxiv(PAPER)}. As above with weights 1/s.d.² of each log optimum: the numbers of the main text.",
            [*lines(weighted=True), *main_text()],
        ),
        Section(
            "Porian et al. 2024, from the raw points by their recipe",
            f"{arxiv(PAPER)}. log L against log N by Akima (SciPy, not isoloss), {PER_GAP} points per gap, lowest inner "
            f"point, unweighted line. Largest gap of an exponent: {max(abs(gap) for gap, _ in through):.4f}.",
            [entry for _, entry in through],
        ),
        Section(
            "Porian et al. 2024, from the raw points by isoloss.isoflop",
            f"{arxiv(PAPER)}. Approach 2: a parabola of the loss in ln N within 8 times of the lowest run. In brackets "
            f"the 90 % interval, resampling the runs of each budget. Gaps: root mean square "
            f"{np.sqrt(np.mean(gaps**2)):.3f}, largest {np.abs(gaps).max():.3f}, mean {gaps.mean():+.3f}; "
            f"{held} of {len(ours)} intervals hold theirs.",
            [entry for *_, entry in ours],
        ),
    ]


@functools.cache
def grouped(name: str) -> dict[Key, list[dict[str, str]]]:
    """Rows of one of their files, by setting."""
    out: dict[Key, list[dict[str, str]]] = {}
    for row in tables.rows(f"porian_discrepancies/{name}.csv"):
        out.setdefault(tuple(row[part] for part in KEY), []).append(row)
    return out


def published() -> dict[Key, dict[str, str]]:
    """The stored fit of each setting."""
    return {key: rows[0] for key, rows in grouped("published_fits").items()}


def column(rows: list[dict[str, str]], name: str) -> Array:
    """One column as numbers."""
    return np.array([float(row[name]) for row in rows])


def label(key: Key) -> str:
    """A setting in words."""
    data, rest = key[0], key[1:]
    return f"{DATASETS[data]}: {', '.join(rest)}"


@functools.cache
def optima(key: Key) -> tuple[Array, Array, Array]:
    """Budgets, optimal sizes and their s.d. in ln N."""
    rows = [row for row in grouped("optima")[key] if row["params_opt"]]
    return column(rows, "flops"), column(rows, "params_opt"), column(rows, "log_params_opt_std")


def fitted(key: Key, weighted: bool) -> isoloss.Fit:
    """Size as a power of compute."""
    flops, size, sd = optima(key)
    table = {"flops": flops, "loss": size, "weight": sd**-2}
    return isoloss.fit(
        "power(flops)",
        table,
        objective=LOGS,
        draws=0,
        sensitivity=False,
        weights="weight" if weighted else None,
    )


def lines(weighted: bool) -> Iterator[Line]:
    """The fifteen exponents."""
    name = "n_exponent_weighted" if weighted else "n_exponent"
    for key, row in published().items():
        yield line(
            label(key), f"{PAPER}, code", f"{float(row[name]):.4f}", -fitted(key, weighted).values["c"]
        )


def main_text() -> Iterator[Line]:
    """The five exponents as printed, and the sizes that they imply."""
    for key, (slope, size, number) in MAIN.items():
        found = fitted(key, weighted=True)
        yield line(f"main text, {label(key)}", PAPER, slope, -found.values["c"])
        implied = float(found.law.evaluate(found.theta, flops=BUDGET))
        unit, suffix = (1e12, "T") if size.endswith("T") else (1e9, "B")
        what = f"main text, implied size at {count(BUDGET)} FLOP [{suffix}], {label(key)}"
        yield line(what, PAPER, f"{number / unit:g}", implied / unit)


def raw(key: Key) -> dict[str, Array]:
    """The runs of a setting."""
    names = {"params": "params", "tokens": "tokens", "flops": "flops", "loss": "loss_nats"}
    return {ours: column(grouped("isoflop_points")[key], theirs) for ours, theirs in names.items()}


def interpolated() -> Iterator[tuple[float, Line]]:
    """Akima interpolation, and the line through its minima: the gap of the exponent, and its line."""
    for key, row in published().items():
        runs = raw(key)
        found = {flops: akima(runs, flops) for flops in np.unique(runs["flops"])}
        inner = {flops: size for flops, size in found.items() if size}
        slope = float(np.polyfit(np.log(list(inner)), np.log(list(inner.values())), 1)[0])
        why = f"their recipe without its noise on the losses; optima differ by up to {100 * furthest(key, inner):.0f} %"
        theirs = float(row["n_exponent"])
        what = f"{label(key)}; {len(inner)} budgets"
        yield slope - theirs, line(what, f"{PAPER}, code", f"{theirs:.4f}", slope, why)


def akima(runs: dict[str, Array], flops: float) -> float | None:
    """The size at the lowest point of the interpolated curve; None where that is an end."""
    here = runs["flops"] == flops
    order = np.argsort(runs["params"][here])
    x, y = np.log(runs["params"][here][order]), np.log(runs["loss"][here][order])
    fine = np.interp(np.arange(PER_GAP * (len(x) - 1) + 1) / PER_GAP, np.arange(len(x)), x)
    lowest = int(np.argmin(Akima1DInterpolator(x, y)(fine)))
    return float(np.exp(fine[lowest])) if 0 < lowest < len(fine) - 1 else None


def parabolas() -> Iterator[tuple[float, bool, Line]]:
    """Approach 2 of the package: the gap of the exponent, whether our interval holds theirs, and the line."""
    for key, row in published().items():
        found, theirs = isoloss.isoflop(raw(key)), float(row["n_exponent"])
        far = 100 * furthest(key, {entry.flops: entry.params for entry in found.optima})
        inside = found.a.low <= theirs <= found.a.high
        holds = "holds" if inside else "does not hold"
        why = f"parabola where they interpolate: optima up to {far:.0f} % away; our interval {holds} theirs"
        what = f"{label(key)}; {len(found.optima)} budgets"
        interval = (found.a.low, found.a.high)
        entry = line(what, f"{PAPER}, code", f"{theirs:.4f}", found.a.value, why, interval)
        yield found.a.value - theirs, inside, entry


def furthest(key: Key, sizes: dict[float, float]) -> float:
    """The largest factor, less one, between our optima and theirs at the same budgets."""
    flops, size, _ = optima(key)
    gaps = []
    for budget, ours in sizes.items():
        at = int(np.argmin(np.abs(np.log(flops / budget))))
        if abs(np.log(flops[at] / budget)) < 0.01:
            gaps.append(abs(np.log(ours / size[at])))
    return float(np.expm1(max(gaps)))
