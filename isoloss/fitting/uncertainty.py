"""Joint draws of the parameters by refitting other tables: bootstraps; and Laplace's approximation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.minimise import CHUNK, Minima, Problem, minimise

Array = np.ndarray[Any, np.dtype[Any]]
SMALL = 100  # rows
NEIGHBOURS = (1, 7)  # whose results a resample of a small table also starts from
LOOK, FINISH = 60, 1000  # most steps of each try, and of the best one where it is not there yet
FEW_CLUSTERS = 12  # below, random signs make too few different tables
HALVINGS = 50  # of a draw's way from the optimum
BLOCK = 500  # draws between two reports: what Ctrl-C can lose
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while a fit works."""


@dataclass(frozen=True, eq=False)
class Worlds:
    """A batch of tables that might have been measured instead: row weights, and moved measurements.

    Attributes:
        w: (n,), or (B, n) where rows are drawn anew.
        means: prior means, (B, priors).
        shift: added to the residuals, (B, n), or None.
    """

    w: Array
    means: Array
    shift: Array | None

    def minimise(self, problem: Problem, psi: Array, limit: int) -> Minima:
        """Each world's minimum from its own start, (B, q)."""
        return minimise(problem, psi, self.w, prior_means=self.means, shift=self.shift, limit=limit)

    def take(self, which: Array) -> Worlds:
        """Some of them."""
        return Worlds(
            self.w if self.w.ndim == 1 else self.w[which],
            self.means[which],
            None if self.shift is None else self.shift[which],
        )


Redraw = Callable[[np.random.Generator, int], tuple[Array, "Array | None"]]
"""Gives row weights, (n,) or (B, n), and shifts of the residuals, (B, n) or None, of B worlds."""


def by_rows(weights: Array, clusters: Array) -> Redraw:
    """Rows, or whole clusters, drawn anew: right for any noise, blunt below some thirty rows. Efron 1979."""
    count = int(clusters.max()) + 1
    return lambda rng, batch: (_resamples(rng, count, batch)[:, clusters] * weights, None)


def by_residuals(problem: Problem, psi: Array, weights: Array) -> Redraw:
    """The design kept, residuals dealt anew over the rows: for noise that is alike in every row.

    Residuals are divided by ``sqrt(1 - h_i)``, h the leverage, or they would be smaller than the noise.
    """
    r = problem.residuals(psi[None])[0][0]
    pool = r / np.sqrt(1.0 - leverage(problem, psi, weights))
    pool = pool - np.sum(weights * pool) / np.sum(weights)

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        return weights, rng.choice(pool, size=(batch, len(r))) - r

    return draw


def by_signs(problem: Problem, psi: Array, weights: Array, clusters: Array) -> Redraw:
    """The design kept, each residual with a random sign, one for a whole cluster: for unequal noise.

    Wu 1986, Ann. Statist. 14(4); residuals divided by ``1 - h_i`` (HC3, MacKinnon & White 1985). Below a
    dozen clusters two signs make too few worlds: then Webb's six values.
    """
    r = problem.residuals(psi[None])[0][0]
    moved = r / (1.0 - leverage(problem, psi, weights))
    count = int(clusters.max()) + 1
    few = count < FEW_CLUSTERS
    signs = np.sqrt([0.5, 1.0, 1.5]) if few else np.ones(1)
    signs = np.concatenate([-signs, signs])

    def draw(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
        return weights, rng.choice(signs, size=(batch, count))[:, clusters] * moved - r

    return draw


def leverage(problem: Problem, psi: Array, weights: Array) -> Array:
    """``h_i = w_i J_i (J' W J)^-1 J_i'``, at most 0.99, (n,)."""
    p = problem.size - problem.objective.has_scale
    jacobian = problem.model.jacobian(psi[:p], log=problem.objective.residual == "log")
    scaled = jacobian * np.sqrt(weights)[:, None]
    basis = np.linalg.svd(scaled, full_matrices=False)[0]
    return np.asarray(np.minimum(np.sum(basis**2, axis=1), 0.99))


def bootstrap(
    problem: Problem,
    ridge: Array,
    others: Array,
    redraw: Redraw,
    draws: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> tuple[Array, bool, float]:
    """Refit ``draws`` tables that might have been measured instead, each to its own minimum.

    All share one data set, with weights or shifts of their own, and are refitted together, warm from the
    full data's minimum. On small tables, where a resample has corners enough to catch in, each also starts
    from two neighbours' results and keeps the best. Prior means are redrawn with the data, or the prior
    would count as noise-free.

    Args:
        ridge: where the full data have their minimum, (m, q): one point, or several if it is flat; the
            resamples take them in turn.
        others: further local minima that a resample may prefer, each tried, (k, q).
        redraw: :func:`by_rows`, :func:`by_residuals` or :func:`by_signs`.

    Returns:
        Free coordinates (k, q); whether all were done (on Ctrl-C those finished are kept); and the share
        that came to a minimum before the steps ran out.
    """
    n = len(problem.y)
    done: list[Array] = []
    settled: list[Array] = []
    total = 0
    chunk = max(1, CHUNK // n)
    size = chunk * max(1, BLOCK // chunk) if chunk < BLOCK else BLOCK
    try:
        while total < draws:
            batch = min(size, draws - total)
            w, shift = redraw(rng, batch)
            means = np.array([prior.mean for prior in problem.priors])
            means = means + rng.normal(size=(batch, len(means))) * [p.sd for p in problem.priors]
            worlds = Worlds(w, means, shift)
            best = worlds.minimise(problem, ridge[np.arange(total, total + batch) % len(ridge)], LOOK)
            for start in others:
                again = np.repeat(start[None], batch, axis=0)
                best = _better(best, worlds.minimise(problem, again, LOOK))
            for step in NEIGHBOURS if n < SMALL else ():
                again = np.roll(best.psi, step, axis=0)
                best = _better(best, worlds.minimise(problem, again, LOOK))
            best = _finished(problem, best, worlds)
            done.append(best.psi)
            settled.append(best.converged)
            total += batch
            if progress:
                progress("bootstrap", total, draws)
    except KeyboardInterrupt:
        if not done:
            raise
        return np.concatenate(done), False, float(np.mean(np.concatenate(settled)))
    return np.concatenate(done), True, float(np.mean(np.concatenate(settled)))


def _finished(problem: Problem, found: Minima, worlds: Worlds) -> Minima:
    """The same with the few slow ones, along curved valleys, taken to their minimum."""
    slow = np.flatnonzero(~found.converged)
    if len(slow) == 0:
        return found
    last = worlds.take(slow).minimise(problem, found.psi[slow], FINISH)
    psi, value, converged = found.psi.copy(), found.value.copy(), found.converged.copy()
    psi[slow], value[slow], converged[slow] = last.psi, last.value, last.converged
    return Minima(psi, value, converged, found.iterations)


def _better(a: Minima, b: Minima) -> Minima:
    """Row by row the lower of two minima."""
    lower = b.value < a.value
    return Minima(
        np.where(lower[:, None], b.psi, a.psi),
        np.where(lower, b.value, a.value),
        np.where(lower, b.converged, a.converged),
        a.iterations + b.iterations,
    )


def _resamples(rng: np.random.Generator, count: int, batch: int) -> Array:
    """How often each cluster is drawn, (batch, count): counting draws is ten times as fast as a multinomial."""
    drawn = rng.integers(0, count, size=(batch, count))
    drawn += count * np.arange(batch)[:, None]
    return np.bincount(drawn.ravel(), minlength=batch * count).reshape(batch, count).astype(float)


def laplace(
    problem: Problem,
    psi: Array,
    weights: Array,
    clusters: Array,
    draws: int,
    rng: np.random.Generator,
) -> Array:
    """Draws around the optimum in free coordinates: t with (units - p) degrees of freedom, cut at the box.

    A draw with which the law is not defined at some row goes halfway back to the optimum until it is.

    The covariance is the sandwich ``A^-1 B A^-1 n/(n-p)``, ``A = sum_i w_i rho''(r_i) J_i J_i'``,
    ``B = sum_i w_i^2 rho'(r_i)^2 J_i J_i'`` (Huber 1967), right for unequal noise over the rows; with
    clusters, B sums the scores of a cluster before it squares them, and the factor is G/(G-1). rho'' is
    taken as a difference over a bandwidth (Powell 1984): Huber's own is an indicator of width delta,
    often narrower than the gaps between residuals.
    """
    scale = float(np.exp(psi[-1])) if problem.objective.has_scale else 1.0
    p = problem.size - problem.objective.has_scale
    n = len(problem.y)
    u = problem.residuals(psi[None])[0][0] / scale
    bandwidth = max(robust_sd(u, 0) * n ** (-1 / 3), 1e-12)
    up, down = problem.objective.slopes(u + bandwidth)[0], problem.objective.slopes(u - bandwidth)[0]
    jacobian = problem.model.jacobian(psi[:p], log=problem.objective.residual == "log") / scale
    curvature = (jacobian * (weights * (up - down) / (2 * bandwidth))[:, None]).T @ jacobian
    scores = jacobian * (weights * problem.objective.slopes(u)[0])[:, None]
    # Rows of one cluster share their noise: their scores add up before they are squared.
    together = np.zeros((int(clusters.max()) + 1, p))
    np.add.at(together, clusters, scores)
    meat = together.T @ together
    units = len(together)
    correction = n / max(n - p, 1) if units == n else units / max(units - 1, 1)
    for prior in problem.priors:
        slope = prior.slope(psi[None])[0, :p] / prior.sd
        curvature += problem.temperature * np.outer(slope, slope)
        meat += problem.temperature**2 * np.outer(slope, slope)
    inverse = np.linalg.pinv(curvature, rcond=1e-13, hermitian=True)
    covariance = inverse @ meat @ inverse * correction
    size, axes = np.linalg.eigh(0.5 * (covariance + covariance.T))  # rounding can make it not quite positive
    noise = rng.normal(size=(draws, p)) * np.sqrt(np.maximum(size, 0.0)) @ axes.T
    freedom = max(units - p, 1)  # the scatter itself was estimated
    noise /= np.sqrt(rng.chisquare(freedom, size=(draws, 1)) / freedom)
    out = np.repeat(psi[None], draws, axis=0)
    out[:, :p] = np.clip(psi[:p] + noise, problem.low[:p], problem.high[:p])
    for _ in range(HALVINGS):
        lost = ~np.isfinite(problem.residuals(out)[0]).all(axis=1)
        if not lost.any():
            break
        out[lost] = 0.5 * (out[lost] + psi)
    return out


def robust_sd(r: Array, parameters: int) -> float:
    """1.4826 median |r|, widened by ``sqrt(n/(n-p))``; the root mean square where the median is zero."""
    middle = 1.4826 * float(np.median(np.abs(r)))
    n = len(r)
    size = middle if middle > 0 else float(np.sqrt(np.mean(r**2)))
    return size * float(np.sqrt(n / max(n - parameters, 1)))


def effective(weights: Array) -> float:
    """Kish's number of equally weighted rows that say as much, ``(sum w)^2 / sum w^2``."""
    return float(np.sum(weights)) ** 2 / float(np.sum(weights**2))
