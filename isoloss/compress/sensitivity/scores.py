"""What every method of sensitivity gives: a number for each layer in each format, and its own cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from isoloss.measure.measurement import Spent

Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class Scores:
    """What each layer in each format is thought to cost.

    Attributes:
        method: its name in ``SENSITIVITIES``.
        table: layer -> format -> score; the larger, the worse.
        unit: ``nats`` where a score foretells the rise of the loss itself (the loss's own unit, whatever that is);
            empty where only the order counts.
        how: in a line.
        spent: CPU seconds, and gradients of the subject's loss where that is the natural unit.
        errors: layer -> format -> standard error of the score; None where nobody knows.
        along: layer -> format -> numbers, half of whose sum of squares is the score; those of several layers
            added up give what they cost together. None where a method knows each layer by itself.
    """

    method: str
    table: Table
    unit: str
    how: str
    spent: Spent = field(default_factory=lambda: Spent(math.nan, math.nan))
    errors: Table | None = None
    along: Mapping[str, Mapping[str, Tensor]] | None = None

    def added(self, plan: Mapping[str, str]) -> float:
        """The sum of the scores of a choice of formats."""
        return math.fsum(self.table[name][format] for name, format in plan.items())

    def together(self, plan: Mapping[str, str]) -> float:
        """What the choice costs as a whole: with the terms between layers where the method knows them.

        Example:
            >>> import torch
            >>> along = {"a": {"int4": torch.tensor([1.0, 0.0])}, "b": {"int4": torch.tensor([1.0, 1.0])}}
            >>> scores = Scores("x", {"a": {"int4": 0.5}, "b": {"int4": 1.0}}, "nats", "", along=along)
            >>> scores.added({"a": "int4", "b": "int4"}), scores.together({"a": "int4", "b": "int4"})
            (1.5, 2.5)
        """
        if self.along is None:
            return self.added(plan)
        total = sum(self.along[name][format] for name, format in plan.items())
        assert isinstance(total, Tensor)
        return 0.5 * float(total.square().sum())
