"""Free coordinates of a fit: which numbers the minimiser moves, and in what box."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.constraints import Constraints
from isoloss.fitting.minimise import Prior
from isoloss.fitting.objective import Objective
from isoloss.laws.law import Law, Parameter
from isoloss.laws.parts.composed import Composed
from isoloss.laws.power_sum import Term

Array = np.ndarray[Any, np.dtype[Any]]

# A term's value at the centre of the data, relative to the median target. Below exp(-16) it is zero to
# any measurement; starts fill the part where a term can matter.
TERM_BOX = (-16.0, 5.0)
TERM_STARTS = (-5.0, 0.5)
SCALE_BOX = (-18.0, 3.0)
SCALE_STARTS = (-5.0, -2.0)


@dataclass(frozen=True)
class Coordinates:
    """``phi = base + psi @ spread``: free psi (p,) to the law's own phi (P,), logs of positive parameters.

    Attributes:
        low, high: hard box of psi (and the log scale last, if the objective has one).
        start_low, start_high: where starts are drawn.
        names: one name per free coordinate; tied parameters are joined by ``=``.
        status: per parameter of the law, ``fitted``, ``fixed``, ``tied`` or ``borrowed``.
    """

    law: Law
    base: Array
    spread: Array
    low: Array
    high: Array
    start_low: Array
    start_high: Array
    names: tuple[str, ...]
    status: tuple[str, ...]
    priors: tuple[Prior, ...]
    has_scale: bool

    def theta(self, psi: Array) -> Array:
        """Natural parameters (..., P) of free coordinates (..., q)."""
        free = psi[..., : len(self.names)]
        phi = self.base + free @ self.spread
        logs = np.array([parameter.scale == "log" for parameter in self.law.parameters])
        return np.asarray(np.where(logs, np.exp(np.clip(phi, -700, 700)), phi))

    def starts(self, count: int) -> Array:
        """``count`` points that fill the start box evenly: the R sequence of Roberts (2018), no seed."""
        dimension = len(self.start_low)
        ratio = 2.0
        for _ in range(60):  # the root of x^(d+1) = x + 1, the d-dimensional golden ratio
            ratio = (1.0 + ratio) ** (1.0 / (dimension + 1))
        steps = ratio ** -np.arange(1, dimension + 1)
        unit = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1.0
        return np.asarray(self.start_low + unit * (self.start_high - self.start_low))


def coordinates(
    law: Law, x: Mapping[str, Array], y: Array, constraints: Constraints, objective: Objective
) -> Coordinates:
    """The free coordinates of ``law`` under resolved ``constraints`` for the data at hand."""
    groups = _groups(law, constraints)
    names = tuple("=".join(group) for group in groups)
    order = {name: j for j, group in enumerate(groups) for name in group}
    size = len(law.parameters)
    base, spread = np.zeros(size), np.zeros((len(groups), size))
    ranges = law.ranges(x, y)
    boxes = {p.name: _box(p, ranges.get(p.name, (p.low, p.high)), constraints) for p in law.parameters}
    for i, parameter in enumerate(law.parameters):
        if parameter.name in constraints.fix:
            base[i] = _to_phi(parameter, constraints.fix[parameter.name])
        else:
            spread[order[parameter.name], i] = 1.0
    low = np.array([max(boxes[name][0] for name in group) for group in groups])
    high = np.array([min(boxes[name][1] for name in group) for group in groups])
    start_low, start_high = low.copy(), high.copy()
    with np.errstate(divide="ignore"):  # an axis that may be 0 is in no term
        terms = law.power_terms({axis: np.log(value) for axis, value in x.items()})
    if terms:
        linked = isinstance(law, Composed) and law.link is not None
        # Behind a link nobody has measured the base's target: its terms are about a nat.
        middle = 0.0 if linked else math.log(float(np.median(np.abs(y))))
        _centre(law, terms, constraints, order, base, spread)
        for name in _free_coefficients(terms, constraints):
            j = order[name]
            low[j], high[j] = middle + TERM_BOX[0], middle + TERM_BOX[1]
            start_low[j], start_high[j] = middle + TERM_STARTS[0], middle + TERM_STARTS[1]
    for name, (mean, sd) in constraints.priors.items():
        _start_near_prior(law, name, mean, sd, order[name], (low, high, start_low, start_high))
    if objective.has_scale:
        unit = 0.0 if objective.residual == "log" else math.log(float(np.median(np.abs(y))))
        low, high = np.append(low, unit + SCALE_BOX[0]), np.append(high, unit + SCALE_BOX[1])
        start_low = np.append(start_low, unit + SCALE_STARTS[0])
        start_high = np.append(start_high, unit + SCALE_STARTS[1])
    priors = tuple(
        _prior(law, name, mean, sd, base, spread, objective.has_scale)
        for name, (mean, sd) in constraints.priors.items()
    )
    return Coordinates(
        law, base, spread, low, high, start_low, start_high, names,
        _status(law, constraints), priors, objective.has_scale,
    )  # fmt: skip


def _groups(law: Law, constraints: Constraints) -> list[tuple[str, ...]]:
    """Free parameters, tied ones together, in the order of theta."""
    groups = []
    for name in law.names:
        tie = next((tuple(group) for group in constraints.tie if name in group), (name,))
        if name not in constraints.fix and (tie[0] == name or name not in tie):
            groups.append(tie)
    return groups


def _status(law: Law, constraints: Constraints) -> tuple[str, ...]:
    tied = {name for group in constraints.tie for name in group[1:]}
    return tuple(
        "borrowed" if name in constraints.borrow
        else "fixed" if name in constraints.fix
        else "tied" if name in tied
        else "fitted"
        for name in law.names
    )  # fmt: skip


def _to_phi(parameter: Parameter, value: float) -> float:
    return math.log(value) if parameter.scale == "log" else value


def _box(
    parameter: Parameter, declared: tuple[float, float], constraints: Constraints
) -> tuple[float, float]:
    low, high = constraints.bounds.get(parameter.name, declared)
    if parameter.scale == "log":
        low = max(low, 1e-300)
    return _to_phi(parameter, low), _to_phi(parameter, high)


def _free_coefficients(terms: Sequence[Term], constraints: Constraints) -> list[str]:
    """Coefficients with no wish of the user's on them: their box follows from the data."""
    held = {*constraints.fix, *constraints.bounds, *(n for group in constraints.tie for n in group)}
    priced = set(constraints.priors)
    return [
        entry.coefficient
        for entry in terms
        if entry.coefficient not in held and not (entry.slopes and entry.coefficient in priced)
    ]


def _centre(
    law: Law,
    terms: Sequence[Term],
    constraints: Constraints,
    order: Mapping[str, int],
    base: Array,
    spread: Array,
) -> None:
    """Make each free coefficient the log value of its term at the centre of the data, in place."""
    free = set(_free_coefficients(terms, constraints))
    position = {name: i for i, name in enumerate(law.names)}
    for entry in terms:
        if entry.coefficient not in free:
            continue
        at = position[entry.coefficient]
        for name, slope in entry.slopes.items():
            mean = float(np.mean(slope))
            base[at] -= mean * base[position[name]]
            spread[:, at] -= mean * spread[:, position[name]]


def _start_near_prior(
    law: Law, name: str, mean: float, sd: float, j: int, boxes: tuple[Array, Array, Array, Array]
) -> None:
    low, high, start_low, start_high = boxes
    parameter = law.parameters[law.names.index(name)]
    ends = (mean - 3 * sd, mean + 3 * sd)
    if parameter.scale == "log":
        ends = (math.log(max(ends[0], mean / 20, 1e-300)), math.log(max(ends[1], 1e-299)))
    start_low[j] = min(max(ends[0], low[j]), high[j])
    start_high[j] = max(min(ends[1], high[j]), start_low[j])


def _prior(law: Law, name: str, mean: float, sd: float, base: Array, spread: Array, scale: bool) -> Prior:
    i = law.names.index(name)
    direction = np.append(spread[:, i], 0.0) if scale else spread[:, i]
    return Prior(mean, sd, float(base[i]), direction, law.parameters[i].scale == "log")
