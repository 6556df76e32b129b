"""Marks every peer by one yardstick: the robust objective, and how far a replicate is from its optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from benchmarks.robust import Array, Robust

NEAR = 1e-6  # relative distance in objective below which a point counts as the optimum


@dataclass(frozen=True)
class Verdict:
    """How good the sampled replicates are.

    Attributes:
        replicates: how many were polished.
        near: share within ``NEAR`` of the polished optimum.
        worst: largest relative gap.
        independent: share whose optimum an independent start reached too: what the judge's word is worth.
    """

    replicates: int
    near: float
    worst: float
    independent: float


def objective(points: dict[str, Array], theta: Sequence[float]) -> float:
    """The robust objective on all points at E, A, B, alpha, beta."""
    problem = Robust.of(points["params"], points["tokens"], points["loss"])
    return problem.value(problem.centred(np.asarray(theta)))


def judge(
    points: dict[str, Array],
    counts: Sequence[Sequence[float]],
    thetas: Sequence[Sequence[float]],
    starts: int,
) -> Verdict:
    """Polish each replicate from the peer's point and from ``starts`` independent ones."""
    rng = np.random.default_rng(2)
    gaps, reached = [], []
    for weights, theta in zip(counts, thetas, strict=True):
        problem = Robust.of(points["params"], points["tokens"], points["loss"], np.asarray(weights, float))
        own = problem.centred(np.asarray(theta))
        fresh = min(polish(problem, start) for start in _starts(problem, starts, rng))
        best = min(fresh, polish(problem, own))
        gaps.append((problem.value(own) - best) / best)
        reached.append((fresh - best) / best <= NEAR)
    gap = np.array(gaps)
    return Verdict(len(gap), float(np.mean(gap <= NEAR)), float(gap.max()), float(np.mean(reached)))


def polish(problem: Robust, start: Array) -> float:
    """The lowest value SciPy finds from there: quasi-Newton first, then a trust region with the Hessian."""
    with np.errstate(all="ignore"):
        far = minimize(
            problem.value, start, jac=problem.gradient, method="L-BFGS-B",
            options={"ftol": 1e-15, "gtol": 1e-12, "maxiter": 3000, "maxfun": 9000},
        )  # fmt: skip
        x, value = (far.x, far.fun) if far.fun < problem.value(start) else (start, problem.value(start))
        for _ in range(3):  # the radius shrinks at the kinks of the curvature: begin again with a fresh one
            near = minimize(
                problem.value, x, jac=problem.gradient, hess=problem.hessian, method="trust-exact",
                options={"gtol": 1e-13, "maxiter": 300, "initial_trust_radius": 1e-2},
            )  # fmt: skip
            if not near.fun < value * (1 - 1e-13):
                break
            x, value = near.x, near.fun
    return float(value)


def _starts(problem: Robust, count: int, rng: np.random.Generator) -> Array:
    middle = float(np.median(problem.log_loss))
    low = np.array([middle - 4.0, middle - 4.0, middle - 1.0, 0.1, 0.1])
    high = np.array([middle - 0.5, middle - 0.5, middle, 0.8, 0.8])
    return low + rng.random((count, 5)) * (high - low)
