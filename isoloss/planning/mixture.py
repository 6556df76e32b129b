"""The mixture of training data that is best for what is to be read: fits of ``mixing`` and weights, one minimum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.mixing import Mixing
from isoloss.planning.result import Quantity, spread

Array = np.ndarray[Any, np.dtype[Any]]

GAP = 1e-9  # of the weighted reducible loss: how far above the least it may end
SHRINK = 0.1  # of the barrier per round
CENTRED = 0.01  # of the barrier: what a last Newton step may still promise
ROUNDS, STEPS, HALVINGS = 30, 60, 50
NONE = 1e-6  # a share below this is none


@dataclass(frozen=True)
class BestMixture:
    """The mixture of least weighted loss, and how sure it is.

    Attributes:
        shares: domain -> share; the interval is over each draw's own best mixture.
        unused: domain -> part of the draws whose best mixture leaves it out.
        loss: weighted loss at the mixture (of the best parameters; interval over the draws).
        gain: what it gains on ``against`` in weighted loss, draw by draw; None without ``against``.
        gap: most by which the mixture's loss can lie above the least.
        coverage: of the intervals.
        unresolved: validation sets whose fit says that its rows do not determine it.
    """

    shares: Mapping[str, Quantity]
    unused: Mapping[str, float]
    loss: Quantity
    gain: Quantity | None
    gap: float
    coverage: float
    unresolved: tuple[str, ...]


def best_mixture(
    fits: Mapping[str, Fit],
    weights: Mapping[str, float] | None = None,
    *,
    against: Mapping[str, float] | None = None,
    coverage: float | None = None,
    seed: int = 0,
) -> BestMixture:
    r"""The shares of training data that minimise the weighted loss on several validation sets.

    .. math:: \min_{r \ge 0,\ \sum_j r_j = 1} \; \sum_i w_i \Big(c_i + \prod_j K_{ij}^{r_j}\Big)

    A sum of exponentials of linear forms is convex, so the minimum is one, and how far a point is from it is known:
    an interior-point method ends with the bound ``gap``. Each draw is minimised for itself; draws of different
    validation sets are paired by chance, as if their errors were independent.

    Args:
        fits: validation set -> fit of :class:`~isoloss.laws.mixing.Mixing` on the same shares.
        weights: of the validation sets, at or above 0; equal if not given. They are scaled to sum to 1.
        against: a mixture to compare with, domain -> share.
        coverage: of the intervals; default that of the first fit.
        seed: of the pairing of draws.

    Raises:
        ValueError: fits of another law or of other shares, wrong names or weights, or a mixture that does not sum to 1.
        NoAnswer: a fit has no draws, or too few rows for its parameters.

    Source:
        The use of Ye et al. 2024, arXiv:2403.16952, who search a grid.

    Example:
        >>> import isoloss
        >>> code = np.linspace(0, 1, 9)
        >>> def table(of_code, of_web):
        ...     return {"share_code": code, "share_web": 1 - code, "loss": 1 + of_code**code * of_web**(1 - code)}
        >>> fits = {name: isoloss.fit("mixing", table(*pure), draws=50, sensitivity=False)
        ...         for name, pure in {"github": (0.2, 3.0), "cc": (2.0, 0.5)}.items()}
        >>> best = best_mixture(fits)
        >>> {name: round(share.value, 3) for name, share in best.shares.items()}, round(best.loss.value, 3)
        ({'code': 0.601, 'web': 0.399}, 1.87)
    """
    law, held = _checked(fits, weights)
    coverage = next(iter(fits.values())).coverage if coverage is None else coverage
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    w = np.array(list(held.values()))
    first = _Problem.of([fits[name].theta[None] for name in held], w)
    rng = np.random.default_rng(seed)
    count = min(len(fits[name].draws) for name in held)
    draws = _Problem.of([rng.permutation(fits[name].draws)[:count] for name in held], w)
    best, gap = first.minimum()
    own, _ = draws.minimum()
    gain = None
    if against is not None:
        other = _mixture(law, against)
        gained = draws.loss(np.tile(other, (count, 1))) - draws.loss(np.tile(best, (count, 1)))
        gain = Quantity(float((first.loss(other[None]) - first.loss(best))[0]), *spread(gained, coverage))
    at_best = draws.loss(np.tile(best, (count, 1)))
    return BestMixture(
        shares={
            name: Quantity(float(best[0, j]), *spread(own[:, j], coverage))
            for j, name in enumerate(law.domains)
        },
        unused={name: float(np.mean(own[:, j] <= NONE)) for j, name in enumerate(law.domains)},
        loss=Quantity(float(first.loss(best)[0]), *spread(at_best, coverage)),
        gain=gain,
        gap=float(gap[0]),
        coverage=coverage,
        unresolved=tuple(name for name in held if fits[name].result == "not-identified"),
    )


def _checked(fits: Mapping[str, Fit], weights: Mapping[str, float] | None) -> tuple[Mixing, dict[str, float]]:
    """The one law of all fits, and the weights of those that count, in sum 1."""
    if not fits or not all(isinstance(fit, Fit) and isinstance(fit.law, Mixing) for fit in fits.values()):
        raise ValueError(
            f"best_mixture needs fits of mixing by validation set, got {fits!r}. Make them with "
            "isoloss.fit('mixing(share_a, share_b)', runs)"
        )
    laws = {fit.law.spec: fit.law for fit in fits.values()}
    if len(laws) > 1:
        raise ValueError(f"best_mixture needs fits on the same shares, got {'; '.join(laws)}")
    given = dict.fromkeys(fits, 1.0) if weights is None else dict(weights)
    if set(given) != set(fits):
        raise ValueError(f"best_mixture needs a weight for each of {', '.join(fits)}, got {', '.join(given)}")
    total = math.fsum(given.values())
    if not all(math.isfinite(w) and w >= 0 for w in given.values()) or not total > 0:
        raise ValueError(f"best_mixture needs weights at or above 0, one above, got {list(given.values())}")
    for name, fit in fits.items():
        if len(fit.draws) == 0:
            raise NoAnswer(f"the fit of {name} has no draws, so no interval", "fit with draws=1000")
        if any(entry.code == "too-few-rows" for entry in fit.warnings):
            raise NoAnswer(
                f"the fit of {name} has {len(fit.y)} rows for {fit.free} parameters",
                f"{fit.free + 3} runs of different mixtures",
            )
    law = next(iter(laws.values()))
    assert isinstance(law, Mixing)
    return law, {name: given[name] / total for name in fits if given[name] > 0}


def _mixture(law: Mixing, given: Mapping[str, float]) -> Array:
    """A mixture by domain as an array, zero for domains that are not named."""
    unknown = [name for name in given if name not in law.domains]
    shares = np.array([float(given.get(name, 0.0)) for name in law.domains])
    if unknown or not (np.isfinite(shares) & (shares >= 0)).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"a mixture needs shares of {', '.join(law.domains)} at or above 0 that sum to 1, got {dict(given)}"
        )
    return shares


@dataclass(frozen=True)
class _Problem:
    """``sum_i exp(size_i + slope_i . r) + level`` on the simplex, for a batch of parameters at once.

    Attributes:
        slope: log K, (batch, sets, domains). size: log weight, (sets,). level: weighted floors, (batch,).
    """

    slope: Array
    size: Array
    level: Array

    @classmethod
    def of(cls, thetas: Sequence[Array], weights: Array) -> _Problem:
        """From theta (batch, 1 + domains) of each validation set."""
        stacked = np.stack(thetas, axis=1)
        with np.errstate(divide="ignore"):
            slope = np.maximum(np.log(stacked[:, :, 1:]), -700.0)
        return cls(slope, np.log(weights), stacked[:, :, 0] @ weights)

    def loss(self, r: Array) -> Array:
        """Weighted loss at mixtures (batch, domains)."""
        return np.asarray(np.exp(np.einsum("bij,bj->bi", self.slope, r) + self.size).sum(axis=1) + self.level)

    def minimum(self) -> tuple[Array, Array]:
        """Best mixtures (batch, domains), and by how much each can be above its least loss.

        Newton steps on the reducible loss with a logarithmic barrier, which is then lowered. The bound is that of a
        convex function on the simplex: no point lies lower than the plane through the mixture reaches at a corner.
        """
        batch, _, m = self.slope.shape
        r = np.full((batch, m), 1.0 / m)
        barrier = self.loss(r) - self.level
        left = np.arange(batch)
        for _ in range(ROUNDS):
            barrier[left] *= SHRINK
            part = self._only(left)
            r[left] = part._centred(r[left], barrier[left])
            left = left[part._gap(r[left]) > GAP * (part.loss(r[left]) - part.level)]
            if len(left) == 0:
                break
        return r, self._gap(r)

    def _only(self, which: Array) -> _Problem:
        return _Problem(self.slope[which], self.size, self.level[which])

    def _terms(self, r: Array) -> Array:
        return np.asarray(np.exp(np.matmul(self.slope, r[:, :, None])[:, :, 0] + self.size))

    def _gap(self, r: Array) -> Array:
        """``g . r - min_j g_j`` with the gradient g, (batch,)."""
        g = np.matmul(self._terms(r)[:, None, :], self.slope)[:, 0]
        return np.asarray(np.sum(g * r, axis=1) - np.min(g, axis=1))

    def _centred(self, r: Array, barrier: Array) -> Array:
        """Minimum of loss - barrier sum log r on the plane sum r = 1, by Newton with step halving."""
        r, m = r.copy(), r.shape[1]
        left = np.arange(len(r))
        for _ in range(STEPS):
            part, at, mu = self._only(left), r[left], barrier[left]
            # In units of r the barrier's part of the Hessian is the barrier times one.
            own = part.slope * at[:, None, :]
            terms = part._terms(at)
            g = np.matmul(terms[:, None, :], own)[:, 0] - mu[:, None]
            system = np.zeros((len(left), m + 1, m + 1))
            system[:, :m, :m] = np.matmul((own * terms[:, :, None]).transpose(0, 2, 1), own)
            system[:, range(m), range(m)] += mu[:, None]
            system[:, :m, m] = system[:, m, :m] = at
            right = np.concatenate([-g, np.zeros((len(left), 1))], axis=1)
            move = np.linalg.solve(system, right[..., None])[:, :m, 0]  # relative to r
            fall = -np.sum(g * move, axis=1)
            r[left] = part._stepped(at, move, fall, mu)
            left = left[fall > CENTRED * mu]
            if len(left) == 0:
                break
        return r

    def _stepped(self, r: Array, move: Array, fall: Array, barrier: Array) -> Array:
        """The longest of 1, 1/2, 1/4 ... of the step that stays inside and lowers the function enough."""
        # The longest that stays inside, at most 1.
        least = np.min(move, axis=1)
        step = np.minimum(1.0, 0.99 / np.maximum(-least, 1e-300))
        before = self._terms(r).sum(axis=1)
        for _ in range(HALVINGS):
            trial = r * (1.0 + step[:, None] * move)
            rise = self._terms(trial).sum(axis=1) - before
            rise -= barrier * np.log1p(step[:, None] * move).sum(axis=1)
            bad = ~(rise <= -0.1 * step * fall + 1e-15 * before)
            if not bad.any():
                break
            step = np.where(bad, 0.5 * step, step)
        step = np.where(bad, 0.0, step)
        moved = r * (1.0 + step[:, None] * move)
        return np.asarray(moved / moved.sum(axis=1, keepdims=True))
