"""Joint draws of the parameters: bootstrap over rows or clusters, and Laplace's approximation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from isoloss.fitting.minimise import CHUNK, Minima, Problem, minimise

Array = np.ndarray[Any, np.dtype[Any]]
SMALL = 100  # rows
NEIGHBOURS = (1, 7)  # whose results a resample of a small table also starts from
LOOK, FINISH = 60, 1000  # most steps of each try, and of the best one where it is not there yet
BLOCK = 500  # draws between two reports: what Ctrl-C can lose
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total) while a fit works."""


def bootstrap(
    problem: Problem,
    ridge: Array,
    others: Array,
    weights: Array,
    clusters: Array,
    draws: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> tuple[Array, bool, float]:
    """Refit ``draws`` resamples of the clusters, each to its own minimum. Efron 1979.

    A resample is a vector of row weights, so all resamples share one data set and are refitted
    together, warm from the full data's minimum. On small tables, where a resample has corners enough to
    catch in, each also starts from two neighbours' results and keeps the best. Prior means are redrawn with
    the data, or the prior would count as noise-free.

    Args:
        ridge: where the full data have their minimum, (m, q): one point, or several if it is flat; the
            resamples take them in turn.
        others: further local minima that a resample may prefer, each tried, (k, q).
        weights: (n,) row weights. clusters: (n,) integers from 0.

    Returns:
        Free coordinates (k, q); whether all were done (on Ctrl-C those finished are kept); and the share
        that came to a minimum before the steps ran out.
    """
    count = int(clusters.max()) + 1
    done: list[Array] = []
    settled: list[Array] = []
    total = 0
    chunk = max(1, CHUNK // len(weights))
    size = chunk * max(1, BLOCK // chunk) if chunk < BLOCK else BLOCK
    try:
        while total < draws:
            batch = min(size, draws - total)
            picks = _resamples(rng, count, batch)
            w = picks[:, clusters] * weights
            means = np.array([prior.mean for prior in problem.priors])
            means = means + rng.normal(size=(batch, len(means))) * [p.sd for p in problem.priors]
            own = ridge[np.arange(total, total + batch) % len(ridge)]
            best = minimise(problem, own, w, prior_means=means, limit=LOOK)
            for start in others:
                again = np.repeat(start[None], batch, axis=0)
                best = _better(best, minimise(problem, again, w, prior_means=means, limit=LOOK))
            for step in NEIGHBOURS if len(weights) < SMALL else ():
                again = np.roll(best.psi, step, axis=0)
                best = _better(best, minimise(problem, again, w, prior_means=means, limit=LOOK))
            best = _finished(problem, best, w, means)
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


def _finished(problem: Problem, found: Minima, w: Array, means: Array) -> Minima:
    """The same with the few slow ones, along curved valleys, taken to their minimum."""
    slow = np.flatnonzero(~found.converged)
    if len(slow) == 0:
        return found
    last = minimise(problem, found.psi[slow], w[slow], prior_means=means[slow], limit=FINISH)
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
    """Normal draws around the optimum in free coordinates, cut at the box.

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
    noise = rng.multivariate_normal(np.zeros(p), covariance, size=draws, method="eigh")
    out = np.repeat(psi[None], draws, axis=0)
    out[:, :p] = np.clip(psi[:p] + noise, problem.low[:p], problem.high[:p])
    return out


def robust_sd(r: Array, parameters: int) -> float:
    """1.4826 median |r|, widened by ``sqrt(n/(n-p))``; the root mean square where the median is zero."""
    middle = 1.4826 * float(np.median(np.abs(r)))
    n = len(r)
    size = middle if middle > 0 else float(np.sqrt(np.mean(r**2)))
    return size * float(np.sqrt(n / max(n - parameters, 1)))
