"""Stroebl et al. 2024, Inference Scaling fLaws: limits of resampling with imperfect verifiers, arXiv:2411.17501."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.planning.result import Quantity

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/samples/1"
ONE_BY_ONE = (
    1 << 13
)  # numbers of tries that are all looked at; above, those of a grid, and those about its best one
GRID = np.geomspace(ONE_BY_ONE, 1e18, 1500)
HALVINGS = 64
SHOWN = 10  # of the curve


@dataclass(frozen=True)
class TaskType:
    """Tasks of one difficulty, their rates taken as known.

    Attributes:
        prior: share of tasks that are of this type; shares of all types are scaled to 1.
        p: share of samples that are right.
        tpr: share of right samples that the verifier accepts.
        fpr: share of wrong samples that it accepts.
        name: for the tables.

    Example:
        >>> round(TaskType(1.0, p=0.13, tpr=1.0, fpr=0.25).cap, 4)
        0.3741
    """

    prior: float
    p: float
    tpr: float
    fpr: float
    name: str = ""

    def __post_init__(self) -> None:
        if not (self.prior > 0 and math.isfinite(self.prior)):
            raise ValueError(f"needed a positive prior, got {self.prior}. Leave the type out")
        for what in ("p", "tpr", "fpr"):
            if not 0 <= getattr(self, what) <= 1:
                raise ValueError(f"needed {what} between 0 and 1, got {getattr(self, what)}")

    @property
    def cap(self) -> float:
        """Accuracy of accepted answers, whatever the number of samples; NaN where none is ever accepted."""
        return float(_cap(np.array(self.p), np.array(self.tpr), np.array(self.fpr)))


@dataclass(frozen=True)
class Counted:
    """Tasks of one difficulty as they were counted.

    Attributes:
        tasks: of this type, among the tasks that were drawn as they will come.
        right, right_accepted: right samples, and those of them that the verifier accepted.
        wrong, wrong_accepted: wrong samples, and those of them that it accepted.
        name: for the tables.

    Example:
        >>> Counted(40, right=174, right_accepted=174, wrong=26, wrong_accepted=6).rates.p
        0.87
    """

    tasks: int
    right: int
    right_accepted: int
    wrong: int
    wrong_accepted: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.tasks < 1:
            raise ValueError(f"needed at least one task of each type, got {self.tasks}")
        for kind in ("right", "wrong"):
            of, accepted = getattr(self, kind), getattr(self, f"{kind}_accepted")
            if not 0 <= accepted <= of:
                raise ValueError(f"needed 0 <= {kind}_accepted <= {kind}, got {accepted} of {of}")
        if self.right + self.wrong < 1:
            raise ValueError("needed a sample of each type, got none")

    @property
    def rates(self) -> TaskType:
        """The measured shares; 1/2 for a rate of the verifier that no sample tells of."""
        tpr = self.right_accepted / self.right if self.right else 0.5
        fpr = self.wrong_accepted / self.wrong if self.wrong else 0.5
        return TaskType(float(self.tasks), self.right / (self.right + self.wrong), tpr, fpr, self.name)


@dataclass(frozen=True)
class CurvePoint:
    """Expected reward of at most that many tries; ``accepted`` is the share of tasks that end with an answer."""

    tries: int
    reward: Quantity
    accepted: float


@dataclass(frozen=True)
class BestSamples:
    """How many samples to draw, and what they bring.

    Attributes:
        tries: the best number K* at the measured rates: 0 is abstain, ``inf`` is go on until one is accepted.
            Its interval, like all here, is over the posteriors of the rates and holds the value itself, also where
            a count of none or all puts it at the edge of what the posterior allows. NaN ends where rates were given.
        on_average: the number of tries whose reward, averaged over the posteriors, is best.
        reward: expected reward per task at ``tries``.
        caps: per type, accuracy of what is accepted in the end, at any number of samples.
        cap: the same over all types, each resampled until accepted.
        curve: rewards of 1, 2, ... tries, as far as the best number and some beyond.
        names: of the types.
        uniform: all types gain or lose alike: K* can only be 0 or infinity.
        coverage: of the intervals; None where rates were given, not counts, so that there are none.
        reading: a sentence.
    """

    tries: Quantity
    on_average: float
    reward: Quantity
    caps: tuple[Quantity, ...]
    cap: Quantity
    curve: tuple[CurvePoint, ...]
    names: tuple[str, ...]
    uniform: bool
    coverage: float | None
    reading: str

    def __str__(self) -> str:
        return self.reading

    def to_json(self) -> dict[str, Any]:
        """For machines; an infinite number of tries is null."""

        def plain(q: Quantity) -> dict[str, float | None]:
            ends = {"value": q.value, "low": q.low, "high": q.high}
            return {key: v if math.isfinite(v) else None for key, v in ends.items()}

        return {
            "schema": SCHEMA,
            "tries": plain(self.tries),
            "on_average": self.on_average if math.isfinite(self.on_average) else None,
            "reward": plain(self.reward),
            "cap": plain(self.cap),
            "types": [{"name": n, "cap": plain(c)} for n, c in zip(self.names, self.caps, strict=True)],
            "curve": [
                {"tries": p.tries, "reward": plain(p.reward), "accepted": p.accepted} for p in self.curve
            ],
            "uniform": self.uniform,
            "coverage": self.coverage,
            "reading": self.reading,
        }


def best_samples(
    types: Sequence[TaskType | Counted],
    *,
    value: float = 1.0,
    wrong: float = 0.0,
    price: float = 0.0,
    at_once: bool = False,
    draws: int = 2000,
    coverage: float = 0.9,
    seed: int = 0,
) -> BestSamples:
    r"""The number of samples at which resampling with this verifier pays best.

    .. math:: R_K = \sum_t \pi_t \sum_{k=1}^{K} q_t^{k-1} \left[ p_t\,\mathrm{TPR}_t V
              - (1-p_t)\,\mathrm{FPR}_t\, c - s \right], \qquad
              q_t = p_t (1 - \mathrm{TPR}_t) + (1 - p_t)(1 - \mathrm{FPR}_t)

    Samples are drawn until one is accepted, at most K; then abstain, for a reward of 0. Tasks that reach the
    k-th try are weighed by prior times q^(k-1): the survivors are the hard ones, on which the verifier is
    mostly wrong. With one type every try gains the same, so K* is 0 or infinity, also at a price per try that
    is paid only until acceptance. A finite K* comes from mixed difficulty, or from tries that are all paid.

    Args:
        types: all :class:`TaskType` (no intervals) or all :class:`Counted`. One task may be a type. Counts get
            posteriors: beta with Jeffreys' prior for the rates, Dirichlet for the shares of types.
        value: V, of a right answer that is accepted.
        wrong: c, cost of a wrong answer that is accepted.
        price: s, of one try.
        at_once: all K tries are made and paid, then the first accepted is taken; else each only when needed.
        draws, coverage, seed: of the intervals.

    Raises:
        ValueError: no types, two kinds of them, or a negative value, cost or price.

    Example:
        >>> types = [TaskType(0.58, 0.87, 1, 0.25, "easy"), TaskType(0.42, 0.13, 1, 0.25, "hard")]
        >>> best = best_samples(types, wrong=1.0)
        >>> best.tries.value, round(best.reward.value, 4), round(best.cap.value, 3)
        (2.0, 0.4724, 0.716)
    """
    if not types:
        raise ValueError("needed at least one type of task, got none")
    counted = [t for t in types if isinstance(t, Counted)]
    if len(counted) not in (0, len(types)):
        raise ValueError("needed all types as rates or all as counts, got both")
    for what, number in (("value", value), ("wrong", wrong), ("price", price)):
        if not (number >= 0 and math.isfinite(number)):
            raise ValueError(f"needed {what} of 0 or more, got {number}")
    if not (0 < coverage < 1 and draws >= 2):
        raise ValueError(f"needed a coverage between 0 and 1 and two draws, got {coverage} and {draws}")
    rates = [t.rates if isinstance(t, Counted) else t for t in types]
    point = _Rates.of([(t.prior, t.p, t.tpr, t.fpr) for t in rates])
    clouds = _posterior(counted, draws, np.random.default_rng(seed)) if counted else point
    terms = _Terms(value, wrong, price, at_once)
    tries = _best(point, terms)[0]
    many = _best(clouds, terms) if counted else np.array([tries])
    ends = ((1 - coverage) / 2, (1 + coverage) / 2)

    def quantity(number: float, over: Array) -> Quantity:
        if not counted:
            return Quantity(float(number), math.nan, math.nan)
        # of numbers of tries an end must be a number of tries: never between two draws, of which one may be inf
        low, high = np.quantile(over, ends, method="inverted_cdf")
        return Quantity(float(number), min(float(low), float(number)), max(float(high), float(number)))

    shown = int(min(max(SHOWN, tries + 2 if math.isfinite(tries) else 0), 100))
    table, over = _curve(point, terms, shown)[0], _curve(clouds, terms, shown)
    curve = tuple(
        CurvePoint(k + 1, quantity(table[k], over[:, k]), float(point.accepted(k + 1)[0]))
        for k in range(shown)
    )
    reward = quantity(_reward(point, terms, tries)[0], _reward(clouds, terms, tries))
    caps = tuple(quantity(c, clouds.caps[:, i]) for i, c in enumerate(point.caps[0]))
    gains = terms.gains(point)[0]
    uniform = (tries == 0 or math.isinf(tries)) and bool(np.all(gains > 0) or np.all(gains <= 0))
    best = quantity(tries, many)
    return BestSamples(
        best, _on_average(clouds, terms, many), reward, caps, quantity(point.cap[0], clouds.cap), curve,
        tuple(t.name or f"type {i + 1}" for i, t in enumerate(types)), uniform,
        coverage if counted else None, _reading(best, reward, uniform, coverage if counted else None),
    )  # fmt: skip


def _cap(p: Array, tpr: Array, fpr: Array) -> Array:
    right, wrong = p * tpr, (1 - p) * fpr
    with np.errstate(invalid="ignore"):
        return np.asarray(right / (right + wrong))


@dataclass(frozen=True)
class _Rates:
    """Rates of T types in n draws, each array (n, T)."""

    prior: Array
    p: Array
    tpr: Array
    fpr: Array

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, float, float]]) -> _Rates:
        table = np.array(rows, dtype=float).T[:, None]
        return cls(table[0] / table[0].sum(), *table[1:])

    @property
    def taken(self) -> Array:
        """Share of tries that are accepted."""
        return np.asarray(self.p * self.tpr + (1 - self.p) * self.fpr)

    @property
    def q(self) -> Array:
        """Share of tries that are rejected."""
        return np.asarray(1 - self.taken)

    def left(self, tries: Array | float) -> Array:
        """``q^tries``, to its digits also where a try is hardly ever accepted; tries broadcast against (n, T)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(np.equal(tries, 0), 1.0, np.exp(np.log1p(-self.taken) * tries))

    @property
    def caps(self) -> Array:
        return _cap(self.p, self.tpr, self.fpr)

    @property
    def cap(self) -> Array:
        """Of tasks that end with an answer: types of which nothing is ever accepted have none."""
        answered = np.where(np.isfinite(self.caps), self.prior, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.nansum(answered * self.caps, axis=1) / answered.sum(axis=1))

    def accepted(self, tries: float) -> Array:
        """Share of tasks with an accepted answer within so many tries."""
        return np.asarray(np.sum(self.prior * (1 - self.left(tries)), axis=1))


@dataclass(frozen=True)
class _Terms:
    value: float
    wrong: float
    price: float
    at_once: bool

    def gains(self, r: _Rates) -> Array:
        """Of a try that is reached, by type."""
        paid = 0.0 if self.at_once else self.price
        return np.asarray(r.p * r.tpr * self.value - (1 - r.p) * r.fpr * self.wrong - paid)

    @property
    def flat(self) -> float:
        """Price of a try that is paid whether or not it is reached."""
        return self.price if self.at_once else 0.0


def _posterior(types: Sequence[Counted], draws: int, rng: np.random.Generator) -> _Rates:
    def beta(of: Sequence[int], yes: Sequence[int]) -> Array:
        a = np.array(yes) + 0.5
        return np.asarray(rng.beta(a, np.array(of) - np.array(yes) + 0.5, (draws, len(types))))

    prior = rng.dirichlet(np.array([t.tasks for t in types]) + 0.5, draws)
    p = beta([t.right + t.wrong for t in types], [t.right for t in types])
    tpr = beta([t.right for t in types], [t.right_accepted for t in types])
    fpr = beta([t.wrong for t in types], [t.wrong_accepted for t in types])
    return _Rates(prior, p, tpr, fpr)


def _curve(r: _Rates, terms: _Terms, tries: int, first: int = 1) -> Array:
    """Rewards of ``first`` to ``first + tries - 1`` tries less that of ``first - 1``, shape (n, tries)."""
    k = np.arange(first - 1, first - 1 + tries)
    steps = np.einsum("nt,ntk->nk", r.prior * terms.gains(r), r.q[..., None] ** k) - terms.flat
    return np.cumsum(steps, axis=1)


def _reward(r: _Rates, terms: _Terms, tries: Array | float) -> Array:
    """Reward of that number of tries, which may be infinite, in closed form; one for all draws or one for each."""
    taken, gains = r.taken, terms.gains(r)
    k = np.reshape(tries, (-1, 1)).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        made = -np.expm1(np.log1p(-taken) * k) / taken  # tries, on average
        total = np.where(k == 0, 0.0, np.where(taken > 0, made, k))
        parts = np.where(gains == 0, 0.0, r.prior * gains * total)
    return np.asarray(parts.sum(axis=1) - (terms.flat * k[:, 0] if terms.flat else 0.0))


def _best(r: _Rates, terms: _Terms) -> Array:
    """The number of tries with the highest reward, the smallest of equals, for each draw.

    Steps are a sum of geometric series: in the end the one with the largest q decides their sign. Tries are
    looked at until it does, or until what all together could still bring is less than 1e-12 of the stakes; beyond
    ``ONE_BY_ONE`` of them on a grid.
    """
    n, gains, q = len(r.p), terms.gains(r), r.q
    best, top, now = np.zeros(n), np.zeros(n), np.zeros(n)
    stakes = max(terms.value, terms.wrong, terms.price, 1e-300)
    lasting = np.where((gains != 0) & (q > 0), q, -1.0)
    slowest = (lasting == lasting.max(axis=1, keepdims=True)) & (lasting > 0)
    # Endless tries: told by the sign of the slowest series, for a difference of rewards is lost to rounding.
    endless = (np.where(slowest, r.prior * gains, 0.0).sum(axis=1) > 0) & (terms.flat == 0)
    endless_reward = _reward(r, terms, math.inf)
    open_, first, block = np.arange(n), 1, 32
    while len(open_) and first <= ONE_BY_ONE:
        part = _Rates(*(getattr(r, name)[open_] for name in ("prior", "p", "tpr", "fpr")))
        rewards = now[open_, None] + _curve(part, terms, block, first)
        place = np.argmax(rewards, axis=1)
        found = rewards[np.arange(len(open_)), place]
        better = found > top[open_] + 1e-15 * stakes
        best[open_[better]], top[open_[better]] = first + place[better], found[better]
        now[open_], first = rewards[:, -1], first + block
        # size of the next step, type by type, and of all steps to come
        left = np.abs(part.prior * gains[open_]) * part.q ** (first - 1)
        to_come = np.divide(left, 1 - part.q, out=np.where(left > 0, np.inf, 0.0), where=part.q < 1)
        if terms.flat:  # a price that is always paid outlasts every series
            decided = left.sum(axis=1) < terms.flat
        else:
            lead = np.abs(np.where(slowest[open_], np.sign(gains[open_]) * left, 0.0).sum(axis=1))
            decided = lead > np.where(slowest[open_], 0.0, left).sum(axis=1)
            decided |= to_come.sum(axis=1) < 1e-12 * stakes
        open_, block = open_[~decided], min(2 * block, 4096)
    if len(open_):
        far, reward = _far(_Rates(*(getattr(r, name)[open_] for name in ("prior", "p", "tpr", "fpr"))), terms)
        better = reward > top[open_] + 1e-15 * stakes
        best[open_[better]], top[open_[better]] = far[better], reward[better]
    best[endless & (endless_reward >= top - 1e-12 * stakes)] = math.inf
    return best


def _far(r: _Rates, terms: _Terms) -> tuple[Array, Array]:
    """The best of very many tries and its reward: on a grid, then by golden section between its neighbours."""
    rewards = np.stack([_reward(r, terms, k) for k in GRID], axis=1)
    place = np.argmax(rewards, axis=1)
    low, high = GRID[np.maximum(place - 1, 0)], GRID[np.minimum(place + 1, len(GRID) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(HALVINGS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        worse = _reward(r, terms, left) < _reward(r, terms, right)
        low, high = np.where(worse, left, low), np.where(worse, high, right)
    found = np.rint(0.5 * (low + high))
    return found, _reward(r, terms, found)


def _on_average(r: _Rates, terms: _Terms, tries: Array) -> float:
    """Of the numbers of tries that are best in some draw, the one with the best mean reward."""
    options = np.unique(tries)
    means = [float(np.mean(_reward(r, terms, k))) for k in options]
    return float(options[int(np.argmax(means))])


def _reading(best: Quantity, reward: Quantity, uniform: bool, coverage: float | None) -> str:
    def said(tries: float) -> str:
        return "no limit" if math.isinf(tries) else f"{tries:g}"

    if best.value == 0:
        text = "draw no sample: no number of tries is expected to gain"
    elif math.isinf(best.value):
        text = (
            f"draw until a sample is accepted: the reward rises to {reward.value:.4g} and has no best number"
        )
    else:
        one = best.value == 1
        text = f"draw up to {best.value:g} sample{'' if one else 's'}, then abstain: expected reward {reward.value:.4g}"
    if coverage is not None:
        text += f" ({100 * coverage:g}% interval of the number {said(best.low)} to {said(best.high)})"
    if uniform:
        text += ". Every try gains or loses alike, so the best number can only be 0 or no limit"
    return text
