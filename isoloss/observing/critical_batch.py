"""Zhang et al. 2025, How Does Critical Batch Size Scale in Pre-training?, arXiv:2410.21676: from steps to batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured
from isoloss.special import student_quantile

Array = np.ndarray[Any, np.dtype[Any]]

REACH = 1e6  # b/a is sought within this factor of the batches; beyond, one part of a + b/B is invisible
GRID = 400
HALVINGS = 80


@dataclass(frozen=True)
class CriticalBatchSize:
    """``S(B) = a + b/B`` through the steps to one target loss, and the critical batch.

    Attributes:
        critical: the critical batch, in the unit of the batches; an end outside the batches that were run is
            open (0 or inf).
        a: steps at a batch without end. b: batch times steps at a vanishing batch.
        overhead, reference: the rule, see :func:`critical_batch_size`.
        smallest, largest: batches that were run.

    Example:
        >>> found = critical_batch_size([64, 256, 1024, 4096], [16500, 4800, 1500, 740])
        >>> print(found)
        critical batch 438.5 (90% interval 355 to 549.6; a + b/B in logs, profile interval)
    """

    critical: Measured
    a: float
    b: float
    overhead: float
    reference: float
    smallest: float
    largest: float

    def __str__(self) -> str:
        return f"critical batch {self.critical}"


def critical_batch_size(
    batch: Any,
    steps: Any,
    *,
    overhead: float = 0.2,
    reference: float = 0.0,
    coverage: float = 0.9,
) -> CriticalBatchSize:
    r"""The largest batch that reaches the target loss without wasting more than a share of tokens.

    .. math:: B^* = \max\{B : S(B) \le (1+o)\,S(B_0) B_0/B\} = o\,\frac{b}{a} + (1+o) B_0

    for :math:`S(B) = a + b/B`, fitted by least squares of log steps. The interval is that of the profile
    likelihood of b/a, with Student's t for the few rows:
    :math:`\{k : SSE(k) \le SSE_{min} (1 + t^2/(n-2))\}`.

    Args:
        batch: one per run, tokens or sequences; the answer has the same unit.
        steps: steps until the run first had the target loss; learning rate tuned at each batch.
        overhead: o, share of extra tokens accepted: 0.2 in the paper.
        reference: B_0, the batch from which steps scale perfectly. 0, the default, is the limit of small
            batches; the paper's table was made with 256 sequences.
        coverage: of the interval.

    Raises:
        ValueError: unequal lengths, or numbers that are no batch or coverage.
        NoAnswer: a run never reached the target, fewer than three batches, or the critical batch lies outside
            the batches that were run: it is never extrapolated.

    Example:
        >>> batch = [100, 200, 400, 800, 1600]
        >>> found = critical_batch_size(batch, [50 + 20000 / b for b in batch], overhead=1)
        >>> round(found.a, 6), round(found.b, 6), round(found.critical.value, 6)
        (50.0, 20000.0, 400.0)
    """
    size, taken = (np.asarray(entry, dtype=float).ravel() for entry in (batch, steps))
    _check(size, taken, overhead, reference, coverage)
    smallest, largest = float(size.min()), float(size.max())
    r = np.log(taken)

    def misfit(log_k: Array) -> Array:
        """Sum of squared residuals of log steps, b/a given, a at its best."""
        rest = r - np.log1p(np.exp(log_k[..., None] - np.log(size)))
        return np.asarray(np.sum((rest - rest.mean(axis=-1, keepdims=True)) ** 2, axis=-1))

    ends = (math.log(smallest / REACH), math.log(largest * REACH))
    grid = np.linspace(*ends, GRID)
    best = _least(misfit, grid)
    k = math.exp(best)
    value = overhead * k + (1 + overhead) * reference
    if not smallest <= value <= largest:
        side, far = (
            ("above", f"batches beyond {largest:g}")
            if value > largest
            else ("below", f"batches below {smallest:g}")
        )
        raise NoAnswer(
            f"the critical batch lies {side} the batches that were run, {smallest:g} to {largest:g}, "
            "and is not extrapolated",
            f"runs at {far}",
        )
    freedom = len(size) - 2
    t = student_quantile((1 + coverage) / 2, freedom)
    limit = float(misfit(np.array(best))) * (1 + t * t / freedom)
    low, high = (
        overhead * math.exp(_edge(misfit, best, end, limit)) + (1 + overhead) * reference for end in ends
    )
    a = math.exp(float(np.mean(r - np.log1p(k / size))))
    critical = Measured(
        value,
        low if low >= smallest else 0.0,
        high if high <= largest else math.inf,
        coverage,
        "a + b/B in logs, profile interval",
    )
    return CriticalBatchSize(critical, a, a * k, overhead, reference, smallest, largest)


def steps_to_target(step: Any, loss: Any, target: Any) -> Array:
    """The step at which a curve first reaches each target loss, between two rows on a line in log step.

    Args:
        step: steps of one run at which the loss was read, rising, shape (n,).
        loss: the loss there, (n,); smooth it before if it is noisy, for the first crossing is early by noise.
        target: one loss or an array of them.

    Returns:
        Steps of the shape of ``target``; NaN where the curve never reaches it, and where the first row is
        already below.

    Raises:
        ValueError: unequal lengths, steps that do not rise, or values that are not finite.

    Example:
        >>> steps_to_target([1, 10, 100], [6.0, 4.0, 3.0], [5.0, 3.5, 2.0]).round(3).tolist()
        [3.162, 31.623, nan]
    """
    at, values = (np.asarray(entry, dtype=float).ravel() for entry in (step, loss))
    if len(at) != len(values) or len(at) < 2:
        raise ValueError(f"needed two or more steps, each with a loss, got {len(at)} and {len(values)}")
    if not (np.isfinite(at).all() and np.isfinite(values).all() and at[0] > 0 and (np.diff(at) > 0).all()):
        raise ValueError(
            "needed finite losses at rising steps above 0. Sort the rows and leave out the others"
        )
    wanted = np.asarray(target, dtype=float)
    below = values <= wanted[..., None]
    first = np.argmax(below, axis=-1)
    reached = below.any(axis=-1) & ((first > 0) | (values[0] == wanted))
    after = np.maximum(first, 1)
    upper, lower = values[after - 1], values[after]
    share = np.clip((upper - wanted) / np.where(upper > lower, upper - lower, 1.0), 0.0, 1.0)
    logs = np.log(at[after - 1]) + share * (np.log(at[after]) - np.log(at[after - 1]))
    return np.where(reached, np.exp(logs), np.nan)


def _check(size: Array, taken: Array, overhead: float, reference: float, coverage: float) -> None:
    if len(size) != len(taken):
        raise ValueError(f"needed steps for every batch, got {len(taken)} steps and {len(size)} batches")
    if not (np.isfinite(size).all() and (size > 0).all()):
        raise ValueError("needed batches finite and above 0. Leave the other rows out")
    if not (overhead > 0 and 0 <= reference < math.inf and 0 < coverage < 1):
        raise ValueError(
            "needed overhead above 0, reference at or above 0 and coverage between 0 and 1, got "
            f"{overhead}, {reference} and {coverage}"
        )
    missing = ~np.isfinite(taken)
    if missing.any():
        raise NoAnswer(
            f"the target was not reached at batch {', '.join(f'{b:g}' for b in size[missing])}",
            "a target loss that every batch reaches, or the table without those batches",
        )
    if (taken <= 0).any():
        raise ValueError(f"needed steps above 0, got {taken.min():g}. Leave those rows out")
    if len(np.unique(size)) < 3:
        raise NoAnswer(
            f"{len(np.unique(size))} batch sizes cannot tell a from b with an interval",
            "steps at three batch sizes, better five",
        )
    if reference and not size.min() <= reference <= size.max():
        raise ValueError(
            f"needed a reference among the batches, {size.min():g} to {size.max():g}, got {reference:g}"
        )


def _least(misfit: Any, grid: Array) -> float:
    """The minimum: the best of a grid, then golden section between its neighbours."""
    i = int(np.argmin(misfit(grid)))
    low, high = float(grid[max(i - 1, 0)]), float(grid[min(i + 1, len(grid) - 1)])
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(HALVINGS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        values = misfit(np.array([left, right]))
        low, high = (low, right) if values[0] <= values[1] else (left, high)
    return 0.5 * (low + high)


def _edge(misfit: Any, best: float, end: float, limit: float) -> float:
    """Where the misfit first passes the limit on the way from the minimum to an end of the range, else the end."""
    path = np.linspace(best, end, GRID)
    over = np.flatnonzero(misfit(path) > limit)
    if not len(over):
        return end
    inside, outside = float(path[max(over[0] - 1, 0)]), float(path[over[0]])
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        inside, outside = (inside, middle) if float(misfit(np.array(middle))) > limit else (middle, outside)
    return 0.5 * (inside + outside)
