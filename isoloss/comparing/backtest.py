"""Fit the cheap runs, predict the dear ones, score: the verb ``backtest``, and the core that ``compare`` shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from isoloss.comparing.scores import coverage_band, crps, log_score, pit
from isoloss.errors import NoAnswer
from isoloss.fitting.constraints import Constraints
from isoloss.fitting.data import Data, prepare
from isoloss.fitting.draws import How
from isoloss.fitting.estimate import fit as fit_law
from isoloss.fitting.objective import Objective
from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.runs import Runs

Array = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[str, int, int], None]

DRAWS, STARTS = 200, 16  # of the fit of a fold: its means need less than an interval's ends
SPARE = 3  # rows beyond the free parameters in the smallest fit
LEVELS = np.linspace(0.05, 0.95, 19)
SIZES = ("params_active", "params", "params_nonembedding")
WEIGHTS = "row weight"  # column that carries a fit's weights


@dataclass(frozen=True)
class Fold:
    """One fit on the cheapest rows, and what became of it.

    Attributes:
        fitted, held: number of rows fitted, and of dearer rows predicted.
        largest: cost of the dearest fitted row.
        result: of the fit, or ``"no-answer"``.
        reason: why the rows are not scored, or why the fit is not identified; else empty.
        scored: whether the held-back rows have scores.
    """

    fitted: int
    held: int
    largest: float
    result: str
    reason: str
    scored: bool


@dataclass(frozen=True, eq=False, repr=False)
class Backtest:
    """Predictions of runs that were held back, point by point, and their scores.

    Attributes:
        law: name of the law.
        coverage: of ``low`` to ``high``.
        cost_rule: what rows were ordered by.
        folds: every fold, scored or not, with the reason.
        notes: choices that the reader must know.
        row, fold: row of the table and number of the fold of each scored point, (n,).
        y, median, low, high: measured, and predicted for one new run, (n,).
        reach: largest factor by which an axis leaves the fitted rows.
        distance: cost of the point over that of the dearest fitted row.
        cost: of the point.
        crps, log_score, pit: see :mod:`isoloss.comparing.scores`.
        levels: (m,). quantiles: of the prediction, (m, n).

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [2.0**k for k in range(12)], "loss": [8 / 2**k for k in range(12)]}
        >>> found = isoloss.backtest(isoloss.fit("power", runs, draws=50), folds=2)
        >>> [(fold.fitted, fold.held) for fold in found.folds]
        [(6, 4), (10, 2)]
    """

    law: str
    coverage: float
    cost_rule: str
    folds: tuple[Fold, ...]
    notes: tuple[str, ...]
    row: Array
    fold: Array
    y: Array
    median: Array
    low: Array
    high: Array
    reach: Array
    distance: Array
    cost: Array
    crps: Array
    log_score: Array
    pit: Array
    levels: Array
    quantiles: Array

    def __len__(self) -> int:
        return len(self.y)

    @property
    def mean_crps(self) -> float:
        """Mean CRPS over the scored points, in the target's unit; NaN without points."""
        return _mean(self.crps)

    @property
    def mean_log_score(self) -> float:
        """Mean log density of what was measured; NaN without points."""
        return _mean(self.log_score)

    @property
    def relative_error(self) -> float:
        """Mean of ``|median - y| / y``; NaN without points."""
        return _mean(np.abs(self.median / self.y - 1))

    @property
    def hits(self) -> int:
        """How many points lie inside their interval."""
        return int(np.sum((self.low <= self.y) & (self.y <= self.high)))

    @property
    def band(self) -> tuple[float, float]:
        """Clopper-Pearson band (95%) of the share inside, as if the points were independent.

        Points of one fold share a fit, so the true band is wider.
        """
        return coverage_band(self.hits, len(self)) if len(self) else (0.0, 1.0)

    @property
    def complete(self) -> bool:
        """Whether every fold was scored."""
        return all(fold.scored for fold in self.folds)

    def to_json(self) -> dict[str, Any]:
        """Summary, folds and points, as ``docs/json.md`` has them under ``backtest``."""
        low, high = self.band
        return {
            "law": self.law,
            "coverage": self.coverage,
            "cost_rule": self.cost_rule,
            "notes": list(self.notes),
            "crps": _or_none(self.mean_crps),
            "log_score": _or_none(self.mean_log_score),
            "relative_error": _or_none(self.relative_error),
            "inside": self.hits,
            "inside_low": low,
            "inside_high": high,
            "folds": [vars(fold) for fold in self.folds],
            "levels": self.levels.tolist(),
            "points": {name: getattr(self, name).tolist() for name in POINTS},
            "quantiles": self.quantiles.tolist(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Backtest:
        """What :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: a part is missing or of the wrong kind.
        """
        points = {name: np.array(document["points"][name], dtype=float) for name in POINTS}
        n, levels = len(points["y"]), np.array(document["levels"], dtype=float)
        quantiles = np.array(document["quantiles"], dtype=float).reshape(len(levels), n)
        if any(len(values) != n for values in points.values()):
            raise ValueError("the points of a back-test differ in number")
        folds = tuple(Fold(**{f.name: fold[f.name] for f in fields(Fold)}) for fold in document["folds"])
        return cls(
            str(document["law"]), float(document["coverage"]), str(document["cost_rule"]), folds,
            tuple(map(str, document["notes"])),
            **{k: v.astype(int) if k in ("row", "fold") else v for k, v in points.items()},
            levels=levels, quantiles=quantiles,
        )  # fmt: skip

    def __repr__(self) -> str:
        failed = sum(not fold.scored for fold in self.folds)
        return (
            f"Backtest({self.law}: {len(self)} runs held back in {len(self.folds)} folds"
            f"{f', {failed} without scores' if failed else ''}; CRPS {self.mean_crps:.4g}, relative error "
            f"{self.relative_error:.2%}, {self.hits} of {len(self)} inside their {100 * self.coverage:g}%)"
        )


POINTS = (
    "row", "fold", "y", "median", "low", "high", "reach", "distance", "cost", "crps", "log_score", "pit",
)  # fmt: skip


def backtest(
    fit: Fit,
    *,
    folds: int = 4,
    draws: int = DRAWS,
    starts: int = STARTS,
    coverage: float | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Backtest:
    """How well the fit's law predicts the dearer runs from the cheaper ones: rolling origin by cost.

    Rows are ordered by training cost: ``6 * params * tokens`` where the law reads both (or their kin),
    else ``flops``, else its one axis. Fold k fits the cheapest rows (the same objective, constraints and
    weights) and predicts one new run at each of the next dearer ones; the first fit has the cheaper half,
    the last all but the dearest tenth. Rows of equal cost are never parted.

    Args:
        fit: what to test. Its rows are refitted, none is added.
        folds: at most this many; fewer where the costs do not allow more.
        draws, starts: of the fits.
        coverage: of the intervals; default the fit's.
        seed: default the fit's.
        progress: called with (what, done, total).

    Returns:
        Every held-back point with its prediction and scores. Folds without an answer are listed with
        the reason.

    Raises:
        ValueError: the rows have no order by cost. NoAnswer: too few rows to hold any back: the smallest
            fit needs three more than the free parameters.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [2.0**k for k in range(12)], "loss": [8 / 2**k for k in range(12)]}
        >>> backtest(isoloss.fit("power", runs, draws=50)).relative_error < 1e-6
        True
    """
    runs = _rows_of(fit)
    cost, rule = training_cost(fit.x)
    order = np.lexsort([fit.rows, cost])
    notes = []
    if " by " in fit.uncertainty:
        how = fit.uncertainty.partition(" by ")[2]
        notes.append(f"the fit resampled by {how}; a fit keeps no such labels, so the folds resample rows")
    method: Any = fit.uncertainty.partition(" by ")[0]  # the intervals judged are made as the fit's are
    cuts = cuts_of(cost[order], folds, fit.free + SPARE)
    return rolling(
        fit.law, runs.take(order), cost[order], rule, cuts,
        objective=fit.objective, constraints=fit.constraints, weights=WEIGHTS, cluster=None,
        uncertainty=method, draws=draws, starts=starts, coverage=fit.coverage if coverage is None else coverage,
        seed=fit.seed if seed is None else seed, notes=tuple(notes), progress=progress,
    )  # fmt: skip


def training_cost(x: Mapping[str, Array]) -> tuple[Array, str]:
    """What a run at each point costs, and the rule: ``6 * params * tokens``, ``flops`` or the one axis.

    A law of the loss (a link) is ordered from high loss to low.

    Raises:
        ValueError: several axes, and no rule for them.
    """
    size = next((name for name in SIZES if name in x), None)
    if size and "tokens" in x:
        return 6.0 * x[size] * x["tokens"], f"6 * {size} * tokens"
    if "flops" in x:
        return np.asarray(x["flops"]), "flops"
    if len(x) == 1:
        ((axis, values),) = x.items()
        return (1.0 / values, "1 / loss") if axis == "loss" else (np.asarray(values), axis)
    raise ValueError(
        f"a back-test needs rows ordered by cost (params and tokens, flops, or one axis), got {', '.join(x)}. "
        "Add a column flops to the table: compare orders rows by it"
    )


def cuts_of(cost: Array, folds: int, least: int) -> tuple[int, ...]:
    """Where the sorted rows are cut: fold k fits those before cut k and predicts up to the next.

    Raises:
        ValueError: folds below 1. NoAnswer: ``least`` rows leave none that cost more.
    """
    if folds < 1:
        raise ValueError(f"folds must be at least 1, got {folds}")
    n = len(cost)
    edges = 1 + np.flatnonzero(np.diff(cost) > 0)
    usable = edges[edges >= least]
    if len(usable) == 0:
        raise NoAnswer(
            f"{n} rows leave none to hold back: the smallest fit needs {least}, and a dearer row beyond them",
            f"at least {max(least + 1, math.ceil(least / 0.9))} rows of different cost, or a smaller law",
        )
    late = usable[usable <= n - math.ceil(n / 10)]
    last = int(late[-1]) if len(late) else int(usable[0])
    early = usable[(usable >= math.ceil(n / 2)) & (usable <= last)]
    first = int(early[0]) if len(early) else last
    wanted = np.linspace(first, last, folds) if folds > 1 else np.array([last])
    snapped = usable[np.argmin(np.abs(usable[:, None] - wanted), axis=0)]
    return tuple(int(cut) for cut in np.unique(snapped))


def rolling(
    law: Law,
    runs: Runs,
    cost: Array,
    cost_rule: str,
    cuts: tuple[int, ...],
    *,
    objective: Objective,
    constraints: Constraints | None,
    weights: str | None,
    cluster: str | None,
    draws: int,
    starts: int,
    coverage: float,
    seed: int,
    uncertainty: How = "auto",
    notes: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Backtest:
    """The folds of one law on rows in order of cost; every row must be one that the law can be fitted to."""
    data = prepare(law, runs, weights=weights, cluster=cluster)
    place = {int(row): i for i, row in enumerate(data.rows)}
    levels = np.unique(np.round([*LEVELS, (1 - coverage) / 2, (1 + coverage) / 2], 12))
    ends = (*cuts[1:], len(runs))
    done: list[Fold] = []
    parts: list[dict[str, Array]] = []
    for k, (cut, end) in enumerate(zip(cuts, ends, strict=True)):
        part, fold = _one_fold(
            law, runs, data, [place[int(row)] for row in runs.rows[cut:end]], levels, cut, float(cost[cut - 1]),
            objective, constraints, weights, cluster, draws, starts, coverage, seed, uncertainty,
        )  # fmt: skip
        done.append(fold)
        if part is not None:
            n = end - cut
            part |= {"row": runs.rows[cut:end], "fold": np.full(n, k), "cost": cost[cut:end]}
            part["distance"] = cost[cut:end] / cost[cut - 1]
            parts.append(part)
        if progress:
            progress(f"back-test of {law.spec}", k + 1, len(cuts))
    return Backtest(
        law.spec, coverage, cost_rule, tuple(done), notes,
        **{name: np.concatenate([p[name] for p in parts]) if parts else np.empty(0) for name in POINTS},
        levels=levels,
        quantiles=np.concatenate([p["quantiles"] for p in parts], axis=1) if parts else np.empty((len(levels), 0)),
    )  # fmt: skip


def _one_fold(
    law: Law, runs: Runs, data: Data, held: list[int], levels: Array, cut: int, largest: float,
    objective: Objective, constraints: Constraints | None, weights: str | None, cluster: str | None,
    draws: int, starts: int, coverage: float, seed: int, uncertainty: How,
) -> tuple[dict[str, Array] | None, Fold]:  # fmt: skip
    """Fit the rows before the cut, predict those held back; the reason where that has no answer."""
    try:
        found = fit_law(
            law, runs.take(np.arange(cut)), objective=objective, constraints=constraints, draws=draws,
            cluster=cluster, weights=weights, starts=starts, coverage=coverage, seed=seed, sensitivity=False,
        )  # fmt: skip
        if found.result == "interrupted":
            raise KeyboardInterrupt
        x = {axis: values[held] for axis, values in data.x.items()}
        seen = found.predict(of="run", coverage=coverage, **x)
    # The rows are good, so a ValueError here is the law's: undefined from every start.
    except (NoAnswer, ValueError) as error:
        return None, Fold(cut, len(held), largest, "no-answer", str(error), False)
    if not np.isfinite(seen.draws).all():
        return None, Fold(cut, len(held), largest, "no-answer", "some predictions are not finite", False)
    reason = next((w.text for w in found.warnings if w.level == "error"), "")
    y = data.y[held]
    return {
        "y": y,
        "median": seen.median,
        "low": seen.low,
        "high": seen.high,
        "reach": seen.reach,
        "crps": crps(seen.draws, y),
        "log_score": log_score(seen.draws, y),
        "pit": pit(seen.draws, y),
        "quantiles": np.quantile(seen.draws, levels, axis=0),
    }, Fold(cut, len(held), largest, found.result, reason if found.result == "not-identified" else "", True)


def _rows_of(fit: Fit) -> Runs:
    """The rows in a fit as a table, with its weights as a column."""
    columns = {**fit.x, fit.law.target: fit.y, WEIGHTS: fit.weights}
    return Runs(columns, fit.rows, fit.units, {}, source=fit.source)


def _mean(values: Array) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
