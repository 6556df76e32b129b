"""takes what journals and workers say of runs, gives points, curves and events; and a run to be made, as a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from isoloss.study.journal import Contents


@dataclass(frozen=True)
class Task:
    """One run to be made.

    Args:
        key: its name, and the name of its folder: letters, digits and ``_.=+,@-``.
        config: the settings for the trainer, as JSON has them.
        target: the measurement that the run is for.
        horizons: where one run serves several, the horizons in rising order; else None.
        until: pause it at this share; None: run it to its end.
        cost: in any unit; dearer runs go first.
    """

    key: str
    config: dict[str, Any]
    target: str = "loss"
    horizons: tuple[float, ...] | None = None
    until: float | None = None
    cost: float = 0.0


@dataclass(frozen=True)
class Point:
    """One yield of a trainer.

    Args:
        step: as the trainer counts.
        measured: numbers and texts by name.
        cpu: CPU seconds of the run so far, over all attempts, with child processes that have ended.
        wall: seconds of the run so far, over all attempts.
    """

    step: float
    measured: dict[str, Any]
    cpu: float
    wall: float


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Args:
        key: of the run.
        kind: ``point``; ``done``, ``diverged``, ``failed`` or ``paused`` once it ended; ``note`` for the reader.
        points: for ``point`` the new one; none for ``note``; else all so far, one a step and horizon (the
            later one counts), in order of step.
        why: the reason, for ``failed`` and ``note``.
        attempts: how often it was begun; 0 for ``point``.
    """

    key: str
    kind: str
    points: tuple[Point, ...] = ()
    why: str = ""
    attempts: int = 0


def by_horizon(points: Iterable[Point]) -> dict[float, tuple[Point, ...]]:
    """The curve of each horizon: the trunk up to where its branch begins, the branch, the point that closes it.

    A trunk that goes on while it is branched off measures the same steps again, at its own rate: what belongs
    to a branch says so by ``measured["branch"]``, its horizon.

    Example:
        >>> trunk = [Point(1, {"loss": 4.0}, 1, 1), Point(3, {"loss": 3.0}, 3, 3)]
        >>> curves = by_horizon([*trunk, Point(2, {"loss": 3.4, "horizon": 2.0}, 2, 2)])
        >>> [point.step for point in curves[2.0]]
        [1, 2]
    """
    found = list(points)
    trunk = [point for point in found if not {"horizon", "branch"} & set(point.measured)]
    curves = {}
    for end in found:
        horizon = end.measured.get("horizon")
        if horizon is not None:
            branch = [
                point for point in found if point.measured.get("branch") == horizon and point is not end
            ]
            first = min((point.step for point in branch), default=end.step)
            curves[horizon] = (*(point for point in trunk if point.step < first), *branch, end)
    return curves


def points_of(contents: Contents) -> tuple[Point, ...]:
    """What a journal holds, one point a step, branch and horizon (the later one counts), in order of step."""
    latest: dict[tuple[float, float, float], Mapping[str, Any]] = {}
    for entry in contents.points:
        measured = entry["measured"]
        latest[entry["step"], measured.get("branch", -1.0), measured.get("horizon", -1.0)] = entry
    return tuple(point_of(latest[place], latest[place]) for place in sorted(latest))


def point_of(entry: Mapping[str, Any], seconds: Mapping[str, float]) -> Point:
    """A point as a journal or a message has it."""
    return Point(float(entry["step"]), entry["measured"], seconds["cpu"], seconds["wall"])
