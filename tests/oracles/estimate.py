"""Fitting the slow way: the objective in natural parameters, SciPy from many random starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from tests.oracles.formulas import FORMULAS, STEP

Array = np.ndarray[Any, np.dtype[Any]]
RowLoss = Callable[[Array], Array]


def huber(delta: float) -> RowLoss:
    return lambda r: special.huber(delta, r)


def half_square(r: Array) -> Array:
    return 0.5 * r**2


def gaussian_profile(r: Array, w: Array) -> float:
    """``min_s sum w (r^2/(2 s^2) + log s)``, which is at ``s^2 = sum w r^2 / sum w``."""
    total = w.sum()
    return float(0.5 * total + 0.5 * total * np.log(np.sum(w * r * r) / total))


def student_profile(r: Array, w: Array, df: float) -> tuple[float, float]:
    """``min_s sum w ((df+1)/2 log(1 + r^2/(df s^2)) + log s)`` and the scale, by a bounded search."""

    def at(log_s: float) -> float:
        u = r * np.exp(-log_s)
        return float(np.sum(w * (0.5 * (df + 1) * np.log1p(u * u / df) + log_s)))

    middle = np.log(np.median(np.abs(r)) + 1e-300)
    found = optimize.minimize_scalar(
        at, bounds=(middle - 4, middle + 4), options={"xatol": 1e-10}, method="bounded"
    )
    return float(found.fun), float(np.exp(found.x))


class Curve:
    """One law on one table: parameters in ``keys``, those of ``logs`` as logarithms, the rest held.

    ``tied`` maps a parameter to the one whose value it takes.
    """

    def __init__(
        self,
        slug: str,
        x: Mapping[str, Array],
        y: Array,
        keys: Sequence[str],
        logs: Sequence[str],
        held: Mapping[str, float] | None = None,
        tied: Mapping[str, str] | None = None,
        residual: str = "log",
    ) -> None:
        self.formula, self.x, self.y, self.residual = FORMULAS[slug], x, y, residual
        self.keys, self.logs = list(keys), set(logs)
        self.held, self.tied = dict(held or {}), dict(tied or {})

    def natural(self, z: Array) -> dict[str, Any]:
        p = {k: np.exp(v) if k in self.logs else v for k, v in zip(self.keys, z, strict=True)}
        return p | self.held | {name: p[source] for name, source in self.tied.items()}

    def to_z(self, p: Mapping[str, float]) -> Array:
        return np.array([np.log(p[k]) if k in self.logs else p[k] for k in self.keys])

    def residuals(self, z: Array) -> Array:
        with np.errstate(all="ignore"):
            target = self.formula(self.natural(z), self.x)
            return np.log(self.y) - np.log(target) if self.residual == "log" else self.y - target

    def jacobian(self, z: Array) -> Array:
        columns = []
        for j in range(len(z)):
            step = z.astype(complex)
            step[j] += 1j * STEP
            columns.append(np.imag(self.residuals(step)) / STEP)
        return np.column_stack(columns)


def multi_start(
    curve: Curve,
    total: Callable[[Array], float],
    slope: Callable[[Array], Array] | None,
    centre: Mapping[str, float],
    *,
    starts: int,
    seed: int,
    box: Sequence[tuple[float, float]] | None = None,
) -> tuple[float, Array]:
    """Least ``total(residuals)`` that L-BFGS-B and Nelder-Mead find from random starts around ``centre``.

    Args:
        slope: derivative of the row loss, for exact gradients; None for numerical ones.
    """
    rng = np.random.default_rng(seed)
    middle = curve.to_z(centre)

    def at(z: Array) -> float:
        r = curve.residuals(z)
        if not np.isfinite(r).all():
            return 1e300
        with np.errstate(all="ignore"):
            value = total(r)
        return value if np.isfinite(value) else 1e300

    def gradient(z: Array) -> Array:
        assert slope is not None
        r = curve.residuals(z)
        if not np.isfinite(r).all():
            return np.zeros_like(z)
        with np.errstate(all="ignore"):
            g = slope(r) @ curve.jacobian(z)
        return np.where(np.isfinite(g), g, 0.0)

    best, where = np.inf, middle
    for k in range(starts):
        spread = np.where([key in curve.logs for key in curve.keys], 0.7, 0.08)
        z = middle + spread * rng.normal(size=len(middle)) * (k > 0)
        if box:
            z = np.clip(z, *np.transpose(box))
        found = optimize.minimize(
            at, z, jac=gradient if slope else None, method="L-BFGS-B", bounds=box,
            options={"maxiter": 500, "ftol": 1e-15, "gtol": 1e-12},
        )  # fmt: skip
        if found.fun < best:
            best, where = float(found.fun), found.x
    found = optimize.minimize(
        at, where, method="Nelder-Mead", bounds=box,
        options={"maxiter": 300, "xatol": 1e-12, "fatol": 1e-16, "adaptive": True},
    )  # fmt: skip
    return (float(found.fun), found.x) if found.fun < best else (best, where)
