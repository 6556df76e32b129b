"""takes a Subject, gives findings about single values: missing, infinite, not positive, overflown."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isoloss.runs.columns import CANONICAL
from isoloss.runs.derive import can_derive
from isoloss.runs.finding import Bools, Finding, Level, Subject, share

__all__ = ["bad_weight", "counts", "missing_value", "nonfinite_loss", "nonpositive_loss"]

# the largest values of 32- and 64-bit integers: where a saturating counter stops
_SATURATED = (2.0**31 - 1, 2.0**32 - 1, 2.0**63, 2.0**64)


def missing_value(s: Subject) -> Iterator[Finding]:
    """``missing-value``: an axis, a known noise or a weight is empty or infinite."""
    for name in (*s.axes, *(n for n in ("loss_sd", "weight") if n in s.runs)):
        values = s.values.get(name)
        if values is None:
            values = s.numbers(name)
        if values is None:
            continue
        bad = ~np.isfinite(values)
        filled = _filled(s, name) & bad
        if filled.any():
            yield Finding(
                "missing-value",
                "warning",
                s.rows(filled),
                name,
                f"{name} is missing in {share(int(filled.sum()), len(bad))}, and follows from the other counts.",
                "a fit uses it there as derived, by 6 * params * tokens, beside measured ones",
                "fill the cells in if they were measured, or --drop missing-value",
            )
        bad &= ~filled
        if bad.any():
            yield Finding(
                "missing-value",
                "error",
                s.rows(bad),
                name,
                f"{name} is missing or infinite in {share(int(bad.sum()), len(bad))}.",
                "a row takes part in a fit only with all its predictors; filling a guess in would"
                " be fitted as if it were measured",
                "fill the cells in, or --drop missing-value",
            )


def _filled(s: Subject, name: str) -> Bools:
    """Rows of an axis whose missing value ``derive`` gives."""
    if name not in s.axes or name not in s.runs or not can_derive(s.runs, name):
        return np.zeros(len(s.runs), dtype=bool)
    return np.isnan(s.values[name]) & np.isfinite(s.runs.derive().numeric(name)[0])


def nonfinite_loss(s: Subject) -> Iterator[Finding]:
    """``nonfinite-loss``: the target is missing, NaN or infinite."""
    values = s.values[s.target]
    bad = ~np.isfinite(values)
    if bad.any():
        infinite = int(np.isinf(values).sum())
        yield Finding(
            "nonfinite-loss",
            "error",
            s.rows(bad),
            s.target,
            f"{s.target} is NaN, missing or infinite in {share(int(bad.sum()), len(bad))}"
            + (f" ({infinite} infinite)." if infinite else "."),
            "one such value makes every estimate NaN; left out silently, a table looks as if no run"
            " had ever diverged",
            "--drop nonfinite-loss; if the runs diverged, lower their learning rate and run again",
        )


def nonpositive_loss(s: Subject) -> Iterator[Finding]:
    """``nonpositive-loss``: the target is zero or negative."""
    values = s.values[s.target]
    bad = np.isfinite(values) & (values <= 0)
    if bad.any() and not s.signed:
        yield Finding(
            "nonpositive-loss",
            "error",
            s.rows(bad),
            s.target,
            f"{s.target} is zero or negative in {share(int(bad.sum()), len(bad))}, "
            f"down to {values[bad].min():.4g}.",
            "cross-entropy is above 0 and the fit takes its logarithm; a loss relative to a"
            " baseline, or a log-likelihood, has another zero",
            "choose the plain cross-entropy with --columns loss=COLUMN (add the baseline, or change"
            " the sign), or --drop nonpositive-loss",
        )


def counts(s: Subject) -> Iterator[Finding]:
    """``integer-overflow`` and ``nonpositive-count``: in the axes, and in every column of counts."""
    names = dict.fromkeys([*s.axes, *(n for n in s.runs.columns if _is_count(n) and n not in s.runs.derived)])
    for name in names:
        values = s.values[name] if name in s.values else s.numbers(name)
        if values is None:
            continue
        level: Level = "error" if s.used(name) else "warning"
        whole = values == np.rint(values)
        wrapped = ((values <= -1e8) & whole & np.isfinite(values)) | np.isin(values, _SATURATED)
        if wrapped.any():
            yield Finding(
                "integer-overflow",
                level,
                s.rows(wrapped),
                name,
                f"{name} is {values[wrapped].min():.4g} in"
                f" {share(int(wrapped.sum()), len(values))}, as an integer that ran over or stopped"
                " at its limit would be.",
                "6 * params * tokens passes 2**63 at 9.2e18, an ordinary small run; rows that"
                " wrapped around to a positive number look sound and are as wrong",
                f"compute {name} anew in floating point and doubt the whole column: leave it out,"
                " and runs.derive() makes flops from params and tokens",
            )
        bad = ((values < 0) if name in s.may_be_zero else (values <= 0)) & np.isfinite(values) & ~wrapped
        # step 0 is a measurement before training, not a mistake, unless it is a predictor
        if bad.any() and (s.used(name) or name not in ("step", "epochs")):
            yield Finding(
                "nonpositive-count",
                level,
                s.rows(bad),
                name,
                f"{name} is zero or negative in {share(int(bad.sum()), len(values))}, "
                f"down to {values[bad].min():.4g}.",
                "a count is above 0 and the fit takes its logarithm or a negative power",
                "correct the cells, or --drop nonpositive-count",
            )


def _is_count(name: str) -> bool:
    if name in CANONICAL:
        return CANONICAL[name].kind == "count"
    return name.startswith("flops")


def bad_weight(s: Subject) -> Iterator[Finding]:
    """``bad-weight``: ``loss_sd`` not above 0, ``weight`` negative, or all weights 0."""
    for name, least in (("loss_sd", "above 0"), ("weight", "at least 0, and above 0 somewhere")):
        values = s.numbers(name)
        if values is None:
            continue
        bad = values <= 0 if name == "loss_sd" else values < 0
        if name == "weight" and not (values > 0).any():
            bad = values <= 0
        if bad.any():
            yield Finding(
                "bad-weight",
                "error",
                s.rows(bad),
                name,
                f"{name} is {values[bad].min():.4g} in {share(int(bad.sum()), len(values))}.",
                f"{name} must be {least}: it divides or multiplies the row's residual",
                f"correct the cells, or rename the column if it is not this: --columns other={name}",
            )
