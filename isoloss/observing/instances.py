"""The task law of Hu et al. 2023, arXiv:2310.03262, instance by instance: never solved is kept, not dropped.

Per instance i the rate is :math:`p_i(N) = \\exp(-c_i N^{-\\alpha_i})`. Most instances pass too seldom in small
models to be fitted alone, so their (log c, alpha) are drawn from one normal population, which all instances
together determine: a generalised linear mixed model with the complementary log-log link for failures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured

Array = np.ndarray[Any, np.dtype[Any]]

NODES = 5  # per dimension, of the quadrature around each instance's mode
ROUNDS = 400  # of expectation and maximisation at most
SETTLED = 1e-4  # change of the population's numbers that ends them
RESAMPLES = 100
LEAST = 5  # instances that can be drawn anew
SPREAD_FLOOR = 1e-4  # variance that the population keeps, so that it can grow again


@dataclass(frozen=True, eq=False)
class Population:
    """Where the instances' lines ``log(-log p) = a - alpha u + bend u^2`` lie; u = log(N / middle).

    Attributes:
        mean: of (a, alpha), shape (2,).
        cov: their covariance, shape (2, 2).
        bend: common to all; 0 is the law.
    """

    mean: Array
    cov: Array
    bend: float = 0.0


@dataclass(frozen=True, eq=False)
class TaskFit:
    """The law fitted to every instance of a task.

    Attributes:
        params: sizes N of the models, shape (M,).
        middle: geometric mean of the sizes, at which the population is written.
        population: of the instances.
        log_c, alpha: posterior means per instance, shape (I,).
        unsolved: instances that no model passed; they are in the fit as censored.
        resampled: populations of tasks with instances drawn anew.
        passes, failures: counts, shape (I, M).
    """

    params: Array
    middle: float
    population: Population
    log_c: Array
    alpha: Array
    unsolved: int
    resampled: tuple[Population, ...]
    passes: Array
    failures: Array

    def __repr__(self) -> str:
        count, sizes = self.passes.shape
        return (
            f"TaskFit({count} instances at {sizes} sizes, {self.unsolved} never passed; mean alpha "
            f"{self.population.mean[1]:.3g})"
        )

    def predict(self, params: float, *, coverage: float = 0.9, seed: int = 0) -> Measured:
        r"""The mean pass rate of these instances at another size, :math:`\frac1I\sum_i e^{-c_i N^{-\alpha_i}}`.

        The interval holds what is unknown of each instance given the population (draws from its posterior)
        and of the population given the instances (bootstrap over instances). Not the law's being wrong:
        look at :func:`linearity`.

        Raises:
            ValueError: a size that is not positive. NoAnswer: fewer than five instances, or than two resamples.
        """
        if not (params > 0 and math.isfinite(params)):
            raise ValueError(f"needed a positive size, got {params}")
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
        if len(self.passes) < LEAST:
            raise NoAnswer(
                f"a bootstrap over instances needs more than {len(self.passes)}",
                f"{LEAST} instances or more, or a fit of task-law to the rates of one",
            )
        if len(self.resampled) < 2:
            raise NoAnswer("this fit has no resamples, so no interval", "fit_instances(..., resamples=100)")
        u = math.log(params / self.middle)
        x = np.log(self.params / self.middle)
        value = float(_rates(_posterior(self.population, x, self.passes, self.failures), u).mean())
        rng, means = np.random.default_rng(seed), []
        for population in self.resampled:
            posterior = _posterior(population, x, self.passes, self.failures)
            for _ in range(10):
                means.append(_drawn(posterior, u, rng).mean())
        low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
        reach = params / float(self.params.max())
        far = f" at {reach:.3g} times the largest size" if reach > 1 else ""
        how = f"task law of {len(self.passes)} instances{far}; bootstrap over instances"
        return Measured(value, float(low), float(high), coverage, how)


@dataclass(frozen=True)
class Linearity:
    """Whether ``log(-log p)`` is a line in log N.

    Attributes:
        verdict: ``"accelerated"`` (the exponent grows with size: the task emerges faster than the law says),
            ``"slowed"``, or ``"no bend seen"``: the interval holds zero.
        growth: of the exponent alpha from the smallest to the largest model, 0 under the law, with its interval.
        alpha: population's mean exponent at the middle size, to compare with.
    """

    verdict: str
    growth: Measured
    alpha: float


def fit_instances(
    params: Any, passes: Any, samples: Any, *, resamples: int = RESAMPLES, seed: int = 0
) -> TaskFit:
    r"""Fit the task law to every instance at once, by maximum marginal likelihood.

    .. math:: \prod_i \int \prod_m p_i(N_m)^{r_{im}} (1 - p_i(N_m))^{K_{im} - r_{im}}\,
              \mathcal N(a_i, \alpha_i)\, d a_i\, d\alpha_i

    The likelihood is the same whether sampling stopped at the wanted passes or at the cap, so an instance
    with no pass enters as :math:`(1-p)^{K}`. Averaging the rates first would break the law.

    Args:
        params: sizes of the models, shape (M,), at least two different.
        passes, samples: shape (I, M); a cell with 0 samples was not measured.
        resamples: tasks drawn anew for the interval.
        seed: of them.

    Raises:
        ValueError: shapes or counts that do not fit. NoAnswer: nothing passed, or nothing failed.

    Example:
        >>> sizes = np.array([3e7, 1e8, 3e8, 1e9])
        >>> rates = np.exp(-np.array([[800.0], [1600.0], [6000.0]]) * sizes ** -0.35)
        >>> fit = fit_instances(sizes, np.round(rates * 10_000), 10_000, resamples=5)
        >>> fit.alpha.round(2).tolist()
        [0.35, 0.35, 0.35]
    """
    sizes, r, f = _counts(params, passes, samples)
    middle = float(np.exp(np.log(sizes).mean()))
    x = np.log(sizes / middle)
    population = _estimate(_start(x, r, f), x, r, f, bend=False)
    posterior = _posterior(population, x, r, f)
    mean = np.einsum("ik,ikd->id", posterior.weights, posterior.nodes)
    rng = np.random.default_rng(seed)
    resampled: list[Population] = []
    while len(resampled) < resamples:
        rows = rng.integers(0, len(r), len(r))
        if r[rows].sum() and f[rows].sum():
            resampled.append(_estimate(population, x, r[rows], f[rows], bend=False))
    return TaskFit(
        sizes, middle, population, mean[:, 0] + mean[:, 1] * math.log(middle), mean[:, 1],
        int(np.sum(r.sum(axis=1) == 0)), tuple(resampled), r, f,
    )  # fmt: skip


def linearity(
    params: Any,
    passes: Any,
    samples: Any,
    *,
    coverage: float = 0.9,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Linearity:
    """Test the task law: does ``log(-log p)`` bend over log N, in a bend common to the instances?

    Args:
        params, passes, samples: as for :func:`fit_instances`, three sizes or more.
        coverage: of the interval of the bend, a bootstrap over instances.
        resamples, seed: of it.

    Raises:
        ValueError: shapes or counts that do not fit. NoAnswer: fewer than three sizes or five instances.

    Example:
        >>> sizes = np.array([3e7, 1e8, 3e8, 1e9])
        >>> rng = np.random.default_rng(1)
        >>> rates = np.exp(-rng.uniform(300, 3000, (20, 1)) * sizes ** -0.35)
        >>> linearity(sizes, rng.binomial(1000, rates), 1000, resamples=20).verdict
        'no bend seen'
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if resamples < 2:
        raise ValueError(f"needed two resamples or more for an interval, got {resamples}")
    sizes, r, f = _counts(params, passes, samples)
    if len(np.unique(sizes)) < 3:
        raise NoAnswer("two sizes are always on a line", "three sizes or more")
    if len(r) < LEAST:
        raise NoAnswer(f"{len(r)} instances give no bootstrap over instances", f"{LEAST} instances or more")
    x = np.log(sizes / np.exp(np.log(sizes).mean()))
    found = _estimate(_start(x, r, f), x, r, f, bend=True)
    rng = np.random.default_rng(seed)
    bends: list[float] = []
    while len(bends) < resamples:
        rows = rng.integers(0, len(r), len(r))
        if r[rows].sum() and f[rows].sum():
            bends.append(_estimate(found, x, r[rows], f[rows], bend=True).bend)
    # The exponent at u is alpha - 2 bend u.
    scale = -2.0 * float(np.ptp(x))
    ends = np.sort(scale * np.quantile(bends, [(1 - coverage) / 2, (1 + coverage) / 2]))
    low, high = float(ends[0]), float(ends[1])
    verdict = "accelerated" if low > 0 else "slowed" if high < 0 else "no bend seen"
    growth = Measured(
        float(scale * found.bend), low, high, coverage, f"common bend; bootstrap over {len(r)} instances"
    )
    return Linearity(verdict, growth, float(found.mean[1]))


def _counts(params: Any, passes: Any, samples: Any) -> tuple[Array, Array, Array]:
    sizes = np.asarray(params, dtype=float)
    if sizes.ndim != 1 or not np.all(np.isfinite(sizes) & (sizes > 0)):
        raise ValueError("needed positive sizes, one per model")
    r = np.atleast_2d(np.asarray(passes, dtype=float))
    if r.ndim != 2 or r.shape[1] != len(sizes):
        raise ValueError(f"needed passes of shape (instances, {len(sizes)}), got {r.shape}")
    try:
        k = np.broadcast_to(np.asarray(samples, dtype=float), r.shape)
    except ValueError:
        raise ValueError(
            f"needed samples of shape {r.shape} or one number, got {np.shape(samples)}"
        ) from None
    if not np.all(np.isfinite(k) & (r >= 0) & (r <= k)):
        raise ValueError("needed 0 <= passes <= samples in every cell")
    if not (np.all(r == np.round(r)) and np.all(k == np.round(k))):
        raise ValueError("needed whole numbers of passes and samples. Give counts, not rates")
    if len(np.unique(sizes)) < 2:
        raise ValueError("needed two different sizes to see an exponent")
    if not r.sum():
        raise NoAnswer("no model passed any instance", "more samples, or a larger model")
    if not (k - r).sum():
        raise NoAnswer("every sample passed", "smaller models, or harder instances")
    return sizes, r, k - r


def _log_likelihood(g: Array, r: Array, f: Array) -> tuple[Array, Array, Array]:
    """Of passes and failures at ``p = exp(-exp(g))``: value, slope and curvature in g; concave."""
    rate = np.exp(np.clip(g, -700.0, 40.0))  # -log p; beyond 40 no sample can pass in any lifetime
    away = -np.expm1(-rate)  # 1 - p
    with np.errstate(over="ignore"):
        odds = np.where(rate > 30, 0.0, rate * np.exp(-rate) / away)  # d log(1-p) / dg
    value = -r * rate + f * np.log(away)
    return value, -r * rate + f * odds, -r * rate + f * odds * (1.0 - rate - odds)


@dataclass(frozen=True, eq=False)
class _Posterior:
    """Per instance: nodes (I, G, 2), weights (I, G) that sum to 1, and the mode (I, 2)."""

    nodes: Array
    weights: Array
    mode: Array


_GRID, _WEIGHT = np.polynomial.hermite_e.hermegauss(NODES)
_PAIRS = np.stack(np.meshgrid(_GRID, _GRID, indexing="ij"), axis=-1).reshape(-1, 2)
_LOG_WEIGHTS = np.log(np.outer(_WEIGHT, _WEIGHT).reshape(-1)) + 0.5 * (_PAIRS**2).sum(axis=1)


def _posterior(population: Population, x: Array, r: Array, f: Array, near: Array | None = None) -> _Posterior:
    """Newton to each instance's mode (the posterior is log-concave), then Gauss-Hermite nodes around it."""
    precision = np.linalg.inv(population.cov)
    design = np.stack([np.ones_like(x), -x], axis=1)  # (M, 2)
    offset = population.bend * x**2

    def height(at: Array) -> Array:
        value, _, _ = _log_likelihood(at @ design.T + offset, *counts(at))
        off = at - population.mean
        out: Array = value.sum(axis=-1) - 0.5 * np.einsum("...d,de,...e->...", off, precision, off)
        return out

    def counts(at: Array) -> tuple[Array, Array]:
        return (r, f) if at.ndim == 2 else (r[:, None], f[:, None])

    at = np.tile(population.mean, (len(r), 1)) if near is None else near
    best = height(at)
    for _ in range(60):
        _, slope, curve = _log_likelihood(at @ design.T + offset, r, f)
        gradient = slope @ design - (at - population.mean) @ precision
        hessian = np.einsum("im,md,me->ide", -curve, design, design) + precision
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        share = np.ones(len(at))
        for _ in range(30):  # halved where it went too far
            tried = at + share[:, None] * step
            new = height(tried)
            worse = ~(new >= best - 1e-12 * np.abs(best))
            if not worse.any():
                break
            share[worse] /= 2
        at, best = tried, new
        if np.abs(step).max() < 1e-8:
            break
    _, _, curve = _log_likelihood(at @ design.T + offset, r, f)
    hessian = np.einsum("im,md,me->ide", -curve, design, design) + precision
    root = np.linalg.cholesky(np.linalg.inv(hessian))
    nodes = at[:, None] + np.einsum("ide,ge->igd", root, _PAIRS)
    logs = height(nodes) + _LOG_WEIGHTS
    weights = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return _Posterior(nodes, weights, at)


def _start(x: Array, r: Array, f: Array) -> Population:
    """From the pooled rates: a wide population around their line."""
    pooled = (r.sum(axis=0) + 0.5) / ((r + f).sum(axis=0) + 1.0)
    g = np.log(-np.log(pooled))
    slope, middle = np.polyfit(x, g, 1)
    return Population(np.array([middle, -slope]), np.diag([4.0, 0.1]))


def _estimate(start: Population, x: Array, r: Array, f: Array, *, bend: bool) -> Population:
    """Expectation and maximisation from a start; with ``bend``, one Newton step of the common bend each round."""
    now, near = start, None
    for _ in range(ROUNDS):
        posterior = _posterior(now, x, r, f, near)
        near = posterior.mode
        w, nodes = posterior.weights, posterior.nodes
        mean = np.einsum("ig,igd->d", w, nodes) / len(r)
        off = nodes - mean
        cov = np.einsum("ig,igd,ige->de", w, off, off) / len(r) + SPREAD_FLOOR * np.eye(2)
        new = Population(mean, cov, now.bend)
        if bend:
            g = nodes[..., :1] - nodes[..., 1:] * x + now.bend * x**2
            _, slope, curve = _log_likelihood(g, r[:, None], f[:, None])
            lift = np.einsum("ig,igm,m->", w, slope, x**2)
            new = replace(new, bend=now.bend + lift / -np.einsum("ig,igm,m->", w, curve, x**4))
        moved = max(
            np.abs(new.mean - now.mean).max(), np.abs(new.cov - now.cov).max(), abs(new.bend - now.bend)
        )
        now = new
        if moved < SETTLED:
            break
    return now


def _rates(posterior: _Posterior, u: float) -> Array:
    """Posterior mean of the pass rate at u, per instance; the bend is not part of the law."""
    g = posterior.nodes[..., 0] - posterior.nodes[..., 1] * u
    out: Array = np.einsum("ig,ig->i", posterior.weights, np.exp(-np.exp(np.clip(g, -700, 40))))
    return out


def _drawn(posterior: _Posterior, u: float, rng: np.random.Generator) -> Array:
    """One draw of every instance's rate: a node by its weight, which keeps the posterior's moments."""
    count = len(posterior.mode)
    pick = (posterior.weights.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(0, len(_PAIRS) - 1)
    at = posterior.nodes[np.arange(count), pick]
    g = at[:, 0] - at[:, 1] * u
    out: Array = np.exp(-np.exp(np.clip(g, -700, 40)))
    return out
