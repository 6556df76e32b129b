"""The plane that plans live on: a law over ln N and ln D for many thetas, and the limits drawn on it.

Shapes: R rows, one per theta; n points per row. ``x`` is ln N, ``d`` is ln D, each (R, n) or (1, n).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Law
from isoloss.planning.costs import Cost

Array = np.ndarray[Any, np.dtype[Any]]

EDGE = math.log(1e30)  # the search goes from 1 to 1e30 parameters, and tokens
FAR = math.log(1e200)  # stands for endless
SIZES = ("params", "params_nonembedding")


@dataclass(frozen=True, eq=False)
class Surface:
    """Loss over (ln N, ln D).

    Attributes:
        law: of a size axis and ``tokens``, and perhaps ``tokens_unique``.
        theta: (R, P).
        unique: tokens available; beyond them a law with ``tokens_unique`` repeats.
        pooled: average over the rows: one row comes out, the loss expected over the draws.
    """

    law: Law
    theta: Array
    unique: float | None = None
    pooled: bool = False

    @property
    def size(self) -> str:
        """The law's own name of N."""
        return next(axis for axis in self.law.axes if axis in SIZES)

    @property
    def rows(self) -> int:
        """R, as it comes out."""
        return 1 if self.pooled else len(self.theta)

    def at(self, x: Array, d: Array) -> dict[str, Array]:
        """The law's axes at the points."""
        n, t = np.exp(x), np.exp(d)
        point = {self.size: n, "tokens": t}
        if "tokens_unique" in self.law.axes:
            point["tokens_unique"] = t if self.unique is None else np.minimum(t, self.unique)
        return point

    def loss(self, x: Array, d: Array) -> Array:
        """Loss, (R, n)."""
        parts = tuple(self.theta[:, p, None] for p in range(self.theta.shape[1]))
        with np.errstate(all="ignore"):
            out = np.asarray(self.law.value(parts, self.at(x, d)), dtype=float)
        return self._pool(np.broadcast_to(out, np.broadcast_shapes((len(self.theta), 1), x.shape, d.shape)))

    def slopes(self, x: Array, d: Array) -> tuple[Array, Array, Array]:
        """Loss, dL/d ln N and dL/d ln D, each (R, n); exact."""
        with np.errstate(all="ignore"):
            point = self.at(x, d)
            loss, slope = self.law.elasticities(self.theta, point)
            by_tokens = slope["tokens"]
            if "tokens_unique" in slope:
                fresh = point["tokens_unique"] == point["tokens"]  # more tokens are more unique tokens too
                by_tokens = by_tokens + np.where(fresh, slope["tokens_unique"], 0.0)
        return self._pool(loss), self._pool(slope[self.size]), self._pool(by_tokens)

    def unique_slope(self, x: Array, d: Array) -> Array:
        """dL/d ln of the tokens available, (R, n): 0 where they are not repeated."""
        point = self.at(x, d)
        if self.unique is None or "tokens_unique" not in point:
            return np.zeros(np.broadcast_shapes((self.rows, 1), x.shape, d.shape))
        with np.errstate(all="ignore"):
            _, slope = self.law.elasticities(self.theta, point)
        repeated = point["tokens"] > point["tokens_unique"]
        return self._pool(np.where(repeated, slope["tokens_unique"], 0.0))

    def floor(self) -> Array:
        """The loss that no size and no number of tokens gets below, (R, 1)."""
        far = np.full((1, 1), FAR)
        return Surface(self.law, self.theta, None, self.pooled).loss(far, far)

    def _pool(self, values: Array) -> Array:
        return np.mean(values, axis=0, keepdims=True) if self.pooled else values


@dataclass(frozen=True)
class Limit:
    """No more than ``most`` of a cost; ``name`` is the budget's word for it."""

    name: str
    cost: Cost
    most: float


@dataclass(frozen=True)
class Limits:
    """All limits at once, on the plane from 1 to 1e30 parameters and tokens."""

    held: tuple[Limit, ...]

    def widest(self) -> float:
        """ln of the largest N that leaves one token; below 0 where not even N = 1 does."""
        largest = math.exp(EDGE)
        for limit in self.held:
            if limit.cost.bounds("params"):
                largest = min(largest, float(limit.cost.solve("params", limit.most, {"tokens": 1.0})))
            elif limit.cost.value({"tokens": 1.0}) > limit.most:
                largest = 0.0
        return math.log(largest) if largest > 0 else -math.inf

    def frontier(self, x: Array) -> tuple[Array, Array]:
        """ln of the most tokens that the limits allow at ``x``, and its slope d ln D / d ln N."""
        n = np.exp(x)
        d, slope = np.full(x.shape, EDGE), np.zeros(x.shape)
        for limit in self.held:
            if not limit.cost.bounds("tokens"):
                continue
            most = limit.cost.solve("tokens", limit.most, {"params": n})
            with np.errstate(divide="ignore", invalid="ignore"):
                log_most = np.log(most)
                point = {"params": n, "tokens": most}
                own = -limit.cost.elasticity("params", point) / limit.cost.elasticity("tokens", point)
            tighter = log_most < d
            d, slope = np.where(tighter, log_most, d), np.where(tighter, own, slope)
        return d, slope

    def at(self, x: Array, d: Array) -> list[Array]:
        """Per limit, whether the points exhaust it."""
        point = {"params": np.exp(x), "tokens": np.exp(d)}
        return [np.abs(limit.cost.value(point) / limit.most - 1.0) < 1e-9 for limit in self.held]

    def plus(self, limit: Limit) -> Limits:
        """These limits and one more."""
        return Limits((*self.held, limit))

    def without(self, name: str) -> Limits:
        """These limits but the one of that name."""
        return Limits(tuple(limit for limit in self.held if limit.name != name))
