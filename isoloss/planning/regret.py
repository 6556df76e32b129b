"""How much a choice may give away: expected regret over the draws, and the sizes that are nearly as good."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from isoloss.planning.rates import Solved
from isoloss.planning.result import NearOptimal, RegretChoice
from isoloss.planning.search import best_loss, stretch
from isoloss.planning.surface import Limits


def regret_choice(plug_in: Solved, draws: Solved | None, limits: Limits) -> RegretChoice:
    """The point on the frontier of ``limits`` whose loss is least on average over the draws.

    The loss given away by a point is its loss in a draw minus that draw's own best; the best does not
    depend on the point, so the least expected regret is the least expected loss.
    """
    best = plug_in.optima
    if draws is None:
        return RegretChoice(
            float(best.params[0]), float(best.tokens[0]), float(best.loss[0]), math.nan, math.nan
        )
    surface = draws.surface
    pooled = replace(surface, pooled=True)
    choice = best_loss(pooled, limits)
    own = draws.optima if draws.cost is None else best_loss(surface, limits)
    mean_of_best = float(np.mean(own.loss))
    here = float(pooled.loss(best.x[:, None], best.d[:, None])[0, 0])
    level = plug_in.surface.loss(choice.x[:, None], choice.d[:, None])
    # no draw does worse at its own optimum than here, but for rounding
    return RegretChoice(
        float(choice.params[0]),
        float(choice.tokens[0]),
        float(level[0, 0]),
        max(float(choice.loss[0]) - mean_of_best, 0.0),
        max(here - mean_of_best, 0.0),
    )


def near_optimal(plug_in: Solved, limits: Limits, within: float) -> NearOptimal:
    """The sizes on the frontier of ``limits`` whose loss is at most a share ``within`` above the best."""
    best = plug_in.optima
    low, high = stretch(plug_in.surface, limits, best.x[:, None], best.loss[:, None] * (1.0 + within))
    return NearOptimal(within, math.exp(low[0, 0]), math.exp(high[0, 0]))
