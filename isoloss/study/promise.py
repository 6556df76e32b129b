"""takes a fit and points, gives predictions fit to be written down; and recalibrates by a ledger's history."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from isoloss.comparing.backtest import training_cost
from isoloss.comparing.stack import Stack
from isoloss.files import json_text
from isoloss.fitting.prediction import Prediction
from isoloss.fitting.result import Fit
from isoloss.laws.law import UNITS
from isoloss.study.ledger import Correction, Ledger
from isoloss.study.records import LEVELS, Promise

Array = np.ndarray[Any, np.dtype[Any]]

SAME = 1e-9  # points that differ by less are one


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """A prediction stretched as the history asks, and by how much at each point.

    Attributes:
        prediction: of one new run.
        correction: where the stretch comes from.
        shift: share of the width added at either end of each interval, (points,); None without a correction.
    """

    prediction: Prediction
    correction: Correction
    shift: Array | None


def promise(
    found: Fit | Stack,
    at: Mapping[str, Any],
    *,
    coverage: float | None = None,
    asked: Literal["mean", "run"] = "run",
    history: Ledger | None = None,
    source: str = "",
    study: str = "",
    key: str = "",
    note: str = "",
) -> tuple[Promise, ...]:
    """Predictions of one new run at each point, to be written down before the runs are made.

    Args:
        found: a fit, or a stack of fits.
        at: axis -> one number or array, as for ``predict``.
        coverage: of the interval promised; default the fit's.
        asked: what the reader was shown, the ``mean`` or the ``run``. Kept as a note: what is promised, and
            scored, is always the new run, because that is what will be measured.
        history: a ledger to recalibrate the interval by.
        source: file of the fit. study, key: the run it is for. note: free text.

    Returns:
        One a point, in order; for :meth:`isoloss.Store.add_predictions`.

    Raises:
        ValueError: as ``predict``; a prediction is not finite; or the law is a class without a file, so that
            nobody could trace the promise. NoAnswer: the fit has no draws.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [1, 2, 4, 8, 16], "loss": [8.1, 4.0, 2.0, 1.01, 0.5]}
        >>> fit = isoloss.fit("power", runs, draws=50, sensitivity=False)
        >>> found = promise(fit, {"tokens": [8, 64]})
        >>> [(p.at["tokens"], p.distance, p.known) for p in found]
        [(8.0, 0.5, 1), (64.0, 4.0, 0)]
    """
    plain = found.predict(of="run", coverage=coverage, **at)
    shown, shift = plain, None
    if history is not None:
        better = recalibrate(found, plain, history)
        shown, shift = better.prediction, better.shift
    fit = leading(found)
    points = {axis: np.ravel(values) for axis, values in plain.x.items()}
    count = plain.reach.size
    quantiles = np.quantile(plain.draws.reshape(-1, count), LEVELS, axis=0)
    distance, rule = distances(found, points)
    known = _known(found, points)
    digest = hashlib.sha256(json_text(found.to_json()).encode()).hexdigest()
    low, high, reach = np.ravel(shown.low), np.ravel(shown.high), np.ravel(plain.reach)
    return tuple(
        Promise(
            law=law_of(found),
            target=fit.law.target,
            unit=fit.units.get(fit.law.target) or UNITS.get(fit.law.target, ""),
            at={axis: float(values[i]) for axis, values in points.items()},
            quantiles=tuple(quantiles[:, i].tolist()),
            coverage=plain.coverage,
            low=float(low[i]),
            high=float(high[i]),
            shift=None if shift is None else float(shift[i]),
            asked=asked,
            reach=float(reach[i]),
            distance=None if distance is None else float(distance[i]),
            cost_rule=rule,
            known=int(known[i]),
            fit=digest,
            data=fit.fingerprint,
            source=source,
            study=study,
            key=key,
            note=note,
        )
        for i in range(count)
    )


def recalibrate(found: Fit | Stack, prediction: Prediction, history: Ledger) -> Recalibrated:
    """The draws of one new run stretched about their median as a ledger's history asks.

    Both ends of the interval move by the correction's share of its width. Within the distances at which
    predictions have been scored the interval may become narrower too; beyond them it only widens, because
    no history speaks for less doubt there. The correction is empirical: it covers if the runs to come are
    like those that were scored.

    Raises:
        ValueError: a prediction of the mean, which is never measured.
    """
    if prediction.of != "run":
        raise ValueError(
            "needed a prediction of one new run to recalibrate, got one of the mean. Do: --of run"
        )
    correction = history.correction(law_of(found), prediction.coverage)
    wanted = correction.conformal.shift
    if wanted is None:
        return Recalibrated(prediction, correction, None)
    flat = {axis: np.ravel(values) for axis, values in prediction.x.items()}
    distance, _ = distances(found, flat)
    far = np.ravel(prediction.reach) if distance is None else distance
    shift = np.where(far <= correction.farthest * (1 + SAME), wanted, max(wanted, 0.0))
    draws = stretched(prediction.draws, shift.reshape(prediction.reach.shape), prediction.coverage)
    return Recalibrated(replace(prediction, draws=draws), correction, shift)


def stretched(draws: Any, shift: Any, coverage: float) -> Array:
    """Draws (K, *X) moved about their median so that each end of the interval moves out by ``shift`` widths.

    A negative shift moves them in, an end at most to the median.

    Example:
        >>> stretched([[0.0], [1.0], [2.0], [3.0], [4.0]], -0.25, 0.999).ravel().round(2).tolist()
        [1.0, 1.5, 2.0, 2.5, 3.0]
    """
    draws = np.asarray(draws, dtype=float)
    low, middle, high = np.quantile(draws, [(1 - coverage) / 2, 0.5, (1 + coverage) / 2], axis=0)
    extra = np.asarray(shift) * (high - low)
    up = np.maximum(1 + extra / np.maximum(high - middle, 1e-300), 0.0)
    down = np.maximum(1 + extra / np.maximum(middle - low, 1e-300), 0.0)
    return np.asarray(middle + (draws - middle) * np.where(draws > middle, up, down))


def law_of(found: Fit | Stack) -> str:
    """The law under which a ledger counts it; every stack is ``stack``."""
    return "stack" if isinstance(found, Stack) else found.law.spec


def leading(found: Fit | Stack) -> Fit:
    """The fit, or the stack's member of most weight."""
    return found.leading if isinstance(found, Stack) else found


def distances(found: Fit | Stack, points: Mapping[str, Array]) -> tuple[Array | None, str]:
    """Training cost of each point over that of the dearest fitted row, and the rule; None where there is none."""
    fit = leading(found)
    try:
        fitted, rule = training_cost(fit.x)
        cost, _ = training_cost({axis: points[axis] for axis in fit.law.axes})
    except ValueError:
        return None, ""
    return np.asarray(cost / np.max(fitted)), rule


def _known(found: Fit | Stack, points: Mapping[str, Array]) -> Array:
    """How many fitted rows stand at each point."""
    fit = leading(found)
    same = np.ones((len(next(iter(points.values()))), len(fit.y)), dtype=bool)
    for axis in fit.law.axes:
        rows = np.asarray(fit.x[axis])
        same &= np.abs(points[axis][:, None] / rows[None, :] - 1) <= SAME
    return np.asarray(same.sum(axis=1))
