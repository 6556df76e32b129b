"""What a reader of a comparison must know, each with a code, a why and what to do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.comparing.levels import Level, observed
from isoloss.fitting.result import Fit
from isoloss.laws.law import UNITS
from isoloss.planning.belief import Belief
from isoloss.planning.cautions import about_fit
from isoloss.runs import Finding
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]
Ends = tuple[float, float]


def unit_of(fit: Fit) -> str:
    """Unit of a fit's target."""
    return fit.units.get(fit.law.target) or UNITS.get(fit.law.target, "")


def warnings(
    a: Fit, b: Fit, names: tuple[str, str], scale: str, both: Ends, slopes: tuple[Array, Array]
) -> list[Finding]:
    """All warnings of a comparison.

    Args:
        both: where both have rows; empty if the first is above the second.
        slopes: of each one's loss over the range, (K, n).
    """
    out = []
    if both[0] > both[1]:
        out.append(
            _warn(
                "no-overlap",
                f"no {scale} at which both have rows: one ends at {format_count(both[1])}, the other begins at "
                f"{format_count(both[0])}",
                "every comparison is then of one law's extrapolation with the other's, tested by no run",
                "train some of each at the same scale",
            )
        )
    if unit_of(a) == "nats/token":
        out.append(
            Finding(
                "per-token-loss", "note", (), a.law.target,
                "the losses are per token",
                "another tokeniser cuts the same text into other tokens, and the losses then mean different things",
                "compare runs of one tokeniser and validation set, or convert to nats per byte",
            )
        )  # fmt: skip
    sizes = [next((axis for axis in fit.law.axes if axis.startswith("params")), "") for fit in (a, b)]
    if sizes[0] != sizes[1]:
        out.append(
            _warn(
                "sizes-counted-differently",
                f"{names[0]} counts {sizes[0]}, {names[1]} counts {sizes[1]}",
                "their FLOPs are then not the same FLOPs, most of all for small models",
                "fit both with laws of the same size axis",
            )
        )
    for name, fit, slope in zip(names, (a, b), slopes, strict=True):
        out += _of_one(name, fit, scale, slope)
    return out


def _of_one(name: str, fit: Fit, scale: str, slope: Array) -> list[Finding]:
    """What must be known of one of the two."""
    out = []
    rises = float(np.mean((slope > 0).any(axis=1)))
    if rises > 0:
        out.append(
            _warn(
                "loss-rises",
                f"{name}'s loss rises with {scale} somewhere in the range in {rises:.1%} of the draws",
                "an amount that is worth another is then not unique, and neither is the multiplier",
                "check the fit: an exponent may have the wrong sign, or the rows too narrow a range",
            )
        )
    if len(fit.law.axes) > 1:
        size = next(axis for axis in fit.law.axes if axis.startswith("params"))
        ratios = fit.x["tokens"] / fit.x[size]
        low, high = float(np.min(ratios)), float(np.max(ratios))
        ratio = Level(fit.law, fit.theta[None]).ratio(math.log(float(np.max(observed(fit)))))
        if not low <= ratio <= high:
            out.append(
                _warn(
                    "frontier-outside-rows",
                    f"{name}'s best {ratio:.3g} tokens per parameter at its largest FLOPs lie outside those of its "
                    f"rows, {low:.3g} to {high:.3g}",
                    "its frontier is then extrapolated everywhere, also where it has rows",
                    "add runs near that ratio",
                )
            )
    inherited = about_fit(Belief(fit.law, fit.theta, fit.draws, fit.coverage, fit))
    return [*out, *(replace(entry, text=f"{name}: {entry.text}") for entry in inherited)]


def _warn(code: str, text: str, why: str, do: str) -> Finding:
    return Finding(code, "warning", (), None, text, why, do)
