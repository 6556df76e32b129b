"""The one numeric route of every plan: along one log axis, a coarse bracket, then the derivative's sign.

For every draw at once. Most laws are convex in the logs and so are the limits; where a law is not, the
coarse pass picks the valley and the bisection goes to its bottom. Kinks, where another limit takes over,
are places where the slope changes sign like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.planning.costs import Cost
from isoloss.planning.surface import EDGE, FAR, Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]

POINTS = 48  # of the coarse bracket
HALVINGS = 44  # of a bracket of a few units: to about 1e-13, what the slope's sign resolves
COARSE = 26  # of the whole axis, to 1e-6: where a loss turns, it is flat
AT_ONCE = 256  # thetas times places that one call is asked about
STEPS = 100  # of a bracketed Newton search, at the very most


@dataclass(frozen=True, eq=False)
class Optima:
    """One optimum per row, each (R,): ln N, ln D and the loss there; NaN where nothing is feasible."""

    x: Array
    d: Array
    loss: Array

    @property
    def params(self) -> Array:
        """N."""
        return np.exp(self.x)

    @property
    def tokens(self) -> Array:
        """D."""
        return np.exp(self.d)


def lowest(
    value: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    low: Array,
    high: Array,
    at_once: int = 1,
) -> Array:
    """Where ``value`` is least on [low, high], (R, 1): the best coarse cell, then the sign of the slope."""
    grid = low + (high - low) * np.linspace(0.0, 1.0, POINTS)
    y = value(grid)
    best = np.argmin(np.where(np.isnan(y), np.inf, y), axis=1)[:, None]
    left, middle, right = (
        np.take_along_axis(grid, np.clip(best + step, 0, POINTS - 1), axis=1) for step in (-1, 0, 1)
    )
    rising = slope(middle) > 0
    ends = np.where(rising, left, middle), np.where(rising, middle, right)
    return bisect(lambda x: slope(x) > 0, *ends, at_once=at_once)


def bisect(
    above: Callable[[Array], Array], low: Array, high: Array, halvings: int = HALVINGS, at_once: int = 1
) -> Array:
    """Where ``above`` turns from false to true in [low, high], for every row at once.

    Of brackets (R, 1) a call of ``above`` may make several halvings: it is asked about all middles that they can come to.
    """
    if low.shape[-1] > 1:
        at_once = 1
    cells = 2**at_once
    for _ in range(math.ceil(halvings / at_once)):
        middles = low + (high - low) * (np.arange(1, cells) / cells)
        up = np.broadcast_to(above(middles), middles.shape)
        if at_once == 1:
            low, high = np.where(up, low, middles), np.where(up, middles, high)
            continue
        cell = np.zeros(low.shape, dtype=int)
        for width in 2 ** np.arange(at_once)[::-1]:
            cell = np.where(np.take_along_axis(up, cell + width - 1, axis=1), cell, cell + width)
        ends = np.concatenate([low, middles, high], axis=1)
        low, high = (np.take_along_axis(ends, cell + side, axis=1) for side in (0, 1))
    return np.asarray(0.5 * (low + high))


def _at_once(surface: Surface) -> int:
    """Halvings for one call: the loss at a few hundred points costs hardly more than at one."""
    return max(1, min(5, int(math.log2(1 + AT_ONCE / max(1, len(surface.theta))))))


def best_loss(surface: Surface, limits: Limits) -> Optima:
    """The point of least loss within the limits, per row; NaN where nothing fits in.

    Where more of either axis never hurts, all tokens allowed are spent and one axis is left: N. Tokens may hurt (a term
    of quantisation does that). Some are then left unspent only at the largest size that limits without tokens allow:
    at any other, a larger model on the same tokens would do better.
    """
    top = limits.widest()
    low = np.zeros((surface.rows, 1))

    def value(x: Array) -> Array:
        return surface.loss(x, limits.frontier(x)[0])

    def slope(x: Array) -> Array:
        d, along = limits.frontier(x)
        _, by_size, by_tokens = surface.slopes(x, d)
        # at the search edge along is 0 and tokens may be worth nothing: no 0 * inf
        return by_size + np.where(along == 0, 0.0, by_tokens * along)

    x = lowest(value, slope, low, low + np.maximum(top, 0.0), _at_once(surface))
    d, _ = limits.frontier(x)
    loss = surface.loss(x, d)
    widest = low + np.maximum(np.minimum(top, limits.without_tokens().widest()), 0.0)
    spent = spend_within(surface, limits, widest)
    with np.errstate(invalid="ignore"):
        better = surface.loss(widest, spent) < loss
    x, d = np.where(better, widest, x), np.where(better, spent, d)
    x, d = (np.where(top < 0, np.nan, part) for part in (x, d))
    return Optima(x[:, 0], d[:, 0], surface.loss(x, d)[:, 0])


def spend_within(surface: Surface, limits: Limits, x: Array, halvings: int = HALVINGS) -> Array:
    """ln of the tokens to spend at ``x``: no more than the limits allow, and than pays."""
    return _sated(surface, x, limits.frontier(x)[0], halvings)


def _rises(surface: Surface, x: Array, d: Array) -> Array:
    """Whether the loss rises with tokens, beyond rounding."""
    loss, _, by_tokens = surface.slopes(x, d)
    return np.asarray(by_tokens > 1e-12 * np.abs(loss))


def _sated(surface: Surface, x: Array, d: Array, halvings: int = HALVINGS) -> Array:
    """ln of the tokens at which the loss stops falling at ``x``; ``d`` where it falls all the way."""
    shape = np.broadcast_shapes((surface.rows, 1), x.shape, d.shape)
    d = np.broadcast_to(d, shape)
    rises = _rises(surface, x, d)
    if not rises.any():
        return d
    turn = bisect(
        lambda at: _rises(surface, x, at), np.zeros(shape), np.maximum(d, 0.0), halvings, _at_once(surface)
    )
    return np.where(rises, turn, d)


def tokens_for(surface: Surface, loss: float | Array, x: Array, tolerance: float = 1e-12) -> Array:
    """ln of the tokens that reach ``loss`` at ln N = ``x``; infinite where 1e30 tokens do not, NaN where the law has
    no value at that size.

    Newton steps, kept in a bracket, on the log of what is left above the loss that endless tokens would
    give at this size: a straight line for a power law, whose root one step finds. Where tokens beyond some number
    raise the loss, the root is below it.
    """
    shape = np.broadcast_shapes((surface.rows, 1), x.shape)
    low, d = np.zeros(shape), np.full(shape, 0.4 * EDGE)
    high = _sated(surface, x, np.full((1, 1), EDGE), COARSE)
    d = np.minimum(d, high)
    least = surface.loss(x, high)
    endless = np.where(high < EDGE, least, surface.loss(x, np.full((1, 1), FAR)))
    never, at_once = least > loss, surface.loss(x, low) <= loss
    for _ in range(STEPS):
        level, _, by_tokens = surface.slopes(x, d)
        short = level > loss
        low, high = np.where(short, d, low), np.where(short, high, d)
        with np.errstate(all="ignore"):
            ahead = np.log1p((level - loss) / (loss - endless))
            newton = d - ahead * (level - endless) / by_tokens
        # within rounding of the root the bracket is noise: stay, do not jump to its middle
        newton = np.where(np.abs(newton - d) < 1e-9, np.clip(newton, low, high), newton)
        new = np.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
        # a flat stretch of the curve resolves the tokens no better than rounding of the loss does
        done = (np.abs(new - d) < tolerance) | (np.abs(level - loss) < 1e-15 * np.abs(level))
        d = new
        if (done | never | at_once).all():
            break
    found = np.where(never, np.inf, np.where(at_once, 0.0, d))
    return np.where(np.isnan(least), np.nan, found)


def cheapest(surface: Surface, limits: Limits, cost: Cost, loss: float) -> Optima:
    """The point of least ``cost`` that reaches ``loss`` within the limits, per row; NaN where none does.

    The rows' feasible sizes are the stretch around the point of best loss on which the frontier still
    reaches ``loss``; on it, the cost along the isoloss curve is made least.
    """
    best = best_loss(surface, limits)
    able = best.loss <= loss
    out = Optima(*(np.full(surface.rows, np.nan) for _ in range(3)))
    if not able.any():
        return out
    part, limits = surface.rows_at(able), limits.rows_at(able)

    def value(x: Array) -> Array:
        return np.asarray(np.log(cost.value(point(x, tokens_for(part, loss, x, tolerance=1e-3)))))

    def slope(x: Array) -> Array:
        d = tokens_for(part, loss, x)
        _, by_size, by_tokens = part.slopes(x, d)
        along = -by_size / by_tokens
        return np.asarray(
            cost.elasticity("params", point(x, d)) + cost.elasticity("tokens", point(x, d)) * along
        )

    def point(x: Array, d: Array) -> dict[str, Any]:
        with np.errstate(over="ignore"):
            return limits.point(np.exp(x), np.exp(d))

    left, right = stretch(part, limits, best.x[able][:, None], loss)
    with np.errstate(all="ignore"):
        x = lowest(value, slope, left, right, _at_once(part))
    d = tokens_for(part, loss, x)
    out.x[able], out.d[able], out.loss[able] = x[:, 0], d[:, 0], part.loss(x, d)[:, 0]
    return out


def stretch(surface: Surface, limits: Limits, x: Array, loss: float | Array) -> tuple[Array, Array]:
    """The stretch of ln N around ``x`` on which the frontier of the limits reaches ``loss``, (R, 1) each."""

    def misses(at: Array) -> Array:
        reached = surface.loss(at, spend_within(surface, limits, at, COARSE)) <= loss
        return ~reached  # also where the law has no value

    ends = []
    for end in (np.zeros((1, 1)), limits.widest()):
        span = end - x

        def misses_by(share: Array, span: Array = span) -> Array:
            return misses(x + share * span)

        share = bisect(misses_by, np.zeros_like(x), np.ones_like(x), at_once=_at_once(surface))
        ends.append(np.where(misses(x + span), x + share * span, end))
    return ends[0], ends[1]
