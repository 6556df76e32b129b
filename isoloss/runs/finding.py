"""takes Runs, axes and a target, gives what the checks share: the Finding they return, the Subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from isoloss.runs.derive import can_derive
from isoloss.runs.units import is_loss_unit

if TYPE_CHECKING:
    from isoloss.runs.table import Runs

__all__ = ["CODES", "Finding", "Subject", "subject_of"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Level = Literal["error", "warning", "note"]

CODES: Mapping[str, str] = MappingProxyType(
    {
        "missing-value": "a value that the fit needs is missing",
        "nonfinite-loss": "the loss is missing, NaN or infinite",
        "nonpositive-loss": "the loss is zero or negative",
        "nonpositive-count": "a count is zero or negative",
        "integer-overflow": "a count ran past the range of its integer type",
        "bad-weight": "a known noise is not above 0, or a weight is negative",
        "loss-unit": "the loss looks like perplexity, bits, per cent or accuracy",
        "count-unit": "a count looks like thousands, millions or billions",
        "mixed-units": "a column holds values 1000-fold apart, as if in two units",
        "flops-not-6nd": "FLOPs are not within a factor 2 of 6 * params * tokens",
        "mixed-param-counts": "parameters with and without embeddings in one column",
        "duplicate-rows": "the same measurement stands in the table more than once",
        "replicates": "several runs of one point: they show the noise",
        "diverged": "losses far above the trend of the other rows",
        "unfinished-run": "runs that failed, crashed or stopped early",
        "mixed-checkpoints": "intermediate checkpoints beside finished runs",
        "lr-not-tuned": "the learning rate was the same at every scale, or swept and not chosen",
        "few-values": "a predictor takes fewer than 3 values",
        "fixed-ratio": "two predictors move together: their effects cannot be told apart",
        "narrow-range": "a predictor spans less than a factor 4",
        "few-rows": "fewer than 5 rows",
        "constant-loss": "the loss is the same in every row",
        "loss-range": "the loss spans less than 2 per cent",
    }
)
"""Every code that ``check`` can return, with its meaning."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found in a table, or a fit in its data.

    Args:
        code: what kind; of ``check``, one of ``CODES``.
        level: ``error``: rows that cannot be fitted as they are; ``warning``: a fit would run and
            may mislead; ``note``: good to know.
        rows: the row numbers concerned, ascending; empty where it is the whole table.
        column: the column concerned, or None.
        text: what was found, with numbers.
        why: why it matters for a fit.
        do: what to do, as a call or a command-line option.

    Example:
        >>> import isoloss.runs
        >>> runs = isoloss.runs.from_rows([{"params": 10**6 * 2**i, "loss": 3.0} for i in range(6)])
        >>> [(f.code, f.level) for f in isoloss.runs.check(runs, axes=["params"])]
        [('constant-loss', 'error')]
    """

    code: str
    level: Level
    rows: tuple[int, ...]
    column: str | None
    text: str
    why: str
    do: str


@dataclass(frozen=True, eq=False)
class Subject:
    """What a check looks at: the table as given, and the numbers of the columns that a fit uses.

    Args:
        runs: as given; nothing derived.
        axes: the predictors.
        target: what is predicted.
        values: axis or target -> floats, derived where the table lacks the column.
        good: rows whose axes and target are all finite and of the right sign: what a fit can use.
        may_be_zero: axes of which 0 is a value like others, so that nothing is said of their logs.
        signed: whether the target may be zero or negative.
    """

    runs: Runs
    axes: tuple[str, ...]
    target: str
    values: Mapping[str, Floats]
    good: Bools
    may_be_zero: tuple[str, ...] = ()
    signed: bool = False

    @property
    def target_is_loss(self) -> bool:
        """Whether the target is in nats, rather than an error rate or steps to a target."""
        return is_loss_unit(self.runs.units.get(self.target, ""))

    def numbers(self, name: str) -> Floats | None:
        """A column as floats, as given; None where it is absent or text."""
        if name in self.runs and self.runs[name].dtype.kind == "f":
            column: Floats = self.runs[name]
            return column
        return None

    def rows(self, mask: npt.NDArray[Any]) -> tuple[int, ...]:
        """The row numbers under a mask or at positions, ascending."""
        return tuple(sorted(self.runs.rows[mask].tolist()))

    def used(self, name: str) -> bool:
        """Whether the fit uses the column."""
        return name in self.axes or name == self.target


def subject_of(
    runs: Runs,
    axes: Sequence[str],
    target: str,
    may_be_zero: Sequence[str] = (),
    signed: bool = False,
) -> Subject:
    """The subject of all checks.

    Raises:
        ValueError: a column is missing and cannot be derived, or is text.
    """
    names = (*axes, target)
    for name in names:
        if not can_derive(runs, name):
            runs[name]  # raises with the columns as given, not with derived ones among them
    table = runs if all(name in runs for name in names) else runs.derive()
    values = dict(zip(names, table.numeric(*names), strict=True))
    least = {**dict.fromkeys(may_be_zero, 0.0), **({target: -np.inf} if signed else {})}
    good = np.logical_and.reduce(
        [np.isfinite(v) & ((v >= least[name]) if name in least else (v > 0)) for name, v in values.items()]
    )
    return Subject(runs, tuple(axes), target, MappingProxyType(values), good, tuple(may_be_zero), signed)


def share(part: int, whole: int, noun: str = "row") -> str:
    """A count of rows in words.

    Example:
        >>> share(3, 245), share(1, 1)
        ('3 of 245 rows', '1 of 1 row')
    """
    return f"{part} of {whole} {noun}{'' if whole == 1 else 's'}"
