"""From a belief and a budget to a plan: the verb ``plan``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.planning import cautions, refusals
from isoloss.planning.axes import Settled, Span, Tied, settle
from isoloss.planning.belief import Belief, belief
from isoloss.planning.between import rates_between, steps
from isoloss.planning.budget import Budget
from isoloss.planning.choices import axes_of, best_values
from isoloss.planning.combine import Goal, Tried, try_all
from isoloss.planning.costs import train_flops, with_axes
from isoloss.planning.one_axis import plan_one_axis
from isoloss.planning.question import Question, question
from isoloss.planning.rates import Solved, exchange_rates
from isoloss.planning.regret import near_optimal, regret_choice
from isoloss.planning.result import Objective, Plan, Quantity, spread
from isoloss.planning.search import Optima
from isoloss.planning.tuned import Rule, about_rule, rule, tune

Array = np.ndarray[Any, np.dtype[Any]]


def plan(
    source: Fit | Law | str,
    budget: Budget,
    *,
    coverage: float | None = None,
    within: float = 0.001,
    theta: Any = None,
    hold: Mapping[str, float] | None = None,
    choose: Mapping[str | Tied, Sequence[float] | Span] | None = None,
    learning_rate: Fit | str | None = None,
    batch: Fit | str | None = None,
) -> Plan:
    """The best loss within a budget, or the cheapest way to a wanted loss, and how sure that is.

    Every law takes one numeric route: all tokens that the limits allow are spent at each size, and the
    size is found by the sign of the exact derivative along that frontier, for every draw of the fit at
    once. The point is the optimum of the best parameters (plug-in); each draw has an optimum of its own,
    and the intervals are over those. Every combination of further axes is one more row of the same search.

    Args:
        source: a fit; or a law, or its name, with ``theta`` (then there are no intervals); or pieces with a
            published fit each, ``"hoffmann@besiroglu-2024 * precision(bits_weights)@kumar-2024"``.
        budget: limits, and perhaps the loss wanted.
        coverage: of the intervals; default the fit's.
        within: how much above the best loss, as a share, still counts as near-optimal.
        theta: of a law: the name of a published fit, values by name, or an array (P,). Values by name may name
            a piece instead and a published fit of it, ``{"hoffmann": "besiroglu-2024", "C_T": 0.06}``.
        hold: further axes of the law and the value of each, ``{"bits_weights": 8}``.
        choose: further axes and the values to choose from, or a :class:`isoloss.planning.axes.Span` to search;
            a tuple of axes shares one value. Axes that neither names have defaults, or must be named.
        learning_rate, batch: a fit of a law with target ``lr`` or ``batch_tokens``, or ``"LAW@PUBLISHED"``: its
            value at the planned point stands in ``tuned``.

    Raises:
        ValueError: the budget leaves an axis free, or nothing is said of a further axis that has no default.
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
    rules = [
        rule(given, target)
        for given, target in ((batch, "batch_tokens"), (learning_rate, "lr"))
        if given is not None
    ]
    if held.plane:
        return _plan_plane(held, budget, within, settle(held.law, hold, choose), rules)
    if hold or choose or rules:
        what = next(
            name for name, given in (("hold", hold), ("choose", choose), ("learning_rate", rules)) if given
        )
        raise ValueError(
            f"{held.law.spec} reads {held.law.axes[0]} alone, so there is nothing to {what.partition('_')[0]}. Leave "
            f"{what} out, or plan with a law of params and tokens"
        )
    return plan_one_axis(held, budget, within)


def _plan_plane(held: Belief, budget: Budget, within: float, settled: Settled, rules: list[Rule]) -> Plan:
    asked = question(held, budget)
    tried = _combined(asked, settled)
    if tried is not None:
        asked = asked.at(best_values(settled, tried))
    plug_in, draws = asked.plug_in(), asked.draws()
    best = plug_in.optima
    own = draws.optima if draws else None
    optima = _quantities(best, own, held.coverage)
    size = optima["params"]
    refusals.check_open(held, size.low, size.high)
    point = asked.limits.point(size.value, optima["tokens"].value)
    axes = plug_in.surface.at(best.x[:, None], best.d[:, None])
    loss, loss_run = held.levels({axis: float(values[0, 0]) for axis, values in axes.items()})
    spend = asked.same_spend(plug_in)
    costs = {name: float(cost.value(point)) for name, cost in asked.costs.items() if name not in point}
    tuned = tune(rules, plug_in, draws, with_axes(train_flops(), asked.axes), held.coverage)
    notes = [
        *cautions.warnings(held, budget, asked.limits, plug_in.surface, best, own, (size.low, size.high)),
        *cautions.about_searched(settled, asked.others),
        *(note for entry in tuned for note in about_rule(entry, plug_in.surface.size)),
    ]
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
        costs=costs,
        binding=asked.binding(best),
        exchange_rates=exchange_rates(plug_in, draws, held.coverage),
        axes=axes_of(settled, tried, asked.goal, held.coverage) if tried is not None else (),
        epochs=_epochs(plug_in, draws, held.coverage),
        rates_between=rates_between(plug_in, draws, settled, held.coverage),
        steps=steps(plug_in, draws, settled, held.coverage),
        slots=held.slots,
        assumed_separable=held.assumed_separable,
        tuned=tuple(entry.tuned for entry in tuned),
        budget=budget,
        warnings=tuple(notes),
        belief=held,
    )


def _combined(asked: Question, settled: Settled) -> Tried | None:
    """Every combination of the further axes; None where the law has none."""
    if not settled.any:
        if (asked.limits.widest() < 0).all():
            raise refusals.no_room(asked.limits)
        return None
    plug_in = asked.surface(asked.belief.theta[None])
    table = asked.at(settled.others(settled.combinations()))
    if not settled.spans and (table.limits.widest() < 0).all():
        raise refusals.no_room(table.limits)
    tried = try_all(plug_in, asked.belief.draws, asked.limits, settled, asked.goal)
    if not np.isfinite(tried.plug_in.objective).any():
        raise _no_answer(asked, settled)
    return tried


def _no_answer(asked: Question, settled: Settled) -> NoAnswer:
    """Why no combination of the further axes will do; searched axes are where the loss is best."""
    rows = try_all(
        asked.surface(asked.belief.theta[None]), np.empty((0, 0)), asked.limits, settled, Goal(None, None)
    )
    others = settled.others(rows.combinations)
    for tied, values in rows.plug_in.spans.items():
        others |= dict.fromkeys(tied, values[:, None])
    table, cost, loss = asked.at(others), asked.goal.cost, asked.budget.loss
    if cost is None or loss is None or not np.isfinite(rows.plug_in.objective).any():
        return refusals.no_room(table.limits)
    surface = table.surface(np.tile(asked.belief.theta, (len(rows.combinations), 1)))
    return refusals.out_of_reach(asked.belief, surface, table.limits, cost, loss)


def _epochs(plug_in: Solved, draws: Solved | None, coverage: float) -> Quantity | None:
    """Passes over the tokens available: at the plan, and at the optima of the draws."""
    unique = plug_in.surface.unique
    if unique is None:
        return None
    with np.errstate(invalid="ignore"):
        own = np.maximum(draws.optima.tokens / unique, 1.0) if draws else np.empty(0)
    return Quantity(max(float(plug_in.optima.tokens[0]) / unique, 1.0), *spread(own, coverage))


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
        spent = np.asarray(one.cost.value(one.limits.point(one.optima.params, one.optima.tokens)))
        return np.where(np.isnan(spent), np.inf, spent)

    ends = spread(least(draws), held.coverage) if draws else (math.nan, math.nan)
    name, unit = (plug_in.cost.name, plug_in.cost.unit) if plug_in.cost else ("loss", held.loss_unit)
    return Objective(name, float(least(plug_in)[0]), *ends, unit)
