"""The loss over one scale, for every draw of a fit: along its one axis, or along its compute-optimal frontier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.planning.costs import TRAIN_FLOPS
from isoloss.planning.search import lowest
from isoloss.planning.surface import FAR, SIZES, Surface

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 4096  # points of the frontier solved at once
WINDOW = math.log(1e20)  # a scale further away than this factor counts as endless
STEPS = 100  # of a bracketed Newton search, at the very most
TOLERANCE = 1e-11  # of a log scale
PLANE = {*SIZES, "tokens", "tokens_unique"}


def scale_of(law: Law) -> str | None:
    """What a law's loss is a curve over: ``"flops"`` for a law of size and tokens, or its only axis.

    Example:
        >>> from isoloss.laws import get
        >>> scale_of(get("hoffmann")), scale_of(get("power(tokens)"))
        ('flops', 'tokens')
    """
    if "tokens" in law.axes and sum(axis in SIZES for axis in law.axes) == 1:
        return "flops" if set(law.axes) <= PLANE else None
    return law.axes[0] if len(law.axes) == 1 else None


def observed(fit: Fit) -> Array:
    """The scale of every row in the fit, (n,): its one axis, or :math:`6ND`."""
    if len(fit.law.axes) == 1:
        return np.asarray(fit.x[fit.law.axes[0]])
    size = next(axis for axis in fit.law.axes if axis in SIZES)
    return np.asarray(TRAIN_FLOPS * fit.x[size] * fit.x["tokens"])


@dataclass(frozen=True, eq=False)
class Level:
    r"""Loss over the log of one scale, :math:`s`, a curve for each theta.

    Of a law of size and tokens the curve is the frontier :math:`L^*(C) = \min_N L(N, C/(6N))`, each theta
    with its own optimal size; its slope is :math:`\partial L/\partial \ln D` at the optimum (the envelope
    theorem). All tokens count as unique.

    Attributes:
        law: read as :func:`scale_of` says.
        theta: (R, P).
    """

    law: Law
    theta: Array

    @property
    def bottom(self) -> float:
        """The lowest log scale: one parameter and one token, or nothing at all for one axis."""
        return -math.inf if len(self.law.axes) == 1 else math.log(TRAIN_FLOPS) + 1e-9

    def at(self, rows: Array, s: Array) -> tuple[Array, Array]:
        """Loss and dL/ds of the thetas ``rows`` at the log scales ``s``, all (M,)."""
        if len(self.law.axes) == 1:
            return self._on_axis(self.theta[rows], s[:, None])
        parts = [
            self._on_frontier(self.theta[rows[i : i + CHUNK]], s[i : i + CHUNK, None])
            for i in range(0, len(rows), CHUNK)
        ]
        return np.concatenate([loss for loss, _ in parts]), np.concatenate([slope for _, slope in parts])

    def over(self, s: Array) -> tuple[Array, Array]:
        """Loss and slope of every theta at every one of the log scales (n,), each (R, n)."""
        count = len(self.theta)
        loss, slope = self.at(np.repeat(np.arange(count), len(s)), np.tile(s, count))
        return loss.reshape(count, len(s)), slope.reshape(count, len(s))

    def floor(self) -> Array:
        """The loss that no scale gets below, (R,)."""
        if len(self.law.axes) > 1:
            return Surface(self.law, self.theta).floor()[:, 0]
        with np.errstate(all="ignore"):
            return self._on_axis(self.theta, np.full((len(self.theta), 1), FAR))[0]

    def reaching(self, rows: Array, loss: Array, start: Array) -> Array:
        """The log scales at which the thetas ``rows`` come down to ``loss``, all (M,).

        Newton steps from ``start``, kept in a bracket, on the log of what is left above the floor. Infinite
        where a scale 1e20 times the start is not enough; minus infinity where 1e-20 of it is too much.
        """
        floor = self.floor()[rows]
        low, high = np.maximum(start - WINDOW, self.bottom), start + WINDOW
        never, at_once = self.at(rows, high)[0] > loss, self.at(rows, low)[0] <= loss
        s = start.copy()
        left = np.flatnonzero(~never & ~at_once)
        for _ in range(STEPS):
            if not len(left):
                break
            level, slope = self.at(rows[left], s[left])
            short = level > loss[left]
            low[left] = np.where(short, s[left], low[left])
            high[left] = np.where(short, high[left], s[left])
            with np.errstate(all="ignore"):
                ahead = np.log1p((level - loss[left]) / (loss[left] - floor[left]))
                newton = s[left] - ahead * (level - floor[left]) / slope
            inside = (newton >= low[left]) & (newton <= high[left])
            new = np.where(inside, newton, 0.5 * (low[left] + high[left]))
            exact = np.abs(level - loss[left]) <= 1e-15 * np.abs(level)
            new = np.where(exact, s[left], new)
            moving = np.abs(new - s[left]) > TOLERANCE
            s[left] = new
            left = left[moving]
        return np.where(never, np.inf, np.where(at_once, -np.inf, s))

    def _on_axis(self, theta: Array, s: Array) -> tuple[Array, Array]:
        axis = self.law.axes[0]
        with np.errstate(all="ignore"):
            loss, slope = self.law.elasticities(theta, {axis: np.exp(s)})
        return tuple(np.broadcast_to(part, s.shape)[:, 0] for part in (loss, slope[axis]))  # type: ignore[return-value]

    def _on_frontier(self, theta: Array, s: Array) -> tuple[Array, Array]:
        surface, both = Surface(self.law, theta), s - math.log(TRAIN_FLOPS)
        x = _best_size(surface, both)
        loss, _, by_tokens = surface.slopes(x, both - x)
        return loss[:, 0], by_tokens[:, 0]

    def ratio(self, s: float) -> float:
        """Tokens per parameter on the frontier of the first theta; NaN for a law of one axis."""
        if len(self.law.axes) == 1:
            return math.nan
        both = np.full((1, 1), s - math.log(TRAIN_FLOPS))
        x = _best_size(Surface(self.law, self.theta[:1]), both)
        return float(np.exp(both - 2 * x)[0, 0])


def _best_size(surface: Surface, both: Array) -> Array:
    """ln N of least loss where ln N + ln D is ``both``, (R, 1)."""

    def slope(x: Array) -> Array:
        _, by_size, by_tokens = surface.slopes(x, both - x)
        return by_size - by_tokens

    return lowest(lambda x: surface.loss(x, both - x), slope, np.zeros_like(both), both)
