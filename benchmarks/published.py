"""Our numbers beside the published ones, from the public tables.

python -m benchmarks.published [--out docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import isoloss
from benchmarks import page, tables
from isoloss.laws import get
from isoloss.laws.law import Law

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Line:
    """One published number and ours, both as printed."""

    source: str
    what: str
    published: str
    ours: str
    difference: str


def compared(source: str, what: str, published: float, ours: float, digits: str = ".5g") -> Line:
    """A line with the relative difference."""
    gap = ours / published - 1
    return Line(source, what, f"{published:{digits}}", f"{ours:{digits}}", f"{100 * gap:+.2g} %")


def replication() -> Iterator[Line]:
    """Besiroglu et al. 2024: minimum, parameters and bootstrap standard errors of 240 points."""
    source = "Besiroglu et al. 2024, hoffmann"
    points, _ = tables.chinchilla()
    found = isoloss.fit("hoffmann", points, draws=4000)
    # Their stored grid search, more digits than the paper's table.
    stored = {"E": 1.8172, "A": 477.84, "B": 2143.86, "alpha": 0.34731, "beta": 0.36718}
    errors = {"A": 124.5, "B": 1293.0, "E": 0.0257, "alpha": 0.0154, "beta": 0.0206}
    yield compared(source, "objective", 0.00101827402, found.value, ".9g")
    for name, value in stored.items():
        yield compared(source, name, value, found.values[name])
    for name, value in errors.items():
        yield compared(source, f"standard error of {name}", value, found.parameters[name].stderr, ".4g")


def gadre() -> Iterator[Line]:
    """Gadre et al. 2024: five RedPajama runs predict two large ones."""
    source = "Gadre et al. 2024, gadre"
    columns = {
        "params": "params", "tokens": "tokens", "multiplier": "chinchilla_multiplier", "loss": "loss_nats_c4",
    }  # fmt: skip
    runs = tables.columns("gadre_overtraining/runs.csv", columns, {"train_dataset": tables.REDPAJAMA})
    if runs is None:
        return
    n, multiplier = runs["params"], runs["multiplier"]
    small = n < 5e8
    used = small & (multiplier == 1) | (n < 2e7) & (multiplier == 16)
    objective = isoloss.LeastSquares(residual="linear")
    train = {name: runs[name][used] for name in ("params", "tokens", "loss")}
    found = isoloss.fit("gadre", train, objective=objective, draws=0)
    for name, value in {"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136}.items():
        yield compared(source, f"{name}, from 5 runs", value, found.values[name], ".3g")
    for label, target, error in (
        ("1.4B at 640 tokens per parameter", (n > 1e9) & (n < 2e9) & (multiplier == 32), 0.7103),
        ("6.9B at 20 tokens per parameter", n > 5e9, 0.7320),
    ):
        (at,) = np.flatnonzero(target)
        predicted = found.law.evaluate(found.theta, params=n[at], tokens=runs["tokens"][at])
        off = 100 * abs(float(predicted) / runs["loss"][at] - 1)
        what = f"relative error of the predicted loss [%], {label}"
        yield Line(source, what, f"{error:.4f}", f"{off:.4f}", f"{off - error:+.4f} points")


def muennighoff() -> Iterator[Line]:
    """Muennighoff et al. 2023: variance explained on 182 runs, with and without decay of repeated data."""
    source = "Muennighoff et al. 2023, muennighoff"
    columns = {
        "params": "params", "tokens": "tokens", "tokens_unique": "tokens_unique", "loss": "loss_nats",
    }  # fmt: skip
    runs = tables.columns("data_constrained/runs.csv", columns, {"in_published_fit": "1"})
    if runs is None:
        return
    loss = runs["loss"]
    law = get("muennighoff")
    theta = law.theta("muennighoff-2023")
    x = {axis: runs[axis] for axis in law.axes}
    yield compared(
        source, "R2 at the published parameters", 0.7722, r2(loss, law.evaluate(theta, **x)), ".5g"
    )
    plain = get("hoffmann").evaluate(theta[:5], params=runs["params"], tokens=runs["tokens"])
    yield compared(source, "R2 without decay", 0.4452, r2(loss, plain), ".5g")
    refit = isoloss.fit("muennighoff", runs, draws=0)
    yield Line(
        source, "R2 of our robust fit of all 7 parameters at once", "0.7722", f"{refit.r2:.4f}", "other fit"
    )


def r2(measured: Array, predicted: Array) -> float:
    """Share of the variance explained."""
    return float(1 - np.sum((measured - predicted) ** 2) / np.sum((measured - measured.mean()) ** 2))


def optima() -> Iterator[Line]:
    """Compute-optimal sizes under C = 6ND at published parameters: closed form, and the planner's."""
    law = get("hoffmann")
    for name, cases in {
        "hoffmann-2022": ((1e21, 2.215e9, 34.0), (5.76e23, 4.03e10, 59.1)),
        "besiroglu-2024": ((1e21, 2.778e9, 21.6), (5.76e23, 7.225e10, 18.4)),
    }.items():
        for label, optimum in {"closed form": closed_form, "planner": planned()}.items():
            for flops, size, ratio in cases:
                source = f"{name}, optimum by {label}"
                if optimum is None:
                    yield Line(source, f"params at {flops:.3g} FLOP", f"{size:.4g}", "not yet", "")
                    continue
                params = optimum(law, law.theta(name), flops)
                yield compared(source, f"params at {flops:.3g} FLOP", size, params, ".4g")
                yield compared(
                    source, f"tokens per parameter at {flops:.3g} FLOP", ratio, flops / (6 * params**2), ".3g"
                )


def closed_form(law: Law, theta: Array, flops: float) -> float:
    """Hoffmann et al. 2022, eq. 4."""
    _, a, b, alpha, beta = theta
    return float((alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (flops / 6) ** (beta / (alpha + beta)))


def planned() -> Callable[[Law, Array, float], float] | None:
    """The planner's numeric optimum; None while the package has none."""
    if importlib.util.find_spec("isoloss.planning.optimum") is None:
        return None

    def optimum(law: Law, theta: Array, flops: float) -> float:
        # A plan reads a fit: noise-free runs of the law give one with exactly these parameters.
        n, d = np.meshgrid(np.geomspace(1e8, 1e10, 5), np.geomspace(1e9, 1e12, 5))
        runs = {"params": n.ravel(), "tokens": d.ravel()}
        runs["loss"] = law.evaluate(theta, **runs)
        found = isoloss.fit(law, runs, draws=20)
        plan: Any = isoloss.plan(found, isoloss.Budget(flops=flops))
        value = plan.params
        return float(getattr(value, "value", value))

    return optimum


def run() -> str:
    """The page's text."""
    lines = [*replication(), *gadre(), *muennighoff(), *optima()]
    rows = [[line.source, line.what, line.published, line.ours, line.difference] for line in lines]
    return page.table(["source", "what", "published", "isoloss", "difference"], rows, (2, 3, 4))


def main() -> None:
    """The command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, help="page to write between its published markers")
    given = parser.parse_args()
    text = run()
    print(text)
    if given.out:
        page.put(given.out, "published", text)


if __name__ == "__main__":
    main()
