"""takes predictions, outcomes and runs as a store keeps them, says of each prediction what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["open", "scored", "late"]

# What an axis equals where a run does not state it, as the laws have it.
AXIS_DEFAULTS = {"tokens_unique": "tokens"}


@dataclass(frozen=True)
class Fate:
    """What became of a prediction.

    Attributes:
        status: ``open``, not measured yet; ``scored``; ``late``, known before it was written down.
        why: of ``late``, and of ``open`` where a run is there that cannot be used; else empty.
        value: measured, or None.
        outcome: number of the outcome or run that says so, or None.
        corrected: how often an outcome was replaced.
    """

    status: Status
    why: str = ""
    value: float | None = None
    outcome: int | None = None
    corrected: int = 0


def point_key(at: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    """A point as a key: axes by name, values to 9 digits.

    Example:
        >>> point_key({"tokens": 2e9, "params": 1e8}) == point_key({"params": 1e8, "tokens": 2.0000000001e9})
        True
    """
    return tuple(sorted((axis, f"{value:.9g}") for axis, value in at.items()))


def fates(
    predictions: Sequence[Mapping[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
) -> list[Fate]:
    """What became of each prediction.

    Its own outcome counts first, the last of those that replace each other. Else, of a prediction for a
    study, the first finished run there under its key, or at its point where it names no key. What is known
    before a prediction is written down does not test it. Before is told by the numbers of the entries, so
    that a clock set back changes nothing; by time only where an outcome states when it was measured.
    """
    own: dict[int, list[Mapping[str, Any]]] = {}
    for outcome in outcomes:
        own.setdefault(outcome["prediction"], []).append(outcome)
    done = [run for run in runs if run["status"] == "done"]
    by_key: dict[Any, list[Mapping[str, Any]]] = {}
    for run in done:
        by_key.setdefault((run["study"], run["key"]), []).append(run)
    by_point: dict[Any, dict[Any, list[Mapping[str, Any]]]] = {}
    return [_fate(p, own.get(p["id"], []), done, by_key, by_point) for p in predictions]


def _fate(
    p: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]],
    done: Sequence[Mapping[str, Any]],
    by_key: Mapping[Any, list[Mapping[str, Any]]],
    by_point: dict[Any, dict[Any, list[Mapping[str, Any]]]],
) -> Fate:
    seen = (
        f"the fit holds {p['known']} row{'s' if p['known'] > 1 else ''} at this point" if p["known"] else ""
    )
    if own:
        value, number, corrected = own[-1]["value"], own[-1]["id"], len(own) - 1
        stated = min((o["measured"] for o in own if o["measured"] is not None), default=None)
        why = seen or (
            f"measured at {stated}, before it was written down" if stated and stated < p["created"] else ""
        )
        return Fate("late" if why else "scored", why, value, number, corrected)
    found: Sequence[Mapping[str, Any]] = ()
    if p["study"] and p["key"]:
        found = by_key.get((p["study"], p["key"]), ())
    elif p["study"]:
        axes = tuple(sorted(p["at"]))
        if axes not in by_point:  # the runs once for each set of axes, not once for each prediction
            places = by_point.setdefault(axes, {})
            for run in done:
                columns = {**run["costs"], **run["axes"]}
                names = [axis if axis in columns else AXIS_DEFAULTS.get(axis, axis) for axis in axes]
                point = {
                    axis: columns[name]
                    for axis, name in zip(axes, names, strict=True)
                    if columns.get(name) is not None
                }
                if len(point) == len(axes):
                    places.setdefault((run["study"], point_key(point)), []).append(run)
        found = by_point[axes].get((p["study"], point_key(p["at"])), ())
    found = [run for run in found if run["measured"].get(p["target"]) is not None]
    if not found:
        return Fate("late" if seen else "open", seen)
    run = found[0]
    value, unit = run["measured"][p["target"]], run["units"].get(p["target"], "")
    if unit and p["unit"] and unit != p["unit"]:
        return Fate(
            "late" if seen else "open", seen or f"run {run['id']} is in {unit}, the prediction in {p['unit']}"
        )
    if run["id"] < p["id"]:
        return Fate("late", seen or f"run {run['id']} had measured it before", value, run["id"])
    return Fate("late" if seen else "scored", seen, value, run["id"])
