"""What a plan says of the further axes: the value of each, how sure it is, and what the others give away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isoloss.planning.axes import Settled
from isoloss.planning.combine import Goal, Tried, best_of_values
from isoloss.planning.result import Alternative, Axis, Quantity, spread

Array = np.ndarray[Any, np.dtype[Any]]

UNKNOWN = Quantity(math.nan, math.nan, math.nan)


def best_values(settled: Settled, tried: Tried) -> dict[str, float]:
    """The plan's values of the further axes."""
    out = dict(settled.held)
    for j, tied in enumerate(settled.options):
        out |= dict.fromkeys(tied, float(tried.combinations[tried.best, j]))
    for tied, values in tried.plug_in.spans.items():
        out |= dict.fromkeys(tied, float(values[tried.best]))
    return out


def axes_of(settled: Settled, tried: Tried, goal: Goal, coverage: float) -> tuple[Axis, ...]:
    """Every further axis of the law, as the plan has it.

    A draw in which no combination reaches the wanted loss has no best one, and does not count.
    """
    levels = tried.of_draws()
    known = np.isfinite(levels).any(axis=0)
    levels = levels[:, known]
    winner = np.argmin(levels, axis=0) if levels.size else np.empty(0, dtype=int)
    out = [
        Axis(axis, "held", Quantity(value, value, value), (), False) for axis, value in settled.held.items()
    ]
    best = best_of_values(tried.combinations, tried.plug_in.objective)
    for j, tied in enumerate(settled.options):
        own = tried.combinations[tried.kept[winner], j]
        here = float(tried.combinations[tried.best, j])
        others = tuple(
            _alternative(value, row, own, levels, tried, goal, coverage) for value, row in best[j].items()
        )
        ends = _ends(own, coverage)
        out.append(
            Axis("=".join(tied), "chosen", Quantity(here, *ends), others, tied[0] in settled.by_default)
        )
    for tied, values in tried.plug_in.spans.items():
        drawn = np.empty(0)
        if tried.own is not None:
            drawn = tried.own.spans[tied][:, known][winner, np.arange(len(winner))]
        found = Quantity(float(values[tried.best]), *spread(drawn, coverage))
        out.append(Axis("=".join(tied), "searched", found, (), tied[0] in settled.by_default))
    out += [Axis(axis, "left-out", UNKNOWN, (), False) for axis in settled.left_out]
    return tuple(out)


def _alternative(
    value: float, row: int, own: Array, levels: Array, tried: Tried, goal: Goal, coverage: float
) -> Alternative:
    """One value: the best combination with it, against the plan's and against each draw's best."""
    at = {int(k): i for i, k in enumerate(tried.kept)}
    objective = float(tried.plug_in.objective[row])
    gap = _more(objective, float(tried.plug_in.objective[tried.best]), goal)
    ends, share, regret = (math.nan, math.nan), math.nan, math.nan
    if levels.shape[1] >= 2:
        mine = levels[at[row]]
        ends = spread(_more(mine, levels[at[tried.best]], goal), coverage)
        share = float(np.mean(own == value))
        regret = float(np.mean(_more(mine, levels.min(axis=0), goal)))
    level = objective if goal.cost is None else math.exp(objective)
    return Alternative(value, level, Quantity(float(gap), *ends), share, regret)


def _more(objective: Any, than: Any, goal: Goal) -> Any:
    """How much more: of losses the difference, of costs (as logs) the share."""
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.subtract(objective, than)
        return gap if goal.cost is None else np.expm1(gap)


def _ends(values: Array, coverage: float) -> tuple[float, float]:
    """Ends of the interval over the draws, each one of the values that were there to choose."""
    if len(values) < 2:
        return math.nan, math.nan
    low = np.quantile(values, (1 - coverage) / 2, method="inverted_cdf")
    high = np.quantile(values, (1 + coverage) / 2, method="inverted_cdf")
    return float(low), float(high)
