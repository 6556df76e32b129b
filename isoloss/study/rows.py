"""takes what a run has measured, gives the row and the curves that the store keeps of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.laws.law import UNITS
from isoloss.study.events import Point
from isoloss.study.jobs import Run
from isoloss.study.study import Objective

COSTS = ("flops",)  # axes that the store keeps as costs
STEERING = ("done", "horizon", "branch")  # measurements that steer the loop and belong to no row
OWN = ("run", "study", "entry", "step", "cpu_seconds", "wall_seconds")  # columns that are the store's own


@dataclass(frozen=True)
class Row:
    """What the store keeps of a run, by the names of :meth:`isoloss.Store.add_run`."""

    axes: dict[str, float]
    costs: dict[str, float]
    measured: dict[str, float]
    config: dict[str, Any]
    units: dict[str, str]
    curves: dict[str, tuple[list[float], list[float]]]


def row_of(
    run: Run,
    status: str,
    points: Sequence[Point],
    axes: Mapping[str, float],
    objective: Objective,
    made_by: Mapping[str, Any],
) -> Row:
    """The row of a run that has ended; only one that is done has a value of the target.

    Args:
        points: all that it measured; the last is its result.
        made_by: what else made it: the trainer, its digest, why it ended.

    Raises:
        ValueError: it measured an axis to be other than what was said before.
    """
    last = dict(points[-1].measured) if points else {}
    numbers = {_column(n): float(v) for n, v in last.items() if not isinstance(v, str) and n not in STEERING}
    for name in [n for n in numbers if n in axes]:
        value = numbers.pop(name)
        if not abs(value - axes[name]) <= 1e-3 * abs(axes[name]):
            raise ValueError(
                f"run {run.key}: trainer.axes says {name} {axes[name]:g}, the trainer measured {value:g}. Do: make "
                "them agree"
            )
    if status != "done":
        numbers[objective.target] = math.nan
    cpu, wall = (points[-1].cpu, points[-1].wall) if points else (0.0, 0.0)
    units = {objective.target: objective.unit, "cpu_seconds": "s", "wall_seconds": "s"}
    facts = {n: v for n, v in last.items() if isinstance(v, str)}
    return Row(
        axes={n: v for n, v in axes.items() if n not in COSTS},
        costs={n: axes[n] for n in COSTS if n in axes} | {"cpu_seconds": cpu, "wall_seconds": wall},
        measured=numbers,
        config={**run.settings, "facts": facts, **made_by},
        units=units | {n: UNITS[n] for n in axes if n in UNITS},
        curves=_curves(points),
    )


def check_axes(run: Run, axes: Mapping[str, float], target: str) -> None:
    """Refuse what the table could not keep beside its own columns, before the run is made.

    Raises:
        ValueError: an axis has the name of another column.
    """
    for name in (*OWN, target):
        if name in axes:
            raise ValueError(
                f"run {run.key}: {name} cannot be an axis, because the store has a column of that name. Do: call "
                "the setting otherwise, or leave it out of what trainer.axes gives"
            )


def _column(name: str) -> str:
    return f"{name}_measured" if name in OWN else name


def _curves(points: Sequence[Point]) -> dict[str, tuple[list[float], list[float]]]:
    """Every number that was measured on the way, by name."""
    found: dict[str, dict[float, float]] = {}
    for point in points:
        for name, value in point.measured.items():
            if not isinstance(value, str) and name not in ("horizon", "branch"):
                found.setdefault(_column(name), {})[float(point.step)] = float(value)
    return {name: (list(curve), list(curve.values())) for name, curve in found.items()}
