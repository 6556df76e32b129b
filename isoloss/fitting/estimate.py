"""From a table to what we believe: the verb ``fit``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from isoloss.fitting import cautions
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.coordinates import Coordinates, coordinates
from isoloss.fitting.data import Data, prepare
from isoloss.fitting.diagnose import at_bounds, information, separation
from isoloss.fitting.minimise import Minima, Problem, minimise
from isoloss.fitting.model import model_of
from isoloss.fitting.objective import Huber, Objective
from isoloss.fitting.result import Fit, Result
from isoloss.fitting.uncertainty import Progress, bootstrap, laplace, robust_sd
from isoloss.laws import get
from isoloss.laws.law import Law
from isoloss.runs import Finding, Runs, check, read

Array = np.ndarray[Any, np.dtype[Any]]

SAME = 1e-6  # starts whose objectives differ by less than this share found the same minimum
SCREEN_ROWS = 512  # starts of a long table descend on a subset first; the last steps see every row


def fit(
    law: Law | str,
    runs: Runs | Any,
    *,
    objective: Objective | None = None,
    constraints: Constraints | None = None,
    draws: int = 1000,
    uncertainty: Literal["bootstrap", "laplace"] = "bootstrap",
    cluster: str | None = None,
    weights: str | None = None,
    starts: int = 64,
    coverage: float = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Fit:
    """Fit ``law`` to ``runs`` and say how sure the parameters are.

    Many starts that fill the allowed box descend together with exact derivatives; the best is polished
    until no step lowers the objective. Then resamples of the rows (or of clusters of rows) are refitted
    together: their parameters are the joint draws that every later interval comes from.

    Args:
        law: a law, or its name (``"hoffmann"``, ``"power(flops)"``, ``"my_laws.py:MyLaw"``).
        runs: a table, or anything :func:`isoloss.read` takes.
        objective: default ``Huber(delta=1e-3)`` on log residuals; least squares where the law's target
            can be zero or negative.
        constraints: fixed, tied, bounded, borrowed or prior-carrying parameters.
        draws: joint parameter draws kept.
        uncertainty: ``"bootstrap"``, or ``"laplace"`` (normal approximation; cheap, symmetric in logs).
        cluster: column whose equal values are resampled together (family, seed, run).
        weights: column of row weights.
        starts: how many starting points.
        coverage: of the intervals in tables.
        seed: same seed and same rows (in any order), same draws.
        progress: called with (what, done, total).

    Returns:
        The fit. ``fit.result`` is ``"identified"``, ``"not-identified"``, ``"not-converged"`` or
        ``"interrupted"``; a poor fit is a value, not an exception.

    Raises:
        ValueError: wrong names, units or values. NoAnswer: no rows to fit.

    Example:
        >>> import numpy as np
        >>> n, d = np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8])
        >>> loss = 1.8 + 480 * n**-0.35 + 2000 * d**-0.37
        >>> runs = read({"params": n.ravel(), "tokens": d.ravel(), "loss": loss.ravel()})
        >>> found = fit("hoffmann", runs, draws=100)
        >>> round(found.values["alpha"], 6), found.result
        (0.35, 'identified')
    """
    law = get(law) if isinstance(law, str) else law
    if not isinstance(law, Law):
        raise TypeError(f"fit needs a law or its name, got {law!r}. A class must be called: Hoffmann()")
    runs = runs if isinstance(runs, Runs) else read(runs)
    if objective is not None and not isinstance(objective, Objective):
        raise TypeError(f"fit needs an objective such as isoloss.Huber(delta=1e-3), got {objective!r}")
    if not all(isinstance(number, int | np.integer) for number in (draws, starts, seed)):
        raise TypeError(f"fit needs whole numbers for draws, starts and seed, got {draws}, {starts}, {seed}")
    if draws < 0 or starts < 1 or seed < 0 or not 0 < coverage < 1:
        raise ValueError(
            "fit needs draws >= 0, starts >= 1, seed >= 0 and 0 < coverage < 1, got "
            f"{draws}, {starts}, {seed}, {coverage}"
        )
    if uncertainty not in ("bootstrap", "laplace"):
        raise ValueError(f"uncertainty must be 'bootstrap' or 'laplace', got {uncertainty!r}")
    objective = objective or default_objective(law)
    held = (constraints or Constraints()).resolve(law)
    sd = _known_sd(law, runs, objective)
    data = prepare(law, runs, weights=weights, sd=sd, cluster=cluster)
    if objective.residual == "log" and sd:
        data = replace(data, weights=data.weights * data.y**2 / np.mean(data.weights * data.y**2))
    place = coordinates(law, data.x, data.y, held, objective)
    problem = Problem(
        model_of(law, data.x, place.base, place.spread), data.y, objective, place.low, place.high
    )
    found = _search(problem, place, data, starts, progress)
    if place.priors:
        problem, found = _with_priors(problem, place, data, found)
    best = int(np.argmin(found.value))
    if not np.isfinite(found.value[best]):
        raise ValueError(
            f"{law.slug} is undefined (not finite or not positive) on these rows from all {starts} starts. "
            "Check the bounds, the units, or the law's value()"
        )
    psi, value = found.psi[best], float(found.value[best])
    agreeing = float(np.mean(found.value <= value + SAME * max(abs(value), 1e-300)))
    rng = np.random.default_rng(seed)
    residuals = problem.residuals(psi[None])[0][0]
    info = information(problem, place, psi, data.weights, robust_sd(residuals, len(place.names)))
    cloud, complete, settled = psi[None], True, 1.0
    if draws and uncertainty == "laplace":
        cloud = laplace(problem, psi, data.weights, data.clusters, draws, rng)
    elif draws:
        cloud, complete, settled = bootstrap(
            problem, _ridge(found, place), _others(found), data.weights, data.clusters, draws, rng, progress
        )
    theta, all_draws = place.theta(psi), place.theta(cloud)
    if not held.named:
        theta, all_draws = law.canonical(theta), law.canonical(all_draws)
    edges = [name for name, edge in zip(place.names, at_bounds(place, psi), strict=True) if edge]
    warnings = [
        *[f for f in check(runs, axes=_columns(law, runs), target=law.target) if f.level != "note"],
        *cautions.open_directions(place, info, edges, separation(law, all_draws, data)),
        *cautions.sample_size(data, place, agreeing, draws, len(all_draws), uncertainty),
        *cautions.draws_at_edges(place, edges, cloud, settled),
        *([] if found.converged[best] else [cautions.not_converged(law)]),
    ]
    return Fit(
        law=law,
        theta=theta,
        draws=all_draws if draws else np.empty((0, len(theta))),
        status=_statuses(place, edges),
        objective=objective,
        value=value / (len(data) if objective.reduction == "mean" else 1),
        agreeing_starts=agreeing,
        starts=starts,
        result=_result(complete, bool(found.converged[best]), warnings),
        warnings=tuple(warnings),
        removed=data.removed,
        x=data.x,
        y=data.y,
        rows=data.rows,
        residuals=residuals,
        weights=data.weights,
        uncertainty=uncertainty if not cluster else f"{uncertainty} by {cluster}",
        condition=info.condition,
        constraints=held,
        coverage=coverage,
        seed=seed,
        source=runs.source,
        fingerprint=data.fingerprint,
        units={name: runs.units.get(name, "") for name in (*law.axes, law.target)},
        derived={name: how for name, how in runs.derive().derived.items() if name in law.axes},
    )


def _result(complete: bool, converged: bool, warnings: list[Finding]) -> Result:
    if any(entry.code in cautions.UNIDENTIFIED for entry in warnings):
        return "not-identified"
    if not complete:
        return "interrupted"
    return "identified" if converged else "not-converged"


def default_objective(law: Law) -> Objective:
    """Huber with delta 1e-3, on log residuals for losses, on plain ones where the target may reach 0."""
    return Huber(residual="log" if law.target == "loss" else "linear")


def _columns(law: Law, runs: Runs) -> list[str]:
    """The columns behind the law's axes; one that is absent and has a default is its default's."""
    return [*dict.fromkeys(axis if axis in runs else law.defaults.get(axis, axis) for axis in law.axes)]


def _known_sd(law: Law, runs: Runs, objective: Objective) -> str | None:
    name = f"{law.target}_sd"
    return name if objective.name == "gaussian" and name in runs else None


def _search(
    problem: Problem, place: Coordinates, data: Data, starts: int, progress: Progress | None
) -> Minima:
    """Descend from all starts; on a long table on every k-th row first."""
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
    return _polish(problem, found, data.weights)


def _descend(problem: Problem, psi: Array, weights: Array) -> Minima:
    """From afar: cautious steps, to a tolerance that tells minima apart."""
    return minimise(problem, psi, weights, caution=0.3, tolerance=1e-9, limit=150)


def _polish(problem: Problem, coarse: Minima, weights: Array) -> Minima:
    """Newton steps until nothing lowers the objective, once for all starts that came to one place."""
    groups = _same_place(coarse)
    if not groups:
        return coarse
    first = np.array([group[0] for group in groups])
    fine = minimise(problem, coarse.psi[first], weights, tolerance=1e-16)
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


def _with_priors(problem: Problem, place: Coordinates, data: Data, found: Minima) -> tuple[Problem, Minima]:
    """Weigh the priors by the noise around the fit with them: alternate until the noise stands still."""
    temperature = 0.0
    for _ in range(50):
        before = temperature
        best = found.psi[np.argmin(found.value)]
        r = problem.residuals(best[None])[0][0]
        temperature = problem.objective.temperature(r, data.weights)
        problem = replace(problem, priors=place.priors, temperature=temperature)
        found = _polish(problem, _descend(problem, found.psi, data.weights), data.weights)
        if abs(temperature - before) <= 1e-6 * temperature:
            break
    return problem, found


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


def _statuses(place: Coordinates, edges: list[str]) -> tuple[str, ...]:
    on_edge = {name for group in edges for name in group.split("=")}
    return tuple(
        "at-bound" if name in on_edge else status
        for name, status in zip(place.law.names, place.status, strict=True)
    )
