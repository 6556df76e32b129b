"""takes a table of finished runs and open predictions, gives the outcomes: who is measured by which row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.runs import Runs
from isoloss.study.join import AXIS_DEFAULTS, point_key
from isoloss.study.ledger import Ledger
from isoloss.study.records import Outcome

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Matched:
    """Outcomes from a table, and what is left on either side.

    Attributes:
        outcomes: one for each prediction that a row stands for.
        still_open: numbers of the predictions without one.
        rows: rows of the table. unmatched: those that no open prediction is for.
        repeated: predictions with several rows, of which the first counts.
    """

    outcomes: tuple[Outcome, ...]
    still_open: tuple[int, ...]
    rows: int
    unmatched: int
    repeated: int

    def sentence(self) -> str:
        """What became of the table."""
        said = (
            f"{len(self.still_open)} stay open, {self.unmatched} of {self.rows} rows match none"
            if self.outcomes or self.still_open
            else "no prediction is open"
        )
        return said + (
            f"; where several rows match ({self.repeated}), the first counts" if self.repeated else ""
        )


def matched(ledger: Ledger, runs: Runs, measured: str | None = None) -> Matched:
    """The outcomes that a table of runs holds for the open predictions of a ledger.

    A row is for a prediction if it has the target and stands at the same point, to 9 digits; an axis that the
    table lacks is derived, or is at the law's default.

    Args:
        ledger: with predictions that are open.
        runs: the table.
        measured: when; see :class:`isoloss.study.records.Outcome`.

    Raises:
        ValueError: target and prediction are in different units.

    Example:
        >>> import isoloss
        >>> matched(Ledger((), ()), isoloss.read([{"tokens": 1e9, "loss": 3.0}])).sentence()
        'no prediction is open'
    """
    waiting = [ledger.predictions[i] for i in ledger.which("open")]
    table = runs.derive() if {axis for p in waiting for axis in p["at"]} - set(runs.columns) else runs
    places: dict[Any, dict[Any, list[int]]] = {}
    found: list[Outcome] = []
    used: set[int] = set()
    repeated = 0
    for p in waiting:
        unit = table.units.get(p["target"], "")
        if p["target"] in table and unit and p["unit"] and unit != p["unit"]:
            raise ValueError(
                f"{runs.source}: {p['target']} is in {unit}, prediction {p['id']} in {p['unit']}: they cannot be "
                f"compared. Do: state the unit with --units {p['target']}=..."
            )
        kind = (tuple(sorted(p["at"])), p["target"])
        if kind not in places:
            places[kind] = _places(table, *kind)
        here = places[kind].get(point_key(p["at"]), [])
        if here:
            what = f"{runs.source}, row {int(table.rows[here[0]])}"
            value = float(table.numeric(p["target"])[0][here[0]])
            found.append(Outcome(p["id"], value, measured, what))
            repeated += len(here) > 1
            used.update(here)
    taken = {outcome.prediction for outcome in found}
    still_open = tuple(p["id"] for p in waiting if p["id"] not in taken)
    return Matched(tuple(found), still_open, len(runs), len(runs) - len(used), repeated)


def _places(table: Runs, axes: tuple[str, ...], target: str) -> dict[Any, list[int]]:
    """Point -> positions of the rows there that have the target."""
    names = [axis if axis in table else AXIS_DEFAULTS.get(axis, axis) for axis in axes]
    if any(name not in table for name in (*names, target)):
        return {}
    *columns, values = table.numeric(*names, target)
    places: dict[Any, list[int]] = {}
    for i in np.flatnonzero(np.isfinite(np.stack([*columns, values])).all(axis=0)):
        point = {axis: float(column[i]) for axis, column in zip(axes, columns, strict=True)}
        places.setdefault(point_key(point), []).append(int(i))
    return places
