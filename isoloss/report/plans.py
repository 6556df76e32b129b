"""Takes a plan, gives the picture of the choice: along the budget, or along the wanted loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.planning.question import Question, question
from isoloss.planning.result import Plan, Quantity, spread
from isoloss.planning.search import tokens_for
from isoloss.planning.surface import Surface
from isoloss.report.canvas import (
    ACCENT,
    AMBER,
    BLUE,
    INK,
    NAMES,
    QUIET,
    counts,
    dress,
    equal_flops,
    legend,
    losses,
    named,
    padded,
)
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

SPENT = {"train_flops": "training FLOPs", "total_flops": "FLOPs in all"}
POINTS = 121  # of a curve
SPAN = 6.0  # the curve goes this factor beyond what is marked on it, at least


def draw_plan(axes: Axes, plan: Plan) -> None:
    """Loss along the budget, or for a wanted loss the sizes and tokens that reach it."""
    if not plan.belief.plane:
        _one_axis(axes, plan)
    elif plan.budget.loss is None:
        _along_budget(axes, plan, question(plan.belief, plan.budget, plan.others))
    else:
        _along_loss(axes, plan, question(plan.belief, plan.budget, plan.others))


def _along_budget(axes: Axes, plan: Plan, asked: Question) -> None:
    x = _sizes(plan, float(np.min(asked.limits.widest())))
    d, _ = asked.limits.frontier(x)  # beyond what pays too: the curve turns up there
    x, d = x[:, d[0] >= 0], d[:, d[0] >= 0]
    n = np.exp(x[0])
    loss = _surface(plan.belief.theta[None], asked).loss(x, d)[0]
    low, high = _ends(_surface(plan.belief.draws, asked).loss(x, d), plan.coverage)
    counts(axes, "x", n)
    axes.set_xlim(n[0], n[-1] * (n[-1] / n[0]) ** 0.05)
    _band(axes, n, low, high, plan)
    axes.plot(n, loss, color=BLUE, lw=1.8, zorder=2)
    _near(axes, plan)
    _mark(axes, plan, plan.params, plan.loss, (plan.regret_choice.params, plan.regret_choice.loss))
    losses(axes, "y", _room(loss, low, high, plan), log=False)
    legend(axes, "upper center")
    dress(axes, named(plan.size), named("loss", plan.belief.loss_unit), _headline(plan), _note(plan))


def _along_loss(axes: Axes, plan: Plan, asked: Question) -> None:
    wanted = plan.loss.value
    x = _sizes(plan, math.inf)
    d = np.exp(tokens_for(_surface(plan.belief.theta[None], asked), wanted, x))[0]
    own = np.empty((0, x.shape[1]))
    if len(plan.belief.draws) > 1:
        with np.errstate(over="ignore"):
            own = np.exp(tokens_for(_surface(plan.belief.draws, asked), wanted, x))
    low, high = _ends(own, plan.coverage)
    n = np.exp(x[0])
    counts(axes, "x", n)
    axes.set_xlim(n[0], n[-1])
    t = plan.tokens
    marked = np.array([t.value, t.low, t.high, t.value / SPAN, t.value * SPAN, plan.regret_choice.tokens])
    marked = marked[np.isfinite(marked) & (marked < 1e4 * t.value)]
    bottom, top = padded(marked)
    counts(axes, "y", marked)
    equal_flops(axes)
    far = 1e3 * top  # stands for endless, outside the picture
    _band(axes, n, np.minimum(low, far), np.minimum(high, far), plan)
    axes.plot(n, np.where(np.isfinite(d), d, np.nan), color=BLUE, lw=1.8, zorder=2)
    axes.set_ylim(bottom, top)
    _near(axes, plan)
    _mark(axes, plan, plan.params, plan.tokens, (plan.regret_choice.params, plan.regret_choice.tokens))
    legend(axes, "upper right")
    dress(axes, named(plan.size), named("tokens"), _headline(plan), _note(plan), lift=9.0)


def _surface(theta: Array, asked: Question) -> Surface:
    return asked.surface(theta)


def _sizes(plan: Plan, widest: float) -> Array:
    """ln of the sizes on the curve, (1, n): what is marked and a margin."""
    p, near = plan.params, plan.near_optimal
    marks = [p.value / SPAN, p.value * SPAN, p.low / 2, p.high * 2, plan.regret_choice.params]
    marks += [near.params_low / 2, near.params_high * 2]
    kept = [m for m in marks if math.isfinite(m) and 1e-3 < m / p.value < 1e3]
    return np.linspace(math.log(min(kept)), min(math.log(max(kept)), widest), POINTS)[None, :]


def _ends(own: Array, coverage: float) -> tuple[Array, Array]:
    """Interval over the draws (K, n) at each point."""
    if len(own) < 2:
        nothing = np.full(own.shape[1], np.nan)
        return nothing, nothing
    ends = np.array([spread(column, coverage) for column in own.T])
    return ends[:, 0], ends[:, 1]


def _band(axes: Axes, x: Array, low: Array, high: Array, plan: Plan) -> None:
    if np.isfinite(low).any():
        name = f"{100 * plan.coverage:g}% band of the mean"
        axes.fill_between(x, low, high, color=BLUE, alpha=0.15, lw=0, zorder=1, label=name)


def _near(axes: Axes, plan: Plan) -> None:
    near = plan.near_optimal
    if math.isfinite(near.params_low) and near.params_low < near.params_high:
        name = f"within {near.within:.2%} of the loss"
        axes.axvspan(near.params_low, near.params_high, color=AMBER, alpha=0.25, lw=0, zorder=0, label=name)


def _mark(axes: Axes, plan: Plan, x: Quantity, y: Quantity, regret: tuple[float, float]) -> None:
    """The optimum with its interval bars, and the choice of least expected regret."""
    left, bottom = axes.get_xlim()[0], 0.0
    for along, across, draw in ((x, y.value, axes.hlines), (y, x.value, axes.vlines)):
        if not math.isnan(along.low):
            end = along.high if math.isfinite(along.high) else 1e30
            draw(across, max(along.low, bottom), end, color=ACCENT, lw=1.4, zorder=4)
    axes.set_xlim(left, axes.get_xlim()[1])
    name = f"optimum: {format_count(plan.params.value)}"
    axes.plot([x.value], [y.value], "*", ms=14, color=ACCENT, mec="white", mew=0.8, zorder=6, label=name)
    if not math.isnan(plan.regret_choice.expected_regret):
        name = f"least expected regret: {format_count(regret[0])}"
        axes.plot(*([v] for v in regret), "D", ms=9.5, mfc="none", mec=INK, mew=1.3, zorder=5, label=name)


def _room(loss: Array, low: Array, high: Array, plan: Plan) -> Array:
    """Losses the picture shows: the curve, the interval at the optimum, and the band near it."""
    reach = 2.0 * max(float(np.ptp(loss)), plan.loss.high - plan.loss.low, 0.0)
    both = np.concatenate([loss, low[np.isfinite(low)], high[np.isfinite(high)]])
    return np.asarray(np.clip(both, float(loss.min()) - reach, float(loss.max()) + 0.5 * reach))


def _headline(plan: Plan) -> str:
    amounts = {"parameters": plan.params.value, "tokens": plan.tokens.value}
    point = " on ".join(f"{format_count(v)} {name}" for name, v in amounts.items() if not math.isnan(v))
    return f"{plan.law}: {point or 'plan'}, loss {plan.loss.value:.3f}"


def _note(plan: Plan) -> str:
    defined = plan.budget.defined
    asked = [f"{name} {plan.budget.cost(name).text(value)}" for name, value in plan.budget.given.items()]
    if plan.budget.loss is not None:
        aim = plan.objective
        cost = SPENT.get(aim.minimise, aim.minimise.replace("_", " "))
        first = f"loss {plan.budget.loss:g} for the least {cost} ({defined[aim.minimise].text(aim.value)})"
        parts = [first, *(f"within {limit}" for limit in asked)]
    else:
        parts = [f"as many tokens as {', '.join(asked)} allow" if plan.belief.plane else ", ".join(asked)]
    return "; ".join(
        [*parts, *([] if math.isnan(plan.loss.low) else [f"red bars: {100 * plan.coverage:g}%"])]
    )


def _one_axis(axes: Axes, plan: Plan) -> None:
    """The law's curve with its band, and the plan on it."""
    held = plan.belief
    axis = held.law.axes[0]
    amount = _amount(plan, axis)
    ends = [v for v in (amount.low, amount.high) if math.isfinite(v)]
    measured = held.fit.x[axis].tolist() if held.fit else [amount.value / 100]
    grid = np.geomspace(
        *padded(np.array([amount.value / SPAN, amount.value * SPAN, *ends, *measured])), POINTS
    )
    loss = held.law.evaluate(held.theta, **{axis: grid})
    low, high = _ends(held.law.evaluate(held.draws, **{axis: grid}), plan.coverage)
    counts(axes, "x", grid)
    axes.set_xlim(grid[0], grid[-1])
    _band(axes, grid, low, high, plan)
    axes.plot(grid, loss, color=BLUE, lw=1.8, zorder=2)
    if held.fit:
        axes.plot(
            held.fit.x[axis],
            held.fit.y,
            "o",
            ms=4.5,
            color=QUIET,
            mec="white",
            mew=0.5,
            zorder=3,
            label="runs",
        )
    losses(axes, "y", _room(loss, low, high, plan))
    _mark_one(axes, axis, amount, plan)
    legend(axes, "upper right")
    dress(axes, named(axis), named(held.law.target, held.loss_unit), _headline(plan), _note(plan))


def _mark_one(axes: Axes, axis: str, amount: Quantity, plan: Plan) -> None:
    if amount.low < amount.high:
        end = amount.high if math.isfinite(amount.high) else 1e30
        right = axes.get_xlim()
        axes.hlines(plan.loss.value, amount.low, end, color=ACCENT, lw=1.4, zorder=4)
        axes.set_xlim(right)
    if not math.isnan(plan.loss.low):
        axes.vlines(amount.value, plan.loss.low, plan.loss.high, color=ACCENT, lw=1.4, zorder=4)
    name = f"plan: {format_count(amount.value)} {NAMES.get(axis, axis)}"
    axes.plot([amount.value], [plan.loss.value], "*", ms=14, color=ACCENT, mec="white", zorder=6, label=name)


def _amount(plan: Plan, axis: str) -> Quantity:
    """The planned amount of a law's only axis."""
    if axis == plan.size:
        return plan.params
    if axis == "tokens":
        return plan.tokens
    if plan.objective.minimise == "train_flops":
        return Quantity(plan.objective.value, plan.objective.low, plan.objective.high)
    flops = plan.costs["train_flops"]
    return Quantity(flops, flops, flops)
