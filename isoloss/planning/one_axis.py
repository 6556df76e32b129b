"""Plans by a law of one axis: how low its loss goes within a limit, or how much the wanted loss takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.planning import costs
from isoloss.planning.belief import Belief
from isoloss.planning.budget import Budget
from isoloss.planning.cautions import about_fit, infeasible, outside
from isoloss.planning.result import (
    NearOptimal,
    Objective,
    Plan,
    Quantity,
    Rate,
    RegretChoice,
    spread,
)
from isoloss.planning.search import bisect
from isoloss.planning.surface import FAR
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]

UNKNOWN = Quantity(math.nan, math.nan, math.nan)
MOST = math.log(1e40)  # the search for a wanted loss ends here
COST_OF = {"flops": "train_flops", "tokens": "tokens"}


def plan_one_axis(held: Belief, budget: Budget, within: float) -> Plan:
    """The plan by a law that does not trade one axis for another; what it cannot say is NaN.

    Raises:
        ValueError: a limit says nothing about the law's axis. NoAnswer: the wanted loss is out of reach.
    """
    axis = held.law.axes[0]
    limits = {name: _on_axis(held, budget, name) for name in budget.given}
    tightest = min(limits, key=limits.__getitem__) if limits else None
    most = limits[tightest] if tightest else math.exp(MOST)
    amount, own = most, np.full(len(held.draws), most)
    if budget.loss is not None:
        amount = float(_needed(held, held.theta[None], budget.loss)[0])
        _refuse_unreachable(held, budget.loss, amount, most, tightest)
        own = _needed(held, held.draws, budget.loss)
        own = np.where(own <= most, own, np.inf)
    found = Quantity(amount, *spread(own, held.coverage))
    loss, loss_run = held.levels({axis: amount})
    known = {"params" if axis.startswith("params") else axis: amount}
    return Plan(
        law=held.law.spec,
        size=axis if axis.startswith("params") else "params",
        coverage=held.coverage,
        objective=_objective(held, budget, axis, found, loss),
        params=found if axis.startswith("params") else UNKNOWN,
        tokens=found if axis == "tokens" else UNKNOWN,
        tokens_per_param=UNKNOWN,
        loss=loss,
        loss_run=loss_run,
        regret_choice=RegretChoice(
            known.get("params", math.nan), known.get("tokens", math.nan), loss.value, math.nan, math.nan
        ),
        near_optimal=NearOptimal(within, math.nan, math.nan),
        costs=_costs(budget, known),
        binding=("loss",) if budget.loss is not None else (tightest,) if tightest else (),
        exchange_rates={f"loss_for_{axis}": _rate(held, axis, amount)},
        axes=(),
        epochs=None,
        rates_between=(),
        steps=(),
        slots=held.slots,
        assumed_separable=held.assumed_separable,
        tuned=(),
        budget=budget,
        warnings=(
            *outside(held, {axis: amount}),
            *infeasible(own, budget.loss),
            *about_fit(held),
        ),
        belief=held,
    )


def _on_axis(held: Belief, budget: Budget, name: str) -> float:
    """How much of the law's axis a limit allows."""
    axis, most = held.law.axes[0], budget.given[name]
    if name == axis or (name == "params" and axis.startswith("params")):
        return most
    cost = budget.cost(name)
    if axis.startswith("params") and not cost.bounds("tokens"):
        return float(cost.solve("params", most, {}))
    if axis == "flops" and all(set(axes) == {"params", "tokens"} for _, axes in cost.terms):
        # proportional to 6ND, which is the axis
        return most * float(costs.TRAIN_FLOPS / sum(c for c, _ in cost.terms))
    raise ValueError(
        f"{held.law.spec} reads {axis} alone, so a limit on {name} says nothing about its loss. Limit {axis}, "
        "or plan with a law of params and tokens"
    )


def _needed(held: Belief, theta: Array, loss: float) -> Array:
    """The least amount of the axis that reaches ``loss``, per row; infinite where none does."""
    axis = held.law.axes[0]
    parts = tuple(theta[:, p, None] for p in range(theta.shape[1]))

    def reached(x: Array) -> Array:
        with np.errstate(all="ignore"):
            level = np.asarray(held.law.value(parts, {axis: np.exp(x)}), dtype=float)
        return np.broadcast_to(level, (len(theta), 1)) <= loss

    low, high = np.zeros((len(theta), 1)), np.full((len(theta), 1), MOST)
    return np.asarray(np.where(reached(high), np.exp(bisect(reached, low, high)), np.inf)[:, 0])


def _refuse_unreachable(held: Belief, loss: float, amount: float, most: float, limit: str | None) -> None:
    axis = held.law.axes[0]
    if math.isinf(amount):
        with np.errstate(all="ignore"):
            floor = float(np.asarray(held.law.evaluate(held.theta, **{axis: math.exp(FAR)})))
        raise NoAnswer(
            f"loss {loss:g} is not reached with 1e40 {axis}: the law falls to {floor:.4g}",
            f"a wanted loss above {floor:.4g}",
        )
    if amount > most:
        raise NoAnswer(
            f"loss {loss:g} is not reached within {limit}",
            f"{axis} {format_count(amount)}; the limit allows {format_count(most)}",
        )


def _objective(held: Belief, budget: Budget, axis: str, found: Quantity, loss: Quantity) -> Objective:
    if budget.loss is None:
        return Objective("loss", loss.value, loss.low, loss.high, held.loss_unit)
    unit = "FLOP" if axis == "flops" else "count"
    return Objective(COST_OF.get(axis, "params"), found.value, found.low, found.high, unit)


def _costs(budget: Budget, known: dict[str, float]) -> dict[str, float]:
    """The costs that the one axis determines."""
    out = {}
    for name, cost in budget.defined.items():
        if "flops" in known and all(set(axes) == {"params", "tokens"} for _, axes in cost.terms):
            out[name] = known["flops"] * sum(c for c, _ in cost.terms) / costs.TRAIN_FLOPS
        elif name not in ("params", "tokens") and all(a in known for _, axes in cost.terms for a in axes):
            out[name] = float(cost.value(known))
    return out


def _rate(held: Belief, axis: str, amount: float) -> Rate:
    thetas = np.vstack([held.theta[None], held.draws])
    loss, slope = held.law.elasticities(thetas, {axis: np.full((1, 1), amount)})
    values = np.broadcast_to(slope[axis] / loss, (len(thetas), 1))[:, 0]
    value = float(values[0])
    low, high = spread(values[1:], held.coverage)
    reading = f"the loss {'falls' if value <= 0 else 'rises'} by {abs(value):.3g} % per 1 % more {axis}"
    return Rate(value, low, high, "per cent per per cent", reading)
