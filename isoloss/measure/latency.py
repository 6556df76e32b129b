r"""How long calls take: wall clock and CPU time, several subjects in turn, medians with distribution-free intervals.

Clocks drift, machines are shared, and a first call compiles and allocates. So what is compared is called in turn,
forwards and backwards (ABBA), after a warm-up, and the median of n calls is given with the order statistics
around it that hold the true median with at least the coverage wanted, whatever the distribution:
:math:`P(x_{(k)} \le m \le x_{(n+1-k)}) = 1 - 2\,P(\mathrm{Bin}(n, \tfrac12) < k)`.

Source of the costs that belong together: Dehghani et al. 2022, The Efficiency Misnomer, arXiv:2110.12894.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from isoloss.errors import NoAnswer
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.memory import forward_peak
from isoloss.measure.resident import available
from isoloss.measure.storages import shapes
from isoloss.measure.subject import Subject, resized

SETTLED = 0.05  # gain in throughput from twice the batch, below which it counts as saturated


@dataclass(frozen=True)
class Median:
    """A median with its distribution-free interval.

    Attributes:
        value: the median.
        low, high: order statistics around it.
        coverage: probability that they hold the true median; at least what was asked for, NaN if that takes more
            values than there are, in which case low and high are the extremes.
        count: of values.
    """

    value: float
    low: float
    high: float
    coverage: float
    count: int

    @property
    def se(self) -> float:
        """The interval's half width as a standard error, as if it were normal; NaN without an interval."""
        if not 0 < self.coverage < 1:
            return math.nan
        reach = statistics.NormalDist().inv_cdf(0.5 + self.coverage / 2)
        return (self.high - self.low) / (2 * reach)


@dataclass(frozen=True)
class Timing:
    """The times of one subject's calls.

    Attributes:
        name: of the subject.
        wall, cpu: seconds of each call, by the wall clock and of all threads of this process.
        load: average number of running processes of the machine over the last minute, before and after.
        threads: of torch.
    """

    name: str
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    load: tuple[float, float]
    threads: int

    def median(self, clock: str = "wall", coverage: float = 0.9) -> Median:
        """Of the ``wall`` or ``cpu`` seconds."""
        return median(self.cpu if clock == "cpu" else self.wall, coverage)


def median(values: Sequence[float], coverage: float = 0.9) -> Median:
    """The median of values and the narrowest symmetric pair of order statistics with that coverage.

    Raises:
        ValueError: no value, or a coverage outside 0 to 1.

    Example:
        >>> median([5.0, 1.0, 2.0, 4.0, 3.0])  # the extremes of five hold it with 1 - 2/32
        Median(value=3.0, low=1.0, high=5.0, coverage=0.9375, count=5)
    """
    if not values:
        raise ValueError("needed at least one value for a median, got none")
    if not 0 < coverage < 1:
        raise ValueError(f"needed a coverage between 0 and 1, got {coverage}")
    ordered, n = sorted(values), len(values)
    below = 0.0  # P(Bin(n, 1/2) < k), k from 1
    best, held = 0, math.nan
    for k in range(1, (n + 1) // 2 + 1):
        below += math.comb(n, k - 1) / 2**n
        if 1 - 2 * below < coverage:
            break
        best, held = k, 1 - 2 * below
    k = max(best, 1)
    return Median(statistics.median(ordered), ordered[k - 1], ordered[n - k], held, n)


def times(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = 20,
    warm: int = 3,
    clocks: tuple[Callable[[], float], Callable[[], float]] = (time.perf_counter, time.process_time),
) -> dict[str, Timing]:
    """Time several calls in turn: in their order, then backwards, and so on.

    Args:
        calls: name -> what is called.
        repeats: calls of each that are timed.
        warm: calls of each before that.
        clocks: of wall and CPU seconds.

    Raises:
        ValueError: nothing to call, or less than one repeat.

    Example:
        >>> found = times({"a": lambda: sum(range(100)), "b": lambda: sum(range(1000))}, repeats=5)
        >>> len(found["a"].wall), found["a"].median().count
        (5, 5)
    """
    if not calls or repeats < 1:
        raise ValueError(f"needed something to call and at least one repeat, got {len(calls)} and {repeats}")
    wall, cpu = clocks
    names = list(calls)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    before = load()
    for _ in range(warm):
        for name in names:
            calls[name]()
    for turn in range(repeats):
        for name in names if turn % 2 == 0 else reversed(names):
            began, busy = wall(), cpu()
            calls[name]()
            spent, used = wall() - began, cpu() - busy
            found[name][0].append(spent)
            found[name][1].append(used)
    loads, threads = (before, load()), torch.get_num_threads()
    return {name: Timing(name, tuple(a), tuple(b), loads, threads) for name, (a, b) in found.items()}


def load() -> float:
    """The machine's load average of the last minute; NaN where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan


def ratio(a: Timing, b: Timing, clock: str = "wall", coverage: float = 0.9) -> Median:
    """How much longer a takes than b: the median of the ratios of calls that were made in one turn.

    The two are not resolved where the interval holds 1.

    Raises:
        ValueError: they were not timed together.

    Example:
        >>> slow = Timing("slow", (2.0, 2.2, 2.0, 2.4, 2.0), (1.0,) * 5, (0.0, 0.0), 1)
        >>> fast = Timing("fast", (1.0, 1.0, 1.0, 1.0, 1.0), (1.0,) * 5, (0.0, 0.0), 1)
        >>> ratio(slow, fast).value
        2.0
    """
    first, second = (t.cpu if clock == "cpu" else t.wall for t in (a, b))
    if len(first) != len(second):
        raise ValueError(
            f"needed as many calls of {a.name} as of {b.name}, got {len(first)} and {len(second)}"
        )
    return median([x / y for x, y in zip(first, second, strict=True)], coverage)


def forward(subject: Subject, examples: int) -> Callable[[], object]:
    """A call of the model on a batch of so many examples, without gradients; the subject must be measuring."""
    inputs, _ = resized(subject.batches[0], examples)

    def run() -> object:
        with torch.inference_mode():
            return subject.predict(inputs)

    return run


def latency(
    subjects: Sequence[Subject], examples: int = 1, repeats: int = 20, warm: int = 3
) -> dict[str, Timing]:
    """Times of forward passes of several subjects, in turn, on batches of so many examples.

    Raises:
        ValueError: two subjects of one name.

    Example:
        >>> from torch import nn
        >>> def net(width):
        ...     batch = (torch.ones(4, 8), torch.zeros(4).long())
        ...     model = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 2))
        ...     return Subject(model, [batch], nn.functional.cross_entropy, name=f"width {width}")
        >>> list(latency([net(8), net(2048)], repeats=5))
        ['width 8', 'width 2048']
    """
    if len({subject.name for subject in subjects}) < len(subjects):
        raise ValueError("needed subjects of different names. Give Subject(..., name=)")
    with ExitStack() as stack:
        for subject in subjects:
            stack.enter_context(subject.measuring())
        return times({s.name: forward(s, examples) for s in subjects}, repeats, warm)


@dataclass(frozen=True)
class Throughput:
    """How many examples a second a batch of some size gives.

    Attributes:
        batches: sizes that were tried, rising.
        timings: of each.
        batch: the smallest that reaches the best throughput within ``SETTLED``.
        settled: whether twice the batch brought less than that; else the search ended at its limit.
        stopped: why it ended.
    """

    batches: tuple[int, ...]
    timings: tuple[Timing, ...]
    batch: int
    settled: bool
    stopped: str

    def rate(self, batch: int, coverage: float = 0.9) -> Median:
        """Examples a second at a batch that was tried."""
        timing = self.timings[self.batches.index(batch)]
        return median([batch / seconds for seconds in timing.wall], coverage)


def saturating_batch(
    subject: Subject,
    most: int = 4096,
    seconds: float = 20.0,
    repeats: int = 5,
    bytes_free: float | None = None,
) -> Throughput:
    """The throughput of the forward pass over rising batches, doubled until it no longer gains.

    Args:
        subject: its first batch is cut or repeated.
        most: largest batch to try.
        seconds: after which no larger batch is tried.
        repeats: calls of each size that are timed.
        bytes_free: memory that may be used; what is available if not given.

    Raises:
        NoAnswer: one example does not fit.

    Example:
        >>> from torch import nn
        >>> batch = (torch.ones(4, 8), torch.zeros(4).long())
        >>> subject = Subject(nn.Linear(8, 2), [batch], nn.functional.cross_entropy)
        >>> found = saturating_batch(subject, most=8, repeats=3)
        >>> found.batches
        (1, 2, 4, 8)
    """
    free = available() if bytes_free is None else bytes_free
    sizes: list[int] = []
    timings: list[Timing] = []
    began, size = time.perf_counter(), 1
    stopped, flat = f"the limit of {most} examples", 0
    one, two = forward_peak(subject, 1), forward_peak(subject, 2)
    with subject.measuring():
        while size <= most:
            needed = one + (size - 1) * (two - one)
            if needed > free:
                if not sizes:
                    raise NoAnswer(
                        f"one example takes {needed:.3g} bytes and {free:.3g} are free", "more memory"
                    )
                stopped = f"memory: a batch of {size} takes {needed:.3g} bytes"
                break
            timing = times({subject.name: forward(subject, size)}, repeats, warm=1)[subject.name]
            sizes.append(size)
            timings.append(timing)
            rates = [b / t.median().value for b, t in zip(sizes, timings, strict=True)]
            flat = flat + 1 if len(rates) > 1 and rates[-1] < (1 + SETTLED) * max(rates[:-1]) else 0
            if flat == 2:  # one flat step may be noise, or a size that the kernels do not like
                stopped = "throughput no longer gains"
                break
            if time.perf_counter() - began > seconds:
                stopped = f"the limit of {seconds:g} s"
                break
            size *= 2
    best = max(rates)
    batch = next(b for b, rate in zip(sizes, rates, strict=True) if rate * (1 + SETTLED) >= best)
    return Throughput(tuple(sizes), tuple(timings), batch, flat == 2, stopped)


def probe(subject: Subject, repeats: int = 20, timing: Timing | None = None) -> list[Measurement]:
    """Latency of one example and throughput at the saturating batch.

    Args:
        subject: what is measured.
        repeats: calls that are timed.
        timing: of one example, where it was timed in turn with other subjects.
    """
    with timed() as watch:
        one = latency([subject], repeats=repeats)[subject.name] if timing is None else timing
    wall, cpu = one.median("wall"), one.median("cpu")
    state = f"{one.threads} threads, load {one.load[0]:.2g} before and {one.load[1]:.2g} after"
    how = f"median of {wall.count} forward passes of 1 example, {shapes(resized(subject.batches[0], 1)[0])}, {state}"
    if timing is not None:
        how += ", in turn with the other models"
    spent = watch.spent() if timing is None else Spent(sum(one.cpu), sum(one.wall))
    out = [
        Measurement("latency", wall.value, wall.se, "s", how=how, spent=spent),
        Measurement(
            "latency_cpu", cpu.value, cpu.se, "s", how=f"{how}; CPU time of all threads", spent=spent
        ),
    ]
    with timed() as watch:
        found = saturating_batch(subject)
    rate = found.rate(found.batch)
    how = f"batch {found.batch}, median of {rate.count}, {state}; the search ended at {found.stopped}"
    spent = watch.spent()
    return [
        *out,
        Measurement("throughput", rate.value, rate.se, "example/s", how=how, spent=spent),
        Measurement("batch_saturating", found.batch, math.nan, "example", how=how, spent=spent),
    ]
