"""Joint draws from the posterior of the parameters: intervals for small tables, exact where the law is linear.

Resampling nine rows of a five-parameter law leaves resamples with too few distinct rows, and a normal
approximation knows neither the curved valleys of a law nor that the noise itself had to be estimated. The
posterior knows both. For a linear law with normal noise it is the multivariate t with n - p degrees of
freedom, so that its intervals hold exactly as often as they say.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.minimise import Problem
from isoloss.fitting.uncertainty import Progress, effective, laplace

Array = np.ndarray[Any, np.dtype[Any]]

ENSEMBLES = 2  # independent ones, whose agreement is the check
WALKERS = (
    60,
    200,
)  # of each ensemble, least and most; where they stand at one time are nearly independent draws
SETTLE = 300  # steps thrown away: the far end of a curved valley fills slowly
APART = 50  # steps between two looks at all walkers
REPORT = 50  # steps between two reports
SPREAD = 1.0  # of the first walkers, in units of Laplace's approximation
STUCK = 10.0  # below the middle of the ensemble in log density, and one more per coordinate
JUMP = 0.1  # share of difference moves that go all the way, from one mode to another


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws and whether they can be relied on.

    Attributes:
        psi: free coordinates (K, q), without the scale.
        scale: standard deviation of a new run's residual in each draw, (K,).
        agreement: the largest Gelman-Rubin ratio over the coordinates; near 1 if the ensembles agree.
        complete: not cut short by Ctrl-C.
    """

    psi: Array
    scale: Array
    agreement: float
    complete: bool


def posterior(
    problem: Problem,
    minima: Array,
    weights: Array,
    draws: int,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Posterior:
    r"""Sample :math:`p(\psi,\kappa\mid y) \propto |J^\top W J|^{1/2}\,\kappa^{-1}\,e^{-\sum_i w_i\rho(r_i)/\kappa}/Z(\kappa)^n`.

    Jeffreys' prior makes the result independent of the coordinates, and keeps a term that the rows hardly
    see from wandering off to zero. The scale of the noise is a coordinate as the others, at most that of the
    measurements around their mean. Sampled by two ensembles of walkers with stretch moves (Goodman & Weare 2010, CAMCoS 5(1)) and difference moves
    (ter Braak 2006, Stat. Comput. 16), all walkers of both in one batch.

    A Huber loss with a small delta is no density that measurements follow: under normal noise its estimate
    scatters by :math:`\sqrt{B/(A\kappa)}` times as much as its posterior says, with :math:`A=E\rho''` and
    :math:`B=E\rho'^2` (1.25 for least absolute deviations). But the posterior's centre averages over the
    corners on which the estimate sits, and errs less. The draws are widened about their median by the root of
    that ratio, 1.12 at the most; the power was chosen by measured coverage. 1 for least squares.

    Args:
        problem: with its priors, if any. minima: where to begin, (m, q), the estimate first.
        weights: (n,) row weights.
        draws: how many to keep.
    """
    if problem.objective.name != "gaussian":  # there weights are known precisions, and every row is one row
        # Elsewhere they say how much a row counts, not how many it stands for: Kish's effective number.
        weights = weights * effective(weights) / float(np.sum(weights))
    target = _Target(problem, weights)
    walkers = 2 * math.ceil(min(max(draws / ENSEMBLES, WALKERS[0]), WALKERS[1]) / 2)
    at = target.first(minima, ENSEMBLES * walkers, rng).reshape(ENSEMBLES, walkers, target.size)
    looks = math.ceil(draws / (ENSEMBLES * walkers))
    kept, complete = walk(target, at, SETTLE, looks * APART, rng, progress)
    agreement = _agreement(kept)
    late = kept[::-APART][:looks].reshape(-1, target.size)
    chosen = late[rng.permutation(len(late))[:draws]]
    psi, log_scale = chosen[:, : target.p], chosen[:, target.p]
    ratio, sd = problem.objective.spread(np.exp(log_scale))
    if not problem.priors:  # what a prior holds is no wider for the objective
        centre = np.median(psi, axis=0)  # not the estimate, which may sit on a bound that no draw is near
        wide = np.clip(centre + math.sqrt(ratio) * (psi - centre), target.low, target.high)
        # A law may end (a factor at 0): a draw that would leave it at some row stays where it is.
        defined = np.isfinite(target(np.column_stack([wide, log_scale])))
        psi = np.where(defined[:, None], wide, psi)
    return Posterior(psi, sd, agreement, complete)


class _Target:
    """The log posterior of points (B, p + 1): free coordinates, then the log of the objective's scale."""

    def __init__(self, problem: Problem, weights: Array) -> None:
        self.problem, self.weights = problem, weights
        self.scaled = problem.objective.has_scale
        self.p = problem.size - self.scaled
        self.size = self.p + 1
        self.low, self.high = problem.low[: self.p], problem.high[: self.p]
        self.total = float(np.sum(weights))
        self.most = self._loudest()

    def _loudest(self) -> float:
        """Log scale of noise as wide as the measurements themselves: a law that explains nothing.

        With one or two rows more than parameters the tail of the scale has no mean, and that of a prediction
        in logs none at all; no reader doubts so far.
        """
        objective, y = self.problem.objective, self.problem.y
        values = np.log(y) if objective.residual == "log" else y
        around = values - np.sum(self.weights * values) / self.total
        if self.scaled:
            return 0.5 * math.log(max(float(np.sum(self.weights * around**2)) / self.total, 1e-300))
        return math.log(max(objective.temperature(around, self.weights), 1e-300))

    def first(self, minima: Array, count: int, rng: np.random.Generator) -> Array:
        """Walkers around the estimate, and around other minima, inside the box, (count, p + 1)."""
        p, problem = self.p, self.problem
        cloud = laplace(problem, minima[0], self.weights, np.arange(len(self.weights)), count, rng)[:, :p]
        moves = SPREAD * (cloud - minima[0][:p])
        width = self.high - self.low
        # A direction that the rows leave open would throw every walker against the box.
        moves = np.clip(moves, -0.25 * width, 0.25 * width)
        centres = minima[np.arange(count) % len(minima)][:, :p]
        inside = np.clip(centres + moves, self.low + 1e-9 * width, self.high - 1e-9 * width)
        r = problem.residuals(minima[:1])[0][0]
        if self.scaled:
            scale = float(minima[0][p])
        else:
            scale = math.log(max(problem.objective.temperature(r, self.weights), 1e-300))
        loud = np.minimum(scale + 0.3 * rng.normal(size=count), self.most)
        out = np.column_stack([inside, loud])
        lost = ~np.isfinite(self(out))
        out[lost, :p] = minima[0][:p] + 1e-6 * width * rng.normal(size=(int(lost.sum()), p))
        out[:, :p] = np.clip(out[:, :p], self.low, self.high)
        return out

    def __call__(self, points: Array) -> Array:
        problem, w = self.problem, self.weights
        psi, log_scale = points[:, : self.p], points[:, self.p]
        outside = ((psi < self.low) | (psi > self.high)).any(axis=1) | (log_scale > self.most)
        if self.scaled:
            psi = points
        r, state = problem.residuals(psi)
        with np.errstate(all="ignore"):
            if self.scaled:
                rho = problem.objective.rho(r * np.exp(-log_scale)[:, None])
                out = -(rho @ w) - self.total * log_scale
            else:
                kappa = np.exp(log_scale)
                out = -(problem.objective.rho(r) @ w) / kappa
                out = out - self.total * problem.objective.log_normaliser(kappa)
            out = out + 0.5 * self._log_determinant(state)
            for prior in problem.priors:
                out = out - 0.5 * ((prior.value(psi) - prior.mean) / prior.sd) ** 2
        return np.where(outside | ~np.isfinite(out), -np.inf, out)

    def _log_determinant(self, state: Any) -> Array:
        """``log |J' W J|`` per point; directions without any information count as nearly none."""
        log = self.problem.objective.residual == "log"
        h = self.problem.model.information(state, self.weights, log=log)
        trace = np.trace(h, axis1=1, axis2=2)[:, None, None]
        if not np.isfinite(h).all():
            h, trace = np.where(np.isfinite(h), h, 0.0), np.nan_to_num(trace)
        h = h + (1e-12 * trace + 1e-290) * np.eye(self.p)
        return np.asarray(np.linalg.slogdet(h)[1])


def walk(
    target: Callable[[Array], Array],
    at: Array,
    settle: int,
    steps: int,
    rng: np.random.Generator,
    progress: Progress | None,
) -> tuple[Array, bool]:
    """Positions after each kept step, (steps, E, W, q); half of every ensemble moves by the other half."""
    ensembles, walkers, size = at.shape
    half = walkers // 2
    height = target(at.reshape(-1, size)).reshape(ensembles, walkers)
    rows = np.arange(ensembles)[:, None]
    every = np.tile(np.arange(walkers), (ensembles, 1))
    kept: list[Array] = []
    total = settle + steps
    try:
        for step in range(total):
            order = rng.permuted(every, axis=1)
            for movers, others in ((order[:, :half], order[:, half:]), (order[:, half:], order[:, :half])):
                here, still = at[rows, movers], at[rows, others]
                if step % 2:
                    new, bonus = _stretched(here, still, rng)
                else:
                    new, bonus = _differences(here, still, rng)
                tried = target(new.reshape(-1, size)).reshape(movers.shape)
                with np.errstate(invalid="ignore", over="ignore"):
                    taken = np.log(rng.random(movers.shape)) < tried - height[rows, movers] + bonus
                at[rows, movers] = np.where(taken[..., None], new, here)
                height[rows, movers] = np.where(taken, tried, height[rows, movers])
            if step == settle // 2:
                _free(at, height, rng)
            if step >= settle:
                kept.append(at.copy())
            if progress and (step + 1) % REPORT == 0:
                progress("posterior", step + 1, total)
    except KeyboardInterrupt:
        if len(kept) < APART:
            raise
        return np.array(kept), False
    return np.array(kept), True


def _free(at: Array, height: Array, rng: np.random.Generator) -> None:
    """Half-way through the settling, set walkers that are stuck far down onto others, in place.

    A walker so low is no draw of the posterior but one that the first cloud threw too far (Hou et al. 2012,
    ApJ 745:198, prune them too); one of them in a tail makes a nonsense of every mean.
    """
    size = at.shape[2]
    for one, own in zip(at, height, strict=True):
        stuck = own < np.median(own) - STUCK - size
        if stuck.any():
            chosen = rng.choice(np.flatnonzero(~stuck), int(stuck.sum()))
            one[stuck], own[stuck] = one[chosen], own[chosen]


def _stretched(here: Array, still: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Stretch moves: along the line to a walker of the other half, density 1/sqrt(z) on [1/2, 2]."""
    ensembles, half, size = here.shape
    z = (1.0 + rng.random((ensembles, half))) ** 2 / 2.0
    partner = still[np.arange(ensembles)[:, None], rng.integers(0, still.shape[1], (ensembles, half))]
    return partner + z[..., None] * (here - partner), (size - 1) * np.log(z)


def _differences(here: Array, still: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Difference moves: by the scaled gap between two walkers of the other half."""
    ensembles, half, size = here.shape
    rows = np.arange(ensembles)[:, None]
    a = rng.integers(0, still.shape[1], (ensembles, half))
    b = (a + rng.integers(1, still.shape[1], (ensembles, half))) % still.shape[1]
    length = np.where(rng.random((ensembles, half)) < JUMP, 1.0, 2.38 / math.sqrt(2 * size))
    gap = still[rows, a] - still[rows, b]
    return here + length[..., None] * gap * (1 + 1e-3 * rng.normal(size=gap.shape)), np.zeros(
        (ensembles, half)
    )


def _agreement(kept: Array) -> float:
    """Gelman & Rubin's ratio of total to within-ensemble spread, the largest over the coordinates."""
    steps, ensembles, walkers, size = kept.shape
    halves = kept[: steps // 2 * 2].reshape(2, steps // 2, ensembles, walkers, size)
    groups = halves.transpose(0, 2, 1, 3, 4).reshape(2 * ensembles, -1, size)
    within = groups.var(axis=1).mean(axis=0)
    between = groups.mean(axis=1).var(axis=0, ddof=1)
    return float(np.sqrt(1.0 + np.max(between / np.maximum(within, 1e-300))))
