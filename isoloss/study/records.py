"""What a store keeps, as settings: a prediction written down, and an outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

# Levels of the quantiles that a store keeps. They belong to its tables: another grid needs a migration.
LEVELS = np.unique(np.round([0.005, 0.025, 0.975, 0.995, *(k / 100 for k in range(1, 100))], 3))
LEVELS.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Promise:
    """One prediction as it is written down: the distribution of one new run at one point, and whose it is.

    Args:
        law: name of the law, or ``stack``.
        target: predicted column. unit: of it.
        at: axis -> value.
        quantiles: of one new run at ``LEVELS``, as the law gives them, (103,).
        coverage: of the interval from ``low`` to ``high`` that was promised for the new run.
        low, high: that interval, recalibrated where ``shift`` is not None.
        shift: share of the interval's width that the recalibration added at either end.
        asked: ``mean`` or ``run``, what the reader was shown.
        reach: factor by which an axis leaves the fitted rows; 1 inside.
        distance: training cost over that of the dearest fitted row; None where there is no rule for it.
        cost_rule: that rule.
        known: fitted rows at this very point; above 0 it is no prediction.
        fit: sha256 of the fit's document. data: fingerprint of the rows behind it.
        source: file of the fit. study, key: the run it is for, where a study made it. note: free text.

    Raises:
        ValueError: a number is not finite, or a shape is wrong.
    """

    law: str
    target: str
    unit: str
    at: Mapping[str, float]
    quantiles: tuple[float, ...]
    coverage: float
    low: float
    high: float
    shift: float | None
    asked: str
    reach: float
    distance: float | None
    cost_rule: str
    known: int
    fit: str
    data: str
    source: str = ""
    study: str = ""
    key: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.quantiles) != len(LEVELS):
            raise ValueError(f"a promise needs {len(LEVELS)} quantiles, got {len(self.quantiles)}")
        numbers = [*self.quantiles, self.low, self.high, self.reach, *self.at.values()]
        numbers += [v for v in (self.shift, self.distance) if v is not None]
        if not all(math.isfinite(v) for v in numbers):
            raise ValueError(
                f"the prediction at {dict(self.at)} is not finite, so it cannot be scored. Do: leave the point out"
            )
        if (
            any(b < a for a, b in zip(self.quantiles, self.quantiles[1:], strict=False))
            or self.low > self.high
        ):
            raise ValueError("a promise needs quantiles in rising order")
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, got {self.coverage}")


@dataclass(frozen=True)
class Outcome:
    """What was measured where a prediction had been made.

    Args:
        prediction: number of the prediction.
        value: measured, in the unit of the prediction.
        measured: when, if known: ISO time with a zone (else UTC); a date is its end, which the day does not
            tell from its beginning. Unstated, only the order of the entries counts.
        source: where it comes from.
        corrects: it takes the place of the outcome that the prediction has; both stay in the file.

    Raises:
        ValueError: the value is not finite, or the time cannot be read.

    Example:
        >>> Outcome(3, 2.71, measured="2026-05-01").measured
        '2026-05-01T23:59:59+00:00'
    """

    prediction: int
    value: float
    measured: str | None = None
    source: str = ""
    corrects: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(
                f"an outcome needs a finite number, got {self.value} for prediction {self.prediction}"
            )
        if self.measured is not None:
            object.__setattr__(self, "measured", in_utc(self.measured))


def in_utc(text: str) -> str:
    """A time as ISO 8601 in UTC; without a zone it is UTC, without an hour the end of the day.

    Raises:
        ValueError: not a time.

    Example:
        >>> in_utc("2026-05-01T12:00:00+02:00")
        '2026-05-01T10:00:00+00:00'
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"needed a time like 2026-05-01 or 2026-05-01T12:00+02:00, got {text!r}") from None
    if len(text) == len("2026-05-01"):
        time = time.replace(hour=23, minute=59, second=59)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return time.astimezone(UTC).isoformat()
