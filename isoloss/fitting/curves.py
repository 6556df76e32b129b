"""From a table of logged training curves to curves under known schedules: nothing dropped unsaid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.laws.schedules.schedule import Schedule
from isoloss.runs import Removed, Runs, read

Array = np.ndarray[Any, np.dtype[Any]]

DIVERGED = 1.2  # times its lowest loss: a curve that ends above has come apart
TAIL = 0.1  # share of a curve's rows that are its end


@dataclass(frozen=True, eq=False)
class Curve:
    """The losses of one run at some of its steps, and the schedule it ran under.

    Attributes:
        name: of the run.
        schedule: every rate of it.
        steps: where the loss was measured, rising, (n,).
        loss: nats per token, (n,).
        rows: row of the table, (n,); numbered from 1 unless given.

    Example:
        >>> Curve("a", Schedule.constant(steps=4, peak=1.0), np.array([2.0, 4.0]), np.array([3.0, 2.5]))
        Curve(a: 2 losses at steps 2 to 4, constant:steps=4,peak=1)
    """

    name: str
    schedule: Schedule
    steps: Array
    loss: Array
    rows: Array = field(default_factory=lambda: np.empty(0, dtype=int))

    def __post_init__(self) -> None:
        steps, loss = np.asarray(self.steps, dtype=float), np.asarray(self.loss, dtype=float)
        rows = np.asarray(self.rows, dtype=int) if len(self.rows) else np.arange(1, len(steps) + 1)
        if not steps.shape == loss.shape == rows.shape or steps.ndim != 1 or len(steps) == 0:
            raise ValueError(f"curve {self.name} needs one loss a step, got {steps.shape} and {loss.shape}")
        _refuse_falling(self.name, steps, rows)
        last = self.schedule.steps
        outside = ~((steps >= 1) & (steps <= last) & (steps == np.round(steps)))
        if outside.any():
            raise ValueError(
                f"curve {self.name}: needed whole steps from 1 to {last}, the last of its schedule, got "
                f"{steps[outside][0]:.12g} in row {rows[outside][0]}"
            )
        bad = ~(np.isfinite(loss) & (loss > 0))
        if bad.any():
            raise ValueError(
                f"curve {self.name}: needed a loss above 0, got {loss[bad][0]:g} in row {rows[bad][0]} ({bad.sum()} "
                'such rows). Leave them out with --where "loss > 0", or the curve if it diverged'
            )
        end = float(np.median(loss[-max(1, int(TAIL * len(loss))) :]))
        least = int(np.argmin(loss))
        if end > DIVERGED * loss[least]:
            raise ValueError(
                f"curve {self.name} diverged: it ends near {end:.4g}, after {loss[least]:.4g} at step "
                f"{steps[least]:.0f} (row {rows[least]}). Leave it out with --where \"curve != '{self.name}'\""
            )
        for name, array in (("steps", steps), ("loss", loss), ("rows", rows)):
            object.__setattr__(self, name, array)

    def __repr__(self) -> str:
        return (
            f"Curve({self.name}: {len(self.steps)} losses at steps {self.steps[0]:.0f} to {self.steps[-1]:.0f}, "
            f"{self.schedule.words})"
        )


def curves_of(
    table: Runs | Any,
    *,
    warmup: int | None = None,
    schedules: Mapping[str, Schedule | str] | None = None,
) -> tuple[tuple[Curve, ...], tuple[Removed, ...]]:
    """The curves in a table with columns ``curve``, ``step``, ``lr`` and ``loss``: a row for every logged step.

    The rates between logged steps follow from the log (:meth:`Schedule.of_table`), or are given. Rows of the
    warm-up, where no law holds, are removed and returned.

    Args:
        table: a table, or anything :func:`isoloss.read` takes.
        warmup: steps of the linear warm-up before the log, of every curve; needed where a log begins after step 1.
        schedules: name of a curve -> its schedule, or its words; those curves need no ``lr``.

    Raises:
        ValueError: a column or a rate is missing, steps do not rise, a curve diverged, or a name is unknown; the
            curve and the row are named. NoAnswer: a curve has no row after its warm-up.

    Example:
        >>> found, removed = curves_of({"curve": ["a"] * 4, "step": [1, 2, 3, 4], "lr": [1, 2, 2, 1],
        ...                             "loss": [4, 3, 2.5, 2]})
        >>> found[0].steps.tolist(), found[0].schedule.rates.tolist(), removed[0].code
        ([2.0, 3.0, 4.0], [0.0, 1.0, 2.0, 2.0, 1.0], 'in-warmup')
    """
    runs = table if isinstance(table, Runs) else read(table)
    given = {
        name: Schedule.parse(entry) if isinstance(entry, str) else entry
        for name, entry in (schedules or {}).items()
    }
    found, removed = [], list(runs.removed)
    _refuse_absent(runs)
    parts = runs.by("curve")
    unknown = [name for name in given if name not in parts]
    if unknown:
        raise ValueError(f"no curve named {unknown[0]!r}; the table has {', '.join(parts)}")
    for name, part in parts.items():
        steps, loss = part.numeric("step", "loss")
        _refuse_missing(name, "step", steps, part.rows)
        schedule = given[name] if name in given else _logged(name, part, warmup)
        late = steps >= max(schedule.warmup, 1)
        removed += [
            Removed(
                int(row), "in-warmup", f"step {step:.0f} of {name} lies in its warm-up of {schedule.warmup}"
            )
            for row, step in zip(part.rows[~late], steps[~late], strict=True)
        ]
        if not late.any():
            raise NoAnswer(
                f"curve {name} has no loss after its warm-up of {schedule.warmup} steps",
                "later steps of the run",
            )
        found.append(Curve(name, schedule, steps[late], loss[late], part.rows[late]))
    return tuple(found), tuple(removed)


def _refuse_absent(runs: Runs) -> None:
    """All columns that are missing at once; a single one the table itself names."""
    missing = [name for name in ("curve", "step", "loss", "lr") if name not in runs.columns]
    if len([name for name in missing if name != "lr"]) > 1:
        raise ValueError(
            f"{runs.source}: needed columns {', '.join(missing)}, got {', '.join(runs.columns)}. Say which they are: "
            f"--columns {','.join(f'{name}=COLUMN' for name in missing)} (in Python columns={{...}})"
        )


def _logged(name: str, part: Runs, warmup: int | None) -> Schedule:
    """The schedule that a curve's own log of rates shows."""
    steps, rates = part.numeric("step", "lr")
    _refuse_missing(name, "lr", rates, part.rows)
    low = np.flatnonzero((rates < 0) | ((rates == 0) & (steps > 0)))
    low = low[low < len(rates) - 1]  # a schedule may end at 0
    if len(low):
        raise ValueError(
            f"curve {name}: needed a learning rate above 0, got {rates[low[0]]:g} in row {part.rows[low[0]]}"
        )
    _refuse_falling(name, steps, part.rows)
    try:
        return Schedule.of_table(steps, rates, warmup=warmup)
    except ValueError as error:
        raise ValueError(f"curve {name}: {error}") from None


def _refuse_missing(name: str, column: str, values: Array, rows: Array) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"curve {name}: needed a {column} in every row, got none in row {rows[bad[0]]} ({len(bad)} such rows)"
        )


def _refuse_falling(name: str, steps: Array, rows: Array) -> None:
    falling = np.flatnonzero(np.diff(steps) <= 0)
    if len(falling):
        i = falling[0]
        raise ValueError(
            f"curve {name}: needed steps that rise, got {steps[i + 1]:.12g} in row {rows[i + 1]} after "
            f"{steps[i]:.12g} in row {rows[i]}. Sort the curve, and give a run that began again its own name"
        )


def fingerprint(curves: tuple[Curve, ...]) -> str:
    """The sha256 of names, schedules, steps and losses, as hex."""
    digest = hashlib.sha256()
    for curve in curves:
        digest.update(f"{curve.name}\0{json.dumps(dict(curve.schedule.origin), sort_keys=True)}\0".encode())
        digest.update(curve.steps.astype("<f8").tobytes() + curve.loss.astype("<f8").tobytes())
    return digest.hexdigest()
