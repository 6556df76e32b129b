"""takes a Subject, gives findings about the design: whether these rows can tell what a law asks of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from isoloss.runs.finding import Finding, Floats, Subject
from isoloss.runs.units import format_count

__all__ = ["few_rows", "fixed_ratio", "predictors", "target_range"]


def few_rows(s: Subject) -> Iterator[Finding]:
    """``few-rows``: fewer than 5 rows that a fit can use."""
    n = int(s.good.sum())
    if n < 5:
        yield Finding(
            "few-rows",
            "warning",
            (),
            None,
            f"{n} of {len(s.good)} rows can be fitted.",
            "a law of two axes has five parameters: with as many rows every law fits, and nothing checks it",
            "add runs; twice as many rows as parameters is the least for an interval",
        )


def predictors(s: Subject) -> Iterator[Finding]:
    """``few-values`` and ``narrow-range``: of each axis."""
    if not s.good.any():
        return
    for axis in s.axes:
        values = s.values[axis][s.good]
        distinct = np.unique(values)
        low, high = float(distinct[0]), float(distinct[-1])
        if len(distinct) < 3:
            held = " and ".join(format_count(float(v)) for v in distinct)
            yield Finding(
                "few-values",
                "error" if len(distinct) == 1 else "warning",
                (),
                axis,
                f"{axis} takes {len(distinct)} value{'s' * (len(distinct) > 1)}: {held}.",
                "one value tells nothing of a predictor's effect; two give a slope, and cannot tell"
                " a power law with a floor from one without",
                f"add runs at other values of {axis} (three at least, a factor 10 apart), or fit a"
                f" law without {axis}",
            )
        elif high < 4 * low and axis not in s.may_be_zero:
            yield Finding(
                "narrow-range",
                "warning",
                (),
                axis,
                f"{axis} spans a factor {high / low:.3g} only, {format_count(low)} to {format_count(high)}.",
                "over a short range every smooth curve is a power law; the exponent and the"
                " irreducible loss trade off freely, and extrapolation is a guess",
                f"add runs so that {axis} spans a factor 10 or more",
            )


def fixed_ratio(s: Subject) -> Iterator[Finding]:
    """``fixed-ratio``: one axis is a power of another, as under a fixed number of tokens per parameter."""
    if s.good.sum() < 3:
        return
    for a, b in combinations([axis for axis in s.axes if axis not in s.may_be_zero], 2):
        x, y = (np.log(s.values[name][s.good]) for name in (a, b))
        if np.unique(x).size < 3 or np.unique(y).size < 3:
            continue  # few-values says it already
        x, y = x - x.mean(), y - y.mean()
        slope = float(x @ y / (x @ x))
        # the scatter of each about the other: the smaller leaves no contrast in that direction
        scatter = min(_sd(y - slope * x), _sd(x - y * float(x @ y / (y @ y))))
        if scatter >= 0.1:
            continue
        yield Finding(
            "fixed-ratio",
            "warning",
            (),
            b,
            f"{b} follows {a} to the power {slope:.3g}, with a scatter of {100 * scatter:.2g} % only.",
            f"along one line a change of {a} is a change of {b}: many splits of the loss between"
            " them fit equally well, and the optimum is not determined",
            f"add runs off the line, at a quarter and at four times the {b} for the same {a} at two"
            " sizes or more; or fit a law of one axis",
        )


def _sd(residual: Floats) -> float:
    return float(np.sqrt(np.mean(residual**2)))


def target_range(s: Subject) -> Iterator[Finding]:
    """``constant-loss`` and ``loss-range``: a target that hardly moves."""
    values = s.values[s.target][s.good]
    if len(values) < 2:
        return
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield Finding(
            "constant-loss",
            "error",
            (),
            s.target,
            f"{s.target} is {low:.6g} in all {len(values)} rows.",
            "a target that never moves says nothing of any axis",
            "check that the column is the loss of each run: --columns loss=COLUMN",
        )
    elif high < 1.02 * low and not s.signed:
        yield Finding(
            "loss-range",
            "warning",
            (),
            s.target,
            f"{s.target} spans {100 * (high / low - 1):.2g} %, {low:.5g} to {high:.5g}.",
            "the noise between seeds is about 0.2 to 1 %: so short a range holds little beyond it",
            "add smaller or shorter runs, which move the loss most per FLOP",
        )
