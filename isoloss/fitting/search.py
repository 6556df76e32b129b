"""The best parameters of a law on a table: what is minimised, from many starts or from a known place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.fitting.constraints import Constraints
from isoloss.fitting.coordinates import Coordinates, coordinates
from isoloss.fitting.data import Data, prepare
from isoloss.fitting.minimise import Minima, Problem, minimise
from isoloss.fitting.model import model_of
from isoloss.fitting.objective import Objective
from isoloss.fitting.uncertainty import Progress
from isoloss.laws.law import Law
from isoloss.runs import Runs

Array = np.ndarray[Any, np.dtype[Any]]

SCREEN_ROWS = 512  # starts of a long table descend on a subset first; the last steps see every row
FEW_STARTS = 8  # beside a known theta
FEW_STEPS = 30  # of those starts
BEST = 6  # of them that go on
MORE_STEPS = 60
AGREED = 0.9  # share of the starts in one minimum from which a refit may begin there alone
CLOSE = 0.05  # a share of the objective: above the best by more, and a descent is given up


@dataclass(frozen=True, eq=False)
class Posed:
    """A law, the rows and the choices as one minimisation, not yet solved."""

    data: Data
    place: Coordinates
    problem: Problem


def pose(
    law: Law,
    runs: Runs,
    objective: Objective,
    held: Constraints,
    weights: str | None = None,
    cluster: str | None = None,
) -> Posed:
    """The minimisation that the settings of a fit describe; ``held`` is resolved.

    Raises:
        ValueError: wrong names, units or values. NoAnswer: no rows to fit.
    """
    if law.signed and objective.residual == "log":
        raise ValueError(
            f"{law.slug} needs plain residuals, got log residuals: {law.target} may be zero or negative. "
            "Use --residual linear, or objective=Huber(residual='linear')"
        )
    sd = f"{law.target}_sd" if objective.name == "gaussian" and f"{law.target}_sd" in runs else None
    data = prepare(law, runs, weights=weights, sd=sd, cluster=cluster)
    if objective.residual == "log" and sd:
        data = replace(data, weights=data.weights * data.y**2 / np.mean(data.weights * data.y**2))
    place = coordinates(law, data.x, data.y, held, objective)
    model = model_of(law, data.x, place.base, place.spread)
    return Posed(data, place, Problem(model, data.y, objective, place.low, place.high))


def search(posed: Posed, starts: int, progress: Progress | None = None) -> tuple[Problem, Minima]:
    """Descend from all starts, on a long table on every k-th row first; the problem comes back with priors."""
    data, place, problem = posed.data, posed.place, posed.problem
    psi = place.starts(starts)
    stride = len(data) // SCREEN_ROWS
    if stride >= 2:
        x = {axis: value[::stride] for axis, value in data.x.items()}
        part = replace(problem, model=model_of(place.law, x, place.base, place.spread), y=data.y[::stride])
        found = _descend(part, psi, data.weights[::stride])
    else:
        found = _descend(problem, psi, data.weights)
    if progress:
        progress("starts", starts, starts)
    found = _polish(problem, found, data.weights)
    return _with_priors(posed, found) if place.priors else (problem, found)


def nearby(posed: Posed, theta: Array | None, scale: float, alone: bool) -> tuple[Problem, Minima]:
    """The minimum near a theta (P,) of the same law, or a better one that few short descents find.

    Much cheaper than :func:`search`: for the same rows under another objective, or nearly the same rows.

    Args:
        posed: the minimisation.
        theta: where to begin; None for another law.
        scale: standard deviation of the residuals, for objectives that estimate it.
        alone: whether that is enough, because all starts came to one minimum before.
    """
    place, w = posed.place, posed.data.weights
    if alone and theta is not None:
        found = _polish_each(posed.problem, _free(place, theta, scale)[None], w)
        return _with_priors(posed, found) if place.priors else (posed.problem, found)
    psi = place.starts(FEW_STARTS if theta is not None else 2 * FEW_STARTS)
    coarse = minimise(posed.problem, psi, w, caution=0.3, tolerance=1e-9, limit=FEW_STEPS)
    first = np.array([group[0] for group in _same_place(coarse)[:BEST]], dtype=int)
    psi = coarse.psi[first]
    if theta is not None:
        psi = np.vstack([_free(place, theta, scale), psi])
    best = minimise(posed.problem, psi, w, tolerance=1e-16, limit=MORE_STEPS)
    least = float(np.min(best.value))
    last = best.value <= least + CLOSE * abs(least)
    found = _polish_each(posed.problem, best.psi[last], w)
    return _with_priors(posed, found) if place.priors else (posed.problem, found)


def _free(place: Coordinates, theta: Array, scale: float) -> Array:
    """The free coordinates nearest to a theta, within the box."""
    logs = np.array([parameter.scale == "log" for parameter in place.law.parameters])
    phi = np.where(logs, np.log(np.maximum(theta, 1e-300)), theta)
    free = np.linalg.lstsq(place.spread.T, phi - place.base, rcond=None)[0]
    if place.has_scale:
        free = np.append(free, np.log(max(scale, 1e-300)))
    return np.asarray(np.clip(free, place.low, place.high))


def _descend(problem: Problem, psi: Array, weights: Array) -> Minima:
    """From afar: cautious steps, to a tolerance that tells minima apart."""
    return minimise(problem, psi, weights, caution=0.3, tolerance=1e-9, limit=150)


def _polish_each(problem: Problem, psi: Array, weights: Array) -> Minima:
    """Newton steps until nothing lowers the objective."""
    return minimise(problem, psi, weights, tolerance=1e-16)


def _polish(problem: Problem, coarse: Minima, weights: Array) -> Minima:
    """The same, once for all starts that came to one place."""
    groups = _same_place(coarse)
    if not groups:
        return coarse
    first = np.array([group[0] for group in groups])
    fine = _polish_each(problem, coarse.psi[first], weights)
    psi, value, converged = coarse.psi.copy(), coarse.value.copy(), coarse.converged.copy()
    for k, group in enumerate(groups):
        psi[group], value[group], converged[group] = fine.psi[k], fine.value[k], fine.converged[k]
    return Minima(psi, value, converged, coarse.iterations)


def _same_place(coarse: Minima) -> list[Array]:
    """Starts grouped by where they ended: nearly equal objective and coordinates, best group first.

    Starts outside the law's domain are in no group.
    """
    left = np.argsort(coarse.value, kind="stable")
    left = left[np.isfinite(coarse.value[left])]
    groups = []
    while len(left):
        lead = left[0]
        near = np.abs(coarse.value[left] - coarse.value[lead]) <= 1e-5 * abs(coarse.value[lead]) + 1e-12
        near &= np.max(np.abs(coarse.psi[left] - coarse.psi[lead]), axis=1) <= 0.02
        near[0] = True
        groups.append(left[near])
        left = left[~near]
    return groups


def _with_priors(posed: Posed, found: Minima) -> tuple[Problem, Minima]:
    """Weigh the priors by the noise around the fit with them: alternate until the noise stands still."""
    problem, w = posed.problem, posed.data.weights
    temperature = 0.0
    for _ in range(50):
        before = temperature
        best = found.psi[np.argmin(found.value)]
        r = problem.residuals(best[None])[0][0]
        temperature = problem.objective.temperature(r, w)
        problem = replace(problem, priors=posed.place.priors, temperature=temperature)
        found = _polish(problem, _descend(problem, found.psi, w), w)
        if abs(temperature - before) <= 1e-6 * temperature:
            break
    return problem, found
