"""What a comparison of two fits says: losses, difference and worth over the range, and where they cross."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np

from isoloss.planning.result import Quantity
from isoloss.runs import Finding
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]
Pairing = Literal["independent", "by draw"]
Verdict = Literal["A", "B", "not resolved"]

SCHEMA = "isoloss/versus/1"


@dataclass(frozen=True)
class Point:
    """Both procedures at one scale. Each ``value`` is the median over the pairs of draws.

    Attributes:
        scale: training FLOPs, or the amount of the common axis.
        loss_a, loss_b: of the mean, in the unit of the target.
        difference: ``loss_a - loss_b``.
        multiplier: how many times the scale B needs for A's loss; infinite where B never gets there.
        never: share of the pairs in which B never gets there.
        p_a_lower: share of the pairs in which A's loss is lower; ties count half.
        verdict: whose loss is lower, or ``"not resolved"``.
        reason: why that may be said, or why not.
    """

    scale: float
    loss_a: Quantity
    loss_b: Quantity
    difference: Quantity
    multiplier: Quantity
    never: float
    p_a_lower: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Crossing:
    """Where the two curves cross in the range.

    Attributes:
        probability: share of the pairs of draws that cross at least once.
        several: share that cross twice or more.
        place: the first crossing, median and interval over the pairs that cross; NaN if none does.
        better_below, better_above: who is lower before and behind the first crossing, in most of them.
        agreement: share of those that cross which agree with that direction.
    """

    probability: float
    several: float
    place: Quantity
    better_below: Literal["A", "B"] | None
    better_above: Literal["A", "B"] | None
    agreement: float


@dataclass(frozen=True, eq=False)
class Curve:
    """One procedure's loss over the range, each (n,): median and interval over the draws."""

    scale: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True, eq=False, repr=False)
class Versus:
    """Two training procedures side by side; made by :func:`isoloss.versus`.

    Attributes:
        names, laws: of A and B.
        scale: ``"flops"`` (each along its own compute-optimal frontier), or the common axis.
        target, unit: what is compared.
        coverage: of all intervals.
        stretch: how far beyond its rows a fit may take part in a ranking.
        pairing: ``"independent"``, or ``"by draw"`` where both are bootstraps of the same rows, or one fit.
        pairs: how many pairs of draws; seed: of their order.
        observed: smallest and largest scale of A's rows, and of B's.
        overlap: where both have rows: there the comparison is supported by runs. None if nowhere.
        limits: the range that is looked at, from the smallest observed to ``stretch`` times the largest.
        points: over the range. asked: at the scales asked for.
        crossing: where the curves cross.
        warnings: what a reader must know, each with a code and a why.
        curves: of A and B over the range, for pictures; not in the JSON.

    Example:
        >>> import isoloss
        >>> tokens = [1e6, 2e6, 4e6, 8e6, 16e6, 32e6]
        >>> loss = [20 * (1 + 1e-3 * (-1) ** i) * x**-0.1 for i, x in enumerate(tokens)]
        >>> fit = isoloss.fit("power", {"tokens": tokens, "loss": loss}, draws=100)
        >>> found = isoloss.versus(fit, fit, at=1e7)
        >>> found
        Versus(A power(tokens), B power(tokens) over tokens: cross in 0% of the draws; 10M not resolved)
        >>> found.asked[0].multiplier.value
        1.0
    """

    names: tuple[str, str]
    laws: tuple[str, str]
    scale: str
    target: str
    unit: str
    coverage: float
    stretch: float
    pairing: Pairing
    pairs: int
    seed: int
    observed: tuple[tuple[float, float], tuple[float, float]]
    overlap: tuple[float, float] | None
    limits: tuple[float, float]
    points: tuple[Point, ...]
    asked: tuple[Point, ...]
    crossing: Crossing
    warnings: tuple[Finding, ...]
    curves: tuple[Curve, Curve]

    def named(self, verdict: Verdict | None) -> str:
        """The name behind ``"A"`` or ``"B"``; another verdict as it is."""
        return {"A": self.names[0], "B": self.names[1]}.get(str(verdict), str(verdict))

    def crossing_text(self) -> str:
        """The crossing in a sentence."""
        found, (low, high) = self.crossing, self.limits
        where = f"between {self.scale} {format_count(low)} and {format_count(high)}"
        if not found.probability:
            return f"no draw crosses {where}"
        text = (
            f"{found.probability:.0%} of the draws cross {where}; of these the first crossing is at "
            f"{format_count(found.place.value)} ({format_count(found.place.low)} to "
            f"{format_count(found.place.high)}), {self.named(found.better_below)} lower below it and "
            f"{self.named(found.better_above)} above in {found.agreement:.0%}"
        )
        return text + (f"; {found.several:.0%} of all cross twice or more" if found.several else "")

    def to_json(self) -> dict[str, Any]:
        """The document of ``isoloss versus --json``; unknown or endless values are null."""
        (a_low, a_high), (b_low, b_high) = self.observed
        found = self.crossing
        return {
            "schema": SCHEMA,
            "names": list(self.names),
            "laws": list(self.laws),
            "scale": self.scale,
            "target": self.target,
            "unit": self.unit,
            "coverage": self.coverage,
            "stretch": self.stretch,
            "pairing": self.pairing,
            "pairs": self.pairs,
            "seed": self.seed,
            "observed": {"a_low": a_low, "a_high": a_high, "b_low": b_low, "b_high": b_high},
            "overlap": list(self.overlap or ()),
            "limits": list(self.limits),
            "points": [_point_json(point) for point in self.points],
            "asked": [_point_json(point) for point in self.asked],
            "crossing": {
                "probability": found.probability,
                "several": found.several,
                **_quantity_json(found.place),
                "better_below": found.better_below,
                "better_above": found.better_above,
                "agreement": _known(found.agreement),
            },
            "warnings": [
                {"code": w.code, "level": w.level, "text": w.text, "why": w.why, "do": w.do}
                for w in self.warnings
            ],
        }

    def __repr__(self) -> str:
        pair = ", ".join(f"{name} {law}" for name, law in zip(self.names, self.laws, strict=True))
        verdicts = "".join(f"; {format_count(p.scale)} {self.named(p.verdict)}" for p in self.asked)
        return f"Versus({pair} over {self.scale}: cross in {self.crossing.probability:.0%} of the draws{verdicts})"

    def _repr_html_(self) -> str:
        a, b = map(escape, self.names)
        head = f"<th>{self.scale}</th><th>{a}</th><th>{b}</th><th>{a} − {b}</th><th>times the {self.scale} {b} needs</th>"
        body = "".join(
            f"<tr><td>{format_count(p.scale)}</td><td>{_html(p.loss_a)}</td><td>{_html(p.loss_b)}</td>"
            f"<td>{_html(p.difference)}</td><td>{_html(p.multiplier)}</td>"
            f"<td>{p.p_a_lower:.0%}</td><td>{escape(self.named(p.verdict))}</td></tr>"
            for p in (*self.points, *self.asked)
        )
        notes = "".join(f"<li><b>{w.code}</b>: {escape(w.text)}</li>" for w in self.warnings)
        return (
            f"<p>{escape(self.crossing_text())}</p><table><tr>{head}<th>P({a} lower)</th><th>lower</th></tr>"
            f"{body}</table><ul>{notes}</ul>"
        )


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _quantity_json(entry: Quantity) -> dict[str, float | None]:
    return {"median": _known(entry.value), "low": _known(entry.low), "high": _known(entry.high)}


def _point_json(point: Point) -> dict[str, Any]:
    parts = ("loss_a", "loss_b", "difference", "multiplier")
    return {
        "scale": point.scale,
        **{part: _quantity_json(getattr(point, part)) for part in parts},
        "never": point.never,
        "p_a_lower": point.p_a_lower,
        "verdict": point.verdict,
        "reason": point.reason,
    }


def _html(entry: Quantity) -> str:
    return f"{entry.value:.4g} ({entry.low:.4g} to {entry.high:.4g})"
