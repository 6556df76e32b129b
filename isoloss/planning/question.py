"""A budget as lines on the plane, and what is solved on it alike for the best parameters and every draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.planning import cautions
from isoloss.planning.belief import Belief
from isoloss.planning.budget import Budget
from isoloss.planning.rates import Solved
from isoloss.planning.search import Optima, best_loss, cheapest
from isoloss.planning.surface import Limit, Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a belief.

    Attributes:
        belief, budget: as given.
        limits: on the plane.
        unique: tokens available, for a law that may repeat them: those are no limit.
    """

    belief: Belief
    budget: Budget
    limits: Limits
    unique: float | None

    def solve(self, theta: Array) -> Solved:
        """The optimum of every theta, (R, P)."""
        surface = Surface(self.belief.law, theta, self.unique)
        if self.budget.loss is None:
            return Solved(surface, self.limits, best_loss(surface, self.limits), None)
        cost = self.budget.defined[self.budget.objective]
        return Solved(surface, self.limits, cheapest(surface, self.limits, cost, self.budget.loss), cost)

    def plug_in(self) -> Solved:
        """The optimum of the best parameters.

        Raises:
            NoAnswer: they do not reach the loss wanted.
        """
        found = self.solve(self.belief.theta[None])
        if found.cost is not None and self.budget.loss is not None and np.isnan(found.optima.x[0]):
            raise cautions.out_of_reach(self.belief, found.surface, self.limits, found.cost, self.budget.loss)
        return found

    def binding(self, best: Optima) -> tuple[str, ...]:
        """What the plug-in's optimum uses up: the loss wanted, limits, and tokens that it repeats."""
        pairs = zip(self.limits.held, self.limits.at(best.x, best.d), strict=True)
        names = [limit.name for limit, used in pairs if used[0]]
        if self.unique is not None and best.tokens[0] >= self.unique * (1 - 1e-9):
            names.append("tokens")
        return (*(["loss"] if self.budget.loss is not None else []), *names)

    def same_spend(self, found: Solved) -> Limits:
        """The limits, and where a cost was made small, no more of it than the plug-in needs."""
        if found.cost is None:
            return self.limits
        point = {"params": found.optima.params[0], "tokens": found.optima.tokens[0]}
        return self.limits.plus(Limit("spend", found.cost, float(found.cost.value(point))))

    def draws(self) -> Solved | None:
        """The optima of the draws; None where there are too few for an interval."""
        return self.solve(self.belief.draws) if len(self.belief.draws) >= 2 else None


def question(belief: Belief, budget: Budget) -> Question:
    """The question on the plane.

    Raises:
        ValueError: the limits leave an axis free. NoAnswer: not even one parameter fits in them.
    """
    repeats = "tokens_unique" in belief.law.axes
    names = [name for name in budget.given if not (name == "tokens" and repeats)]
    limits = Limits(tuple(Limit(name, budget.cost(name), budget.given[name]) for name in names))
    if budget.loss is None:
        cautions.check_bounded(belief, budget, limits)
    if limits.widest() < 0:
        raise cautions.no_room(limits)
    return Question(belief, budget, limits, budget.tokens if repeats else None)
