"""A law of schedules on a few given schedules: an ordinary law of (curve, step), which the fitting core can fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoloss.laws.dual import Dual
from isoloss.laws.law import Law, Parameter
from isoloss.laws.schedules.course import Course, joined
from isoloss.laws.schedules.schedule import Schedule
from isoloss.laws.schedules.schedule_law import ScheduleLaw

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class OnSchedules(Law):
    """The loss at a step of one of several runs, each under its schedule.

    Inputs:
        curve: which schedule, from 1; step: whole, from 1 to its last.
    Returns:
        Loss [nats/token].

    Example:
        >>> from isoloss.laws.schedules import get
        >>> law = get("lr-annealing").on([Schedule.constant(steps=4, peak=1.0), Schedule.constant(steps=4, peak=2.0)])
        >>> law.evaluate([1.0, 2.0, 1.0, 0.1, 100.0], curve=[1, 2], step=[4, 4]).tolist()
        [1.5, 1.25]
    """

    law: ScheduleLaw
    schedules: tuple[Schedule, ...]
    _seen: dict[bytes, Course] = field(default_factory=dict, repr=False)

    axes = ("curve", "step")
    formula = "a law of schedules on given schedules"

    @property
    def parameters(self) -> tuple[Parameter, ...]:  # type: ignore[override]
        """Those of the law of schedules."""
        return self.law.parameters

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """L0 lies below the measured losses, and A makes up the rest at the middle of the sums."""
        return self.law.ranges(self._course(x).sums, y)

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; no derivatives in curve and step, which are whole numbers."""
        if any(isinstance(values, Dual) for values in x.values()):
            raise TypeError("a law on schedules has no derivative in curve or step: they are whole numbers")
        seen = self._course(x)
        plain = [part.value if isinstance(part, Dual) else np.asarray(part) for part in theta]
        rows = np.stack(
            np.broadcast_arrays(*(part[..., 0] if part.ndim else part for part in plain)), axis=-1
        )
        if not any(isinstance(part, Dual) for part in theta):
            return self.law.at(rows, seen)
        if rows.ndim != 2:
            raise TypeError(f"a law on schedules is differentiated for thetas (B, P), got shape {rows.shape}")
        found = [self.law.slopes(row, seen) for row in rows]
        value = np.stack([loss for loss, _ in found])
        slopes = np.stack([slope for _, slope in found])  # (B, P, n)
        partials: dict[int, Any] = {}
        for p, part in enumerate(theta):
            for index, change in part.partials.items() if isinstance(part, Dual) else ():
                partials[index] = partials.get(index, 0.0) + slopes[:, p] * change
        return Dual(value, partials)

    def _course(self, x: Mapping[str, Array]) -> Course:
        """The schedules seen from these rows; rows come again and again while a fit works."""
        curve, step = np.broadcast_arrays(np.atleast_1d(x["curve"]), np.atleast_1d(x["step"]))
        key = curve.tobytes() + step.tobytes()
        if key not in self._seen:
            bad = ~np.isin(curve, np.arange(1, len(self.schedules) + 1))
            if bad.any():
                raise ValueError(f"needed curve from 1 to {len(self.schedules)}, got {curve[bad][0]:g}")
            parts = [
                (np.flatnonzero(curve == i), self.law.course(schedule, step[curve == i]))
                for i, schedule in enumerate(self.schedules, start=1)
                if (curve == i).any()
            ]
            self._seen[key] = joined(parts)
        return self._seen[key]
