"""takes Runs, gives findings: what in a table would break or mislead a fit, why, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from isoloss.runs import check_design, check_rows, check_trend, check_units, check_values
from isoloss.runs.finding import CODES, Finding, Subject, subject_of

if TYPE_CHECKING:
    from isoloss.runs.table import Runs

__all__ = ["check", "drop"]

CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    check_values.missing_value,
    check_values.nonfinite_loss,
    check_values.nonpositive_loss,
    check_values.counts,
    check_values.bad_weight,
    check_units.loss_unit,
    check_units.count_unit,
    check_units.mixed_units,
    check_units.flops_not_6nd,
    check_units.mixed_param_counts,
    check_rows.repeated_points,
    check_rows.unfinished,
    check_rows.lr_not_tuned,
    check_trend.diverged,
    check_design.few_rows,
    check_design.predictors,
    check_design.fixed_ratio,
    check_design.target_range,
)
_LEVELS = ("error", "warning", "note")


def check(
    runs: Runs,
    *,
    axes: Sequence[str] = ("params", "tokens"),
    target: str = "loss",
    may_be_zero: Sequence[str] = (),
    signed: bool = False,
) -> list[Finding]:
    """What in the table would break or mislead a fit of the target on the axes.

    Nothing is changed or removed: ``drop`` and the ``do`` of each finding do that.

    Args:
        runs: the table.
        axes: the predictors of the fit; an absent one is derived where it can be.
        target: the column predicted.
        may_be_zero: axes of which 0 is a value like others (shares of a mixture).
        signed: whether the target may be zero or negative.

    Returns:
        Findings, errors first, each with its code, level, rows, why and what to do. The order of
        rows does not change them, nor does the unit in which a count is held, except where the
        finding is about units.

    Raises:
        ValueError: a column is missing and cannot be derived, or is text.

    Example:
        >>> import isoloss.runs
        >>> sizes = [(n * 1e7, d * 1e9) for n in (1, 3, 9) for d in (1, 3, 9)]
        >>> runs = isoloss.runs.from_rows(
        ...     [{"params": n, "tokens": d, "loss": 1.7 + 400 / n**0.34 + 400 / d**0.28} for n, d in sizes])
        >>> check(runs)
        []
        >>> bad = isoloss.runs.from_rows([{"params": 1e7, "tokens": 1e9, "loss": float("nan")}])
        >>> check(bad)[0].code, check(bad)[0].rows
        ('nonfinite-loss', (1,))
    """
    subject = subject_of(runs, axes, target, may_be_zero, signed)
    findings = [finding for one in CHECKS for finding in one(subject)]
    return sorted(findings, key=lambda f: (_LEVELS.index(f.level), list(CODES).index(f.code)))


def drop(
    runs: Runs,
    codes: Sequence[str] | str,
    *,
    axes: Sequence[str] = ("params", "tokens"),
    target: str = "loss",
) -> Runs:
    """The table without the rows that ``check`` names under some codes; they are then in ``removed``.

    Args:
        runs: the table.
        codes: such as ``"diverged"`` or ``["diverged", "nonfinite-loss"]``; dropped one after the
            other.
        axes: as in ``check``.
        target: as in ``check``.

    Raises:
        ValueError: a code is unknown, or is about the whole table and names no rows.

    Example:
        >>> import isoloss.runs
        >>> runs = isoloss.runs.from_rows([{"params": 1e7, "tokens": 1e9, "loss": 3.1},
        ...                                {"params": 1e7, "tokens": 2e9, "loss": float("inf")}])
        >>> [(r.row, r.code) for r in drop(runs, "nonfinite-loss").removed]
        [(2, 'nonfinite-loss')]
    """
    for code in (codes,) if isinstance(codes, str) else codes:
        if code not in CODES:
            raise ValueError(f"unknown code {code!r}. Do: one of {', '.join(CODES)}")
        for finding in check(runs, axes=axes, target=target):
            if finding.code != code:
                continue
            if not finding.rows:
                raise ValueError(
                    f"cannot drop {code!r}: {finding.text} This is about the whole table, not about"
                    f" rows. Do: {finding.do}"
                )
            rows = [row for row in finding.rows if row in runs.rows]
            runs = runs.without(rows, code, finding.text)
    return runs
