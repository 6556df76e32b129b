"""When there is no plan: what is asked has no answer, with the least that would have one, or means nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.planning.belief import Belief
from isoloss.planning.budget import Budget
from isoloss.planning.costs import Cost
from isoloss.planning.result import spread
from isoloss.planning.search import best_loss, bisect, cheapest
from isoloss.planning.surface import EDGE, Limits, Surface
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]

OPEN = 1e6  # a best size open by more than this factor is no answer


def check_bounded(belief: Belief, budget: Budget, limits: Limits) -> None:
    """A best loss needs limits that hold both axes, or it is found at infinity."""
    both = {"params", "tokens"}
    free = both - {axis for limit in limits.held for axis in both if limit.cost.bounds(axis)}
    if not free:
        return
    held = ", ".join(budget.given)
    repeats = " (this law may repeat them)" if "tokens_unique" in belief.law.axes and budget.tokens else ""
    add = "flops=" if free == both or "tokens" in free else "flops=, params= or bytes="
    raise ValueError(
        f"the best loss within {held}{repeats} is at endless {' and '.join(sorted(free))}: add {add}, or a "
        "wanted loss="
    )


def check_stored(belief: Belief, budget: Budget) -> None:
    """Where experts are routed and ``params`` is what one token sees, the bytes of all of them are not known."""
    partly = "experts" in belief.law.axes or "params_active" in belief.law.axes
    if partly and (budget.bytes is not None or budget.objective == "bytes"):
        raise ValueError(
            f"{belief.law.spec} counts the parameters that one token sees, so the bytes of all its experts are not "
            "known. Leave bytes out, or plan with a law of all parameters and expert_density"
        )


def check_open(belief: Belief, low: float, high: float) -> None:
    """No plan where the draws put the best size anywhere."""
    if math.isfinite(high) and high > OPEN * low:
        raise NoAnswer(
            f"the data leave the best size open from {format_count(low)} to {format_count(high)} parameters "
            f"({100 * belief.coverage:g}% of the draws)",
            "runs off the common ray: at least 3 values of tokens per parameter over a factor of 4 at the "
            "largest budget affordable, or a smaller law",
        )


def no_room(limits: Limits) -> NoAnswer:
    """Nothing fits in: not one parameter trained on one token."""
    least_cost = {limit: float(np.min(limit.cost.value(limits.point()))) for limit in limits.held}
    short = [limit for limit, least in least_cost.items() if least > limit.most]
    names = ", ".join(f"{limit.name} {limit.most:.3g}" for limit in short)
    least = ", ".join(f"{limit.name} {above(least_cost[limit], 3):.3g}" for limit in short)
    return NoAnswer(
        f"nothing can be trained within {names or 'these limits'}: one parameter on one token exceeds it",
        f"at least {least or 'more of each limit'}",
    )


def out_of_reach(belief: Belief, surface: Surface, limits: Limits, cost: Cost, loss: float) -> NoAnswer:
    """Why the plug-in law does not reach the wanted loss, and the least that would.

    Every row of the surface is the law with other values of the further axes; it takes the best of them.
    """
    floors = surface.floor()[:, 0]
    floor = float(np.min(floors))
    if loss <= floor:
        low, high = math.nan, math.nan
        if len(belief.draws):
            lowest = surface.rows_at(np.array([int(np.argmin(floors))]))
            low, high = spread(replace(lowest, theta=belief.draws).floor()[:, 0], belief.coverage)
        between = f" ({low:.4g} to {high:.4g})" if math.isfinite(low) else ""
        return NoAnswer(
            f"loss {loss:g} is below the irreducible loss {floor:.4g}{between}",
            f"a wanted loss above {above(floor):.4g}"
            + (f", safely above {above(high):.4g}" if between else ""),
        )
    best = best_loss(surface, limits)
    row = int(np.nanargmin(best.loss))
    level = float(best.loss[row])
    on = limits.at(best.x[:, None], best.d[:, None])
    used = [limit.name for limit, full in zip(limits.held, on, strict=True) if full[row, 0]]
    if surface.unique is not None and (endless := _endless(surface)) > loss:
        return _too_few_tokens(surface, loss, endless)
    if not used:
        return NoAnswer(
            f"loss {loss:g} is not reached with 1e30 parameters and tokens: the law gives {level:.4g}",
            f"a wanted loss above {above(level):.4g}",
        )
    ways = []
    for limit in limits.held:
        amount = _least(surface, limits.without(limit.name), limit.cost, loss)
        if amount > limit.most:
            ways.append(
                f"{limit.name} {_enough(limit.cost, amount)} instead of {limit.cost.text(limit.most)}"
            )
    reason = f"loss {loss:g} is not reached within {', '.join(used)}: the best there is {level:.4g}"
    return NoAnswer(
        reason, " or ".join(ways) or _without_limits(surface, replace(limits, held=()), cost, loss, level)
    )


def above(value: float, digits: int = 4) -> float:
    """The least number of so many digits that is not below ``value``: what is needed must be enough as printed."""
    if value == 0 or not math.isfinite(value):
        return value
    unit = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - digits)
    return math.ceil(value / unit * (1 - 1e-12)) * unit


def _enough(cost: Cost, amount: float) -> str:
    """An amount that is needed, as text: never less than it."""
    return cost.text(above(amount, 3))


def _least(surface: Surface, limits: Limits, cost: Cost, loss: float) -> float:
    """The least of a cost that reaches the loss in any row; NaN where none does."""
    found = cheapest(surface, limits, cost, loss)
    if np.isnan(found.x).all():
        return math.nan
    return float(np.nanmin(cost.value(limits.point(found.params[:, None], found.tokens[:, None]))))


def _without_limits(surface: Surface, limits: Limits, cost: Cost, loss: float, best: float) -> str:
    """What it takes where no single limit is to blame."""
    # with tokens to spare, so that a law that may repeat them need not
    spend = _least(replace(surface, unique=None), limits, cost, loss)
    if math.isnan(spend):
        return f"a wanted loss above {above(best):.4g}"
    return f"more of several limits at once; without any, {_enough(cost, spend)} {cost.what}"


def _too_few_tokens(surface: Surface, loss: float, best: float) -> NoAnswer:
    """Repeating cannot make up for what is missing: the unique tokens that endless repetition would need."""

    def reached(log_unique: Array) -> Array:
        unique = math.exp(float(log_unique[0, 0]))
        return np.array([[_endless(replace(surface, unique=unique)) <= loss]])

    least = math.exp(float(bisect(reached, np.zeros((1, 1)), np.full((1, 1), EDGE))[0, 0]))
    held = format_count(surface.unique or math.nan)
    return NoAnswer(
        f"loss {loss:g} is not reached with {held} tokens however often they are repeated: the law gives {best:.4g}",
        f"more than {format_count(above(least, 3))} unique tokens, or a wanted loss above {above(best):.4g}",
    )


def _endless(surface: Surface) -> float:
    """The least loss on the whole plane, in any row."""
    return float(np.nanmin(best_loss(surface, Limits((), surface.others)).loss))
