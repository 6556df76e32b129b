"""Whether two ways of doing a work take different energy: repeats in turn, and Welch's t-test.

The repeats are interleaved (ABBA) between two baselines at rest. Where the test does not tell the two apart, the
smallest difference that it would find is given beside the verdict.

Source of the protocol: Antonopoulos 2024, arXiv:2409.07853.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isoloss.measure.energy import Energy, Meter
from isoloss.special import beta_cdf, student_quantile


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of two means.

    Attributes:
        difference: mean of b less mean of a.
        low, high: its interval at ``coverage``.
        coverage: of the interval.
        t, freedom, p: the statistic, its degrees of freedom, and the two-sided p-value.
        significant: whether p is below 1 - coverage.
        detectable: the true difference that such a test would find with 80 % probability.
    """

    difference: float
    low: float
    high: float
    coverage: float
    t: float
    freedom: float
    p: float
    significant: bool
    detectable: float


def welch(a: Sequence[float], b: Sequence[float], coverage: float = 0.95, power: float = 0.8) -> Welch:
    r"""Whether two means differ, their variances not assumed equal.

    :math:`t = (\bar b - \bar a)/\sqrt{s_a^2/n_a + s_b^2/n_b}`, degrees of freedom by Welch and Satterthwaite; the
    detectable difference is :math:`(t_{1-\alpha/2} + t_{power})` standard errors.

    Raises:
        ValueError: fewer than two values on a side.

    Example:
        >>> found = welch([10.0, 10.2, 9.8, 10.1, 9.9], [10.1, 10.3, 9.9, 10.2, 10.0])
        >>> found.significant, round(found.difference, 3), round(found.p, 3), round(found.detectable, 2)
        (False, 0.1, 0.347, 0.32)
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"needed two values or more on each side, got {len(a)} and {len(b)}")
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    difference, error = statistics.fmean(b) - statistics.fmean(a), math.sqrt(va + vb)
    if error == 0:
        p = 1.0 if difference == 0 else 0.0
        t = 0.0 if difference == 0 else math.copysign(math.inf, difference)
        return Welch(difference, difference, difference, coverage, t, math.inf, p, p < 1 - coverage, 0.0)
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    t = difference / error
    p = beta_cdf(freedom / (freedom + t * t), freedom / 2, 0.5)
    reach = student_quantile(0.5 + coverage / 2, freedom)
    return Welch(
        difference, difference - reach * error, difference + reach * error, coverage, t, freedom, p,
        p < 1 - coverage, (reach + student_quantile(power, freedom)) * error,
    )  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Two ways of doing a work.

    Attributes:
        runs: name -> the energies of its repeats.
        idle_watts: power at rest, before and after.
        total: Welch's test of the joules of a repeat.
        above: the same above the power at rest.
    """

    runs: Mapping[str, tuple[Energy, ...]]
    idle_watts: tuple[float, float]
    total: Welch
    above: Welch

    def sentence(self) -> str:
        """The verdict in words."""
        a, b = self.runs
        mean = statistics.fmean(run.joules for run in self.runs[a])
        share = 100 * self.total.difference / mean
        text = f"{b} takes {share:+.2g} % energy against {a} (p = {self.total.p:.2g})"
        if not self.total.significant:
            text += f": not significant; a difference of {100 * self.total.detectable / mean:.2g} % would be found"
        return text


def compare_energy(
    works: Mapping[str, Callable[[], object]],
    meter: Meter,
    repeats: int = 6,
    idle_seconds: float = 2.0,
    coverage: float = 0.95,
) -> Compared:
    """Energy of two works, interleaved (ABBA) after a warm-up of each, between two baselines at rest.

    Args:
        works: two of them.
        meter: counter or model.
        repeats: of each, at least 5.
        idle_seconds: of each baseline.
        coverage: of the test's interval.

    Raises:
        ValueError: not two works, or fewer than five repeats.

    Example:
        >>> from pathlib import Path
        >>> from isoloss.measure.energy import PowerModel
        >>> works = {"a": lambda: sum(range(1000)), "b": lambda: sum(range(1000))}
        >>> meter = Meter(PowerModel(10.0, 50.0, cores=2), root=Path("/nowhere"))
        >>> found = compare_energy(works, meter, repeats=5, idle_seconds=0.01)
        >>> len(found.runs["a"])
        5
    """
    if len(works) != 2 or repeats < 5:
        raise ValueError(f"needed two works and at least five repeats, got {len(works)} and {repeats}")
    before = meter.measure(lambda: time.sleep(idle_seconds)).watts
    for work in works.values():
        work()
    runs: dict[str, list[Energy]] = {name: [] for name in works}
    for turn in range(repeats):
        for name in works if turn % 2 == 0 else reversed(list(works)):
            runs[name].append(meter.measure(works[name]))
    after = meter.measure(lambda: time.sleep(idle_seconds)).watts
    rest = (before + after) / 2
    a, b = runs.values()
    return Compared(
        {name: tuple(own) for name, own in runs.items()},
        (before, after),
        welch([run.joules for run in a], [run.joules for run in b], coverage),
        welch([run.joules - rest * run.wall for run in a], [run.joules - rest * run.wall for run in b], coverage),
    )  # fmt: skip
