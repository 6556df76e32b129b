"""What every peer shares: the points it reads and the JSON it writes. Needs NumPy only."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DRAWS = 4000  # bootstrap resamples of every peer, as the replication used


@dataclass(frozen=True)
class Task:
    """One peer's job.

    Attributes:
        params, tokens, loss: the points, (n,) each.
        quick: a random part of a long loop is measured and the rest extrapolated.
        startup: CPU seconds of this process before the work: interpreter, imports.
    """

    params: Array
    tokens: Array
    loss: Array
    quick: bool
    out: Path
    startup: float

    def finish(self, **result: Any) -> None:
        """Write the result where the parent process reads it."""
        self.out.write_text(json.dumps({"startup_s": self.startup, **result}), encoding="utf-8")


def task() -> Task:
    """The job named on the command line; call it after the imports, so that start-up is apart."""
    startup = time.process_time()
    parser = argparse.ArgumentParser()
    parser.add_argument("points", type=Path, help="CSV of params, tokens, loss")
    parser.add_argument("out", type=Path, help="JSON to write")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    params, tokens, loss = np.loadtxt(given.points, delimiter=",", skiprows=1).T
    return Task(params, tokens, loss, given.quick, given.out, startup)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What ``work`` returns, and the CPU seconds it took."""
    begin = time.process_time()
    value = work()
    return value, time.process_time() - begin


def resample(rng: np.random.Generator, n: int) -> Array:
    """Row numbers of one bootstrap resample."""
    return rng.integers(0, n, size=n)


def natural(theta: Array) -> list[float]:
    """``(a, b, e, alpha, beta)`` as E, A, B, alpha, beta."""
    a, b, e, alpha, beta = theta
    return [float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), float(alpha), float(beta)]


def sampled(picks: list[Array], thetas: list[Array], n: int, most: int = 100) -> dict[str, Any]:
    """The first resamples as row counts, each with the parameters the peer found for it."""
    counts = [np.bincount(rows, minlength=n).tolist() for rows in picks[:most]]
    return {"counts": counts, "theta": [natural(theta) for theta in thetas[:most]]}
