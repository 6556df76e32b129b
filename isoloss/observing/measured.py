"""A value with its interval: what the functions of this folder return, or hold, and what follows from a fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """A value that an experiment or a fit gave, and where the truth may lie.

    Attributes:
        value: the estimate.
        low, high: ends of its interval.
        coverage: share of such intervals that should hold the truth.
        how: the estimator and the interval in a few words.

    Example:
        >>> print(Measured(0.25, 0.1, 0.45, 0.9, "unbiased; exact interval"))
        0.25 (90% interval 0.1 to 0.45; unbiased; exact interval)
    """

    value: float
    low: float
    high: float
    coverage: float
    how: str

    def __str__(self) -> str:
        ends = f"{100 * self.coverage:g}% interval {self.low:.4g} to {self.high:.4g}"
        return f"{self.value:.4g} ({ends}; {self.how})"
