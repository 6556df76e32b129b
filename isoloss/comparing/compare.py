"""Which law predicts the dearer runs best, on the same rows: the verb ``compare``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.comparing.aggregate import Conformal, conformal, mixed, simplex_weights
from isoloss.comparing.backtest import (
    DRAWS,
    SIZES,
    SPARE,
    STARTS,
    Backtest,
    Progress,
    cuts_of,
    rolling,
    training_cost,
)
from isoloss.comparing.candidates import named, prior_of, with_room
from isoloss.comparing.comparison import Comparison, Criteria, Standing, margin
from isoloss.comparing.scores import pinball
from isoloss.errors import NoAnswer
from isoloss.fitting.data import prepare
from isoloss.fitting.estimate import default_objective
from isoloss.fitting.estimate import fit as fit_law
from isoloss.fitting.objective import Gaussian, LeastSquares, Objective, StudentT
from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.runs import Runs, read

Array = np.ndarray[Any, np.dtype[Any]]

PULL = 3.0  # of the weights towards those before the back-test, see simplex_weights
POOR = 3.0  # times the least scatter around a fit: beyond, auto spares itself the back-test


def compare(
    laws: Sequence[Law | str] | Law | str,
    runs: Runs | Any,
    *,
    objective: Objective | None = None,
    cluster: str | None = None,
    weights: str | None = None,
    folds: int = 4,
    draws: int = DRAWS,
    starts: int = STARTS,
    coverage: float = 0.9,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Back-test laws on the same rows and cuts, and say which predicts better, if that can be said.

    Rows are ordered by training cost (``flops`` where the table has or gives them, else the one axis), and
    each law predicts the dearer runs from the cheaper ones, as :func:`isoloss.backtest` does. A law is scored
    by the CRPS of one new run. Verdicts compare each law with the best one; their intervals treat the runs of
    a fold as one cluster. Weights of a stack are chosen on the held-out quantiles.

    Args:
        laws: names or laws; ``"auto"`` for every registered law that the table allows. Of those, laws that
            miss the rows in their own fit by more than three times as much as another are left out.
        runs: a table, or anything :func:`isoloss.read` takes.
        objective: of all fits; default as in :func:`isoloss.fit`.
        cluster: column whose equal values are resampled together.
        weights: column of row weights.
        folds: at most this many; fewer where the costs do not allow more.
        draws, starts: of each fit.
        coverage: of the intervals.
        seed: same seed, same result.
        progress: called with (what, done, total).

    Returns:
        A standing for every law, and what was left out and why.

    Raises:
        ValueError: wrong names, units or values; laws of different targets. NoAnswer: too few rows to hold
            any back.

    Example:
        >>> import isoloss
        >>> runs = {"tokens": [2.0**k for k in range(16)], "loss": [1 + 8 / 2**k for k in range(16)]}
        >>> isoloss.compare(["power", "hestness"], runs, draws=50).best.law
        'hestness(tokens)'
    """
    if not isinstance(folds, int):
        raise TypeError(f"compare needs a whole number of folds, got {folds!r}")
    if draws < 2:
        raise ValueError(f"compare needs draws >= 2, got {draws}: without draws there is no prediction")
    table = (runs if isinstance(runs, Runs) else read(runs)).derive()
    asked, added, left = named(laws, table)
    chosen = [*asked, *added]
    objective = objective or default_objective(chosen[0])
    table, removed = _common(chosen, table, objective, weights, cluster)
    target = table.numeric(chosen[0].target)[0]
    if np.ptp(target) == 0:
        raise NoAnswer(
            f"{chosen[0].target} is {target[0]:g} in every row, so no law is better than another",
            "runs that differ",
        )
    cost, rule = _cost(chosen, table)
    order = np.lexsort([table.rows, cost])
    table, cost = table.take(order), cost[order]
    if added:
        poor = _poor(chosen, table, objective, weights, starts)
        left |= {law.spec: poor[law.spec] for law in added if law.spec in poor}
        chosen = [law for law in chosen if law.spec not in left]
    chosen, no_room = with_room(chosen, (1 + np.flatnonzero(np.diff(cost) > 0)).tolist(), len(table))
    cuts = cuts_of(cost, folds, max(len(law.parameters) for law in chosen) + SPARE)
    tests, fits, criteria = [], [], []
    for law in chosen:
        tests.append(
            rolling(
                law, table, cost, rule, cuts, objective=objective, constraints=None, weights=weights,
                cluster=cluster, draws=draws, starts=starts, coverage=coverage, seed=seed, progress=progress,
            )
        )  # fmt: skip
        # Draws would only tell the result; those of the last fold do, with nine tenths of the rows.
        fits.append(
            fit_law(
                law, table, objective=objective, draws=0, weights=weights, starts=starts, sensitivity=False
            )
        )
        criteria.append(_criteria(fits[-1], table, weights, starts))
    prior = prior_of(chosen)
    share, shift, stack_crps, best_crps = stacked(tests, coverage, PULL, prior, objective.residual == "log")
    order = np.array(sorted(range(len(tests)), key=lambda k: (not tests[k].complete, tests[k].mean_crps)))
    best = tests[order[0]]
    standings = tuple(
        Standing(
            fits[k].law.spec, fits[k].law.formula, fits[k].free, _result(fits[k], tests[k]), fits[k].r2, criteria[k],
            tests[k], float(share[k]), margin(tests[k], best) if tests[k] is not best and tests[k].complete else None,
        )
        for k in order
    )  # fmt: skip
    return Comparison(
        standings=standings,
        left_out=left | no_room,
        target=chosen[0].target,
        unit=table.units.get(chosen[0].target, ""),
        rows=len(table),
        removed=removed,
        source=table.source,
        objective=_in_words(objective),
        cost_rule=rule,
        coverage=coverage,
        conformal=shift,
        stack_crps=stack_crps,
        best_crps=best_crps,
        seed=seed,
    )


def _common(
    laws: Sequence[Law], runs: Runs, objective: Objective, weights: str | None, cluster: str | None
) -> tuple[Runs, tuple[tuple[int, str], ...]]:
    """The rows that every law can be fitted to, and the others with the reason."""
    kept = set(runs.rows.tolist())
    removed = {entry.row: entry.why for entry in runs.removed}
    for law in laws:
        known = f"{law.target}_sd"
        sd = known if objective.name == "gaussian" and known in runs else None
        data = prepare(law, runs, weights=weights, sd=sd, cluster=cluster)
        kept &= set(data.rows.tolist())
        removed |= {entry.row: entry.why for entry in data.removed if entry.row not in removed}
    if len(kept) < 2:
        raise NoAnswer(
            f"{len(kept)} of {len(runs)} rows can be used by every law", "rows with all their axes"
        )
    return runs.take(np.isin(runs.rows, list(kept))), tuple(sorted(removed.items()))


def _poor(
    laws: Sequence[Law], runs: Runs, objective: Objective, weights: str | None, starts: int
) -> dict[str, str]:
    """Laws that miss even the rows they are fitted to, and by how much; and those that can follow any rows.

    By the weighted mean size of the residuals over ``sqrt(1 - k/n)``, k parameters and n effective rows, the
    exponential of the entropy of the weights. A law of as many parameters as those is left out: it follows
    any rows, and would be the yardstick of the others.
    """
    scatter, out = dict[str, float](), dict[str, str]()
    for law in laws:
        try:
            found = fit_law(
                law, runs, objective=objective, draws=0, weights=weights, starts=starts, sensitivity=False
            )
        except (NoAnswer, ValueError):
            continue  # the back-test says why
        w = found.weights / np.sum(found.weights)
        effective = math.exp(-float(np.sum(w * np.log(np.maximum(w, 1e-300)))))
        if found.free >= effective:
            out[law.spec] = f"its {found.free} parameters can follow any {effective:.2g} effective rows"
            continue
        scatter[law.spec] = float(np.sum(w * np.abs(found.residuals))) / math.sqrt(1 - found.free / effective)
    if not scatter:
        return {}
    least = min(scatter, key=lambda spec: scatter[spec])
    allowed = POOR * scatter[least]
    return out | {
        spec: f"misses the rows in its own fit by {size / max(scatter[least], 1e-300):.2g} times as much as {least}"
        for spec, size in scatter.items()
        if size > allowed
    }


def _cost(laws: Sequence[Law], runs: Runs) -> tuple[Array, str]:
    """Training cost of every row: flops, size times tokens, or the one axis of all laws."""
    axes = dict.fromkeys(axis for law in laws for axis in law.axes)
    for names in (("flops",), *((size, "tokens") for size in SIZES), tuple(axes)):
        if all(name in runs and runs[name].dtype.kind == "f" for name in names):
            x = dict(zip(names, runs.numeric(*names), strict=True))
            if all(bool(np.all(np.isfinite(values) & (values > 0))) for values in x.values()):
                cost, rule = training_cost(x)
                return cost, runs.derived.get("flops", rule) if rule == "flops" else rule
    raise ValueError(f"a comparison needs rows ordered by cost, got {', '.join(axes)}. Add a column flops")


def _result(fit: Fit, test: Backtest) -> str:
    """Identified only if the parameters of all rows are, and the draws of the last fold agree."""
    return test.folds[-1].result if fit.result == "identified" else fit.result


def _criteria(fit: Fit, runs: Runs, weights: str | None, starts: int) -> Criteria:
    """AICc and BIC of the fit, or of a likelihood fit beside it: Student-t for Huber, Gaussian for squares."""
    likely = fit.objective
    if not isinstance(likely, Gaussian | StudentT):
        residual = likely.residual
        likely = Gaussian(residual) if isinstance(likely, LeastSquares) else StudentT(residual)
        try:
            fit = fit_law(
                fit.law, runs, objective=likely, draws=0, weights=weights, starts=starts, sensitivity=False
            )
        except (NoAnswer, ValueError) as error:
            return Criteria(None, None, f"no likelihood fit: {error}")
    n, k = len(fit.y), fit.free + 1  # and the scale
    if n <= k + 1:
        return Criteria(None, None, f"AICc needs more than {k + 1} rows, got {n}")
    lost = 2 * negative_log_likelihood(fit)
    df = f" (df {likely.df:g})" if isinstance(likely, StudentT) else ""
    return Criteria(
        lost + 2 * k + 2 * k * (k + 1) / (n - k - 1), lost + k * math.log(n), f"{likely.name}{df}"
    )


def negative_log_likelihood(fit: Fit) -> float:
    """Of the measured target, in its own unit, at the fitted parameters and scale; no priors.

    Raises:
        ValueError: the objective is no likelihood.
    """
    objective, n = fit.objective, len(fit.y)
    if isinstance(objective, Gaussian):
        constant = 0.5 * math.log(2 * math.pi)
    elif isinstance(objective, StudentT):
        nu = objective.df
        constant = math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2) + 0.5 * math.log(nu * math.pi)
    else:
        raise ValueError(f"needed a gaussian or student-t fit, got {objective.name}")
    total = fit.value * (n if objective.reduction == "mean" else 1)
    jacobian = float(np.sum(fit.weights * np.log(fit.y))) if objective.residual == "log" else 0.0
    return total + n * constant + jacobian


def stacked(
    tests: Sequence[Backtest],
    coverage: float,
    pull: float = PULL,
    prior: Sequence[float] | None = None,
    log: bool = True,
) -> tuple[Array, Conformal, float, float]:
    """Weights of all laws, the conformal correction, and the CRPS of the stack and of the best law.

    Quantiles are mixed in logs where the residuals are logs: one law that explodes then counts for less. The last three come from weights chosen without the fold that they are judged on.
    """
    share = np.zeros(len(tests))
    whole = [k for k, test in enumerate(tests) if test.complete]
    if not whole:
        return share, conformal([], [], [], coverage), math.nan, math.nan
    first = tests[whole[0]]
    levels, y, fold = first.levels, first.y, first.fold
    quantiles = np.stack([tests[k].quantiles for k in whole])
    plain = y
    log = log and bool((quantiles > 0).all())
    if log:
        quantiles, y = np.log(quantiles), np.log(y)
    before = None if prior is None else np.asarray(prior)[whole]
    share[whole] = simplex_weights(quantiles, levels, y, pull, before)
    mix = np.empty_like(first.quantiles)
    for k in np.unique(fold):
        others = fold != k
        chosen = (
            simplex_weights(quantiles[:, :, others], levels, y[others], pull, before)
            if others.any()
            else share[whole]
        )
        mix[:, ~others] = mixed(quantiles[:, :, ~others], chosen)
    if log:
        mix, quantiles, y = np.exp(mix), np.exp(quantiles), plain
    ends = [int(np.argmin(np.abs(levels - end))) for end in ((1 - coverage) / 2, (1 + coverage) / 2)]
    shift = conformal(mix[ends[0]], mix[ends[1]], y, coverage)
    alone = min(2 * float(np.mean(pinball(q, levels, y))) for q in quantiles)
    return share, shift, 2 * float(np.mean(pinball(mix, levels, y))), alone


def _in_words(objective: Objective) -> str:
    settings = replace(objective).to_json()
    extra = "".join(f"{name} {settings[name]:g}, " for name in ("delta", "df") if name in settings)
    return f"{objective.name} ({extra}{objective.residual} residuals)"
