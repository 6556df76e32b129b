"""From a belief and a budget to a plan: the verb ``plan``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.planning import cautions
from isoloss.planning.belief import Belief, belief
from isoloss.planning.budget import Budget
from isoloss.planning.one_axis import plan_one_axis
from isoloss.planning.question import question
from isoloss.planning.rates import Solved, exchange_rates
from isoloss.planning.regret import near_optimal, regret_choice
from isoloss.planning.result import Objective, Plan, Quantity, spread
from isoloss.planning.search import Optima

Array = np.ndarray[Any, np.dtype[Any]]


def plan(
    source: Fit | Law | str,
    budget: Budget,
    *,
    coverage: float | None = None,
    within: float = 0.001,
    theta: Any = None,
) -> Plan:
    """The best loss within a budget, or the cheapest way to a wanted loss, and how sure that is.

    Every law takes one numeric route: all tokens that the limits allow are spent at each size, and the
    size is found by the sign of the exact derivative along that frontier, for every draw of the fit at
    once. The point is the optimum of the best parameters (plug-in); each draw has an optimum of its own,
    and the intervals are over those.

    Args:
        source: a fit; or a law, or its name, with ``theta`` (then there are no intervals).
        budget: limits, and perhaps the loss wanted.
        coverage: of the intervals; default the fit's.
        within: how much above the best loss, as a share, still counts as near-optimal.
        theta: of a law: the name of a published fit, values by name, or an array (P,).

    Raises:
        ValueError: the budget leaves an axis free, or the law's axes have no known cost.
        NoAnswer: the data do not determine the law or its optimum, or the budget cannot be met: with the
            limit that binds and the least that would be needed.

    Example:
        >>> chosen = plan("hoffmann", Budget(flops=5.76e23), theta="besiroglu-2024")
        >>> chosen
        Plan(hoffmann: params 72.2B; tokens 1.33T; tokens per parameter 18.4; loss (mean) 1.9744; binding flops)
        >>> chosen.exchange_rates["loss_for_flops"].reading
        'the loss falls by 0.0142 % per 1 % more training FLOPs'
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"plan needs a Budget, got {type(budget).__name__}: isoloss.Budget(flops=1e21), say")
    if not 0 < within < 1:
        raise ValueError(f"within must be a share of the loss between 0 and 1, got {within}")
    held = belief(source, theta, coverage)
    return _plan_plane(held, budget, within) if held.plane else plan_one_axis(held, budget, within)


def _plan_plane(held: Belief, budget: Budget, within: float) -> Plan:
    asked = question(held, budget)
    plug_in, draws = asked.plug_in(), asked.draws()
    best = plug_in.optima
    own = draws.optima if draws else None
    optima = _quantities(best, own, held.coverage)
    size = optima["params"]
    cautions.check_open(held, size.low, size.high)
    point = {"params": size.value, "tokens": optima["tokens"].value}
    axes = plug_in.surface.at(best.x[:, None], best.d[:, None])
    loss, loss_run = held.levels({axis: float(values[0, 0]) for axis, values in axes.items()})
    spend = asked.same_spend(plug_in)
    notes = cautions.warnings(held, budget, plug_in.surface, best, own, (size.low, size.high))
    return Plan(
        law=held.law.spec,
        size=plug_in.surface.size,
        coverage=held.coverage,
        objective=_objective(plug_in, draws, held),
        params=size,
        tokens=optima["tokens"],
        tokens_per_param=optima["tokens_per_param"],
        loss=loss,
        loss_run=loss_run,
        regret_choice=regret_choice(plug_in, draws, spend),
        near_optimal=near_optimal(plug_in, spend, within),
        costs={name: float(cost.value(point)) for name, cost in budget.defined.items() if name not in point},
        binding=asked.binding(best),
        exchange_rates=exchange_rates(plug_in, draws, held.coverage),
        budget=budget,
        warnings=tuple(notes),
        belief=held,
    )


def _quantities(best: Optima, draws: Optima | None, coverage: float) -> dict[str, Quantity]:
    """Optimal params, tokens and their ratio; a draw without an optimum would need endless ones."""
    value = {"params": best.params, "tokens": best.tokens, "tokens_per_param": np.exp(best.d - best.x)}
    own = dict.fromkeys(value, np.empty(0))
    if draws is not None:
        lost = np.isnan(draws.x)
        own["params"] = np.where(lost, np.inf, draws.params)
        own["tokens"] = np.where(lost, np.inf, draws.tokens)
        own["tokens_per_param"] = np.exp(draws.d - draws.x)
    return {name: Quantity(float(value[name][0]), *spread(own[name], coverage)) for name in value}


def _objective(plug_in: Solved, draws: Solved | None, held: Belief) -> Objective:
    """The least value of what was made small, in the plug-in law and over the draws."""

    def least(one: Solved) -> Array:
        if one.cost is None:
            return one.optima.loss
        spent = one.cost.value({"params": one.optima.params, "tokens": one.optima.tokens})
        return np.where(np.isnan(spent), np.inf, spent)

    ends = spread(least(draws), held.coverage) if draws else (math.nan, math.nan)
    name, unit = (plug_in.cost.name, plug_in.cost.unit) if plug_in.cost else ("loss", held.loss_unit)
    return Objective(name, float(least(plug_in)[0]), *ends, unit)
