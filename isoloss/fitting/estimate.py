"""From a table to what we believe: the verb ``fit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting import cautions
from isoloss.fitting.checklist import check_about, checklist
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.coordinates import Coordinates
from isoloss.fitting.diagnose import at_bounds, information, separation, unseen
from isoloss.fitting.draws import HOW, SAME, Cloud, How, choose, draw
from isoloss.fitting.objective import Huber, LeastSquares, Objective
from isoloss.fitting.result import Fit, Result
from isoloss.fitting.search import pose, search
from isoloss.fitting.sensitivity import sensitive_answer, unfinished
from isoloss.fitting.shared import with_shared_error
from isoloss.fitting.uncertainty import Progress, robust_sd
from isoloss.fitting.variants import variants
from isoloss.laws import get
from isoloss.laws.law import Law
from isoloss.runs import Finding, Runs, check, read

Array = np.ndarray[Any, np.dtype[Any]]

_NONE = np.empty(0)
ROUNDING = 1e-20  # of an objective: below it, rows without noise are met to every digit
# Targets that span decades.
DECADES = ("lr", "batch_tokens", "critical_batch", "steps", "max_attention_logit", "pass_rate")


def fit(
    law: Law | str,
    runs: Runs | Any,
    *,
    objective: Objective | None = None,
    constraints: Constraints | None = None,
    draws: int = 1000,
    uncertainty: How = "auto",
    cluster: str | None = None,
    weights: str | None = None,
    starts: int = 64,
    coverage: float = 0.9,
    seed: int = 0,
    sensitivity: bool = True,
    about: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit ``law`` to ``runs`` and say how sure the parameters are.

    Many starts that fill the allowed box descend together with exact derivatives; the best is polished
    until no step lowers the objective. Then come the joint draws, of which every later interval is made:
    from the posterior where rows are few, else from resamples of the rows (or of clusters of rows) that are
    refitted together.

    Args:
        law: a law, or its name (``"hoffmann"``, ``"power(flops)"``, ``"my_laws.py:MyLaw"``).
        runs: a table, or anything :func:`isoloss.read` takes.
        objective: default ``Huber(delta=1e-3)`` on log residuals of losses, on plain ones of other targets;
            least squares in logs for learning rates, batches, steps and logits.
        constraints: fixed, tied, bounded, borrowed or prior-carrying parameters.
        draws: joint parameter draws kept.
        uncertainty: ``"posterior"`` (small tables), ``"bootstrap"`` (rows or clusters drawn anew),
            ``"residual"`` or ``"wild"`` (the design kept, residuals dealt anew or given random signs),
            ``"laplace"`` (t approximation; cheap, symmetric in logs); ``"auto"`` is the posterior below 50
            independent rows, else the bootstrap.
        cluster: column whose equal values are resampled together (family, seed, run).
        weights: column of row weights.
        starts: how many starting points.
        coverage: of the intervals in tables.
        seed: same seed and same rows (in any order), same draws.
        sensitivity: also refit with other objectives, forms and rows, without draws
            (:func:`isoloss.fitting.variants.variants`).
        about: what the table does not say of the runs, for the checklist: ``{"schedule": "cosine to 10 %"}``;
            keys in :data:`isoloss.fitting.checklist.STATED`.
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
    asked, law = law, law.given(runs.columns)
    if objective is not None and not isinstance(objective, Objective):
        raise TypeError(f"fit needs an objective such as isoloss.Huber(delta=1e-3), got {objective!r}")
    if not all(isinstance(number, int | np.integer) for number in (draws, starts, seed)):
        raise TypeError(f"fit needs whole numbers for draws, starts and seed, got {draws}, {starts}, {seed}")
    if draws < 0 or starts < 1 or seed < 0 or not 0 < coverage < 1:
        raise ValueError(
            "fit needs draws >= 0, starts >= 1, seed >= 0 and 0 < coverage < 1, got "
            f"{draws}, {starts}, {seed}, {coverage}"
        )
    if uncertainty not in HOW:
        raise ValueError(f"uncertainty must be one of {', '.join(HOW)}, got {uncertainty!r}")
    if cluster and uncertainty in ("posterior", "residual"):
        raise ValueError(
            f"{uncertainty} needs rows with noise of their own, got cluster={cluster!r}. Leave cluster out, or "
            "use bootstrap, wild or laplace"
        )
    about = check_about(about)
    found = _fit(
        law, asked, runs, objective or default_objective(law), (constraints or Constraints()).resolve(law), draws,
        uncertainty, cluster, weights, starts, coverage, seed, progress,
    )  # fmt: skip
    found = with_shared_error(found, runs)
    if sensitivity and found.result != "interrupted":
        found = _with_variants(found, runs, weights)
    return replace(found, checklist=checklist(found, runs, about, weights))


def _with_variants(found: Fit, runs: Runs, weights: str | None) -> Fit:
    """The fit with its sensitivity table, and a warning where reasonable choices disagree."""
    try:
        table = variants(found, runs, weights)
    except KeyboardInterrupt:  # the draws took longer: keep them
        return replace(found, warnings=(*found.warnings, unfinished()))
    moved: tuple[Finding, ...] = ()
    if len(found.draws) and not any(entry.code == "too-few-rows" for entry in found.warnings):
        at: dict[str, Any] = dict(table[0].at)
        try:
            spread = found.predict(of="mean", **at)
        except NoAnswer:  # a law that is not defined there in some draws has no interval to compare with
            return replace(found, sensitivity=table)
        moved = sensitive_answer(table, float(spread.low[0]), float(spread.high[0]), spread.coverage)
    return replace(found, sensitivity=table, warnings=(*found.warnings, *moved))


def _fit(
    law: Law,
    asked: Law,
    runs: Runs,
    objective: Objective,
    held: Constraints,
    draws: int,
    uncertainty: How,
    cluster: str | None,
    weights: str | None,
    starts: int,
    coverage: float,
    seed: int,
    progress: Progress | None,
) -> Fit:
    """The fit alone, all settings checked and resolved."""
    posed = pose(law, runs, objective, held, weights, cluster)
    data, place = posed.data, posed.place
    problem, found = search(posed, starts, progress)
    best = int(np.argmin(found.value))
    if not np.isfinite(found.value[best]):
        raise ValueError(
            f"{law.slug} is undefined (not finite or not positive) on these rows from all {starts} starts. "
            "Check the bounds, the units, or the law's value()"
        )
    psi, value = found.psi[best], float(found.value[best])
    agreeing = float(np.mean(found.value <= value + SAME * abs(value) + ROUNDING))
    rng = np.random.default_rng(seed)
    residuals = problem.residuals(psi[None])[0][0]
    info = information(problem, place, psi, data.weights, robust_sd(residuals, len(place.names)))
    how = choose(uncertainty, problem, psi, data, cluster is not None)
    cloud = (
        draw(how, problem, found, place, data, draws, rng, progress)
        if draws
        else Cloud(how, psi[None], _NONE)
    )
    theta, all_draws = place.theta(psi), place.theta(cloud.psi)
    if not held.named:
        theta, all_draws = law.canonical(theta), law.canonical(all_draws)
    edges = [name for name, edge in zip(place.names, at_bounds(place, psi), strict=True) if edge]
    warnings = [
        *[f for f in _findings(law, runs) if f.level != "note"],
        *cautions.confounded(law, unseen(problem, place, psi)),
        *cautions.open_directions(place, info, edges, separation(law, all_draws, data)),
        *cautions.sample_size(data, place, agreeing, draws, len(all_draws), how),
        *cautions.draws_at_edges(place, edges, cloud.psi, cloud.settled),
        *cautions.ensembles(cloud.agreement),
        *([] if found.converged[best] else [cautions.not_converged(law)]),
        *cautions.about_law(law, asked, held),
    ]
    return Fit(
        law=law,
        theta=theta,
        draws=all_draws if draws else np.empty((0, len(theta))),
        scales=cloud.scale,
        status=_statuses(place, edges),
        objective=objective,
        value=value / (len(data) if objective.reduction == "mean" else 1),
        agreeing_starts=agreeing,
        starts=starts,
        result=_result(cloud.complete, bool(found.converged[best]), warnings),
        warnings=tuple(warnings),
        removed=data.removed,
        x=data.x,
        y=data.y,
        rows=data.rows,
        residuals=residuals,
        weights=data.weights,
        uncertainty=how if not cluster else f"{how} by {cluster}",
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
    """Huber with delta 1e-3, on log residuals for losses, on plain ones where the target may reach 0.

    Rates, batches, steps, logits and pass rates span decades, scatter by per cents and are regressed in logs, as in
    their papers.
    """
    if law.target in DECADES:
        return LeastSquares()
    return Huber(residual="log" if law.target == "loss" else "linear")


def _findings(law: Law, runs: Runs) -> list[Finding]:
    """What the check of the table says of the columns that the law reads."""
    return check(
        runs,
        axes=_columns(law, runs),
        target=law.target,
        may_be_zero=[axis for axis in law.may_be_zero if axis in runs],
        signed=law.signed,
    )


def _columns(law: Law, runs: Runs) -> list[str]:
    """The columns behind the law's axes; one that is absent and has a default is its default's."""
    return [*dict.fromkeys(axis if axis in runs else law.defaults.get(axis, axis) for axis in law.axes)]


def _statuses(place: Coordinates, edges: list[str]) -> tuple[str, ...]:
    on_edge = {name for group in edges for name in group.split("=")}
    return tuple(
        "at-bound" if name in on_edge else status
        for name, status in zip(place.law.names, place.status, strict=True)
    )
