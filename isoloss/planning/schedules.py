"""Which learning-rate schedule: the best of several by predicted final loss, or the best of all that never rise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.prediction import quantiles
from isoloss.fitting.schedule_fit import ScheduleFit
from isoloss.laws.schedules.schedule import Schedule

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/schedule-choice/1"
SHARES = (0.1, 0.15, 0.2, 0.3, 0.4)  # of the steps, given to the decay
SHAPES = ("linear", "exponential", "sqrt")
KNOTS = 200  # of the schedule sought, denser towards its end
STEPS = 400  # of the search at most
ENOUGH = 1e-9  # nats: the search ends when ten steps together bring less
REPEATS = 2000  # worlds that the draws are repeated to
HELD = 0.99  # of the peak: a rate above counts as stable


@dataclass(frozen=True)
class Candidate:
    """One schedule and what it is predicted to end at.

    Attributes:
        name: of the candidate.
        schedule: its rates.
        loss: predicted loss at the last step, best parameters.
        low, high: interval of one run's.
        best: share of the worlds in which it ends lowest.
        behind: its loss over that of the first candidate, best parameters.
        behind_low, behind_high: interval of that.
        reach: how far outside the fitted curves it ends, as a factor.
    """

    name: str
    schedule: Schedule
    loss: float
    low: float
    high: float
    best: float
    behind: float
    behind_low: float
    behind_high: float
    reach: float

    @property
    def tied(self) -> bool:
        """Whether the interval of the difference to the first holds 0."""
        return self.behind_low <= 0.0


@dataclass(frozen=True)
class Choice:
    """Candidates in order of predicted final loss, and whether the first is resolved from the others.

    Attributes:
        candidates: lowest loss first.
        coverage: of the intervals.
        law: slug of the law.

    Example:
        >>> from isoloss.fitting.curves import Curve
        >>> from isoloss.fitting.schedules import fit_schedules
        >>> from isoloss.laws.schedules import get
        >>> law, steps = get("multi-power"), np.arange(50.0, 1001.0, 25.0)
        >>> made = [Schedule.cosine(steps=1000, peak=0.01, end=0.001),
        ...         Schedule.two_stage(steps=1000, peak=0.01, end=0.003, at=500)]
        >>> theta = [2.0, 1.0, 0.5, 20.0, 2.0, 0.5, 0.5]
        >>> planted = [Curve(s.words, s, steps, law.value(theta, s, steps)) for s in made]
        >>> found = fit_schedules(law, planted, draws=10, unseen=0.001)
        >>> choice = choose(found, {"flat": Schedule.constant(steps=1000, peak=0.01), "cosine": made[0]})
        >>> choice.winner, [c.name for c in choice.candidates]
        ('cosine', ['cosine', 'flat'])
    """

    candidates: tuple[Candidate, ...]
    coverage: float
    law: str

    @property
    def winner(self) -> str | None:
        """The first candidate's name if no other is tied with it; None is 'not resolved'."""
        first, *rest = self.candidates
        return None if any(other.tied for other in rest) else first.name

    def to_json(self) -> dict[str, Any]:
        """The document that ``isoloss schedule choose --json`` writes; schema in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "law": self.law,
            "coverage": self.coverage,
            "winner": self.winner,
            "candidates": [
                {
                    **{name: value for name, value in vars(entry).items() if name != "schedule"},
                    "tied": entry.tied,
                    "words": entry.schedule.words,
                    "schedule": dict(entry.schedule.origin),
                }
                for entry in self.candidates
            ],
        }


def family(*, steps: int, peak: float, end: float, warmup: int = 0) -> dict[str, Schedule]:
    """The named candidates: constant, cosine, linear, and warm-up-stable-decay of several lengths and shapes.

    Example:
        >>> [*family(steps=1000, peak=0.01, end=0.001)][:5]
        ['constant', 'cosine', 'linear', 'wsd 10% linear', 'wsd 10% exponential']
    """
    out = {
        "constant": Schedule.constant(steps=steps, peak=peak, warmup=warmup),
        "cosine": Schedule.cosine(steps=steps, peak=peak, end=end, warmup=warmup),
        "linear": Schedule.linear(steps=steps, peak=peak, end=end, warmup=warmup),
    }
    for share in SHARES:
        decay = round(share * steps)
        if 1 <= decay <= steps - warmup:
            for shape in SHAPES:
                out[f"wsd {share:.0%} {shape}"] = Schedule.wsd(
                    steps=steps, peak=peak, end=end, decay=decay, shape=shape, warmup=warmup
                )
    return out


def choose(
    fit: ScheduleFit, schedules: Mapping[str, Schedule] | Sequence[Schedule], *, coverage: float | None = None
) -> Choice:
    """The candidates in order of predicted final loss, each with its interval and the chance that it is the best.

    In every world, parameters come from one joint draw, so that what the candidates share cancels; beside it each
    candidate has an offset of its own, of the fit's ``unseen``: what the law misses of a schedule that it was not
    fitted on. Two candidates whose difference has 0 in its interval are tied.

    Args:
        fit: a fitted law of schedules with draws.
        schedules: candidates by name, or named by their words.
        coverage: of the intervals; default the fit's.

    Raises:
        ValueError: no candidate, or two of one name. NoAnswer: the fit has no draws.
    """
    named = dict(schedules) if isinstance(schedules, Mapping) else {s.words: s for s in schedules}
    if not named or len(named) < len(schedules):
        raise ValueError(f"needed candidates that differ in name, got {len(named)} names of {len(schedules)}")
    if len(fit.draws) == 0:
        raise NoAnswer("this fit has no draws, so no interval", "fit with draws=200")
    width = fit.coverage if coverage is None else coverage
    rng = np.random.default_rng([fit.seed, 2])
    repeats = max(1, REPEATS // len(fit.draws))
    level = np.stack([fit.law.value(fit.draws, s)[:, 0] for s in named.values()])  # (candidates, K)
    level = np.repeat(level, repeats, axis=1)
    worlds = level * np.exp(fit.unseen * rng.normal(size=level.shape))
    loss = np.array([float(fit.law.value(fit.theta, s)[0]) for s in named.values()])
    best = np.mean(worlds == worlds.min(axis=0), axis=1)
    first = int(np.argmin(loss))
    found = []
    for i in np.argsort(loss, kind="stable"):
        name, schedule = list(named.items())[i]
        low, high = quantiles(worlds[i], width)
        ends = (0.0, 0.0) if i == first else quantiles(worlds[i] - worlds[first], width)
        reach = float(fit.predict(schedule, schedule.steps, of="mean").reach[0])
        found.append(
            Candidate(
                name,
                schedule,
                float(loss[i]),
                low,
                high,
                float(best[i]),
                float(loss[i] - loss[first]),
                *ends,
                reach,
            )
        )
    return Choice(tuple(found), width, fit.law.slug)


def best_schedule(fit: ScheduleFit, *, steps: int, peak: float, end: float, warmup: int = 0) -> Schedule:
    """The schedule that never rises after its warm-up and whose predicted final loss is lowest.

    Rates at 200 knots, denser towards the end, with straight lines between, are moved by projected gradient
    descent with exact derivatives, in the metric of the steps that each knot stands for. The projection on rates
    that do not rise is weighted isotonic regression; steps are Barzilai and Borwein's, with the safeguard of
    Birgin, Martinez & Raydan 2000 (spectral projected gradient). It begins from a cosine and from two decays and
    keeps the best.

    Args:
        fit: a fitted law of schedules.
        steps, peak, warmup: as of :meth:`Schedule.cosine`.
        end: lowest rate allowed.

    Raises:
        ValueError: rates or steps out of range. NoAnswer: the law gains at rest (lr-annealing), so that its lowest
        loss is an artefact.

    Source:
        The use that Luo et al. 2025, arXiv:2503.12811, make of their law, there with Adam on every rate.
    """
    if fit.law.gains_at_rest:
        raise NoAnswer(
            f"{fit.law.slug} credits a fall of the rate with the same gain whatever the rate then is, so its best "
            "schedule is one sudden fall to the lowest rate allowed: an artefact of the law",
            "a fit of multi-power, whose gain slows at low rates; named schedules can be compared with either law",
        )
    first = Schedule.cosine(steps=steps, peak=peak, end=end, warmup=warmup)
    if not end < peak:
        raise ValueError(f"needed the lowest rate below the peak {peak:g}, got {end:g}")
    span = steps - warmup
    places = np.unique(np.round(steps - span * np.linspace(1.0, 0.0, min(KNOTS, span)) ** 2)).astype(int)
    every = np.arange(steps + 1)
    share = np.gradient(places.astype(float)) if len(places) > 2 else np.ones(len(places))

    right = np.clip(np.searchsorted(places, every[warmup:], side="left"), 1, len(places) - 1)
    weight = (every[warmup:] - places[right - 1]) / (places[right] - places[right - 1])

    def rates(knots: Array) -> Array:
        out = first.rates.copy()
        out[warmup:] = knots[right - 1] * (1 - weight) + knots[right] * weight
        return out

    def slope(knots: Array) -> tuple[float, Array]:
        loss, per_step = fit.law.slope(fit.theta, Schedule(rates(knots), {}))
        per_rate = np.concatenate([[0.0], per_step])[warmup:]
        back = np.bincount(right - 1, per_rate * (1 - weight), len(places))
        return loss, back + np.bincount(right, per_rate * weight, len(places))

    def onto(knots: Array) -> Array:
        flat = -isotonic(-knots, share)
        flat[0] = peak
        return np.clip(flat, end, peak)

    starts = [
        first,
        *(
            Schedule.wsd(
                steps=steps, peak=peak, end=end, decay=max(1, round(s * span)), warmup=warmup, shape="linear"
            )
            for s in (0.2, 0.5)
        ),
    ]
    found = [_descend(slope, onto, start.rates[places], share, peak) for start in starts]
    knots = min(found, key=lambda pair: pair[0])[1]
    return Schedule.of_table(places, knots, warmup=warmup)


def stable_share(schedule: Schedule) -> float:
    """Share of the steps after the warm-up whose rate is within 1 % of the peak."""
    after = schedule.rates[schedule.warmup :]
    return float(np.mean(after >= HELD * schedule.peak))


def _descend(slope: Any, onto: Any, knots: Array, share: Array, peak: float) -> tuple[float, Array]:
    """Spectral projected gradient from ``knots``, in units of the peak and the metric of ``share``."""
    x = onto(knots)
    value, g = slope(x)
    g = g / share
    length = 0.1 * peak / max(float(np.abs(g).max()), 1e-300)
    recent = [value]
    best = (value, x)
    for count in range(STEPS):
        step = onto(x - length * g) - x
        down = float(np.sum(share * g * step))
        if down >= -1e-15:
            break
        part = 1.0
        while True:
            trial, trial_g = slope(x + part * step)
            if trial <= max(recent[-10:]) + 1e-4 * part * down or part < 1e-10:
                break
            part *= 0.5
        moved, change = part * step, trial_g / share - g
        curve = float(np.sum(share * moved * change))
        size = float(np.sum(share * moved * moved))
        x, value, g = x + moved, trial, trial_g / share
        longest = 10 * peak / max(float(np.abs(g).max()), 1e-300)
        length = min(size / curve, longest) if curve > 0 else longest
        recent.append(value)
        if value < best[0]:
            best = (value, x)
        if count >= 20 and max(recent[-11:-1]) - best[0] < ENOUGH:
            break
    return best


def isotonic(values: Array, weights: Array) -> Array:
    """The nearest array that never falls, in weighted squares: pool adjacent violators (Ayer et al. 1955).

    Example:
        >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.ones(4)).tolist()
        [1.0, 2.5, 2.5, 4.0]
    """
    means: list[float] = []
    sizes: list[float] = []
    counts: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        means.append(value)
        sizes.append(weight)
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            total = sizes[-2] + sizes[-1]
            means[-2:] = [(means[-2] * sizes[-2] + means[-1] * sizes[-1]) / total]
            sizes[-2:] = [total]
            counts[-2:] = [counts[-2] + counts[-1]]
    return np.repeat(means, counts)
