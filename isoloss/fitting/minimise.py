"""Batched damped Newton in a box: many starts, or many resamples, of one fit at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.model import Model
from isoloss.fitting.objective import Objective

Array = np.ndarray[Any, np.dtype[Any]]

# Rows times batch that stay in a core's second-level cache while about ten arrays are alive.
CHUNK = 65_536
PATIENCE = 12  # steps of pure Newton, enough for nearly every resample
TRACE = 0.01  # least caution after that
LONGEST_STEP = 2.0  # in log units or exponents: far enough to cross a box, short enough to stay sane


@dataclass(frozen=True)
class Problem:
    """``min_psi sum_i w_i rho(r_i(psi)) + temperature * sum_j ((theta_j(psi) - mean_j)/sd_j)^2 / 2``.

    Attributes:
        model: predicted target and derivatives in free coordinates.
        y: measured target, shape (n,).
        objective: row loss and kind of residual.
        low, high: box of the free coordinates (and of the log scale, last, where there is one), (q,).
        priors: functions of psi; see :class:`Prior`.
        temperature: weight of the priors against the rows.
    """

    model: Model
    y: Array
    objective: Objective
    low: Array
    high: Array
    priors: tuple[Prior, ...] = ()
    temperature: float = 1.0

    @property
    def size(self) -> int:
        """Number of free coordinates, the scale included."""
        return len(self.low)

    def _split(self, psi: Array) -> tuple[Array, Array | None]:
        if self.objective.has_scale:
            return psi[:, :-1], psi[:, -1:]
        return psi, None

    def residuals(self, psi: Array) -> tuple[Array, Any]:
        """``log y - log f`` or ``y - f``, shape (B, n), and the model's state."""
        coordinates, _ = self._split(psi)
        target, state = self.model.target(coordinates)
        if self.objective.residual == "linear":
            return self.y - target, state
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.log(self.y / target), state

    def evaluate(
        self, psi: Array, w: Array, prior_means: Array | None = None, shift: Array | None = None
    ) -> tuple[Array, Any]:
        """Objective (B,), infinite where the law is undefined, and the state for derivatives.

        ``shift`` (B, n) is added to the residuals: each row of the batch then has measurements of its own.
        """
        r, state = self.residuals(psi)
        if shift is not None:
            r = r + shift
        _, scale = self._split(psi)
        u = r if scale is None else r * np.exp(-scale)
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.einsum("bn,bn->b", np.broadcast_to(w, u.shape), self.objective.rho(u))
        if scale is not None:
            total = total + scale[:, 0] * np.sum(np.broadcast_to(w, u.shape), axis=1)
        for j, prior in enumerate(self.priors):
            mean = prior.mean if prior_means is None else prior_means[:, j]
            gap = (prior.value(psi) - mean) / prior.sd
            total = total + 0.5 * self.temperature * gap * gap
        return np.where(np.isfinite(total), total, np.inf), (u, state)

    def derivatives(
        self,
        psi: Array,
        w: Array,
        kept: Any,
        prior_means: Array | None = None,
        caution: float = 0.0,
    ) -> tuple[Array, Array]:
        """Gradient (B, q) and Hessian (B, q, q); Gauss-Newton where the model is not exact.

        ``caution`` mixes in the reweighting majorant ``rho'(r)/r``: Newton on a Huber loss sees only the
        few rows within delta and crawls when far away, the majorant keeps some of every row in.
        """
        u, state = kept
        _, scale = self._split(psi)
        first, second = self.objective.slopes(u)
        if caution > 0.0:
            with np.errstate(divide="ignore", invalid="ignore"):
                majorant = np.where(u == 0.0, second, first / np.where(u == 0.0, 1.0, u))
            second = (1.0 - caution) * second + caution * majorant
        log = self.objective.residual == "log"
        # Residuals fall when the prediction rises: grad r = -grad m, hess r = -hess m.
        pull, stiffness = -w * first, w * second
        if scale is None:
            g, h = self.model.accumulate(state, pull, stiffness, log=log)
        else:
            shrink = np.exp(-scale)
            g, h = self.model.accumulate(state, pull * shrink, stiffness * shrink**2, log=log)
            g, h = self._with_scale(g, h, psi, w, (u, state, first, second, shrink), log)
        for j, prior in enumerate(self.priors):
            mean = prior.mean if prior_means is None else prior_means[:, j]
            gap, slope = (prior.value(psi) - mean) / prior.sd, prior.slope(psi) / prior.sd
            g = g + self.temperature * gap[:, None] * slope
            h = h + self.temperature * slope[:, :, None] * slope[:, None, :]
        return g, h

    def _with_scale(
        self, g: Array, h: Array, psi: Array, w: Array, parts: tuple[Any, ...], log: bool
    ) -> tuple[Array, Array]:
        """Append the log scale ``s``: ``u = r exp(-s)``, so ``du/ds = -u``."""
        u, state, first, second, shrink = parts
        batch, p = g.shape
        cross, _ = self.model.accumulate(state, w * (second * u + first) * shrink, np.zeros_like(u), log=log)
        weights = np.broadcast_to(w, u.shape)
        gradient = np.concatenate(
            [g, (weights.sum(axis=1) - np.sum(weights * first * u, axis=1))[:, None]], axis=1
        )
        hessian = np.zeros((batch, p + 1, p + 1))
        hessian[:, :p, :p] = h
        hessian[:, :p, p] = hessian[:, p, :p] = cross
        hessian[:, p, p] = np.sum(weights * (second * u * u + first * u), axis=1)
        return gradient, hessian


@dataclass(frozen=True)
class Prior:
    """A normal prior on one natural parameter ``theta = exp(base + psi @ spread)`` or without exp."""

    mean: float
    sd: float
    base: float
    spread: Array  # (q,)
    log: bool

    def value(self, psi: Array) -> Array:
        """The natural parameter, shape (B,)."""
        phi = self.base + psi @ self.spread
        return np.exp(phi) if self.log else phi

    def slope(self, psi: Array) -> Array:
        """Its gradient, shape (B, q)."""
        scale = self.value(psi)[:, None] if self.log else np.ones((len(psi), 1))
        return scale * self.spread


@dataclass(frozen=True)
class Minima:
    """Where each start ended.

    Attributes:
        psi: shape (B, q).
        value: objective there, shape (B,).
        converged: no further decrease was possible, shape (B,).
        iterations: Newton steps tried, shape (B,).
    """

    psi: Array
    value: Array
    converged: Array
    iterations: Array


def minimise(
    problem: Problem,
    psi: Array,
    w: Array,
    *,
    prior_means: Array | None = None,
    shift: Array | None = None,
    caution: float = 0.0,
    tolerance: float = 1e-13,
    limit: int = 200,
) -> Minima:
    """Minimise from every row of ``psi``; cheap in Python calls because all rows step together.

    Each step solves ``(H + lambda diag H) p = -g`` with pivots made positive, clips it to the box, and
    is taken only if the objective falls; lambda follows per row. Finished rows leave the batch.

    Args:
        problem: what to minimise.
        psi: starts, shape (B, q).
        w: row weights, (n,) or (B, n).
        prior_means: (B, number of priors) to perturb priors with the data in a bootstrap.
        shift: (B, n) added to the residuals: measurements of its own for every row of the batch.
        caution: see :meth:`Problem.derivatives`; 0.3 from afar, 0 near a minimum.
        tolerance: stop when the predicted decrease is below this share of the objective.
        limit: most steps.
    """
    batch, n = len(psi), len(problem.y)
    chunk = max(1, CHUNK // n)
    parts = []
    for lo in range(0, batch, chunk):
        rows = slice(lo, lo + chunk)
        parts.append(
            _minimise_chunk(
                problem,
                psi[rows],
                w if w.ndim == 1 else w[rows],
                None if prior_means is None else prior_means[rows],
                None if shift is None else shift[rows],
                caution if problem.model.exact_hessian else max(caution, 0.3),
                tolerance,
                limit,
            )
        )
    return Minima(
        np.concatenate([m.psi for m in parts]),
        np.concatenate([m.value for m in parts]),
        np.concatenate([m.converged for m in parts]),
        np.concatenate([m.iterations for m in parts]),
    )


def _minimise_chunk(
    problem: Problem,
    psi: Array,
    w: Array,
    prior_means: Array | None,
    shift: Array | None,
    caution: float,
    tolerance: float,
    limit: int,
) -> Minima:
    low, high = problem.low, problem.high
    psi = np.clip(psi, low, high)
    batch = len(psi)
    final_psi, final_value = psi.copy(), np.full(batch, np.inf)
    converged, iterations = np.zeros(batch, dtype=bool), np.zeros(batch, dtype=int)
    ids = np.arange(batch)
    damping = np.full(batch, 1e-3)
    value, state = problem.evaluate(psi, w, prior_means, shift)
    final_value[:] = value
    # A start outside the law's domain has nothing to descend from.
    keep = np.isfinite(value)
    ids, psi, value, damping = _kept(keep, ids, psi, value, damping)
    w, prior_means, shift = _own(keep, w, prior_means, shift)
    if not keep.all():
        value, state = problem.evaluate(psi, w, prior_means, shift)
    for count in range(limit):
        if len(ids) == 0:
            break
        # Pure Newton can circle among the corners of a Huber loss; a trace of the majorant ends that.
        care = caution if count < PATIENCE else max(caution, TRACE)
        g, h = problem.derivatives(psi, w, state, prior_means, care)
        step, decrease = _step(g, h, damping, psi, low, high)
        trial = np.clip(psi + step, low, high)
        trial_value, trial_state = problem.evaluate(trial, w, prior_means, shift)
        better = trial_value < value
        iterations[ids] += 1
        small = decrease <= tolerance * np.maximum(np.abs(value), 1e-300)
        stuck = ~better & (damping > 1e8)
        psi = np.where(better[:, None], trial, psi)
        value = np.where(better, trial_value, value)
        damping = np.where(better, np.maximum(damping * 0.1, 1e-14), np.maximum(damping * 8, 1e-6))
        done = small | stuck
        if done.any():
            at = ids[done]
            final_psi[at], final_value[at], converged[at] = psi[done], value[done], True
        ids, psi, value, damping = _kept(~done, ids, psi, value, damping)
        w, prior_means, shift = _own(~done, w, prior_means, shift)
        state = _merged(trial_state, state, better, ~done)
    final_psi[ids], final_value[ids] = psi, value
    return Minima(final_psi, final_value, converged, iterations)


def _merged(new: Any, old: Any, better: Array, keep: Array) -> Any:
    """The terms at the points kept: the trial's where it was taken, the old ones where it was not.

    Copying the rows of rejected trials costs less than evaluating the law again.
    """
    if isinstance(new, np.ndarray):
        if not better.all():
            new[~better] = old[~better]
        return new if keep.all() else new[keep]
    return tuple(_merged(a, b, better, keep) for a, b in zip(new, old, strict=True))


def _kept(keep: Array, *arrays: Array) -> tuple[Array, ...]:
    return arrays if keep.all() else tuple(array[keep] for array in arrays)


def _own(
    keep: Array, w: Array, means: Array | None, shift: Array | None
) -> tuple[Array, Array | None, Array | None]:
    """What the rows of the batch have for themselves, for those that stay."""
    if keep.all():
        return w, means, shift
    return (
        w if w.ndim == 1 else w[keep],
        None if means is None else means[keep],
        None if shift is None else shift[keep],
    )


def _step(g: Array, h: Array, damping: Array, psi: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Damped Newton step of every row, and the decrease the quadratic promises."""
    blocked = ((psi <= low) & (g > 0)) | ((psi >= high) & (g < 0))
    g = np.where(blocked, 0.0, g)
    diagonal = np.abs(np.einsum("bpp->bp", h))
    # Scaling by the diagonal makes the damping free of units.
    size = np.sqrt(np.maximum(diagonal, 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-290))
    h = h / (size[:, :, None] * size[:, None, :])
    h = np.where(blocked[:, :, None] | blocked[:, None, :], 0.0, h)
    at = np.arange(h.shape[1])
    h[:, at, at] = np.where(blocked, 1.0, h[:, at, at])
    step = -solve_positive(h, g / size, damping) / size
    step = np.clip(step, -LONGEST_STEP, LONGEST_STEP)
    return step, np.abs(np.einsum("bp,bp->b", g, step))


def solve_positive(h: Array, g: Array, damping: Array) -> Array:
    """Solve ``(|H| + damping I) x = g`` for a batch by LDL' with pivots made positive.

    Loops over the p columns, each step a vector operation over the batch: for five parameters this is
    several times faster than a batched eigendecomposition. A negative pivot is replaced by its size, so
    the result is always a descent direction.
    """
    p = h.shape[1]
    a = h.transpose(1, 2, 0).copy()  # (p, p, B): contiguous along the batch
    b = g.T.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # a step that is not finite is not taken
        for j in range(p):
            pivot = np.maximum(np.abs(a[j, j]), 1e-9) + damping
            a[j, j] = pivot
            for i in range(j + 1, p):
                factor = a[i, j] / pivot
                a[i, j + 1 :] -= factor * a[j, j + 1 :]
                b[i] -= factor * b[j]
        for j in range(p - 1, -1, -1):
            for i in range(j + 1, p):
                b[j] -= a[j, i] * b[i]
            b[j] /= a[j, j]
    return np.ascontiguousarray(b.T)
