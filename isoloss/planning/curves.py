"""Curves through the plane for pictures: along one budget, along one loss, and along the optima."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.planning import costs
from isoloss.planning.axes import PLANE, settle
from isoloss.planning.belief import Belief, belief
from isoloss.planning.budget import Budget
from isoloss.planning.question import question
from isoloss.planning.result import spread
from isoloss.planning.search import Optima, best_loss, tokens_for
from isoloss.planning.surface import Limit, Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Band:
    """A curve with its interval, each (n,); NaN without draws, infinite where no amount is enough.

    ``value`` is of the best parameters; ``median``, ``low`` and ``high`` are over the draws.
    """

    value: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of one FLOP budget or one loss: sizes, tokens and loss.

    On an IsoFLOP curve ``loss`` has the interval, on an isoloss curve ``tokens`` has it.
    """

    params: Array
    tokens: Band
    loss: Band
    coverage: float


@dataclass(frozen=True, eq=False)
class Frontier:
    """The compute-optimal point at each of many budgets: each draw's own optimum makes the bands."""

    flops: Array
    params: Band
    tokens: Band
    loss: Band
    coverage: float


def isoflop_curve(
    source: Fit | Law | str,
    flops: float,
    points: int = 101,
    *,
    span: float = 30.0,
    coverage: float | None = None,
    theta: Any = None,
    hold: Mapping[str, float] | None = None,
) -> Curve:
    """Loss against size with all of ``flops`` spent, :math:`D = C/(6N)`.

    Args:
        source: a fit, or a law with ``theta``.
        flops: training FLOPs.
        points: how many sizes, log-spaced.
        span: sizes from the optimum / span to the optimum * span.
        coverage, theta: as in :func:`isoloss.plan`.
        hold: values of further axes; those of a composed law that are not named are absent, at their reference.

    Raises:
        ValueError: an argument is out of range, the law has not both a size and tokens, or needs a further axis.

    Example:
        >>> curve = isoflop_curve("hoffmann", 1e21, 3, span=10, theta="besiroglu-2024")
        >>> curve.loss.value.round(3).tolist()
        [2.477, 2.306, 2.482]
    """
    held = _held(source, theta, coverage, points, span)
    others = _others(held, hold)
    best = _optima(held, held.theta[None], flops, others)
    x = _around(best.x[0], points, span)
    d, _ = _limits(held, flops, others).frontier(x)
    plug_in, draws = (Surface(held.law, theta, others=others) for theta in (held.theta[None], held.draws))
    loss = _band(held, plug_in.loss(x, d), draws.loss(x, d))
    return Curve(np.exp(x[0]), _exact(np.exp(d[0])), loss, held.coverage)


def isoloss_curve(
    source: Fit | Law | str,
    loss: float,
    points: int = 101,
    *,
    span: float = 30.0,
    coverage: float | None = None,
    theta: Any = None,
    hold: Mapping[str, float] | None = None,
) -> Curve:
    """Tokens that each size needs for ``loss``; infinite where a size cannot reach it.

    Args:
        source, points, span, coverage, theta, hold: as in :func:`isoflop_curve`; the span is around the size
            that gets there with the fewest training FLOPs.
        loss: in the unit of the law's target.

    Raises:
        ValueError: an argument is out of range. NoAnswer: the law does not reach the loss.

    Example:
        >>> curve = isoloss_curve("hoffmann", 2.3, 3, span=2, theta="besiroglu-2024")
        >>> [f"{tokens:.3g}" for tokens in curve.tokens.value]
        ['1.56e+11', '6.19e+10', '3.55e+10']
    """
    held = _held(source, theta, coverage, points, span)
    others = _others(held, hold)
    asked = question(held, Budget(loss=loss), others)
    x = _around(asked.plug_in().optima.x[0], points, span)
    plug_in, draws = (Surface(held.law, theta, others=others) for theta in (held.theta[None], held.draws))
    own = np.exp(tokens_for(draws, loss, x)) if len(held.draws) else np.empty((0, points))
    return Curve(
        np.exp(x[0]),
        _band(held, np.exp(tokens_for(plug_in, loss, x)), own),
        _exact(np.full(points, loss)),
        held.coverage,
    )


def frontier(
    source: Fit | Law | str,
    flops: Sequence[float] | Array,
    *,
    coverage: float | None = None,
    theta: Any = None,
    hold: Mapping[str, float] | None = None,
) -> Frontier:
    """The compute-optimal size, tokens and loss at each of many training budgets.

    Args:
        source, coverage, theta, hold: as in :func:`isoflop_curve`.
        flops: training FLOPs, one per point.

    Raises:
        ValueError: a budget is not above 6, or the law has not both a size and tokens.

    Example:
        >>> line = frontier("hoffmann", [1e21, 1e25], theta="besiroglu-2024")
        >>> (line.tokens.value / line.params.value).round(1).tolist()
        [21.6, 17.1]
    """
    held = _held(source, theta, coverage, 2, 2.0)
    others = _others(held, hold)
    best = [_optima(held, held.theta[None], budget, others) for budget in flops]
    own = [_optima(held, held.draws, budget, others) if len(held.draws) else None for budget in flops]

    def band(name: str) -> Band:
        value = np.stack([getattr(one, name) for one in best], axis=1)
        drawn = [getattr(one, name) for one in own if one is not None]
        return _band(held, value, np.stack(drawn, axis=1) if drawn else np.empty((0, len(best))))

    return Frontier(np.asarray(flops, float), band("params"), band("tokens"), band("loss"), held.coverage)


def _held(source: Fit | Law | str, theta: Any, coverage: float | None, points: int, span: float) -> Belief:
    held = belief(source, theta, coverage)
    if not held.plane:
        raise ValueError(
            f"a curve needs a law of params and tokens; {held.law.spec} reads {list(held.law.axes)}"
        )
    if points < 2 or not 1 < span < math.inf:
        raise ValueError(f"a curve needs points >= 2 and span > 1, got {points} and {span}")
    return held


def _others(held: Belief, hold: Mapping[str, float] | None) -> dict[str, float]:
    """Values of the further axes; those not named must be ones that the law can do without."""
    others = settle(held.law, hold, dict.fromkeys(_absent(held.law, hold or {}), (1.0,))).held
    return dict(others)


def _absent(law: Law, hold: Mapping[str, float]) -> list[str]:
    """Further axes that are not held, which a composed law takes for absent."""
    missing = [axis for axis in law.axes if axis not in PLANE and axis not in hold]
    kept = law.given([axis for axis in law.axes if axis not in missing]).axes
    needed = [axis for axis in missing if axis in kept]
    if needed:
        raise ValueError(f"{law.spec} needs {needed[0]} for a curve: add hold={{'{needed[0]}': VALUE}}")
    return missing


def _limits(held: Belief, flops: float, others: Mapping[str, float]) -> Limits:
    cost = costs.with_axes(costs.train_flops(), list(others))
    return Limits((Limit("flops", cost, float(flops)),), others)


def _optima(held: Belief, theta: Array, flops: float, others: Mapping[str, float]) -> Optima:
    if not costs.TRAIN_FLOPS < flops < math.inf:
        raise ValueError(f"needed training FLOPs above 6 and finite, got {flops}")
    return best_loss(Surface(held.law, theta, others=others), _limits(held, flops, others))


def _around(x: float, points: int, span: float) -> Array:
    return x + math.log(span) * np.linspace(-1.0, 1.0, points)[None, :]


def _exact(values: Array) -> Band:
    return Band(values, values, values, values)


def _band(held: Belief, value: Array, own: Array) -> Band:
    """From (1, n) and (K, n)."""
    if len(own) < 2:
        nothing = np.full(value.shape[1], math.nan)
        return Band(value[0], nothing, nothing, nothing)
    ends = np.array([spread(column, held.coverage) for column in own.T])
    return Band(value[0], np.median(own, axis=0), ends[:, 0], ends[:, 1])
