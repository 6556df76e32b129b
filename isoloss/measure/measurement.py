"""What a probe gives: a value, how sure it is, and what it cost to measure."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spent:
    """What a measurement itself cost.

    Attributes:
        cpu_seconds: of all threads of this process [s].
        wall_seconds: [s].
        gradients: the same in units of one gradient of the subject's loss over all its batches, where the
            probe works with gradients; NaN elsewhere.
    """

    cpu_seconds: float
    wall_seconds: float
    gradients: float = math.nan


@dataclass(frozen=True)
class Measurement:
    """One measured value.

    Attributes:
        name: the quantity, in the word of a column: ``hessian_trace``.
        value: of it.
        se: standard error; 0 where the value is exact, NaN where nobody knows.
        unit: of value and se.
        of: the layer or tensor it belongs to; empty for the whole model.
        how: method and settings in one line, with all that was changed to measure it.
        spent: what it cost; shared by measurements that one pass gave.

    Example:
        >>> Measurement("params", 1.2e6, 0.0, "count")
        Measurement(params: 1.2e+06 count)
        >>> Measurement("hessian_trace", 812.0, 9.5, "nats", of="fc1").interval(0.9)
        (796.37..., 827.62...)
    """

    name: str
    value: float
    se: float
    unit: str
    of: str = ""
    how: str = ""
    spent: Spent = field(default_factory=lambda: Spent(math.nan, math.nan))

    def interval(self, coverage: float = 0.9) -> tuple[float, float]:
        """The normal interval of that coverage; NaN where the standard error is unknown."""
        from statistics import NormalDist

        reach = NormalDist().inv_cdf(0.5 + coverage / 2) * self.se
        return self.value - reach, self.value + reach

    def __repr__(self) -> str:
        sure = f" ± {self.se:.2g}" if self.se > 0 else ""
        return f"Measurement({self.name}{'[' + self.of + ']' if self.of else ''}: {self.value:.6g}{sure} {self.unit})"


@dataclass
class Stopwatch:
    """The clocks of :func:`timed`, read when its block ends."""

    cpu_seconds: float = math.nan
    wall_seconds: float = math.nan

    def spent(self, gradient_seconds: float = math.nan) -> Spent:
        """What was spent, in gradients too where the CPU time of one is given [s]."""
        return Spent(self.cpu_seconds, self.wall_seconds, self.cpu_seconds / gradient_seconds)


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """A stopwatch over the block.

    Example:
        >>> with timed() as watch:
        ...     sum(range(10))
        45
        >>> watch.cpu_seconds >= 0
        True
    """
    watch = Stopwatch()
    cpu, wall = time.process_time(), time.perf_counter()
    yield watch
    watch.cpu_seconds, watch.wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
