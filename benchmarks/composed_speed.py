"""How long the largest composed law takes: every factor and term at once, and what each costs.

    python -m benchmarks.composed_speed [--draws 4000] [--points 1000] [--out docs/composing.md]

Thetas times points in one call, as predictions and plans ask for them; CPU seconds of one thread, the least of
three rounds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks import page
from isoloss.laws import get
from isoloss.laws.law import Law
from isoloss.laws.parts import FACTORS, TERMS

ROUNDS = 3
BASE = "hoffmann"
# A level at which every part is defined; the rest is spread over a decade below.
TOP = {"params": 1e10, "tokens": 1e12, "tokens_unique": 1e11, "params_trainable": 1e9, "bits_post": 4.0}


def everything() -> Law:
    """The base with every factor and term that it takes together."""
    law = get(BASE)
    for sign, slugs in (("*", FACTORS), ("+", TERMS)):
        for slug in slugs:
            try:
                law = get(f"{law.spec} {sign} {slug}")
            except ValueError:  # not beside the pieces that are there
                continue
    return law


def seconds(law: Law, draws: int, points: int) -> float:
    """CPU seconds of ``law.evaluate``."""
    rng = np.random.default_rng(0)
    middle = [
        (p.low * p.high) ** 0.5 if p.scale == "log" else p.low + (p.high - p.low) / 4 for p in law.parameters
    ]
    theta = np.array(middle) * np.exp(0.01 * rng.normal(size=(draws, len(middle))))
    x = {axis: TOP.get(axis, 16.0) * 10 ** -rng.uniform(0, 1, points) for axis in law.axes}
    best = float("inf")
    with np.errstate(all="ignore"):
        for _ in range(ROUNDS):
            before = time.process_time()
            law.evaluate(theta, **x)
            best = min(best, time.process_time() - before)
    return best


def table(draws: int, points: int) -> str:
    """The base, the base with each part, everything."""
    specs = [BASE, *(f"{BASE} * {slug}" for slug in FACTORS), *(f"{BASE} + {slug}" for slug in TERMS)]
    laws = [(f"`{spec}`", get(spec)) for spec in specs] + [("all of them together", everything())]
    rows = [[name, str(len(law.names)), f"{seconds(law, draws, points):.2f}"] for name, law in laws]
    head = f"{draws:,} thetas at {points:,} points in one call. {page.machine()}"
    return f"{head}\n\n{page.table(['law', 'parameters', 'CPU s'], rows, right=(1, 2))}"


def main() -> None:
    """Print the table, or put it into a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    text = table(chosen.draws, chosen.points)
    print(text)
    if chosen.out:
        page.put(chosen.out, "composed-speed", text)


if __name__ == "__main__":
    main()
