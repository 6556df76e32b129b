"""A budget as lines on the plane, and what is solved on it alike for the best parameters and every draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from isoloss.planning import refusals
from isoloss.planning.axes import PLANE
from isoloss.planning.belief import Belief
from isoloss.planning.budget import Budget
from isoloss.planning.combine import Goal
from isoloss.planning.costs import Cost
from isoloss.planning.rates import Solved
from isoloss.planning.search import Optima
from isoloss.planning.surface import Limit, Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked of a belief.

    Attributes:
        belief, budget: as given.
        limits: on the plane.
        unique: tokens available, for a law that may repeat them: those are no limit.
        axes: of the law, those that are absent left out.
        others: values of the further axes.
    """

    belief: Belief
    budget: Budget
    limits: Limits
    unique: float | None
    axes: tuple[str, ...]
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def costs(self) -> dict[str, Cost]:
        """Every cost that the budget defines, of these axes."""
        return self.budget.costs_of(self.axes)

    @property
    def goal(self) -> Goal:
        """What is made small."""
        if self.budget.loss is None:
            return Goal(None, None)
        return Goal(self.costs[self.budget.objective], self.budget.loss)

    def at(self, others: Mapping[str, float]) -> Question:
        """The same question with the further axes at these values."""
        return replace(self, others=others, limits=replace(self.limits, others=others))

    def surface(self, theta: Array) -> Surface:
        """The plane of these thetas, (R, P)."""
        return Surface(self.belief.law, theta, self.unique, others=self.others)

    def solve(self, theta: Array) -> Solved:
        """The optimum of every theta, (R, P)."""
        surface, goal = self.surface(theta), self.goal
        return Solved(surface, self.limits, goal.solve(surface, self.limits), goal.cost)

    def plug_in(self) -> Solved:
        """The optimum of the best parameters.

        Raises:
            NoAnswer: they do not reach the loss wanted.
        """
        found = self.solve(self.belief.theta[None])
        if found.cost is not None and self.budget.loss is not None and np.isnan(found.optima.x[0]):
            raise refusals.out_of_reach(self.belief, found.surface, self.limits, found.cost, self.budget.loss)
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
        point = self.limits.point(found.optima.params[0], found.optima.tokens[0])
        return self.limits.plus(Limit("spend", found.cost, float(found.cost.value(point))))

    def draws(self) -> Solved | None:
        """The optima of the draws; None where there are too few for an interval."""
        return self.solve(self.belief.draws) if len(self.belief.draws) >= 2 else None


def question(belief: Belief, budget: Budget, others: Mapping[str, float] | None = None) -> Question:
    """The question on the plane.

    Args:
        belief, budget: as given.
        others: values of the further axes; one that is not named is absent, at its reference. None: they are
            not known yet, see :meth:`Question.at`.

    Raises:
        ValueError: the limits leave an axis free, or bound what a law with such an axis does not tell.
        NoAnswer: not even one parameter fits in them.
    """
    axes = tuple(axis for axis in belief.law.axes if others is None or axis in PLANE or axis in others)
    refusals.check_stored(belief, budget)
    repeats = "tokens_unique" in belief.law.axes
    names = [name for name in budget.given if not (name == "tokens" and repeats)]
    others = dict(others or {})
    limits = Limits(tuple(Limit(name, budget.cost(name, axes), budget.given[name]) for name in names), others)
    if budget.loss is None:
        refusals.check_bounded(belief, budget, limits)
    return Question(belief, budget, limits, budget.tokens if repeats else None, axes, others)
