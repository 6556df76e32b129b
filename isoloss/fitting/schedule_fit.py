"""What we believe about schedules: a fitted law with its draws, the curves behind it, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.files import json_text, write_atomically
from isoloss.fitting.curves import Curve
from isoloss.fitting.objective import Objective, objective_from_json
from isoloss.fitting.prediction import Prediction, quantiles
from isoloss.fitting.result import Estimate
from isoloss.laws.schedules import get
from isoloss.laws.schedules.schedule import Schedule
from isoloss.laws.schedules.schedule_law import ScheduleLaw
from isoloss.runs import Finding, Removed

Array = np.ndarray[Any, np.dtype[Any]]
Result = Literal["fitted", "not-converged", "interrupted"]

SCHEMA = "isoloss/schedule/1"
UNSEEN = 0.0027
"""Standard deviation of log loss by which both laws missed the ends of schedules that they were not fitted on: set on
the 25M curves of Luo et al. 2025 and judged on those of 100M, see ``benchmarks/schedules.py``."""
POINTS = 100  # steps that a curve is shown at, unless told


@dataclass(frozen=True, eq=False, repr=False)
class ScheduleFit:
    """A law of schedules, its parameters with joint draws, the curves behind it and every choice that made it.

    Attributes:
        law: the law.
        theta: best parameters, (P,).
        draws: joint draws, (K, P): one row is one world the curves allow.
        status: per parameter ``fitted``, ``fixed`` or ``at-bound``.
        curves: what it was fitted to.
        residuals: log residuals of each curve.
        objective, value: what was minimised, and the minimum.
        agreeing_starts: share of the starts that reached it.
        result: ``fitted``, ``not-converged`` or ``interrupted``.
        warnings: findings, each with a why.
        removed: rows of the table that are in no curve.
        fix: values held.
        unseen: see :meth:`predict`.

    Example:
        >>> steps = np.arange(50.0, 1001.0, 50.0)
        >>> made = [Schedule.two_stage(steps=1000, peak=0.01, end=end, at=500) for end in (0.002, 0.005)]
        >>> from isoloss.fitting.schedules import fit_schedules
        >>> law = get("lr-annealing")
        >>> planted = [Curve(s.words, s, steps, law.value([2, 1, 0.5, 0.2, 100], s, steps)) for s in made]
        >>> found = fit_schedules(law, planted, draws=20)
        >>> found
        ScheduleFit(lr-annealing: L0=2, A=1, alpha=0.5, C=0.2, memory=100; 2 curves, 40 losses, fitted)
        >>> found.predict("cosine:steps=1000,peak=0.01,end=0.001", of="mean").median[-1].round(4)
        np.float64(2.2545)
    """

    law: ScheduleLaw
    theta: Array
    draws: Array
    status: tuple[str, ...]
    curves: tuple[Curve, ...]
    residuals: tuple[Array, ...]
    objective: Objective
    value: float
    agreeing_starts: float
    starts: int
    result: Result
    warnings: tuple[Finding, ...]
    removed: tuple[Removed, ...]
    fix: Mapping[str, float]
    unseen: float
    coverage: float
    seed: int
    source: str
    fingerprint: str

    @property
    def values(self) -> dict[str, float]:
        """Best parameters by name."""
        return {name: float(v) for name, v in zip(self.law.names, self.theta, strict=True)}

    @property
    def parameters(self) -> dict[str, Estimate]:
        """Every parameter with standard error and interval at ``coverage``."""
        out = {}
        for p, name in enumerate(self.law.names):
            value = float(self.theta[p])
            if self.status[p] == "fixed":
                out[name] = Estimate(value, 0.0, value, value, "fixed")
            elif len(self.draws) < 2:
                out[name] = Estimate(value, *(float("nan"),) * 3, self.status[p])
            else:
                low, high = quantiles(self.draws[:, p], self.coverage)
                out[name] = Estimate(
                    value, float(np.std(self.draws[:, p], ddof=1)), low, high, self.status[p]
                )
        return out

    @property
    def rows(self) -> int:
        """Losses in the fit."""
        return sum(len(curve.steps) for curve in self.curves)

    def predict(
        self,
        schedule: Schedule | str,
        steps: Any = None,
        *,
        of: Literal["mean", "run"] = "run",
        coverage: float | None = None,
    ) -> Prediction:
        """The distribution of the loss of a run under a schedule, at some of its steps.

        Of a run a draw has, beside its parameters, one normal offset of standard deviation ``unseen`` in the log
        loss for the whole curve, and at each step a residual of the fitted curves. The offset is what a law misses
        of a schedule that it has not seen; the fitted curves cannot tell it, so it is a stated number.

        Args:
            schedule: or its words, ``"cosine:steps=24000,peak=3e-4,end=3e-5,warmup=2160"``.
            steps: whole, from the end of its warm-up to its last; default a hundred of them, the last included.
            of: ``"mean"``, the level the law gives: parameter uncertainty only; or ``"run"``.
            coverage: of the interval; default the fit's.

        Returns:
            Draws of shape (K, n). ``reach`` is how far a step lies outside the fitted curves: the largest factor by
            which the summed rate or the rate leaves theirs.

        Raises:
            ValueError: a step outside the schedule or in its warm-up. NoAnswer: the fit has no draws.
        """
        schedule = Schedule.parse(schedule) if isinstance(schedule, str) else schedule
        if of not in ("mean", "run"):
            raise ValueError(f"of must be 'mean' or 'run', got {of!r}")
        if len(self.draws) == 0:
            raise NoAnswer("this fit has no draws, so no interval", "fit with draws=200")
        first = max(schedule.warmup, 1)
        at = (
            np.atleast_1d(np.asarray(steps, dtype=float))
            if steps is not None
            else _some(first, schedule.steps)
        )
        early = at < first
        if early.any():
            raise ValueError(
                f"needed steps from {first}, the end of the warm-up, on, got {at[early][0]:g}: no law holds in it"
            )
        seen = self.law.course(schedule, at)
        level = self.law.at(self.draws, seen)
        if of == "run":
            rng = np.random.default_rng([self.seed, 1])
            pool = np.concatenate(
                [r * np.sqrt(self.rows / max(self.rows - len(self.theta), 1)) for r in self.residuals]
            )
            odds = np.concatenate(
                [np.full(len(r), 1 / (len(self.residuals) * len(r))) for r in self.residuals]
            )
            repeats = max(1, 2000 // len(level))
            level = np.repeat(level, repeats, axis=0)
            offset = self.unseen * rng.normal(size=(len(level), 1))
            level = level * np.exp(offset + rng.choice(pool, size=level.shape, p=odds))
        width = self.coverage if coverage is None else coverage
        return Prediction(of, width, {"step": at}, level, self._reach(schedule, at))

    def _reach(self, schedule: Schedule, at: Array) -> Array:
        """How far outside the fitted curves each step lies, as a factor."""
        index = at.astype(int)
        most = max(float(c.schedule.sums[int(c.steps[-1])]) for c in self.curves)
        shown = [c.schedule.rates[int(c.steps[0]) : int(c.steps[-1]) + 1] for c in self.curves]
        low, high = min(float(r[r > 0].min()) for r in shown), max(float(r.max()) for r in shown)
        after = schedule.rates[max(schedule.warmup, 1) :]
        # a last rate of 0 moves nothing: the lowest that does counts
        least = np.minimum.accumulate(np.where(after > 0, after, np.inf))
        below = low / least[index - max(schedule.warmup, 1)]
        above = schedule.peak / high
        return np.asarray(
            np.maximum.reduce([schedule.sums[index] / most, below, np.full(len(at), above), np.ones(len(at))])
        )

    def save(self, path: str | Path) -> None:
        """Write the fit as JSON (``docs/json.md``), atomically."""
        write_atomically(Path(path), json_text(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """The document that ``isoloss schedule fit --json`` writes; schema in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "law": self.law.slug,
            "formula": self.law.formula,
            "parameters": {
                name: {
                    key: None if isinstance(v, float) and not np.isfinite(v) else v
                    for key, v in vars(e).items()
                }
                for name, e in self.parameters.items()
            },
            "objective": {**self.objective.to_json(), "value": self.value},
            "agreeing_starts": self.agreeing_starts,
            "starts": self.starts,
            "result": self.result,
            "warnings": [{**vars(entry), "rows": list(entry.rows)} for entry in self.warnings],
            "rows_removed": [vars(entry) for entry in self.removed],
            "fix": dict(self.fix),
            "unseen": self.unseen,
            "coverage": self.coverage,
            "seed": self.seed,
            "source": self.source,
            "fingerprint": self.fingerprint,
            "curves": [
                {
                    "name": curve.name,
                    "schedule": dict(curve.schedule.origin),
                    "steps": curve.steps.astype(int).tolist(),
                    "loss": curve.loss.tolist(),
                    "rows": curve.rows.tolist(),
                    "residuals": residuals.tolist(),
                }
                for curve, residuals in zip(self.curves, self.residuals, strict=True)
            ],
            "draws": {name: self.draws[:, p].tolist() for p, name in enumerate(self.law.names)},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ScheduleFit:
        """The fit that :meth:`to_json` wrote.

        Raises:
            ValueError: not a fit of this schema, or a part is missing or of the wrong kind.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"needed a fit of schema {SCHEMA!r}, got {document.get('schema')!r}. Make it with "
                "`isoloss schedule fit LAW CURVES --json FILE`"
            )
        try:
            return _read(document)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"the fit file is incomplete or damaged: {error!r}") from error

    @classmethod
    def load(cls, path: str | Path) -> ScheduleFit:
        """Read a fit that :meth:`save` or ``isoloss schedule fit --json`` wrote.

        Raises:
            ValueError: no such file, not JSON, or not a fit of schedules.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the fit {path}: {error}") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
        if not isinstance(document, dict):
            raise ValueError(f"{path} is not a fit: needed a JSON object, got {type(document).__name__}")
        return cls.from_json(document)

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value:.5g}" for name, value in self.values.items())
        return f"ScheduleFit({self.law.slug}: {inner}; {len(self.curves)} curves, {self.rows} losses, {self.result})"


def _some(first: int, last: int) -> Array:
    """At most a hundred whole steps, evenly from the first to the last."""
    return np.unique(np.round(np.linspace(first, last, min(POINTS, last - first + 1))))


def _read(document: Mapping[str, Any]) -> ScheduleFit:
    law = get(document["law"])
    draws = np.array([_numbers(document["draws"][name]) for name in law.names]).T
    curves, residuals = [], []
    for entry in document["curves"]:
        curve = Curve(
            str(entry["name"]),
            Schedule.from_json(entry["schedule"]),
            _numbers(entry["steps"]),
            _numbers(entry["loss"]),
            _numbers(entry["rows"]).astype(int),
        )
        left = _numbers(entry["residuals"])
        if len(left) != len(curve.steps):
            raise ValueError(f"the fit file is damaged: {len(left)} residuals of {len(curve.steps)} losses")
        curves.append(curve)
        residuals.append(left)
    parameters = document["parameters"]
    return ScheduleFit(
        law=law,
        theta=_numbers([parameters[name]["value"] for name in law.names]),
        draws=draws.reshape(-1, len(law.names)),
        status=tuple(str(parameters[name]["status"]) for name in law.names),
        curves=tuple(curves),
        residuals=tuple(residuals),
        objective=objective_from_json(document["objective"]),
        value=float(document["objective"]["value"]),
        agreeing_starts=float(document["agreeing_starts"]),
        starts=int(document["starts"]),
        result=document["result"],
        warnings=tuple(Finding(**{**entry, "rows": tuple(entry["rows"])}) for entry in document["warnings"]),
        removed=tuple(Removed(**entry) for entry in document["rows_removed"]),
        fix={name: float(value) for name, value in document["fix"].items()},
        unseen=float(document["unseen"]),
        coverage=float(document["coverage"]),
        seed=int(document["seed"]),
        source=str(document["source"]),
        fingerprint=str(document["fingerprint"]),
    )


def _numbers(values: Any) -> Array:
    if not isinstance(values, list) or any(
        isinstance(v, bool) or not isinstance(v, int | float) for v in values
    ):
        raise ValueError("the fit file is damaged: needed a list of numbers")
    out = np.array(values, dtype=float)
    if not np.isfinite(out).all():
        raise ValueError("the fit file is damaged: a number is not finite")
    return out
