"""What a plan is made from: a law with its best parameters, and the draws where a fit has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws import get
from isoloss.laws.law import UNITS, Law
from isoloss.planning.result import Quantity
from isoloss.planning.surface import SIZES

Array = np.ndarray[Any, np.dtype[Any]]

KNOWN = (*SIZES, "tokens", "tokens_unique", "flops")


@dataclass(frozen=True, eq=False)
class Belief:
    """A law, its theta (P,), joint draws (K, P) with K 0 where there are none, and the fit they came from."""

    law: Law
    theta: Array
    draws: Array
    coverage: float
    fit: Fit | None

    @property
    def plane(self) -> bool:
        """Whether the law has both a size and tokens, so that one can be traded for the other."""
        return "tokens" in self.law.axes and any(axis in self.law.axes for axis in SIZES)

    @property
    def loss_unit(self) -> str:
        """Unit of the law's target."""
        measured = self.fit.units.get(self.law.target) if self.fit else None
        return measured or UNITS.get(self.law.target, "")

    def levels(self, x: Mapping[str, Any]) -> tuple[Quantity, Quantity]:
        """The loss at a point: of the mean and of one new run."""
        level = float(self.law.evaluate(self.theta, **x))
        if self.fit is None or len(self.draws) < 2:
            return Quantity(level, math.nan, math.nan), Quantity(level, math.nan, math.nan)
        mean = self.fit.predict(of="mean", coverage=self.coverage, **x)
        run = self.fit.predict(of="run", coverage=self.coverage, **x)
        return (
            Quantity(level, float(mean.low[0]), float(mean.high[0])),
            Quantity(level, float(run.low[0]), float(run.high[0])),
        )


def belief(source: Fit | Law | str, theta: Any, coverage: float | None) -> Belief:
    """The belief behind a fit, or behind a law with a given theta.

    Raises:
        ValueError: theta is missing or of the wrong length, the coverage is not a share, or the law reads
            axes that no cost knows. NoAnswer: the fit says that its data do not determine the law.
    """
    if coverage is not None and not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    if isinstance(source, Fit):
        if theta is not None:
            raise ValueError("a fit has its own theta: leave theta out, or give the law (fit.law) instead")
        _refuse_unidentified(source)
        held = Belief(source.law, source.theta, source.draws, coverage or source.coverage, source)
    else:
        law = get(source) if isinstance(source, str) else source
        if not isinstance(law, Law):
            raise TypeError(f"plan needs a Fit, a Law or the name of a law, got {type(source).__name__}")
        held = Belief(law, _theta(law, theta), np.empty((0, len(law.parameters))), coverage or 0.9, None)
    _check_axes(held.law)
    return held


def _theta(law: Law, theta: Any) -> Array:
    if theta is None:
        known = ", ".join(law.published) or "none"
        raise ValueError(f"law {law.slug} needs theta: a published fit ({known}), or its values by name")
    if isinstance(theta, (str, Mapping)):
        return law.theta(theta)
    array = np.asarray(theta, dtype=float)
    if array.shape != (len(law.parameters),) or not np.isfinite(array).all():
        raise ValueError(
            f"{law.slug} needs theta as {len(law.parameters)} numbers {list(law.names)}, got {theta}"
        )
    return array


def _check_axes(law: Law) -> None:
    unknown = [axis for axis in law.axes if axis not in KNOWN]
    sizes = [axis for axis in law.axes if axis in SIZES]
    alone = len(law.axes) == 1
    whole = len(sizes) == 1 and "tokens" in law.axes and "flops" not in law.axes
    if unknown or not (alone or whole):
        raise ValueError(
            f"plan needs a law of params and tokens, or of one of params, tokens and flops; {law.spec} reads "
            f"{list(law.axes)}, whose cost is not known. Plan with a law of those axes"
        )


def _refuse_unidentified(fit: Fit) -> None:
    if fit.result != "not-identified":
        return
    causes = [w for w in fit.warnings if w.level == "error"]
    reasons = "; ".join(w.text for w in causes) or "the fit says so without a reason"
    needed = (
        "; ".join(dict.fromkeys(w.do for w in causes)) or "runs that vary every axis of the law on its own"
    )
    raise NoAnswer(f"the data do not determine {fit.law.spec}: {reasons}", needed)
