"""The plane that plans live on: a law over ln N and ln D for many thetas, and the limits drawn on it.

Shapes: R rows, one per theta; n points per row. ``x`` is ln N, ``d`` is ln D, each (R, n) or (1, n). Every further
axis of the law (bits, experts, streams) has one value, or one per row: a row is a theta and a combination of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from isoloss.laws.dual import Dual
from isoloss.laws.law import Law
from isoloss.planning.costs import Cost

Array = np.ndarray[Any, np.dtype[Any]]

EDGE = math.log(1e30)  # the search goes from 1 to 1e30 parameters, and tokens
FAR = math.log(1e200)  # stands for endless
SIZES = ("params", "params_nonembedding", "params_active")

MISTUNED = ("lr", "batch_tokens", "batch_sequences")
"""Columns of a term that says what mistuning costs: absent, the law is that of tuned runs."""


@dataclass(frozen=True, eq=False)
class Surface:
    """Loss over (ln N, ln D).

    Attributes:
        law: of a size axis and ``tokens``, and perhaps ``tokens_unique``.
        theta: (R, P).
        unique: tokens available; beyond them a law with ``tokens_unique`` repeats.
        pooled: average over the rows: one row comes out, the loss expected over the draws.
        others: further axes, each a number or (R, 1). One that is not in it is absent: at its reference.
    """

    law: Law
    theta: Array
    unique: float | None = None
    pooled: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

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
        point = {self.size: n, "tokens": t, **_arrays(self.others)}
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
        point = self.at(x, d)
        loss, slope = self.along(point, (self.size, "tokens", "tokens_unique"))
        by_tokens = slope["tokens"]
        if "tokens_unique" in slope:
            fresh = point["tokens_unique"] == point["tokens"]  # more tokens are more unique tokens too
            by_tokens = by_tokens + np.where(fresh, slope["tokens_unique"], 0.0)
        return self._pool(loss), self._pool(slope[self.size]), self._pool(by_tokens)

    def along(self, point: Mapping[str, Array], axes: Collection[str]) -> tuple[Array, dict[str, Array]]:
        """Loss at a point and dL/d ln x for those of ``axes`` that it holds, each (R, n); not pooled."""
        wanted = [axis for axis in axes if axis in point]
        mixed: dict[str, Any] = dict(point)
        for i, axis in enumerate(wanted):
            mixed[axis] = Dual(point[axis], {i: point[axis]})
        parts = tuple(self.theta[:, p, None] for p in range(self.theta.shape[1]))
        shape = np.broadcast_shapes((len(self.theta), 1), *(values.shape for values in point.values()))
        with np.errstate(all="ignore"):
            out = self.law.value(parts, mixed)
        known = out if isinstance(out, Dual) else Dual(out, {})
        slopes = {
            axis: np.broadcast_to(known.partials.get(i, np.zeros(())), shape) for i, axis in enumerate(wanted)
        }
        return np.broadcast_to(known.value, shape), slopes

    def unique_slope(self, x: Array, d: Array) -> Array:
        """dL/d ln of the tokens available, (R, n): 0 where they are not repeated."""
        point = self.at(x, d)
        if self.unique is None or "tokens_unique" not in point:
            return np.zeros(np.broadcast_shapes((self.rows, 1), x.shape, d.shape))
        _, slope = self.along(point, ("tokens_unique",))
        repeated = point["tokens"] > point["tokens_unique"]
        return self._pool(np.where(repeated, slope["tokens_unique"], 0.0))

    def floor(self) -> Array:
        """The loss that no size and no number of tokens gets below, (R, 1).

        Tokens grow as the size does, or more slowly: a term of quantisation rises with their ratio. What mistuning
        costs is left out: a learning rate that is held is far from the best one of endless sizes.
        """
        x, d = np.full((1, 1), FAR), FAR * np.array([[1.0, 0.5, 0.25]])
        tuned = tuned_without(self.law, self.others)
        others = {axis: values for axis, values in self.others.items() if axis not in tuned}
        least: Array = np.nanmin(replace(self, unique=None, others=others).loss(x, d), axis=1, keepdims=True)
        return least

    def rows_at(self, rows: Array) -> Surface:
        """These rows alone: a mask, or row numbers, (K,)."""
        return replace(self, theta=self.theta[rows], others=_rows_at(self.others, rows))

    def _pool(self, values: Array) -> Array:
        return np.mean(values, axis=0, keepdims=True) if self.pooled else values


def tuned_without(law: Law, axes: Collection[str]) -> tuple[str, ...]:
    """Those of the axes that are of mistuning, and without which the law has a value: that of tuned runs."""
    gone = [axis for axis in axes if axis in MISTUNED]
    kept = law.given([axis for axis in law.axes if axis not in gone]).axes
    return tuple(axis for axis in gone if axis not in kept)


@dataclass(frozen=True)
class Limit:
    """No more than ``most`` of a cost; ``name`` is the budget's word for it."""

    name: str
    cost: Cost
    most: float


@dataclass(frozen=True)
class Limits:
    """All limits at once, on the plane from 1 to 1e30 parameters and tokens.

    Attributes:
        held: the limits.
        others: further axes that costs read, each a number or (R, 1).
    """

    held: tuple[Limit, ...]
    others: Mapping[str, Any] = field(default_factory=dict)

    def widest(self) -> Array:
        """ln of the largest N that leaves one token, (R, 1) or (1, 1); below 0 where not even N = 1 does."""
        largest = np.full((1, 1), math.exp(EDGE))
        for limit in self.held:
            if limit.cost.bounds("params"):
                largest = np.minimum(largest, limit.cost.solve("params", limit.most, self.point(tokens=1.0)))
            else:
                over = np.asarray(limit.cost.value(self.point(tokens=1.0)) > limit.most)
                largest = np.where(over, 0.0, largest)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(largest))

    def point(self, params: Any = 1.0, tokens: Any = 1.0) -> dict[str, Any]:
        """The axes that costs read, at a size and tokens."""
        return {"params": params, "tokens": tokens, **self.others}

    def frontier(self, x: Array) -> tuple[Array, Array]:
        """ln of the most tokens that the limits allow at ``x``, and its slope d ln D / d ln N."""
        n = np.exp(x)
        d, slope = np.full(x.shape, EDGE), np.zeros(x.shape)
        for limit in self.held:
            if not limit.cost.bounds("tokens"):
                continue
            most = limit.cost.solve("tokens", limit.most, self.point(n))
            with np.errstate(divide="ignore", invalid="ignore"):
                log_most = np.log(most)
                point = self.point(n, most)
                own = -limit.cost.elasticity("params", point) / limit.cost.elasticity("tokens", point)
            tighter = log_most < d
            d, slope = np.where(tighter, log_most, d), np.where(tighter, own, slope)
        return d, slope

    def at(self, x: Array, d: Array) -> list[Array]:
        """Per limit, whether the points exhaust it."""
        point = self.point(np.exp(x), np.exp(d))
        return [np.abs(limit.cost.value(point) / limit.most - 1.0) < 1e-9 for limit in self.held]

    def plus(self, limit: Limit) -> Limits:
        """These limits and one more."""
        return replace(self, held=(*self.held, limit))

    def without(self, name: str) -> Limits:
        """These limits but the one of that name."""
        return replace(self, held=tuple(limit for limit in self.held if limit.name != name))

    def without_tokens(self) -> Limits:
        """Those that tokens do not enter."""
        return replace(self, held=tuple(limit for limit in self.held if not limit.cost.bounds("tokens")))

    def rows_at(self, rows: Array) -> Limits:
        """These rows alone: a mask, or row numbers, (K,)."""
        return replace(self, others=_rows_at(self.others, rows))


def _arrays(others: Mapping[str, Any]) -> dict[str, Array]:
    """Two axes each, like points."""
    return {axis: np.atleast_2d(np.asarray(values, dtype=float)) for axis, values in others.items()}


def _rows_at(others: Mapping[str, Any], rows: Array) -> dict[str, Any]:
    return {axis: values[rows] if np.ndim(values) == 2 else values for axis, values in others.items()}
