r"""The idealized runtime of generating text: from at most ten short timings to any prompt and number of tokens.

.. math:: T(p, o) = F(p) + (o - 1)\,g + g_1 \sum_{i=1}^{o-1} (p + i)

F is the time to read a prompt of p tokens and give the first new one, g the time of each further token, :math:`g_1`
the growth of that time with every token in the cache, kept only where the timings show it. A model that keeps no cache
reads everything again, :math:`T = \sum_{i<o} F(p + i)`; which of the two holds is read from the timings.

F is a table over p, as in the paper, and between its entries follows :math:`a + bp + cp^2`, what a transformer
computes, moved to meet the entries. Each timing is repeated, all of them in turn; ``median`` is what happened,
``min`` the denoised runtime: what it would be on a machine of one's own.

Source: Narayanan et al. 2023, Cheaply Estimating Inference Efficiency Metrics for Autoregressive Transformer Models,
arXiv:2305.02440.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.measure.latency import times
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.special import student_quantile

Array = np.ndarray[Any, np.dtype[Any]]
Generate = Callable[[int, int], object]
"""(tokens of the prompt, new tokens) -> anything; it must make exactly so many."""

STATISTICS = ("median", "min")
MOST = 50  # repeats of short timings
GROWTH = 0.95  # coverage at which growth with the cache counts as shown


@dataclass(frozen=True)
class Predicted:
    """The time of one prompt and output.

    Attributes:
        seconds: predicted.
        low, high: prediction interval for the same statistic over repeats.
        reach: by what factor prompt or context lie beyond the timings; 1 within them.
    """

    seconds: float
    low: float
    high: float
    reach: float


@dataclass(frozen=True)
class Runtime:
    """The runtime of a generator.

    Attributes:
        prompts, prefill: the table of F: prompt lengths, and seconds.
        curve: a, b, c of the form that F follows between the entries.
        per_token: g [s]; with a cache alone.
        growth: g_1 [s per token of context]; 0 where the timings do not show it.
        cached: whether further tokens cost as with a cache; else each reads everything again. Where contexts are so
            short that both would do, the one that fits better.
        error: standard deviation of the relative error: each timing predicted from the others, and its own noise.
        checked: timings behind ``error``.
        timings: (prompt, new tokens) -> the statistic of its repeats [s].
        statistic: over repeats: ``median`` or ``min``.
        spent: what the timings cost.
    """

    prompts: tuple[int, ...]
    prefill: tuple[float, ...]
    curve: tuple[float, float, float]
    per_token: float
    growth: float
    cached: bool
    error: float
    checked: int
    timings: Mapping[tuple[int, int], float]
    statistic: str
    spent: Spent

    def first(self, prompt: float) -> float:
        """F: seconds until the first new token."""
        at = [self._form(p) for p in self.prompts]
        off = [seconds / form - 1 for seconds, form in zip(self.prefill, at, strict=True)]
        return self._form(prompt) * (1 + float(np.interp(math.log(prompt), np.log(self.prompts), off)))

    def _form(self, prompt: float) -> float:
        a, b, c = self.curve
        return a + b * prompt + c * prompt * prompt

    def seconds(self, prompt: int, new: int) -> float:
        """T: seconds of a prompt and so many new tokens.

        Raises:
            ValueError: fewer than one token of either.
        """
        if prompt < 1 or new < 1:
            raise ValueError(f"needed a prompt and new tokens of at least 1, got {prompt} and {new}")
        if not self.cached:
            return sum(self.first(prompt + i) for i in range(new))
        steps, seen = _decoding(prompt, new)
        return self.first(prompt) + self.per_token * steps + self.growth * seen

    def predict(self, prompt: int, new: int, coverage: float = 0.9) -> Predicted:
        """:meth:`seconds` with its prediction interval, from the errors of each timing predicted by the others.

        Example:
            >>> clock = {(p, o): [0.01 + 1e-4 * p + 0.002 * (o - 1)] * 5 for p, o in design(256, 32)}
            >>> found = fit_runtime(clock)
            >>> round(found.per_token, 6), round(found.predict(100, 20).seconds, 6)
            (0.002, 0.058)
        """
        seconds = self.seconds(prompt, new)
        wide = student_quantile(0.5 + coverage / 2, self.checked) * self.error
        context = max(p + o for p, o in self.timings)
        reach = max(1.0, prompt / self.prompts[-1], (prompt + new) / context)
        return Predicted(seconds, seconds * max(0.0, 1 - wide), seconds * (1 + wide), reach)

    def measurements(self) -> list[Measurement]:
        """F at the table's ends, g and its growth."""
        how = f"{len(self.timings)} timings, {self.statistic} of repeats, {'as with a cache' if self.cached else 'as without a cache'}"
        out = [
            Measurement("runtime_prefill", seconds, self.error * seconds, "s", f"prompt {p}", how, self.spent)
            for p, seconds in zip(self.prompts, self.prefill, strict=True)
        ]
        if self.cached:
            g = Measurement(
                "runtime_per_token", self.per_token, self.error * self.per_token, "s", "", how, self.spent
            )
            out.append(g)
        if self.growth > 0:
            out.append(Measurement("runtime_growth", self.growth, math.nan, "s/token", "", how, self.spent))
        return out


def design(longest_prompt: int = 1024, longest_output: int = 64) -> list[tuple[int, int]]:
    """At most ten (prompt, new tokens) to time: five prompts with one new token, five with more.

    Raises:
        NoAnswer: too short for three prompts and two outputs.

    Example:
        >>> design()
        [(1, 1), (64, 1), (256, 1), (512, 1), (1024, 1), (1, 64), (64, 16), (256, 64), (512, 32), (1024, 16)]
    """
    if longest_prompt < 4 or longest_output < 4:
        raise NoAnswer(
            f"prompts up to {longest_prompt} and outputs up to {longest_output} tokens tell little apart",
            "prompts and outputs of 4 tokens or more",
        )
    n, o = longest_prompt, longest_output
    prompts = sorted({1, max(2, n // 16), max(2, n // 4), max(3, n // 2), n})
    outputs = (o, max(2, o // 4), o, max(2, o // 2), max(2, o // 4))
    return [*((p, 1) for p in prompts), *zip(prompts, outputs, strict=False)]


def measure_runtime(
    generate: Generate,
    longest_prompt: int = 1024,
    longest_output: int = 64,
    repeats: int = 7,
    statistic: str = "median",
    clock: str = "wall",
    seconds: float = 2.0,
) -> Runtime:
    """Time a generator at ten places and fit its idealized runtime.

    Args:
        generate: called with the lengths of prompt and output.
        longest_prompt, longest_output: of the timings; prompt and output together must fit the model.
        repeats: of each timing at least, all in turn.
        statistic: ``median``, or ``min`` for the denoised runtime.
        clock: ``wall``, or ``cpu`` for the CPU time of all threads, which others' work disturbs less.
        seconds: that the timings may take for more repeats than that, up to ``MOST``.

    Raises:
        ValueError: an unknown statistic or clock. NoAnswer: as :func:`design` and :func:`fit_runtime`.
    """
    if clock not in ("wall", "cpu"):
        raise ValueError(f"no clock named {clock!r}. There are: wall, cpu")
    places = design(longest_prompt, longest_output)

    def call(p: int, o: int) -> Callable[[], object]:
        return lambda: generate(p, o)

    calls = {f"{p},{o}": call(p, o) for p, o in places}
    with timed() as watch:
        for run in calls.values():  # what a first call compiles and allocates
            run()
        with timed() as once:
            for run in calls.values():
                run()
        rounds = max(repeats, min(MOST, int(seconds / max(once.wall_seconds, 1e-9))))
        found = times(calls, rounds, warm=0)
    seen = {
        place: found[f"{place[0]},{place[1]}"].cpu if clock == "cpu" else found[f"{place[0]},{place[1]}"].wall
        for place in places
    }
    return replace(fit_runtime(seen, statistic), spent=watch.spent())


def fit_runtime(timings: Mapping[tuple[int, int], Sequence[float]], statistic: str = "median") -> Runtime:
    """The idealized runtime that timings show.

    Args:
        timings: (prompt, new tokens) -> seconds of each repeat. At least three prompts with one new token and
            three timings with more, of two lengths.
        statistic: over repeats.

    Raises:
        ValueError: an unknown statistic, or a time that is not positive. NoAnswer: too few timings.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"no statistic named {statistic!r}. There are: {', '.join(STATISTICS)}")
    if any(not min(seconds, default=0.0) > 0 for seconds in timings.values()):
        raise ValueError("needed positive seconds for every timing")
    take = min if statistic == "min" else statistics.median
    seen = {place: float(take(seconds)) for place, seconds in timings.items()}
    if sum(o == 1 for _, o in seen) < 3 or sum(o > 1 for _, o in seen) < 3:
        raise NoAnswer(
            f"{len(seen)} timings do not tell reading a prompt from making tokens",
            "three prompts with one new token, and three timings with more",
        )
    found = _fit(seen, statistic)
    errors = _left_out(seen, found)
    off = math.sqrt(statistics.fmean(e * e for e in errors))
    return replace(found, error=math.hypot(off, _noise(timings, statistic)), checked=len(errors))


def _noise(timings: Mapping[tuple[int, int], Sequence[float]], statistic: str) -> float:
    """Relative standard error of the statistic of one timing, pooled over the timings.

    Of a median of n it is 1.25 sd / sqrt(n) for normal scatter, of the least about its distance to the next.
    """
    found = []
    for seconds in timings.values():
        if len(seconds) < 2:
            continue
        if statistic == "min":
            least, following = sorted(seconds)[:2]
            found.append((following - least) / least)
        else:
            middle = statistics.median(seconds)
            scatter = 1.4826 * statistics.median(abs(s - middle) for s in seconds)
            found.append(1.2533 * scatter / middle / math.sqrt(len(seconds)))
    return math.sqrt(statistics.fmean(f * f for f in found)) if found else 0.0


def _decoding(prompt: int, new: int) -> tuple[int, float]:
    """Further tokens, and the sum of the contexts that they see: :math:`(o-1)(p + o/2)`."""
    return new - 1, (new - 1) * (prompt + new / 2)


def _fit(seen: Mapping[tuple[int, int], float], statistic: str, cached: bool | None = None) -> Runtime:
    table = sorted((p, seconds) for (p, o), seconds in seen.items() if o == 1)
    rows = np.array([[1.0, p, p * p] for p, _ in table])
    curve = _least_squares(rows, np.array([seconds for _, seconds in table]))
    a, b, c = (float(value) for value in curve)
    plain = Runtime(
        tuple(p for p, _ in table), tuple(seconds for _, seconds in table), (a, b, c), 0.0, 0.0, False, 0.0, 0,
        dict(seen), statistic, Spent(math.nan, math.nan),
    )  # fmt: skip
    places = [place for place in seen if place[1] > 1]
    taken = np.array([seen[place] for place in places])
    again = np.array([plain.seconds(p, o) for p, o in places])
    first = np.array([plain.first(p) for p, _ in places])
    steps = np.array([_decoding(p, o) for p, o in places], dtype=float)
    per_token, growth = _steps(steps, taken - first, taken)
    kept = replace(plain, per_token=per_token, growth=growth, cached=True)
    whole = first + steps @ np.array([per_token, growth])
    if cached is None:
        # Both are judged by their relative errors; the cache's numbers were fitted to these timings.
        free = len(places) - (2 if growth > 0 else 1)
        own = float(np.sum((whole / taken - 1) ** 2)) / max(free, 1)
        cached = own <= float(np.sum((again / taken - 1) ** 2)) / len(places)
    return kept if cached else plain


def _steps(steps: Array, taken: Array, whole: Array) -> tuple[float, float]:
    """g and g_1 by least squares relative to the whole time; g_1 only where it is shown."""
    alone = _least_squares(steps[:, :1], taken, whole)
    both = _least_squares(steps, taken, whole)
    free = len(taken) - 2
    if free < 1 or both[1] == 0:
        return float(alone[0]), 0.0
    rows = steps / whole[:, None]
    left = float(np.sum((rows @ both - taken / whole) ** 2)) / free
    error = math.sqrt(left * float(np.linalg.inv(rows.T @ rows)[1, 1]))
    shown = both[1] > student_quantile(GROWTH, free) * error
    return (float(both[0]), float(both[1])) if shown else (float(alone[0]), 0.0)


def _least_squares(rows: Array, wanted: Array, scale: Array | None = None) -> Array:
    """The coefficients of 0 or more with the least relative squared error, by trying every set of them."""
    weight = 1 / (wanted if scale is None else scale)
    a, y = rows * weight[:, None], wanted * weight
    best, least = np.zeros(rows.shape[1]), math.inf
    for size in range(1, rows.shape[1] + 1):
        for some in itertools.combinations(range(rows.shape[1]), size):
            part = np.linalg.lstsq(a[:, some], y, rcond=None)[0]
            if np.all(part >= 0):
                error = float(np.sum((a[:, some] @ part - y) ** 2))
                if error < least:
                    best, least = np.zeros(rows.shape[1]), error
                    best[list(some)] = part
    return best


def _left_out(seen: Mapping[tuple[int, int], float], found: Runtime) -> list[float]:
    """Relative error of every timing predicted from the others; the shortest and longest prompt only anchor.

    An entry of the table that is left out lies farther from its neighbours than any prompt does from an entry. The
    error of a smooth curve goes with the product of the distances, a quarter in the middle; half of it is counted.
    """
    ends = {(found.prompts[0], 1), (found.prompts[-1], 1)}
    errors = []
    for place, seconds in seen.items():
        rest = {other: value for other, value in seen.items() if other != place}
        if place not in ends and sum(o == 1 for _, o in rest) >= 3:
            error = _fit(rest, found.statistic, found.cached).seconds(*place) / seconds - 1
            errors.append(error / 2 if place[1] == 1 else error)
    return errors


def probe(
    generate: Generate | None = None, longest_prompt: int = 256, longest_output: int = 32
) -> list[Measurement]:
    """Idealized runtime of a generator; of one thread by its CPU time, which others disturb less.

    Raises:
        NoAnswer: the model has none, or takes too few tokens.
    """
    import torch

    if generate is None:
        raise NoAnswer(
            "nothing here generates text",
            "a causal language model, or a make() that gives Loaded(subject, generate=, context=)",
        )
    clock = "cpu" if torch.get_num_threads() == 1 else "wall"
    return measure_runtime(
        generate, longest_prompt, longest_output, statistic="median", clock=clock
    ).measurements()
