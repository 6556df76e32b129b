"""What a plan is made from: a law with its best parameters, and the draws where a fit has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.borrow import law_and_origins, values_by_piece
from isoloss.fitting.result import Fit
from isoloss.laws.law import UNITS, Law
from isoloss.planning.fitted import is_level
from isoloss.planning.result import Quantity, Slot
from isoloss.planning.surface import SIZES

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Belief:
    """A law, its theta (P,), joint draws (K, P) with K 0 where there are none, and the fit they came from.

    ``origins`` says which published fit a slot is from, by name; for a fit its constraints do.
    """

    law: Law
    theta: Array
    draws: Array
    coverage: float
    fit: Fit | None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Where each parameter comes from."""
        if self.fit is None:
            how = {name: "borrowed" if name in self.origins else "fixed" for name in self.law.names}
            return tuple(Slot(name, how[name], self.origins.get(name, "")) for name in self.law.names)
        held = self.fit.constraints
        ranges = {name: f"{low:g} to {high:g}" for name, (low, high) in held.bounds.items()}
        normal = {name: f"{mean:g} +- {sd:g}" for name, (mean, sd) in held.priors.items()}
        origins = {**ranges, **normal, **held.borrow}
        return tuple(
            Slot(name, status, origins.get(name, "") if status == "borrowed" else "")
            for name, status in zip(self.law.names, self.fit.status, strict=True)
        )

    @property
    def assumed_separable(self) -> tuple[tuple[str, str], ...]:
        """Pieces of the law that no paper fitted together."""
        return tuple(getattr(self.law, "assumed_separable", ()))

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
    elif isinstance(source, (str, Law)):
        law, values, origins = named(source, theta)
        held = Belief(law, values, np.empty((0, len(law.parameters))), coverage or 0.9, None, origins)
    else:
        raise TypeError(f"plan needs a Fit, a Law or the name of a law, got {type(source).__name__}")
    _check_axes(held.law)
    return held


def named(source: str | Law, theta: Any) -> tuple[Law, Array, dict[str, str]]:
    """A law, its theta (P,) and the published fit behind each slot that has one.

    Args:
        source: a law or its name, or pieces with a published fit each, ``"hoffmann@besiroglu-2024 + ..."``.
        theta: the name of a published fit, values by name (of a slot, or of a piece), or an array; values beside
            pieces with published fits are those of slots that these leave open, or come in place of theirs.

    Raises:
        ValueError: a slot has no value, or theta is of the wrong length.
    """
    law, origins = law_and_origins(source) if isinstance(source, str) else (source, {})
    if theta is None and not origins:
        known = ", ".join(law.published) or "none"
        raise ValueError(f"law {law.slug} needs theta: a published fit ({known}), or its values by name")
    if isinstance(theta, str):
        if origins:
            raise ValueError(f"{source} names its published fits, and theta {theta!r} another: keep one")
        return law, law.theta(theta), dict.fromkeys(law.names, theta)
    if theta is None or isinstance(theta, Mapping):
        values, known_origins = values_by_piece(law, {**origins, **(theta or {})})
        return law, law.theta(values), known_origins
    array = np.asarray(theta, dtype=float)
    if array.shape != (len(law.parameters),) or not np.isfinite(array).all():
        raise ValueError(
            f"{law.slug} needs theta as {len(law.parameters)} numbers {list(law.names)}, got {theta}"
        )
    return law, array, {}


def _check_axes(law: Law) -> None:
    sizes = [axis for axis in law.axes if axis in SIZES]
    alone = len(law.axes) == 1 and law.axes[0] in (*SIZES, "tokens", "flops")
    whole = len(sizes) == 1 and "tokens" in law.axes and "flops" not in law.axes
    if not (alone or whole):
        raise ValueError(
            f"plan needs a law of params and tokens, with further axes or without, or of one of params, tokens and "
            f"flops; {law.spec} reads {list(law.axes)}, whose cost is not known. Plan with a law of those axes"
        )
    if not is_level(law):
        raise ValueError(
            f"plan makes a loss small; {law.spec} gives {law.target}. Give it as learning_rate= or batch= beside a law "
            "of the loss"
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
