"""Profile likelihood of one parameter: an interval that needs no draws and follows a lopsided likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.objective import Objective
from isoloss.fitting.result import Fit
from isoloss.fitting.search import AGREED, nearby, pose
from isoloss.runs import read
from isoloss.special import student_quantile

Array = np.ndarray[Any, np.dtype[Any]]

STEPS = 40  # outward on each side, each 1.35 times the last: a factor of 160,000 in all
GROWTH = 1.35
HALVINGS = 12


@dataclass(frozen=True, eq=False)
class Profile:
    """The interval of one parameter, and the curve behind it.

    Attributes:
        name: the parameter.
        value: its estimate.
        low, high: ends of the interval; at its own end of the allowed range where the likelihood never falls
            far enough, so that nothing in the rows bounds that side.
        bounded: whether the rows bound the lower and the upper side.
        coverage: of the interval.
        at, deviance: values tried, sorted, and twice the drop of the log likelihood there, other parameters
            refitted each time.

    Example:
        >>> import isoloss
        >>> table = {"tokens": [1e6, 2e6, 4e6, 8e6], "loss": [2.0, 1.8, 1.7, 1.5]}
        >>> ends = isoloss.profile(isoloss.fit("power", table, objective=isoloss.LeastSquares()), "c")
        >>> ends.low < ends.value < ends.high, ends.bounded
        (True, (True, True))
    """

    name: str
    value: float
    low: float
    high: float
    bounded: tuple[bool, bool]
    coverage: float
    at: Array
    deviance: Array


def profile(fit: Fit, name: str, *, coverage: float | None = None) -> Profile:
    r"""Where a parameter can lie without the likelihood falling too far, all others refitted.

    .. math:: \{v : 2(\ell_{max} - \ell(v)) \le n \log(1 + t^2/(n-p))\},

    t the quantile of Student's distribution with n - p degrees of freedom: for a linear law with normal
    noise this is the exact interval at any n. The noise scale is refitted too. For a Huber loss the
    likelihood is that of its density, and the drop is divided by the squared widening of
    :meth:`isoloss.Objective.spread`, for its curvature overstates what the estimate knows.

    Args:
        fit: what :func:`isoloss.fit` gave.
        name: a fitted parameter.
        coverage: default the fit's.

    Raises:
        ValueError: no such parameter, or it was not fitted. NoAnswer: too few rows, or no noise to judge by.

    Example:
        >>> import isoloss
        >>> import numpy as np
        >>> tokens = np.array([1e6, 2e6, 4e6, 8e6, 16e6])
        >>> loss = 30 * tokens**-0.2 * np.array([1.01, 0.99, 1.0, 0.99, 1.01])
        >>> found = isoloss.fit("power", {"tokens": tokens, "loss": loss}, objective=isoloss.LeastSquares())
        >>> ends = isoloss.profile(found, "c")
        >>> round(ends.low, 3), round(ends.high, 3)
        (0.188, 0.212)
    """
    coverage = fit.coverage if coverage is None else coverage
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if name not in fit.law.names:
        raise ValueError(f"{fit.law.slug} has no parameter {name!r}, only {', '.join(fit.law.names)}")
    place = fit.law.names.index(name)
    if fit.status[place] not in ("fitted", "at-bound") or any(name in group for group in fit.constraints.tie):
        raise ValueError(f"{name} is {fit.status[place]}, not fitted by itself. Profile one that is fitted")
    n, p = len(fit.y), fit.free
    if n <= p:
        raise NoAnswer(f"{n} rows leave no residual to judge {p} parameters by", f"at least {p + 1} rows")
    if not np.any(np.abs(fit.residuals) > 1e-9):
        raise NoAnswer(
            "the law passes through every row, so there is no noise to judge by", "measured losses"
        )
    likelihood = _Likelihood(fit, name)
    limit = n * math.log1p(student_quantile((1 + coverage) / 2, n - p) ** 2 / (n - p))
    value = float(fit.theta[place])
    tried: dict[float, float] = {value: 0.0}
    parameter = fit.law.parameters[place]
    least, most = fit.constraints.bounds.get(name, (parameter.low, parameter.high))
    ranges = fit.law.ranges(fit.x, fit.y)
    if name in ranges and name not in fit.constraints.bounds:
        least, most = ranges[name]
    first = fit.parameters[name].stderr
    step = 0.2 * first if math.isfinite(first) and first > 0 else 1e-3 * max(abs(value), 1e-6)
    log = parameter.scale == "log"
    if log:
        step = min(step / value, 0.5)
    ends, bounded = [], []
    for sign, edge in ((-1.0, least), (1.0, most)):
        end, held = _end(likelihood, value, sign * step, edge, limit, log, tried)
        ends.append(end)
        bounded.append(held)
    at = np.array(sorted(tried))
    deviance = np.array([tried[v] for v in at])
    return Profile(name, value, ends[0], ends[1], (bounded[0], bounded[1]), coverage, at, deviance)


def _end(
    deviance: Callable[[float], float],
    value: float,
    step: float,
    edge: float,
    limit: float,
    log: bool,
    tried: dict[float, float],
) -> tuple[float, bool]:
    """Walk out until the deviance passes the limit, then halve; the edge if it never does."""

    def moved(distance: float) -> float:
        out = value * math.exp(distance) if log else value + distance
        return min(out, edge) if step > 0 else max(out, edge)

    inside, distance = 0.0, step
    for _ in range(STEPS):
        at = moved(distance)
        tried[at] = deviance(at)
        if tried[at] > limit:
            break
        if at == edge:
            return edge, False
        inside, distance = distance, distance * GROWTH
    else:
        return moved(distance), False
    outside = distance
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        at = moved(middle)
        tried[at] = deviance(at)
        if tried[at] > limit:
            outside = middle
        else:
            inside = middle
    return moved(0.5 * (inside + outside)), True


class _Likelihood:
    """Twice the drop of the log likelihood with one parameter held."""

    def __init__(self, fit: Fit, name: str) -> None:
        self.fit, self.name = fit, name
        table = {**fit.x, fit.law.target: fit.y, "weight": fit.weights}
        self.runs = read(table)
        self.theta = fit.theta
        self.scale = float(np.sqrt(np.mean(fit.residuals**2)))
        self.best, self.shrink = self._height(fit.residuals)

    def __call__(self, value: float) -> float:
        held = self.fit.constraints
        fixed = Constraints({**held.fix, self.name: value}, held.tie, held.bounds, held.priors, held.borrow)
        posed = pose(self.fit.law, self.runs, self.fit.objective, fixed, "weight")
        problem, found = nearby(posed, self.theta, self.scale, self.fit.agreeing_starts >= AGREED)
        best = found.psi[np.argmin(found.value)]
        self.theta = posed.place.theta(best)  # the next value is near this one
        height, _ = self._height(problem.residuals(best[None])[0][0], posed.data.weights)
        return 2.0 * (self.best - height) / self.shrink

    def _height(self, r: Array, weights: Array | None = None) -> tuple[float, float]:
        """The log likelihood at the best scale, and the square of the widening."""
        w = self.fit.weights if weights is None else weights
        objective = self.fit.objective
        if objective.has_scale:
            return _best_scale(objective, r, w), 1.0
        kappa = np.array([objective.temperature(r, w)])
        total = float(np.sum(w))
        height = -float(np.sum(w * objective.rho(r))) / kappa[0] - total * objective.log_normaliser(kappa)[0]
        return float(height), objective.spread(kappa)[0] ** 2


def _best_scale(objective: Objective, r: Array, w: Array) -> float:
    """Highest log likelihood over the scale; golden-section search in its log."""
    middle = math.log(max(float(np.sqrt(np.sum(w * r * r) / np.sum(w))), 1e-300))
    low, high = middle - 6.0, middle + 2.0

    def height(s: float) -> float:
        return float(-np.sum(w * objective.rho(r * math.exp(-s))) - s * np.sum(w))

    golden = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if height(a) > height(b):
            high = b
        else:
            low = a
    return height(0.5 * (low + high))
