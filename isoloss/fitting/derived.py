"""What follows from a fit's parameters: a critical batch, a size at which training fails; with its interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.critical_batch import CriticalBatch
from isoloss.laws.logit_growth import DIVERGED, LogitGrowth
from isoloss.laws.steps_examples import StepsExamples

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Quantity:
    """A positive quantity that follows from the parameters of a fit.

    Attributes:
        value: at the best parameters. low, high: ends of its interval, 0 or inf where the rows leave them open.
        coverage: of the interval.
        resolved: whether both ends are bounded.

    Example:
        >>> print(Quantity(980.0, 850.0, float("inf"), 0.9, False))
        980 (90% interval 850 to inf, not resolved)
    """

    value: float
    low: float
    high: float
    coverage: float
    resolved: bool

    def __str__(self) -> str:
        ends = f"{100 * self.coverage:g}% interval {self.low:.4g} to {self.high:.4g}"
        return f"{self.value:.4g} ({ends}{'' if self.resolved else ', not resolved'})"


def derived(
    fit: Fit,
    of: Callable[[Array], Array],
    *,
    within: tuple[float, float] = (0.0, math.inf),
    coverage: float | None = None,
) -> Quantity:
    """A positive function of the parameters, over the draws of a fit.

    Args:
        fit: with draws.
        of: theta of shape (..., P) to values of shape (...), 0 or inf where there is none.
        within: the range in which it counts as measured: an end beyond is open.
        coverage: default the fit's.

    Raises:
        ValueError: a value that is negative or NaN, or a coverage that is none.
        NoAnswer: the fit has no draws, or too few rows for them to mean anything.

    Example:
        >>> import isoloss
        >>> found = isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=50)
        >>> print(derived(found, lambda theta: theta[..., 0] / theta[..., 1]))
        8 (90% interval 8 to 8)
    """
    coverage = fit.coverage if coverage is None else coverage
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if len(fit.draws) < 2:
        raise NoAnswer("this fit has no draws, so no interval", "fit with draws=1000")
    if any(entry.code == "too-few-rows" for entry in fit.warnings):
        raise NoAnswer(
            f"{len(fit.y)} rows leave no residual to judge {fit.free} parameters by",
            f"at least {fit.free + 3} rows, or fixed, tied or borrowed parameters",
        )
    value = float(of(fit.theta))
    draws = np.asarray(of(fit.draws), dtype=float)
    if math.isnan(value) or value < 0 or np.isnan(draws).any() or (draws < 0).any():
        raise ValueError(
            "needed a function that is at or above 0 for every draw, got NaN or a negative value"
        )
    # Order statistics, for between a number and infinity there is no middle.
    low = float(np.quantile(draws, (1 - coverage) / 2, method="lower"))
    high = float(np.quantile(draws, (1 + coverage) / 2, method="higher"))
    low, high = (low if low >= within[0] else 0.0), (high if high <= within[1] else math.inf)
    return Quantity(value, low, high, coverage, low > 0 and math.isfinite(high))


def critical_batch(
    fit: Fit, *, overhead: float = 0.2, reference: float = 0.0, coverage: float | None = None
) -> Quantity:
    """The critical batch of a fit of ``critical-batch`` or ``steps-examples``, never outside its batches.

    Args:
        fit: of steps to one target loss.
        overhead, reference: see :meth:`isoloss.laws.CriticalBatch.critical_batch`.
        coverage: default the fit's.

    Raises:
        TypeError: a fit of another law.
        NoAnswer: it lies outside the batches that were run.

    Example:
        >>> import isoloss
        >>> batch = [64.0, 128, 256, 512, 1024, 2048]
        >>> table = {"batch_tokens": batch, "steps": [100 + 1e5 / b for b in batch]}
        >>> found = isoloss.fit("critical-batch", table, draws=100, sensitivity=False)
        >>> print(critical_batch(found, overhead=1))
        1000 (90% interval 1000 to 1000)
    """
    law = fit.law
    if not isinstance(law, CriticalBatch | StepsExamples):
        raise TypeError(f"needed a fit of critical-batch or steps-examples, got one of {law.spec}")
    batch = fit.x[law.axis]
    smallest, largest = float(batch.min()), float(batch.max())
    value = float(law.critical_batch(fit.theta, overhead, reference))
    if not smallest <= value <= largest:
        side, far = ("above", f"beyond {largest:g}") if value > largest else ("below", f"below {smallest:g}")
        raise NoAnswer(
            f"the critical batch lies {side} the batches that were run, {smallest:g} to {largest:g}, and is not "
            "extrapolated",
            f"runs at batches {far}",
        )
    return derived(
        fit,
        lambda theta: law.critical_batch(theta, overhead, reference),
        within=(smallest, largest),
        coverage=coverage,
    )


def crossing(fit: Fit, *, limit: float = DIVERGED, coverage: float | None = None) -> Quantity:
    """The size at which attention logits rise through a limit, from a fit of ``logit-growth``.

    Args:
        fit: of one learning rate.
        limit: 1e4, above which runs diverged.
        coverage: default the fit's.

    Returns:
        The size. ``high`` is inf, and the quantity not resolved, where the rows allow a curve that never gets there.

    Raises:
        TypeError: a fit of another law.

    Example:
        >>> import isoloss
        >>> size = [1e7, 3e7, 1e8, 3e8, 1e9]
        >>> table = {"params": size, "max_attention_logit": [40 * (n / 1e8) ** 0.6 for n in size]}
        >>> found = crossing(isoloss.fit("logit-growth", table, draws=100, sensitivity=False))
        >>> f"{found.value:.3g}", found.resolved
        ('9.92e+11', True)
    """
    law = fit.law
    if not isinstance(law, LogitGrowth):
        raise TypeError(f"needed a fit of logit-growth, got one of {law.spec}")
    return derived(fit, lambda theta: law.crossing(theta, limit), coverage=coverage)
