"""Whether a benchmark will move: the predicted change of an error against what runs scatter anyway."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.planning.result import Quantity

HALVINGS = 40


@dataclass(frozen=True)
class Move:
    """The change of an error from one loss to another, as two runs would show it.

    Attributes:
        before, after: losses.
        change: of the error, after less before, one run against one run: what the law leaves open, and the
            scatter of both runs.
        level: the same of the law's level alone.
        verdict: ``"resolved"``: the interval of ``change`` lies on one side of zero; else ``"not resolved"``.
        reach: by how much the farther loss lies outside the fitted rows; 1 inside.
        coverage: of the intervals.
        reading: a sentence.
    """

    before: float
    after: float
    change: Quantity
    level: Quantity
    verdict: str
    reach: float
    coverage: float
    reading: str

    def __str__(self) -> str:
        return self.reading


def benchmark_move(fit: Fit, before: float, after: float, *, coverage: float | None = None) -> Move:
    """Whether the error of a benchmark will be seen to move when the loss does.

    Args:
        fit: of a law from loss to error (``loss-to-error``), with draws.
        before, after: the losses [unit of the fit].
        coverage: of the interval; default the fit's.

    Raises:
        ValueError: the law reads something else than the loss. NoAnswer: the fit has no draws.

    Example:
        >>> import isoloss
        >>> loss = np.linspace(2.5, 4.5, 12)
        >>> error = 0.86 - 2.2 * np.exp(-0.71 * loss) + 0.004 * np.cos(9 * loss)
        >>> fit = isoloss.fit("loss-to-error", {"loss": loss, "error": error}, draws=200)
        >>> benchmark_move(fit, 3.0, 2.6).verdict, benchmark_move(fit, 3.0, 2.99).verdict
        ('resolved', 'not resolved')
    """
    if fit.law.axes != ("loss",):
        raise ValueError(
            f"needed a law that reads the loss alone, got {fit.law.spec} on {list(fit.law.axes)}"
        )
    coverage = fit.coverage if coverage is None else coverage
    ends = [(1 - coverage) / 2, (1 + coverage) / 2]
    found = []
    for of in ("run", "mean"):
        predicted = fit.predict(of=of, coverage=coverage, loss=[before, after])
        moved = predicted.draws[:, 1] - predicted.draws[:, 0]
        found.append(Quantity(float(np.median(moved)), *(float(q) for q in np.quantile(moved, ends))))
    change, level = found
    resolved = change.high < 0 or change.low > 0
    reach = float(np.max(predicted.reach))
    text = (
        f"from loss {before:g} to {after:g} {fit.law.target} changes by {change.value:+.4f} "
        f"({100 * coverage:g}% interval of one run against one run {change.low:+.4f} to {change.high:+.4f}): "
        + ("the benchmark will be seen to move" if resolved else "one run each will not tell")
        + (f"; the law is read {reach:.3g} times outside its rows" if reach > 1 else "")
    )
    verdict = "resolved" if resolved else "not resolved"
    return Move(float(before), float(after), change, level, verdict, reach, coverage, text)


def loss_that_moves(fit: Fit, before: float, *, coverage: float | None = None) -> Move:
    """The smallest fall of the loss that the benchmark will show, one run against one run.

    Searched down to half the loss.

    Args:
        fit: of a law from loss to error, with draws.
        before: the loss to start from.
        coverage: of the interval; default the fit's.

    Raises:
        ValueError: the law reads something else than the loss. NoAnswer: half the loss would not be seen either.

    Example:
        >>> import isoloss
        >>> loss = np.linspace(2.5, 4.5, 12)
        >>> error = 0.86 - 2.2 * np.exp(-0.71 * loss) + 0.004 * np.cos(9 * loss)
        >>> fit = isoloss.fit("loss-to-error", {"loss": loss, "error": error}, draws=200)
        >>> 2.8 < loss_that_moves(fit, 3.0).after < 3.0
        True
    """
    low, high = before / 2, before
    if benchmark_move(fit, before, low, coverage=coverage).verdict != "resolved":
        raise NoAnswer(
            f"{fit.law.target} is not seen to move from loss {before:g} to {low:g}",
            "a mean over more tasks, more runs per loss, or a benchmark with less scatter",
        )
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        if benchmark_move(fit, before, middle, coverage=coverage).verdict == "resolved":
            low = middle
        else:
            high = middle
        if high - low < 1e-4 * before:
            break
    return benchmark_move(fit, before, low, coverage=coverage)
