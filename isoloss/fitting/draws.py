"""Which method gives the joint draws of a fit, and the draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from isoloss.fitting.coordinates import Coordinates
from isoloss.fitting.data import Data
from isoloss.fitting.minimise import Minima, Problem
from isoloss.fitting.posterior import posterior
from isoloss.fitting.uncertainty import (
    Progress,
    bootstrap,
    by_residuals,
    by_rows,
    by_signs,
    effective,
    laplace,
    robust_sd,
)

Array = np.ndarray[Any, np.dtype[Any]]
How = Literal["auto", "posterior", "bootstrap", "residual", "wild", "laplace"]
HOW: tuple[str, ...] = get_args(How)

SAME = 1e-6  # starts whose objectives differ by less than this share found the same minimum
FEW = 50  # rows: below, resamples of rows have too few different ones
KINK = 0.5  # delta below this share of the scatter makes corners of single rows
EXACT = 1e-9  # residuals below are rounding: there is no noise to have a posterior about


@dataclass(frozen=True, eq=False)
class Cloud:
    """Joint draws in free coordinates.

    Attributes:
        how: the method used, never ``"auto"``.
        psi: (K, q).
        scale: standard deviation of the noise in each draw, (K,); empty where the residuals stand for it.
        complete: not cut short by Ctrl-C.
        settled: share of the resamples that reached a minimum.
        agreement: Gelman-Rubin ratio of the posterior's ensembles, 1 for other methods.
    """

    how: str
    psi: Array
    scale: Array
    complete: bool = True
    settled: float = 1.0
    agreement: float = 1.0


def choose(how: How, problem: Problem, psi: Array, data: Data, clustered: bool) -> str:
    """``"auto"``: the posterior below 50 independent rows, else the bootstrap of rows or clusters.

    By measured coverage, see the benchmarks: with few rows the posterior's intervals are the ones that
    hold; with many the bootstrap needs no word about the noise.
    """
    if how != "auto":
        return how
    r = problem.residuals(psi[None])[0][0]
    size = 1.0 if problem.objective.residual == "log" else float(np.median(np.abs(problem.y)))
    noisy = float(np.sqrt(np.mean(r**2))) > EXACT * size
    parameters = problem.size - problem.objective.has_scale
    rows = effective(data.weights)
    if clustered or len(data) >= FEW or rows <= parameters + 0.5 or not noisy:
        return "bootstrap"
    return "posterior"


def draw(
    how: str,
    problem: Problem,
    found: Minima,
    place: Coordinates,
    data: Data,
    draws: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> Cloud:
    """``draws`` joint draws around the best of the minima found."""
    psi = found.psi[np.argmin(found.value)]
    nothing = np.empty(0)
    if how == "laplace":
        return Cloud(how, laplace(problem, psi, data.weights, data.clusters, draws, rng), nothing)
    if how in ("residual", "wild"):
        _refuse_kinks(how, problem, psi)
    ridge, others = _ridge(found, place), _others(found)
    if how == "posterior":
        minima = np.vstack([ridge, others])
        out = posterior(problem, minima, data.weights, draws, rng, progress)
        return Cloud(how, out.psi, out.scale, out.complete, agreement=out.agreement)
    redraw = {
        "bootstrap": lambda: by_rows(data.weights, data.clusters),
        "residual": lambda: by_residuals(problem, psi, data.weights),
        "wild": lambda: by_signs(problem, psi, data.weights, data.clusters),
    }[how]()
    cloud, complete, settled = bootstrap(problem, ridge, others, redraw, draws, rng, progress)
    return Cloud(how, cloud, nothing, complete, settled)


def _refuse_kinks(how: str, problem: Problem, psi: Array) -> None:
    """A loss nearly of absolute values runs through as many rows as it has parameters: their residuals are no noise."""
    r = problem.residuals(psi[None])[0][0]
    delta = getattr(problem.objective, "delta", math.inf)
    sd = robust_sd(r, problem.size)
    if delta < KINK * sd:
        raise ValueError(
            f"{how} needs residuals that stand for the noise; with huber and delta {delta:g}, far below their "
            f"scatter of {sd:.2g}, the fit passes through some rows. Use --objective student-t, or --uncertainty "
            "bootstrap or posterior"
        )


def _ridge(found: Minima, place: Coordinates) -> Array:
    """The best minimum, and every start that reached the same objective elsewhere: a flat ridge.

    Resamples that all began at one point of a ridge would stay there, and show no spread along the very
    direction that the data leave open.
    """
    order = np.argsort(found.value, kind="stable")
    lowest = found.value[order[0]]
    width = place.high - place.low
    kept = [order[0]]
    for i in order[1:]:
        if found.value[i] > lowest + SAME * abs(lowest) + 1e-15:
            break
        steps = np.abs(found.psi[kept] - found.psi[i]) / width
        if steps.max(axis=1).min() > 0.01:
            kept.append(i)
    return np.asarray(found.psi[kept])


def _others(found: Minima, most: int = 2) -> Array:
    """Up to two other local minima within 20 % of the best: a resample may prefer one of them."""
    order = np.argsort(found.value, kind="stable")
    lowest = found.value[order[0]]
    kept: list[int] = []
    for i in order[1:]:
        if found.value[i] > lowest + 0.2 * abs(lowest) or len(kept) == most:
            break
        apart = all(found.value[i] > found.value[k] + 1e-4 * abs(lowest) for k in [order[0], *kept])
        if apart and found.converged[i]:
            kept.append(i)
    return np.asarray(found.psi[kept])
