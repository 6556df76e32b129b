"""From a few training curves to the whole curve under any other schedule: the verb ``schedule fit``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.coordinates import Coordinates, coordinates
from isoloss.fitting.curves import Curve, curves_of, fingerprint
from isoloss.fitting.data import Data
from isoloss.fitting.diagnose import at_bounds, information
from isoloss.fitting.minimise import Problem
from isoloss.fitting.model import model_of
from isoloss.fitting.objective import Huber, Objective
from isoloss.fitting.schedule_fit import UNSEEN, ScheduleFit
from isoloss.fitting.search import Posed, search
from isoloss.fitting.uncertainty import Progress, bootstrap, by_rows, robust_sd
from isoloss.laws.schedules import get
from isoloss.laws.schedules.schedule_law import ScheduleLaw
from isoloss.runs import Finding, Removed, Runs

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 20  # rows of a curve that are drawn together: their residuals are alike
FEWEST = 4  # blocks of a curve
GAP = 4.0  # times the usual distance of two rows
LOWERED = 0.05  # of the peak: less than that given up shows nothing of an annealing
SAME = 1e-6  # starts whose objectives differ by less than this share found the same minimum
WIDE = 0.25  # a standard deviation of a quarter of the box
ALIKE = 1.05  # peaks within this factor are one


def fit_schedules(
    law: ScheduleLaw | str,
    curves: Sequence[Curve] | Runs | Any,
    *,
    warmup: int | None = None,
    fix: Mapping[str, float] | None = None,
    objective: Objective | None = None,
    draws: int = 200,
    starts: int = 16,
    coverage: float = 0.9,
    unseen: float = UNSEEN,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScheduleFit:
    """Fit a law of schedules to one or more training curves of one model, batch, optimiser and peak rate.

    Every curve weighs the same, however often it was logged. The joint draws are refits of resampled curves: blocks
    of 20 neighbouring rows are drawn together, because their residuals are alike (moving on a curve by one row
    changes little), so rows drawn one by one would promise far too much.

    Args:
        law: ``"multi-power"`` or ``"lr-annealing"``, or an instance.
        curves: :class:`Curve` each, or a table as :func:`isoloss.fitting.curves.curves_of` takes.
        warmup: see there.
        fix: values held: ``{"memory": 1000}`` is Tissue et al.'s lambda 0.999.
        objective: default ``Huber(delta=1e-3)`` on log residuals, as both papers.
        draws: joint parameter draws kept.
        starts: how many starting points.
        coverage: of the intervals in tables.
        unseen: standard deviation of the log loss by which a law misses a schedule that it was not fitted on,
            beyond the draws; see :meth:`ScheduleFit.predict`.
        seed: same seed and same rows, same draws.
        progress: called with (what, done, total).

    Raises:
        ValueError: wrong names or values. NoAnswer: no curve lowers its rate, so nothing shows what that brings;
            or too few rows.

    Example:
        >>> import numpy as np
        >>> from isoloss.laws.schedules.schedule import Schedule
        >>> law, theta = get("lr-annealing"), [2.0, 1.0, 0.5, 0.2, 100.0]
        >>> steps = np.arange(50.0, 1001.0, 25.0)
        >>> planted = [Curve(s.words, s, steps, law.value(theta, s, steps)) for s in (
        ...     Schedule.constant(steps=1000, peak=0.01), Schedule.cosine(steps=1000, peak=0.01, end=0.001))]
        >>> found = fit_schedules("lr-annealing", planted, draws=0)
        >>> {name: round(value, 4) for name, value in found.values.items()}
        {'L0': 2.0, 'A': 1.0, 'alpha': 0.5, 'C': 0.2, 'memory': 100.0}
    """
    law = get(law) if isinstance(law, str) else law
    if not isinstance(law, ScheduleLaw):
        raise TypeError(
            f"needed a law of schedules or its name, got {law!r}. A class must be called: MultiPower()"
        )
    if draws < 0 or starts < 1 or seed < 0 or not 0 < coverage < 1:
        raise ValueError(
            "needed draws >= 0, starts >= 1, seed >= 0 and 0 < coverage < 1, got "
            f"{draws}, {starts}, {seed}, {coverage}"
        )
    if not (math.isfinite(unseen) and unseen >= 0):
        raise ValueError(f"needed unseen at or above 0, a standard deviation of the log loss, got {unseen}")
    objective = Huber() if objective is None else objective
    if objective.has_scale or objective.residual != "log":
        raise ValueError(
            "schedules are fitted with huber or least-squares on log residuals, got another objective"
        )
    source, removed, seen = _curves(curves, warmup)
    held = Constraints(fix=dict(fix or {}))
    for part in law.parameters:
        if not part.low <= held.fix.get(part.name, part.low) <= part.high:
            raise ValueError(
                f"{law.slug} needs {part.name} from {part.low:g} to {part.high:g}, got {held.fix[part.name]:g} held"
            )
    _refuse_blind(law, seen, held)
    posed = _pose(law, seen, objective, held)
    problem, found = search(posed, starts, progress)
    best = int(np.argmin(found.value))
    psi, value = found.psi[best], float(found.value[best])
    if not np.isfinite(value):
        raise ValueError(
            f"{law.slug} is not defined on these curves from all {starts} starts. Check rates and losses"
        )
    agreeing = float(np.mean(found.value <= value + SAME * max(abs(value), 1e-300)))
    cloud, complete, settled = psi[None], True, 1.0
    if draws:
        rng = np.random.default_rng(seed)
        redraw = by_rows(posed.data.weights, posed.data.clusters)
        others = np.empty((0, len(psi)))
        cloud, complete, settled = bootstrap(problem, psi[None], others, redraw, draws, rng, progress)
    residuals = problem.residuals(psi[None])[0][0]
    place = posed.place
    theta, joint = (_exact(place.theta(each), law, held) for each in (psi, cloud))
    edges = [name for name, edge in zip(place.names, at_bounds(place, psi), strict=True) if edge]
    info = information(problem, place, psi, posed.data.weights, robust_sd(residuals, len(place.names)))
    warnings = [
        *_about_curves(seen),
        *_about_parameters(place, edges, info.flat, info.flat_sd),
        *_about_search(agreeing, bool(found.converged[best]), settled, draws, len(cloud) if draws else draws),
    ]
    ends = np.cumsum([len(curve.steps) for curve in seen])[:-1]
    return ScheduleFit(
        law=law,
        theta=theta,
        draws=joint if draws else np.empty((0, len(law.parameters))),
        status=tuple("at-bound" if n in edges else s for n, s in zip(law.names, place.status, strict=True)),
        curves=seen,
        residuals=tuple(np.split(residuals, ends)),
        objective=objective,
        value=value,
        agreeing_starts=agreeing,
        starts=starts,
        result="interrupted" if not complete else "fitted" if found.converged[best] else "not-converged",
        warnings=tuple(warnings),
        removed=removed,
        fix=dict(held.fix),
        unseen=unseen,
        coverage=coverage,
        seed=seed,
        source=source,
        fingerprint=fingerprint(seen),
    )


def _curves(curves: Any, warmup: int | None) -> tuple[str, tuple[Removed, ...], tuple[Curve, ...]]:
    if isinstance(curves, Sequence) and curves and all(isinstance(entry, Curve) for entry in curves):
        names = [curve.name for curve in curves]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two curves are named {twice[0]!r}. Give each its own name")
        return "memory", (), tuple(curves)
    from isoloss.runs import read

    runs = curves if isinstance(curves, Runs) else read(curves)
    found, removed = curves_of(runs, warmup=warmup)
    return runs.source, removed, found


def _exact(theta: Array, law: ScheduleLaw, held: Constraints) -> Array:
    """Theta (..., P) with the values held as they were given, not as the exponential of their logarithm."""
    for name, value in held.fix.items():
        theta[..., law.names.index(name)] = value
    return theta


def _refuse_blind(law: ScheduleLaw, curves: Sequence[Curve], held: Constraints) -> None:
    """Refuse curves that cannot show what a lowered rate brings."""
    rows, free = sum(len(curve.steps) for curve in curves), len(law.names) - len(held.fix)
    if rows < free + 3:
        raise NoAnswer(
            f"{rows} logged losses cannot determine {free} parameters", f"at least {free + 3} of them"
        )

    def given_up(curve: Curve) -> float:
        after = curve.schedule.rates[curve.schedule.warmup : int(curve.steps[-1]) + 1]
        return 1.0 - float(after.min()) / curve.schedule.peak

    if max(given_up(curve) for curve in curves) < LOWERED:
        raise NoAnswer(
            "no curve lowers its learning rate while it is logged, so nothing shows what a decay brings",
            "a curve with a decay: cosine, or two stages",
        )


def _pose(law: ScheduleLaw, curves: Sequence[Curve], objective: Objective, held: Constraints) -> Posed:
    on = law.on([curve.schedule for curve in curves])
    counts = [len(curve.steps) for curve in curves]
    x = {
        "curve": np.repeat(np.arange(1.0, len(curves) + 1), counts),
        "step": np.concatenate([curve.steps for curve in curves]),
    }
    y = np.concatenate([curve.loss for curve in curves])
    weights = np.repeat([len(y) / (len(curves) * count) for count in counts], counts)
    clusters, first = [], 0
    for count in counts:
        blocks = max(min(FEWEST, count), round(count / BLOCK))
        clusters.append(first + np.arange(count) * blocks // count)
        first += blocks
    data = Data(x, y, weights, np.concatenate(clusters), np.arange(1, len(y) + 1), (), "")
    place = coordinates(on, x, y, held.resolve(on), objective)
    model = model_of(on, x, place.base, place.spread)
    return Posed(data, place, Problem(model, y, objective, place.low, place.high))


def _about_curves(curves: Sequence[Curve]) -> list[Finding]:
    out = []
    if len(curves) == 1:
        out.append(
            Finding(
                "few-schedules", "warning", (), "curve",
                f"the fit rests on one curve, {curves[0].name}",
                "along one curve step and rate move together, so what is due to which is open",
                "add a curve under another schedule; constant, cosine and two stages together tell them apart",
            )
        )  # fmt: skip
    for curve in curves:
        for begin, end, before, after in _gaps(curve):
            out.append(
                Finding(
                    "gap-in-log", "warning", (), curve.name,
                    f"{curve.name} has no row between steps {begin:.0f} and {end:.0f}, while its rate goes from "
                    f"{before:.3g} to {after:.3g}",
                    "when it changed is not in the log: here at the later step where it is constant around the gap, "
                    "else along a straight line; losses after it are then held against a wrong schedule",
                    "add rows in between, give the curve its schedule (curves_of(table, schedules={...})), or leave "
                    f"it out: --where \"curve != '{curve.name}'\"",
                )
            )  # fmt: skip
    peaks = [curve.schedule.peak for curve in curves]
    if max(peaks) > ALIKE * min(peaks):
        out.append(
            Finding(
                "peaks-differ", "warning", (), "lr",
                f"the curves' peak rates are {min(peaks):g} to {max(peaks):g}",
                "both laws hold for one peak rate, batch and optimiser: with the peak the constants change",
                "fit the curves of each peak rate apart",
            )
        )  # fmt: skip
    return out


def _gaps(curve: Curve) -> list[tuple[float, float, float, float]]:
    """Stretches of a log without rows over which the rate changes: steps, and rates, before and after."""
    if curve.schedule.origin["kind"] != "table" or len(curve.schedule.origin["steps"]) < 3:
        return []
    steps, rates = (np.asarray(curve.schedule.origin[name], dtype=float) for name in ("steps", "rates"))
    wide = np.diff(steps) > GAP * np.median(np.diff(steps))
    changed = np.abs(np.diff(rates)) > LOWERED * curve.schedule.peak
    return [(steps[i], steps[i + 1], rates[i], rates[i + 1]) for i in np.flatnonzero(wide & changed)]


def _about_parameters(place: Coordinates, edges: list[str], flat: Array, sd: float) -> list[Finding]:
    out = []
    if sd > WIDE:
        loudest = np.argsort(-np.abs(flat))[:3]
        names = [place.names[j] for j in loudest if abs(flat[j]) > 0.1]
        out.append(
            Finding(
                "flat-direction", "warning", (), None,
                f"the curves leave {', '.join(names)} open along one direction",
                "many parameter values fit equally well, so each value alone means nothing; the draws follow them",
                "predict with the draws, not with the parameters; add a curve that ends at another rate, or fix one",
            )
        )  # fmt: skip
    for name in edges:
        out.append(
            Finding(
                "at-bound", "warning", (), name,
                f"the estimate of {name} lies on its bound",
                "the data would push it further: the value is the bound's, not the data's",
                "add a curve with another decay, or fix the parameter",
            )
        )  # fmt: skip
    return out


def _about_search(agreeing: float, converged: bool, settled: float, draws: int, done: int) -> list[Finding]:
    out = []
    if agreeing < 0.1:
        out.append(
            Finding(
                "few-agreeing-starts", "warning", (), None,
                f"only {agreeing:.0%} of the starts reached the best minimum",
                "a better one may exist",
                "raise --starts",
            )
        )  # fmt: skip
    if not converged:
        out.append(
            Finding(
                "not-converged", "warning", (), None,
                "the minimiser ran out of steps before the objective stopped falling",
                "the parameters are not at a minimum, and another start may give others",
                "raise --starts, or add a curve under another schedule",
            )
        )  # fmt: skip
    if settled < 0.9:
        out.append(
            Finding(
                "unsettled-draws", "warning", (), None,
                f"{1 - settled:.1%} of the resamples ran out of steps before their minimum",
                "their parameters are somewhat off, so intervals are blurred",
                "add a curve under another schedule, or fix a parameter",
            )
        )  # fmt: skip
    if done < draws:
        out.append(
            Finding(
                "interrupted", "warning", (), None,
                f"{done} of {draws} draws were done",
                "intervals from fewer draws are noisier",
                "run again for all draws; the same seed repeats these",
            )
        )  # fmt: skip
    return out
