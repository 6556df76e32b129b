"""What a comparison of laws found: a standing for each, margins between them, weights for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from isoloss.comparing.aggregate import Conformal
from isoloss.comparing.backtest import Backtest
from isoloss.special import student_quantile

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/compare/1"
VERDICTS = ("better", "worse", "not resolved")
CONFIDENCE = 0.95  # of the interval that a verdict looks at


@dataclass(frozen=True)
class Margin:
    """By how much one law predicts worse than another.

    Attributes:
        first, second: names of the laws.
        difference: mean CRPS of the first less that of the second, over the held-out runs of both, in the
            target's unit.
        ratio: geometric mean over the folds of mean CRPS of the first over that of the second.
        low, high: 95% interval of the ratio; 0 and infinite where fewer than two folds were scored.
        folds: number of clusters behind the interval.
        verdict: of the first: ``"better"``, ``"worse"`` or ``"not resolved"``.
    """

    first: str
    second: str
    difference: float
    ratio: float
    low: float
    high: float
    folds: int
    verdict: str


def margin(first: Backtest, second: Backtest) -> Margin:
    r"""Which of two laws predicts better, by the CRPS of the runs that both predicted.

    Runs of one fold share a fit, so their scores are not independent: the G folds are the clusters, each one
    observation :math:`l_g`, the log of the ratio of the two mean CRPS. As a ratio, because both grow with the
    distance and the noise alike. Interval of the mean log ratio:

    .. math:: \bar l \pm t_{G-1} \sqrt{\tfrac{1}{G (G-1)} \sum_g (l_g - \bar l)^2}

    Student's t because clusters are few: Ibragimov & Mueller 2010, JBES 28(4). It is exact for independent
    normal clusters; folds share rows, so it is too narrow: in simulated ties (40 rows, 4 folds) one comparison
    in eight had a verdict instead of one in twenty.
    """
    shared, i, j = np.intersect1d(first.row, second.row, return_indices=True)
    if len(shared) == 0:
        nan = float("nan")
        return Margin(first.law, second.law, nan, nan, 0.0, math.inf, 0, "not resolved")
    a, b, fold = first.crps[i], second.crps[j], first.fold[i]
    tiny = 1e-12 * float(np.mean(np.abs(first.y)))  # of exact data: no ratio of rounding errors
    logs = np.array(
        [np.log((np.mean(a[fold == k]) + tiny) / (np.mean(b[fold == k]) + tiny)) for k in set(fold)]
    )
    count, mean = len(logs), float(np.mean(logs))
    half = math.inf
    if count > 1:
        half = (
            student_quantile((1 + CONFIDENCE) / 2, count - 1) * float(np.std(logs, ddof=1)) / math.sqrt(count)
        )
    verdict = "better" if mean + half < 0 else "worse" if mean - half > 0 else "not resolved"
    low, high = (
        (math.exp(mean - half), math.exp(min(mean + half, 700.0))) if half < math.inf else (0.0, math.inf)
    )
    return Margin(first.law, second.law, float(np.mean(a - b)), math.exp(mean), low, high, count, verdict)


@dataclass(frozen=True)
class Criteria:
    """AICc and BIC of a likelihood fit to all rows; None with the reason where there is none.

    Attributes:
        aicc, bic: less is better; differences only mean something, between laws on the same rows.
        of: ``"gaussian"``, ``"student-t (df 4)"``, or why there is no likelihood.
    """

    aicc: float | None
    bic: float | None
    of: str


@dataclass(frozen=True, eq=False)
class Standing:
    """One law in a comparison.

    Attributes:
        law, formula: name and form.
        free: parameters that the rows determine.
        result: of the fit to all rows, see :func:`isoloss.fit`.
        r2: of that fit.
        criteria: AICc and BIC.
        backtest: held-out predictions and their scores.
        weight: in the stack; 0 where a fold has no answer.
        margin: against the best law; None for the best itself, and where a fold has no answer.
    """

    law: str
    formula: str
    free: int
    result: str
    r2: float
    criteria: Criteria
    backtest: Backtest
    weight: float
    margin: Margin | None


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Laws on the same rows and the same held-out runs, best mean CRPS first.

    Attributes:
        standings: one a law; those with a fold without answer come last.
        left_out: law -> why it is not in the comparison.
        target, unit: what is predicted.
        rows: number of rows.
        removed: (row, why) of rows that not every law can use.
        source: where the table came from.
        objective: in words.
        cost_rule: what rows were ordered by.
        coverage: of the intervals.
        conformal: correction of the stack's interval, from held-out runs.
        stack_crps: mean CRPS of the stack on the held-out runs, its weights chosen without the fold that
            they predict; from the quantiles at :attr:`Backtest.levels`, as is ``best_crps``.
        best_crps: the same of the best law.
        seed: of the draws.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [2.0**k for k in range(16)], "loss": [8 / 1.2**k for k in range(16)]}
        >>> len(isoloss.compare(["power", "hestness"], runs, draws=50, folds=2).best.backtest)
        8
    """

    standings: tuple[Standing, ...]
    left_out: Mapping[str, str]
    target: str
    unit: str
    rows: int
    removed: tuple[tuple[int, str], ...]
    source: str
    objective: str
    cost_rule: str
    coverage: float
    conformal: Conformal
    stack_crps: float
    best_crps: float
    seed: int

    @property
    def best(self) -> Standing:
        """The law of the least mean CRPS."""
        return self.standings[0]

    @property
    def weights(self) -> dict[str, float]:
        """Law -> weight in the stack."""
        return {standing.law: standing.weight for standing in self.standings}

    def __getitem__(self, law: str) -> Standing:
        """The standing of a law.

        Raises:
            ValueError: it is not in the comparison.
        """
        for standing in self.standings:
            if standing.law == law:
                return standing
        known = ", ".join(standing.law for standing in self.standings)
        raise ValueError(
            f"the comparison holds {known}; it has no {law!r}: {self.left_out.get(law, 'not asked')}"
        )

    def margin(self, first: str, second: str) -> Margin:
        """By how much one law predicts worse than another, with its verdict."""
        return margin(self[first].backtest, self[second].backtest)

    def to_json(self) -> dict[str, Any]:
        """The document of ``isoloss compare --json``; schema in ``docs/json.md``."""
        return {
            "schema": SCHEMA,
            "target": self.target,
            "unit": self.unit,
            "source": self.source,
            "rows": self.rows,
            "rows_removed": [{"row": row, "why": why} for row, why in self.removed],
            "objective": self.objective,
            "cost_rule": self.cost_rule,
            "coverage": self.coverage,
            "seed": self.seed,
            "laws": [_standing_json(standing, self.best.law) for standing in self.standings],
            "left_out": [{"law": law, "why": why} for law, why in self.left_out.items()],
            "conformal": vars(self.conformal),
            "stack_crps": _or_none(self.stack_crps),
            "best_crps": _or_none(self.best_crps),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Comparison:
        """The comparison that :meth:`to_json` wrote.

        Raises:
            ValueError: not a comparison of this schema, or a part is missing or of the wrong kind.
        """
        if document.get("schema") != SCHEMA:
            raise ValueError(f"needed a comparison of schema {SCHEMA!r}, got {document.get('schema')!r}")
        try:
            return cls(
                standings=_standings(document["laws"]),
                left_out={str(e["law"]): str(e["why"]) for e in document["left_out"]},
                target=str(document["target"]),
                unit=str(document["unit"]),
                rows=int(_number(document["rows"], "rows")),
                removed=tuple((int(e["row"]), str(e["why"])) for e in document["rows_removed"]),
                source=str(document["source"]),
                objective=str(document["objective"]),
                cost_rule=str(document["cost_rule"]),
                coverage=_number(document["coverage"], "coverage"),
                conformal=_conformal(document["conformal"]),
                stack_crps=_or_nan(document["stack_crps"]),
                best_crps=_or_nan(document["best_crps"]),
                seed=int(_number(document["seed"], "seed")),
            )
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"the stack file is damaged: {error!r} in the comparison") from error
        except (ValueError, OverflowError) as error:
            raise ValueError(f"the stack file is damaged: {error}") from error

    def __repr__(self) -> str:
        parts = [
            f"{s.law} {s.backtest.mean_crps:.4g}"
            + (f" ({s.margin.verdict})" if s.margin else "" if s is self.best else " (no answer in a fold)")
            for s in self.standings
        ]
        return f"Comparison({self.rows} rows, {len(self.best.backtest)} held out; CRPS {', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{s.law}</td><td>{s.free}</td><td>{s.backtest.mean_crps:.4g}</td>"
            f"<td>{s.backtest.relative_error:.2%}</td><td>{s.backtest.hits} of {len(s.backtest)}</td>"
            f"<td>{s.weight:.2f}</td><td>{s.margin.verdict if s.margin else ''}</td></tr>"
            for s in self.standings
        )
        head = "".join(
            f"<th>{name}</th>"
            for name in (
                "law",
                "free",
                "CRPS",
                "error",
                f"inside {100 * self.coverage:g}%",
                "weight",
                "against best",
            )
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def _standing_json(standing: Standing, best: str) -> dict[str, Any]:
    gap = standing.margin or Margin(
        standing.law, best, math.nan, math.nan, math.nan, math.nan, 0,
        "best" if standing.law == best else "no answer in a fold",
    )  # fmt: skip
    return {
        "law": standing.law,
        "formula": standing.formula,
        "free": standing.free,
        "result": standing.result,
        "r2": _or_none(standing.r2),
        "criteria": vars(standing.criteria),
        "weight": standing.weight,
        "margin": {name: _or_none(value) for name, value in vars(gap).items()},
        "backtest": standing.backtest.to_json(),
    }


def _standings(entries: Sequence[Mapping[str, Any]]) -> tuple[Standing, ...]:
    if not entries:
        raise ValueError("it compares no laws")
    return tuple(_standing(entry) for entry in entries)


def _conformal(entry: Mapping[str, Any]) -> Conformal:
    shift, coverage = entry["shift"], _number(entry["coverage"], "conformal.coverage")
    if not 0 < coverage < 1:
        raise ValueError(f"needed conformal.coverage between 0 and 1, got {coverage}")
    return Conformal(
        None if shift is None else _number(shift, "conformal.shift"), coverage,
        int(_number(entry["n"], "conformal.n")), int(_number(entry["needed"], "conformal.needed")),
        str(entry["text"]),
    )  # fmt: skip


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"needed {name} as a number, got {value!r}")
    return float(value)


def _standing(entry: Mapping[str, Any]) -> Standing:
    gap = entry["margin"]
    endless: dict[str, Any] = {"difference": math.nan, "ratio": math.nan, "low": math.nan, "high": math.inf}
    values = {f.name: endless[f.name] if gap[f.name] is None else gap[f.name] for f in fields(Margin)}
    for name in endless:
        if gap[name] is not None:
            values[name] = _number(gap[name], f"margin.{name}")
    weight = _number(entry["weight"], "weight")
    if not 0 <= weight <= 1 + 1e-9:
        raise ValueError(f"needed the weight of {entry['law']} between 0 and 1, got {weight}")
    return Standing(
        str(entry["law"]), str(entry["formula"]), int(entry["free"]), str(entry["result"]),
        _or_nan(entry["r2"]), Criteria(**{f.name: entry["criteria"][f.name] for f in fields(Criteria)}),
        Backtest.from_json(entry["backtest"]), weight,
        Margin(**values) if gap["verdict"] in VERDICTS else None,
    )  # fmt: skip


def _or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _or_nan(value: Any) -> float:
    return math.nan if value is None else _number(value, "a score")
