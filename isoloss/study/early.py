r"""Stopping runs that will not be the best, by how finished runs went on from the same point.

Curves under a schedule do not go on as they began: the loss falls when the rate does. So the rest of the way
is learnt from the study's own finished runs, not from a curve's shape. With :math:`w_i` what run i measured at
the chosen share of its way and :math:`L_i` its end, :math:`\delta_i = \ln(L_i / w_i)`, and for a new run

.. math:: \ln L = \ln w + \bar\delta + s\,\sqrt{1 + 1/n}\; t_{n-1}

which is exact where the deltas are independent and normal. A run is stopped when its interval lies above that
of another at the same point. Every run that was looked at has its prediction in the ledger, so the runs that
were let go on show how good these predictions are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.special import student_quantile
from isoloss.study.records import LEVELS, Promise

LAW = "early-stop"


def seen_at(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """What was measured at the first point of a curve of (share done, value) at or after ``share``.

    Example:
        >>> seen_at([(0.1, 3.0), (0.5, 2.0), (1.0, 1.0)], 0.4)
        2.0
    """
    return next((value for done, value in points if done >= share), None)


def outlook(
    key: str,
    watched: float,
    history: Sequence[tuple[float, float]],
    *,
    at: Mapping[str, float],
    study: str,
    target: str,
    unit: str,
    coverage: float,
) -> Promise:
    """The prediction of a run's end from where it is, to be written down before it goes on or is stopped.

    Args:
        key: of the run.
        watched: what it measured at the chosen share.
        history: (watched, end) of finished runs, at least 3.
        at: its axes.

    Raises:
        ValueError: fewer than 3 runs, or a value that is not positive.

    Example:
        >>> known = [(2.0, 1.0), (4.0, 2.0), (6.0, 3.3), (3.0, 1.4)]
        >>> p = outlook("a", 5.0, known, at={}, study="s", target="loss", unit="", coverage=0.9)
        >>> round(p.low, 2), round(p.high, 2)
        (2.11, 3.01)
    """
    if len(history) < 3:
        raise ValueError(f"needed 3 finished runs to tell a run's end from its middle, got {len(history)}")
    if watched <= 0 or any(w <= 0 or end <= 0 for w, end in history):
        raise ValueError("an early stop needs positive measurements. Do: watch a loss")
    deltas = [math.log(end / w) for w, end in history]
    n = len(deltas)
    mean = sum(deltas) / n
    spread = math.sqrt(sum((d - mean) ** 2 for d in deltas) / (n - 1) * (1 + 1 / n))

    def quantile(level: float) -> float:
        return watched * math.exp(mean + spread * student_quantile(level, n - 1))

    text = json.dumps([LAW, history, watched])
    return Promise(
        law=LAW, target=target, unit=unit, at=at, quantiles=tuple(quantile(float(t)) for t in LEVELS),
        coverage=coverage, low=quantile((1 - coverage) / 2), high=quantile((1 + coverage) / 2), shift=None,
        asked="run", reach=1.0, distance=None, cost_rule="", known=0,
        fit=hashlib.sha256(text.encode()).hexdigest(), data=hashlib.sha256(json.dumps(history).encode()).hexdigest(),
        study=study, key=key, note=f"{n} finished runs",
    )  # fmt: skip


def hopeless(promises: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Keys of the runs whose interval lies above that of another run at the same point.

    Args:
        promises: of one rung, by ``key``, ``at``, ``low``, ``high``.

    Example:
        >>> one = {"at": {"params": 5}, "low": 1.0, "high": 1.2}
        >>> hopeless([{"key": "a", **one}, {"key": "b", **one, "low": 1.3, "high": 1.5}])
        ('b',)
    """
    best: dict[str, float] = {}
    for p in promises:
        place = json.dumps(p["at"], sort_keys=True)
        best[place] = min(best.get(place, math.inf), p["high"])
    return tuple(p["key"] for p in promises if p["low"] > best[json.dumps(p["at"], sort_keys=True)])
