"""What every axis of a plan is worth in every other one: slopes of the isoloss surface, and single steps of a choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.planning.axes import Settled, Tied
from isoloss.planning.rates import Solved
from isoloss.planning.result import Between, Quantity, Step, spread
from isoloss.planning.search import Optima, bisect, tokens_for
from isoloss.planning.surface import Surface

Array = np.ndarray[Any, np.dtype[Any]]

REACH = math.log(1e6)  # a step worth more than this factor of parameters is worth any number


def rates_between(
    plug_in: Solved, draws: Solved | None, settled: Settled, coverage: float
) -> tuple[Between, ...]:
    r"""For every ordered pair of axes, d ln of the one per d ln of the other at equal loss, at the plan.

    :math:`d \ln x_j / d \ln x_i = -L_i / L_j` with :math:`L_i = \partial L / \partial \ln x_i`, on the curve that each
    draw sees through the planned point. ``tokens_unique`` is among the axes where tokens are repeated. An axis that is
    searched, costs nothing and is at its best (a learning rate) is not: it has nothing to give.
    """
    parts = [_slopes(one.surface, plug_in.optima) for one in (plug_in, draws) if one]
    axes = [axis for axis in parts[0] if axis not in _free(plug_in, settled)]
    slopes = {axis: np.concatenate([part[axis] for part in parts]) for axis in axes}
    out = []
    for of, per in itertools.permutations(axes, 2):
        with np.errstate(all="ignore"):
            values = 0.0 - slopes[per] / slopes[of]
        values = np.where(np.isfinite(values), values, np.nan)
        out.append(Between(of, per, Quantity(float(values[0]), *spread(values[1:], coverage))))
    return tuple(out)


def _free(plug_in: Solved, settled: Settled) -> set[str]:
    """Axes that were searched, are no cost, and lie inside their stretch."""
    costs = [*(limit.cost for limit in plug_in.limits.held), *([plug_in.cost] if plug_in.cost else [])]
    out: set[str] = set()
    for tied, span in settled.spans.items():
        value = float(plug_in.surface.others[tied[0]])
        if not span.ends_at(value) and not any(cost.bounds(axis) for cost in costs for axis in tied):
            out |= set(tied)
    return out


def _slopes(surface: Surface, best: Optima) -> dict[str, Array]:
    """dL/d ln of every axis at the plan, each (R,)."""
    x, d = best.x[:1, None], best.d[:1, None]
    point = surface.at(x, d)
    repeated = "tokens_unique" in point and bool((point["tokens"] > point["tokens_unique"]).all())
    axes = [surface.size, "tokens", *(["tokens_unique"] if repeated else []), *surface.others]
    _, slopes = surface.along(point, axes)
    if not repeated and "tokens_unique" in point:
        slopes["tokens"] = surface.slopes(x, d)[2]
    return {axis: slopes[axis][:, 0] for axis in axes}


def steps(plug_in: Solved, draws: Solved | None, settled: Settled, coverage: float) -> tuple[Step, ...]:
    """What the step from the chosen value to each neighbouring one costs, and what it is worth, at the planned point.

    The loss there with the neighbouring value, size and tokens unchanged; and by which factor the parameters, or the
    tokens, would have to change for the same loss at the chosen value.
    """
    out = []
    for tied, options in settled.options.items():
        here = float(plug_in.surface.others[tied[0]])
        at = options.index(here)
        for value in options[max(at - 1, 0) : at + 2]:
            if value != here:
                out.append(_step(plug_in, draws, tied, here, value, coverage))
    return tuple(out)


def _step(
    plug_in: Solved, draws: Solved | None, tied: Tied, here: float, there: float, coverage: float
) -> Step:
    worth = [_worth(one.surface, plug_in.optima, tied, there) for one in (plug_in, draws) if one]
    loss, params, tokens = (np.concatenate([part[i] for part in worth]) for i in range(3))
    found = tuple(Quantity(float(v[0]), *spread(v[1:], coverage)) for v in (loss, params, tokens))
    name = "=".join(tied)
    return Step(name, here, there, found[0], found[1], found[2], _reading(name, here, there, found))


def _worth(surface: Surface, best: Optima, tied: Tied, there: float) -> tuple[Array, Array, Array]:
    """Change of the loss, and the factors of params and tokens that change it as much, each (R,)."""
    x, d = best.x[:1, None], best.d[:1, None]
    before = surface.loss(x, d)
    after = replace(surface, others={**surface.others, **dict.fromkeys(tied, there)}).loss(x, d)
    shape = (len(surface.theta), 1)
    low, high = np.broadcast_to(np.maximum(x - REACH, 0.0), shape), np.broadcast_to(x + REACH, shape)
    size = bisect(lambda at: surface.loss(at, d) < after, low, high)
    size = np.where(
        surface.loss(high, d) > after, np.inf, np.where(surface.loss(low, d) < after, -np.inf, size)
    )
    tokens = tokens_for(surface, after, x)
    tokens = np.where(np.abs(tokens) < 1e-9, -np.inf, tokens)  # one token is too many: endlessly fewer
    undefined = np.isnan(after - before)
    with np.errstate(over="ignore"):
        factors = [np.where(undefined, np.nan, np.exp(part))[:, 0] for part in (size - x, tokens - d)]
    return (after - before)[:, 0], factors[0], factors[1]


def _reading(name: str, here: float, there: float, found: Sequence[Quantity]) -> str:
    loss, params, tokens = (entry.value for entry in found)
    if math.isnan(loss):
        return f"{name} {here:g} to {there:g}: the law has no value there"
    way = "rises" if loss >= 0 else "falls"
    worth = f"{_per_cent(params, 'parameters')} or {_per_cent(tokens, 'tokens')}"
    return f"{name} {here:g} to {there:g}: the loss {way} by {abs(loss):.3g}, as with {worth}"


def _per_cent(factor: float, what: str) -> str:
    if math.isinf(factor):
        return f"endless {what}"
    if factor == 0:
        return f"no {what}"
    if factor > 2:
        return f"{factor:.3g} times the {what}"
    return f"{100 * abs(factor - 1):.2g} % {'fewer' if factor < 1 else 'more'} {what}"
