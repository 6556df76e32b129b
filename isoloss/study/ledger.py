"""Every prediction that was written down, what was measured, and how good the predictions were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.comparing.aggregate import Conformal, conformal
from isoloss.comparing.scores import coverage_band
from isoloss.study.early import LAW as EARLY
from isoloss.study.join import Fate, fates, point_key
from isoloss.study.records import LEVELS
from isoloss.study.scoring import crps_of_quantiles, interval_of_quantiles, pit_of_quantiles

if TYPE_CHECKING:
    from isoloss.study.store import Store

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/ledger/1"
ALL = "all"
# Name of a band of distances, and how far it goes.
BANDS = (("1x", 1.0), ("1-3x", 3.0), ("3-10x", 10.0), (">10x", math.inf))
RELIABILITY = (0.5, 0.8, 0.9, 0.95)
BINS = 10


@dataclass(frozen=True)
class Score:
    """How good the predictions of one law at one distance were.

    Attributes:
        law, distance: of which; ``all`` for any.
        n: predictions scored. runs: that measured them; predictions of one run are not independent.
        inside: measured values inside their intervals. low, high: Clopper-Pearson band (95%) of the share.
        crps: mean, in the unit of the target; NaN where units differ.
        relative_crps: mean CRPS as a share of the measured value. What is sharp and right is small.
        relative_error: mean distance of the median, as a share of the measured value.
        width: mean width of the interval, as a share of the median.
    """

    law: str
    distance: str
    n: int
    runs: int
    inside: int
    low: float
    high: float
    crps: float
    relative_crps: float
    relative_error: float
    width: float


@dataclass(frozen=True)
class Reliability:
    """Of intervals that promise ``coverage``: how many held what was measured, with a 95% band of the share."""

    law: str
    coverage: float
    n: int
    inside: int
    low: float
    high: float


@dataclass(frozen=True)
class Correction:
    """A conformal correction from the history: from which predictions, and how far out they reach."""

    law: str
    conformal: Conformal
    farthest: float

    def sentence(self) -> str:
        """What a reader must know."""
        c = self.conformal
        if c.shift is None:
            return f"not recalibrated: {c.text}"
        return (
            f"recalibrated, {c.text}: {c.shift:+.2f} of the width at either end, never narrower beyond "
            f"{self.farthest:.3g}x, where the history ends"
        )

    def advice(self) -> str:
        """What the next prediction could be given."""
        c = self.conformal
        if c.shift is None:
            return c.text
        how = "wider" if c.shift > 0 else "narrower"
        return f"{c.text}: intervals {abs(c.shift):.2f} of their width {how} at either end (predict --recalibrate)"

    def to_json(self) -> dict[str, Any]:
        """Law, shift, coverage, counts and the farthest distance, as in ``docs/json.md``."""
        return {"law": self.law, **vars(self.conformal), **_finite({"farthest": self.farthest})}


@dataclass(frozen=True, eq=False, repr=False)
class Ledger:
    """Predictions and what became of them.

    Intervals and scores are those of one new run, as the law gave them, before any recalibration.

    Attributes:
        predictions: as :meth:`isoloss.Store.predictions` gives them.
        fates: of each, see :class:`isoloss.study.join.Fate`.
        coverage: of the intervals that the scores look at.
        clock: numbers of entries that are dated before the entry they follow.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [1, 2, 4, 8, 16], "loss": [8.1, 4.0, 2.0, 1.01, 0.5]}
        >>> fit = isoloss.fit("power", runs, draws=50, sensitivity=False)
        >>> store = isoloss.Store("ledger.db")
        >>> store.add_predictions(isoloss.promise(fit, {"tokens": 32}))
        (1,)
        >>> from isoloss.study.records import Outcome
        >>> store.add_outcomes([Outcome(1, 0.25)])
        (2,)
        >>> isoloss.Ledger.read("ledger.db")
        Ledger(1 prediction: 1 scored, 0 open, 0 late)
    """

    predictions: Sequence[Mapping[str, Any]]
    fates: Sequence[Fate]
    coverage: float = 0.9
    clock: tuple[int, ...] = ()

    @classmethod
    def read(cls, source: str | Path | Store, *, coverage: float = 0.9) -> Ledger:
        """The ledger in a store; a path is opened for reading only.

        Raises:
            StoreError: no store there, or it is damaged.
        """
        if isinstance(source, str | Path):
            from isoloss.study.store import Store

            source = Store(source, read_only=True)
        predictions = source.predictions()
        runs = source.run_entries() if any(p["study"] for p in predictions) else []
        found = fates(predictions, source.outcomes(), runs)
        return cls(predictions, found, coverage, source.clock_jumps())

    def of(self, study: str) -> Ledger:
        """The predictions of one study alone."""
        mine = [i for i, p in enumerate(self.predictions) if p["study"] == study]
        return replace(
            self, predictions=[self.predictions[i] for i in mine], fates=[self.fates[i] for i in mine]
        )

    def __post_init__(self) -> None:
        if len(self.predictions) != len(self.fates):
            raise ValueError(
                f"needed one fate a prediction, got {len(self.predictions)} and {len(self.fates)}"
            )
        interval_of_quantiles(np.zeros((len(LEVELS), 1)), LEVELS, self.coverage)  # refuses what was not kept

    @cached_property
    def quantiles(self) -> Array:
        """Of one new run at ``LEVELS``: (103, predictions)."""
        rows = [p["quantiles"] for p in self.predictions]
        return np.array(rows, dtype=float).reshape(len(rows), len(LEVELS)).T

    @cached_property
    def values(self) -> Array:
        """Measured, NaN where nothing was."""
        return np.array([math.nan if f.value is None else f.value for f in self.fates], dtype=float)

    @cached_property
    def distances(self) -> Array:
        """Training cost over that of the dearest fitted row; the reach where costs have no rule."""
        return np.array(
            [p["reach"] if p["distance"] is None else p["distance"] for p in self.predictions], dtype=float
        )

    @cached_property
    def laws(self) -> tuple[str, ...]:
        """Every law with a prediction, by name."""
        return tuple(sorted({p["law"] for p in self.predictions}))

    def which(self, status: str) -> Array:
        """Positions of the predictions that are ``open``, ``scored`` or ``late``."""
        return np.flatnonzero(self._status == status)

    @cached_property
    def _status(self) -> Array:
        return np.array([fate.status for fate in self.fates], dtype=np.str_)

    def _scored(self, law: str) -> Array:
        scored = self.which("scored")
        return scored if law == ALL else scored[self._law_names[scored] == law]

    @cached_property
    def _law_names(self) -> Array:
        return np.array([p["law"] for p in self.predictions], dtype=np.str_)

    @cached_property
    def _crps(self) -> Array:
        return crps_of_quantiles(self.quantiles, LEVELS, self.values)

    @cached_property
    def _pit(self) -> Array:
        return pit_of_quantiles(self.quantiles, LEVELS, self.values)

    @cached_property
    def _measured(self) -> list[Any]:
        """Which run measured each prediction: the target, the point and the value tell."""
        return [
            (p["target"], point_key(p["at"]), fate.value)
            for p, fate in zip(self.predictions, self.fates, strict=True)
        ]

    def _inside(self, coverage: float) -> Array:
        low, high = interval_of_quantiles(self.quantiles, LEVELS, coverage)
        return np.asarray((low <= self.values) & (self.values <= high))

    def scores(self) -> tuple[Score, ...]:
        """For each law, and for all: one line a band of distances, and one for any distance."""
        out = []
        for law in (*self.laws, *([ALL] if len(self.laws) > 1 else [])):
            chosen = self._scored(law)
            band = np.searchsorted([end * (1 + 1e-9) for _, end in BANDS[:-1]], self.distances[chosen])
            parts = [(name, chosen[band == k]) for k, (name, _) in enumerate(BANDS)]
            parts = [(name, part) for name, part in parts if len(part)]
            out += [self._score(law, name, part) for name, part in parts]
            if len(parts) > 1:
                out.append(self._score(law, ALL, chosen))
        return tuple(out)

    def _score(self, law: str, distance: str, chosen: Array) -> Score:
        y, crps = self.values[chosen], self._crps[chosen]
        low, high = interval_of_quantiles(self.quantiles[:, chosen], LEVELS, self.coverage)
        median = self.quantiles[len(LEVELS) // 2, chosen]
        inside = int(np.sum((low <= y) & (y <= high)))
        units = {self.predictions[i]["unit"] for i in chosen}
        return Score(
            law, distance, len(chosen), len({self._measured[i] for i in chosen}), inside,
            *coverage_band(inside, len(chosen)), float(np.mean(crps)) if len(units) == 1 else math.nan,
            _mean_share(crps, y), _mean_share(np.abs(median - y), y), _mean_share(high - low, median),
        )  # fmt: skip

    def reliability(self) -> tuple[Reliability, ...]:
        """Promised and seen coverage, for each law and for all."""
        out = []
        for law in (*self.laws, *([ALL] if len(self.laws) > 1 else [])):
            chosen = self._scored(law)
            for coverage in RELIABILITY if len(chosen) else ():
                inside = int(np.sum(self._inside(coverage)[chosen]))
                out.append(
                    Reliability(law, coverage, len(chosen), inside, *coverage_band(inside, len(chosen)))
                )
        return tuple(out)

    def pit(self, law: str = ALL) -> Array:
        """Counts of the levels at which the measured values lay, in tenths; even if all is right, (10,)."""
        counts, _ = np.histogram(self._pit[self._scored(law)], bins=BINS, range=(0.0, 1.0))
        return np.asarray(counts)

    def promised(self) -> dict[str, int]:
        """Of the intervals as they were written down: how many, how many held; and of the recalibrated ones."""
        out = {"n": 0, "inside": 0, "recalibrated_n": 0, "recalibrated_inside": 0}
        for i in self.which("scored"):
            p = self.predictions[i]
            held = int(p["low"] <= self.values[i] <= p["high"])
            out["n"] += 1
            out["inside"] += held
            if p["shift"] is not None:
                out["recalibrated_n"] += 1
                out["recalibrated_inside"] += held
        return out

    def correction(self, law: str, coverage: float | None = None) -> Correction:
        """How much wider the intervals of a law should have been: from its own history, else from all laws'.

        The conformal correction of :func:`isoloss.comparing.aggregate.conformal`. Of several predictions of
        one run the first counts. With fewer than ``1/alpha - 1`` of the law, those of all laws
        are used; with fewer of them there is no correction.

        Raises:
            ValueError: a coverage beyond the quantiles kept.
        """
        coverage = self.coverage if coverage is None else coverage
        low, high = interval_of_quantiles(self.quantiles, LEVELS, coverage)
        found = None
        for name in (law, ALL):
            chosen = self._scored(name)
            if name == ALL:  # how a curve goes on says nothing of how a law extrapolates
                chosen = chosen[self._law_names[chosen] != EARLY]
            chosen = self._first_of_each_run(chosen)
            found = conformal(low[chosen], high[chosen], self.values[chosen], coverage)
            whose = f"of {law}" if name == law else "of all laws"
            if found.shift is not None:
                text = f"empirical, from {found.n} scored predictions {whose}"
                farthest = float(np.max(self.distances[chosen]))
                return Correction(name, replace(found, text=text), farthest)
        assert found is not None
        text = f"too few scored predictions to recalibrate: needs {found.needed} for {100 * coverage:g} %, got {found.n}"
        return Correction(ALL, replace(found, text=text), math.nan)

    def _first_of_each_run(self, chosen: Array) -> Array:
        seen: dict[Any, int] = {}
        for i in chosen:
            seen.setdefault(self._measured[i], int(i))
        return np.array(list(seen.values()), dtype=int)

    def to_json(self) -> dict[str, Any]:
        """The document of ``isoloss ledger --json``; schema in ``docs/json.md``."""
        counts = {status: len(self.which(status)) for status in ("scored", "open", "late")}
        laws = [law for law in (*self.laws, ALL) if len(self._scored(law))]
        return {
            "schema": SCHEMA,
            "coverage": self.coverage,
            "counts": {"predictions": len(self.predictions), **counts},
            "scores": [_finite(vars(score)) for score in self.scores()],
            "reliability": [vars(entry) for entry in self.reliability()],
            "pit": [{"law": law, "counts": self.pit(law).tolist()} for law in laws],
            "promised": self.promised(),
            "corrections": [{**self.correction(law).to_json(), "for": law} for law in self.laws],
            "clock": list(self.clock),
            "predictions": [self._entry(i) for i in range(len(self.predictions))],
        }

    def _entry(self, i: int) -> dict[str, Any]:
        p, fate = self.predictions[i], self.fates[i]
        scored = fate.status == "scored"
        return {
            **{k: v for k, v in p.items() if k != "quantiles"},
            "median": p["quantiles"][len(LEVELS) // 2],
            "status": fate.status,
            "why": fate.why,
            "value": fate.value,
            "outcome": fate.outcome,
            "corrected": fate.corrected,
            "crps": float(self._crps[i]) if scored else None,
            "pit": float(self._pit[i]) if scored else None,
        }

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(self.which(status))} {status}" for status in ("scored", "open", "late"))
        n = len(self.predictions)
        return f"Ledger({n} prediction{'' if n == 1 else 's'}: {parts})"


def _mean_share(values: Array, of: Array) -> float:
    good = of != 0
    return float(np.mean(values[good] / np.abs(of[good]))) if good.any() else math.nan


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
