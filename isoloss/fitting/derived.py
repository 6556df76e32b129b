"""What follows from a fit's parameters, with its interval: a critical batch, a size at which training fails."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws import clark
from isoloss.laws.critical_batch import CriticalBatch
from isoloss.laws.logit_growth import DIVERGED, LogitGrowth
from isoloss.laws.parts.composed import Composed
from isoloss.laws.steps_examples import StepsExamples
from isoloss.observing.measured import Measured

Array = np.ndarray[Any, np.dtype[Any]]


def derived(
    fit: Fit,
    of: Callable[[Array], Array],
    *,
    within: tuple[float, float] = (0.0, math.inf),
    coverage: float | None = None,
) -> Measured:
    """A positive function of the parameters, over the draws of a fit.

    Args:
        fit: with draws.
        of: theta of shape (..., P) to values of shape (...), 0 or inf where there is none.
        within: the range in which it counts as measured: an end beyond is open.
        coverage: default the fit's.

    Returns:
        The value at the best parameters; an end that the rows leave open is 0 or inf, and ``how`` says so.

    Raises:
        ValueError: a value that is negative or NaN, or a coverage that is none.
        NoAnswer: the fit has no draws, or too few rows for them to mean anything.

    Example:
        >>> import isoloss
        >>> found = isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}, draws=50)
        >>> print(derived(found, lambda theta: theta[..., 0] / theta[..., 1]))
        8 (90% interval 8 to 8; draws of power(tokens))
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
    open_ = "" if low > 0 and math.isfinite(high) else ", not resolved"
    return Measured(value, low, high, coverage, f"draws of {fit.law.spec}{open_}")


def critical_batch(
    fit: Fit, *, overhead: float = 0.2, reference: float = 0.0, coverage: float | None = None
) -> Measured:
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
        1000 (90% interval 1000 to 1000; draws of critical-batch(batch_tokens))
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


def crossing(fit: Fit, *, limit: float = DIVERGED, coverage: float | None = None) -> Measured:
    """The size at which attention logits rise through a limit, from a fit of ``logit-growth``.

    Args:
        fit: of one learning rate.
        limit: 1e4, above which runs diverged.
        coverage: default the fit's.

    Returns:
        The size. ``high`` is inf, and the size not resolved, where the rows allow a curve that never gets there.

    Raises:
        TypeError: a fit of another law.

    Example:
        >>> import isoloss
        >>> size = [1e7, 3e7, 1e8, 3e8, 1e9]
        >>> table = {"params": size, "max_attention_logit": [40 * (n / 1e8) ** 0.6 for n in size]}
        >>> found = crossing(isoloss.fit("logit-growth", table, draws=100, sensitivity=False))
        >>> f"{found.value:.3g}", found.how
        ('9.92e+11', 'draws of logit-growth(params)')
    """
    law = fit.law
    if not isinstance(law, LogitGrowth):
        raise TypeError(f"needed a fit of logit-growth, got one of {law.spec}")
    return derived(fit, lambda theta: law.crossing(theta, limit), coverage=coverage)


def cutoff(fit: Fit, *, coverage: float | None = None) -> Measured:
    """The size beyond which more experts raise the loss: :func:`isoloss.laws.clark.cutoff` of a fit.

    Args:
        fit: of ``clark``, or of a law with the factor ``routed``.
        coverage: default the fit's.

    Returns:
        The size. Infinite where there is none; ``high`` is inf where some draws have none.

    Raises:
        TypeError: a fit of another law.

    Example:
        >>> import isoloss
        >>> n, e = (v.ravel() for v in np.meshgrid([2e7, 1e8, 5e8], [1, 4, 16, 64, 256]))
        >>> law = isoloss.laws.get("clark")
        >>> loss = law.evaluate(law.theta("hash-2022"), params_active=n, experts=e)
        >>> table = {"params_active": n, "experts": e, "loss": loss}
        >>> found = isoloss.fit(law, table, draws=50, sensitivity=False)
        >>> f"{cutoff(found).value:.2g}"
        '2.2e+11'
    """
    law, sign = fit.law, 1.0
    if isinstance(law, clark.Clark):
        b, c = (law.names.index(name) for name in ("b", "c"))
    elif isinstance(law, Composed) and ("routed", "b_E") in law.slot_names:
        b, c = (law.names.index(law.slot_names["routed", name]) for name in ("b_E", "c_E"))
        sign = -1.0  # its slopes are those of a size, which are a gain where those of the loss are below 0
    else:
        raise TypeError(f"needed a fit of clark or of a law with routed, got one of {law.spec}")
    return derived(
        fit, lambda theta: clark.cutoff(sign * theta[..., b], sign * theta[..., c]), coverage=coverage
    )
