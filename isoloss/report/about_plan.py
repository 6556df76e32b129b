"""Takes a fit and a budget, gives the sections of the page on the surface, the plan and its exchange rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.planning.axes import PLANE
from isoloss.planning.budget import Budget
from isoloss.planning.costs import train_flops, with_axes
from isoloss.planning.curves import Frontier, frontier, isoflop_curve, isoloss_curve
from isoloss.planning.fitted import is_level
from isoloss.planning.optimum import plan as make_plan
from isoloss.planning.result import Plan, Rate
from isoloss.planning.surface import SIZES
from isoloss.report.about_axes import axes_said, between_parts, choice_parts
from isoloss.report.blocks import Part, Row, Section, cautions, picture, table
from isoloss.report.canvas import named
from isoloss.report.plans import draw_plan
from isoloss.report.surfaces import (
    draw_frontier,
    draw_frontier_loss,
    draw_isoflops,
    draw_isolosses,
    flops_text,
    nice_budgets,
    run_flops,
    size_axis,
)
from isoloss.report.words import interval, listed, number
from isoloss.runs.units import format_count

FURTHER = 10.0  # the budget asked by default is the dearest run's, this many times
POINTS = 25  # of the frontier
SMALL_SIZE = (4.4, 3.4)
FLOP_SPAN = 10.0  # sizes of an IsoFLOP curve on either side of its optimum, as a factor
SIZE_SPAN = 1000.0  # the same of an isoloss curve; the picture shows a part


@dataclass(frozen=True)
class Answer:
    """A plan with its frontier, or the reason why there is none.

    Attributes:
        plan: None where there is no answer.
        line: the compute-optimal points; None for laws without size and tokens.
        asked: training FLOPs of the plan, NaN where unknown.
        why: the reason, empty where there is a plan.
    """

    plan: Plan | None
    line: Frontier | None
    asked: float
    why: str


def is_plane(fit: Fit) -> bool:
    """Whether the law trades a size against tokens for a smaller loss."""
    return is_level(fit.law) and "tokens" in fit.law.axes and any(axis in SIZES for axis in fit.law.axes)


def default_budget(fit: Fit) -> Budget | None:
    """Ten times the dearest run: of FLOPs, or of the law's one axis; None where no cost is known.

    Example:
        >>> import isoloss
        >>> default_budget(isoloss.fit("power", {"tokens": [1, 2, 4, 8], "loss": [8, 4, 2, 1.0]}))
        Budget(tokens=80.0)
    """
    if is_plane(fit):
        return Budget(flops=FURTHER * float(run_flops(fit).max()))
    axis = fit.law.axes[0]
    if len(fit.law.axes) > 1 or axis not in (*SIZES, "tokens", "flops"):
        return None
    most = FURTHER * float(fit.x[axis].max())
    return (
        Budget(flops=most)
        if axis == "flops"
        else Budget(tokens=most)
        if axis == "tokens"
        else Budget(params=most)
    )


def answer(fit: Fit, asked: Budget | Plan | NoAnswer | None) -> Answer:
    """The plan for a budget, by default :func:`default_budget`; or the plan, or why there is none, found already."""
    if isinstance(asked, Plan):
        return _with_line(fit, asked)
    if isinstance(asked, NoAnswer):
        return _without(asked)
    budget = asked or default_budget(fit)
    if budget is None:
        axes = listed([named(axis) for axis in fit.law.axes])
        return Answer(None, None, math.nan, f"{fit.law.spec} reads {axes}, whose cost is not known.")
    try:
        found = make_plan(fit, budget)
    except NoAnswer as error:
        return _without(error)
    except ValueError as error:  # a budget on what the law does not read
        return Answer(None, None, math.nan, f"{str(error).rstrip('.')}.")
    return _with_line(fit, found)


def _without(why: NoAnswer) -> Answer:
    return Answer(None, None, math.nan, f"{why.reason.rstrip('.')}. Needed: {why.needed.rstrip('.')}.")


def _with_line(fit: Fit, found: Plan) -> Answer:
    """The plan, and the frontier from the runs to it, with its further axes."""
    asked = float(found.costs.get("train_flops", math.nan))
    line = None
    if found.belief.plane:
        # as they are, in 16-bit units or not: those of the runs are
        cost = with_axes(train_flops(), list(found.others))
        asked = float(
            cost.value({"params": found.params.value, "tokens": found.tokens.value, **found.others})
        )
        flops = run_flops(fit)
        ends = [float(flops.min()), float(flops.max()), asked]
        line = frontier(fit, np.geomspace(min(ends), max(ends), POINTS), hold=found.others)
    return Answer(found, line, asked, "")


def surface_section(fit: Fit, given: Answer) -> Section:
    """IsoFLOP and isoloss curves with their bands."""
    title = "The surface: equal compute, equal loss"
    if not is_plane(fit):
        why = f"{fit.law.spec} does not trade parameters against tokens, so it has no IsoFLOP or isoloss curves."
        return Section("surface", title, (why,))
    if fit.result == "not-identified":
        why = (
            "The runs do not determine this law, so a curve through them would show a choice, not a finding."
        )
        return Section("surface", title, (why,))
    others = given.plan.others if given.plan is not None else {}
    if given.plan is None and any(axis not in PLANE for axis in fit.law.axes):
        why = f"Without a plan there is no value of {listed([a for a in fit.law.axes if a not in PLANE])} to draw at."
        return Section("surface", title, (why,))
    asked = given.asked if math.isfinite(given.asked) else None
    budgets = nice_budgets(run_flops(fit), asked)
    equal_compute = {
        budget: isoflop_curve(fit, budget, 61, span=FLOP_SPAN, hold=others) for budget in budgets
    }
    lowest = {budget: float(curve.loss.value.min()) for budget, curve in equal_compute.items()}
    reached = sorted({float(f"{loss:.3g}") for loss in lowest.values()}, reverse=True)
    equal_loss = {}
    for loss in reached:
        try:
            equal_loss[loss] = isoloss_curve(fit, loss, 121, span=SIZE_SPAN, hold=others)
        except NoAnswer:  # rounded to below the floor
            continue
    first, last = equal_compute[budgets[0]], equal_compute[budgets[-1]]
    said = (
        f"Along equal compute the best size grows from {format_count(_best(first))} at "
        f"{flops_text(budgets[0])} training FLOPs to {format_count(_best(last))} at {flops_text(budgets[-1])}. Near its optimum each curve is flat: a somewhat smaller "
        f"model costs little loss. Bands widen where no run lies.{_held_text(others)}{_fresh_text(given.plan)}",
    )
    size = named(size_axis(fit))
    parts: list[Part] = [
        picture(
            lambda figure: draw_isoflops(figure.subplots(), fit, equal_compute), "isoflop",
            f"Loss over {size} along {len(budgets)} budgets of training FLOPs, with bands and optima.",
            f"IsoFLOP curves: the loss of every size when a budget of training FLOPs is spent in full; "
            f"{100 * fit.coverage:g}% bands of the mean.",
        ),
        picture(
            lambda figure: draw_isolosses(figure.subplots(), fit, equal_loss, given.line), "isoloss",
            f"Tokens over {size} along {len(equal_loss)} equal losses, with bands.",
            f"Isoloss curves: all sizes and tokens that reach a loss; {100 * fit.coverage:g}% bands of the tokens "
            "needed.",
        ),
    ]  # fmt: skip
    return Section("surface", title, said, tuple(parts))


def _held_text(others: Mapping[str, float]) -> str:
    """Where the further axes stand in the pictures."""
    if not others:
        return ""
    return f" All at {listed([f'{name} {value:.4g}' for name, value in others.items()])}, as planned."


def _fresh_text(found: Plan | None) -> str:
    """What the pictures leave out where the plan repeats tokens."""
    repeats = found is not None and found.epochs is not None and found.epochs.value > 1
    return " All tokens of the curves are distinct, those of the plan are not." if repeats else ""


def _best(curve: object) -> float:
    params, loss = curve.params, curve.loss.value  # type: ignore[attr-defined]
    return float(params[int(np.argmin(loss))])


def plan_section(fit: Fit, given: Answer) -> Section:
    """The compute-optimal point, its cautions and the frontier."""
    found = given.plan
    if found is None:
        return Section("plan", "Plan", (f"No plan: {given.why}",))
    rows = [(_cap(name), value, ends or "—") for name, value, ends in found.rows()]
    defined = found.budget.defined
    units = " in 16-bit units" if found.budget.bits_cost else ""
    rows += [
        (defined[name].what + (units if name == "train_flops" else ""), defined[name].text(value), "—")
        for name, value in found.costs.items()
        if name != "total_flops" or "serve_flops" in found.costs
    ]
    heads = ("quantity", "plan", f"{100 * found.coverage:g}% interval")
    parts: list[Part] = [
        table("The plan", heads, rows, (1, 2)),
        picture(
            lambda figure: draw_plan(figure.subplots(), found), "plan",
            "The loss along the budget, the planned point and its intervals.",
            "The asked budget: the curve is the law, the star the plan, red bars its intervals.",
        ),
    ]  # fmt: skip
    parts[1:1] = choice_parts(found)
    own = [w for w in found.warnings if w.code not in {entry.code for entry in fit.warnings}]
    if own:
        parts.insert(0, cautions(own))
    if given.line is not None:
        line, size = given.line, size_axis(fit)
        asked = given.asked if math.isfinite(given.asked) else None
        parts.append(
            Row(
                (
                    picture(
                        lambda figure: draw_frontier(figure.subplots(), line, size, asked), "frontier",
                        "Compute-optimal size and tokens over training FLOPs, with bands.",
                        f"The frontier: how much of each a budget is best spent on.{_fresh_text(found)}", SMALL_SIZE,
                    ),
                    picture(
                        lambda figure: draw_frontier_loss(figure.subplots(), line, fit, asked), "frontierloss",
                        "Loss at the compute-optimal point over training FLOPs, with its band.",
                        "The loss on the frontier, and the runs above it.", SMALL_SIZE,
                    ),
                )
            )
        )  # fmt: skip
        parts.append(_frontier_table(line, size))
    return Section("plan", "Plan", _plan_said(fit, found), tuple(parts))


def _cap(name: str) -> str:
    return named(name) if name in ("params", "params_nonembedding", "tokens") else name


def budget_text(budget: Budget, repeats: bool = False) -> str:
    """The limits of a budget in words; of a law that repeats them, tokens are those available."""
    limits = [
        f"{budget.cost(name).text(value)} "
        f"{'distinct tokens' if name == 'tokens' and repeats else budget.cost(name).what}"
        for name, value in budget.given.items()
    ]
    goal = (
        [f"a loss of {budget.loss:g} for the least {budget.objective.replace('_', ' ')}"]
        if budget.loss
        else []
    )
    return listed([*goal, *limits])


def plan_sentence(found: Plan) -> str:
    """What to train, in a sentence."""
    amounts = {found.size: found.params, "tokens": found.tokens}
    point = [
        f"{format_count(q.value)} {named(name)}"
        + (
            ""
            if math.isnan(q.low) or q.low == q.high
            else f" ({format_count(q.low)} to {format_count(q.high)})"
        )
        for name, q in amounts.items()
        if not math.isnan(q.value)
    ]
    loss = found.loss
    ends = "" if math.isnan(loss.low) else f" ({interval(loss.low, loss.high)})"
    on = f"{' on '.join(point)}, " if point else ""
    others = [f"{axis.name} {axis.value.value:.4g}" for axis in found.axes if axis.how != "left-out"]
    others += [f"{entry.name} {format_count(entry.value.value)}" for entry in found.tuned]
    with_ = f"with {listed(others)}, " if others else ""
    asked = budget_text(found.budget, found.epochs is not None)
    return f"For {asked}: {on}{with_}loss {number(loss.value)}{ends}."


def _plan_said(fit: Fit, found: Plan) -> tuple[str, ...]:
    said = [plan_sentence(found)]
    choice, near = found.regret_choice, found.near_optimal
    if not math.isnan(near.params_low):
        said.append(
            f"Every size from {format_count(near.params_low)} to {format_count(near.params_high)} comes within "
            f"{near.within:.1%} of that loss at the same spend: choose among them by what else matters."
        )
    if not math.isnan(choice.expected_regret):
        said.append(
            f"Averaged over the draws, least loss is given away at {format_count(choice.params)} parameters on "
            f"{format_count(choice.tokens)} tokens{', with these choices' if found.has_choices else ''}."
        )
    return (*said, *axes_said(found))


def _frontier_table(line: Frontier, size: str) -> Part:
    picked = np.unique(np.linspace(0, len(line.flops) - 1, 7).astype(int))
    sure = bool(np.isfinite(line.loss.low).any())

    def amount(band: object, i: int) -> tuple[str, ...]:
        value, low, high = (getattr(band, name)[i] for name in ("value", "low", "high"))
        return (format_count(value), f"{format_count(low)} to {format_count(high)}" if sure else "—")

    rows = [
        (
            flops_text(float(line.flops[i])), *amount(line.params, i), *amount(line.tokens, i),
            number(float(line.loss.value[i])),
            interval(float(line.loss.low[i]), float(line.loss.high[i])) if sure else "—",
        )
        for i in picked
    ]  # fmt: skip
    ends = f"{100 * line.coverage:g}% interval"
    heads = ("training FLOPs", named(size), ends, "tokens", ends, "loss", ends)
    return table("Points of the frontier", heads, rows, tuple(range(7)))


def rates_section(given: Answer) -> Section:
    """What one thing is worth in another at the plan."""
    title = "Exchange rates at the plan"
    if given.plan is None:
        return Section("rates", title, ("Without a plan there is no point to exchange at.",))
    rates = given.plan.exchange_rates
    said = (
        "What one per cent of one thing is worth in per cent of another, at the planned point; the value is an "
        "elasticity (or a ratio), negative where more of the one takes less of the other.",
    )
    heads = ("in words", "value", f"{100 * given.plan.coverage:g}% interval", "unit")
    rows = [
        (_sentence(rate), _signed(number(rate.value, 3)), _ends(rate), rate.unit) for rate in rates.values()
    ]
    parts = [table("Exchange rates", heads, rows, (1, 2)), *between_parts(given.plan)]
    return Section("rates", title, said, tuple(parts))


def _ends(rate: Rate) -> str:
    return "—" if math.isnan(rate.low) else _signed(interval(rate.low, rate.high, 3))


def _signed(text: str) -> str:
    return text.replace("-", "−")


def _sentence(rate: Rate) -> str:
    return rate.reading[:1].upper() + rate.reading[1:]
