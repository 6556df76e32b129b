"""What a reader of a plan must know, and when there is no plan at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.planning.axes import Settled
from isoloss.planning.belief import Belief
from isoloss.planning.budget import Budget
from isoloss.planning.costs import Cost
from isoloss.planning.result import spread
from isoloss.planning.search import Optima, best_loss, bisect, cheapest
from isoloss.planning.surface import EDGE, SIZES, Limits, Surface
from isoloss.runs import Finding
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]

OPEN = 1e6  # a best size open by more than this factor is no answer
WIDE = 100.0  # by more than this, a warning
PASSED_ON = ("small-sample", "at-bound", "few-agreeing-starts", "interrupted")


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
    least = ", ".join(f"{limit.name} {least_cost[limit]:.3g}" for limit in short)
    return NoAnswer(
        f"nothing can be trained within {names or 'these limits'}: one parameter on one token exceeds it",
        f"at least {least or 'more of each limit'}",
    )


def out_of_reach(belief: Belief, surface: Surface, limits: Limits, cost: Cost, loss: float) -> NoAnswer:
    """Why the plug-in law does not reach the wanted loss, and the least that would."""
    floor = float(surface.floor()[0, 0])
    if loss <= floor:
        low, high = math.nan, math.nan
        if len(belief.draws):
            own = Surface(belief.law, belief.draws, others=surface.others)
            low, high = spread(own.floor()[:, 0], belief.coverage)
        between = f" ({low:.4g} to {high:.4g})" if math.isfinite(low) else ""
        return NoAnswer(
            f"loss {loss:g} is below the irreducible loss {floor:.4g}{between}",
            f"a wanted loss above {floor:.4g}" + (f", safely above {high:.4g}" if between else ""),
        )
    best = best_loss(surface, limits)
    used = [limit.name for limit, on in zip(limits.held, limits.at(best.x, best.d), strict=True) if on[0]]
    if surface.unique is not None and (endless := _endless(surface)) > loss:
        return _too_few_tokens(surface, loss, endless)
    if not used:
        return NoAnswer(
            f"loss {loss:g} is not reached with 1e30 parameters and tokens: the law gives {best.loss[0]:.4g}",
            f"a wanted loss above {best.loss[0]:.4g}",
        )
    ways = []
    for limit in limits.held:
        least = cheapest(surface, limits.without(limit.name), limit.cost, loss)
        if limit.name in used and np.isfinite(least.x[0]):
            amount = float(np.squeeze(limit.cost.value(limits.point(least.params[0], least.tokens[0]))))
            ways.append(f"{limit.name} {limit.cost.text(amount)} instead of {limit.cost.text(limit.most)}")
    reason = f"loss {loss:g} is not reached within {', '.join(used)}: the best there is {best.loss[0]:.4g}"
    return NoAnswer(
        reason,
        " or ".join(ways)
        or _without_limits(surface, replace(limits, held=()), cost, loss, float(best.loss[0])),
    )


def _without_limits(surface: Surface, limits: Limits, cost: Cost, loss: float, best: float) -> str:
    """What it takes where no single limit is to blame."""
    # with tokens to spare, so that a law that may repeat them need not
    free = cheapest(replace(surface, unique=None), limits, cost, loss)
    if np.isnan(free.x[0]):
        return f"a wanted loss above {best:.4g}"
    spend = float(np.squeeze(cost.value(limits.point(free.params[0], free.tokens[0]))))
    return f"more of several limits at once; without any, {cost.text(spend)} {cost.what}"


def _too_few_tokens(surface: Surface, loss: float, best: float) -> NoAnswer:
    """Repeating cannot make up for what is missing: the unique tokens that endless repetition would need."""

    def reached(log_unique: Array) -> Array:
        unique = math.exp(float(log_unique[0, 0]))
        return np.array([[_endless(replace(surface, unique=unique)) <= loss]])

    least = math.exp(float(bisect(reached, np.zeros((1, 1)), np.full((1, 1), EDGE))[0, 0]))
    held = format_count(surface.unique or math.nan)
    return NoAnswer(
        f"loss {loss:g} is not reached with {held} tokens however often they are repeated: the law gives {best:.4g}",
        f"more than {format_count(least)} unique tokens, or a wanted loss above {best:.4g}",
    )


def _endless(surface: Surface) -> float:
    """The least loss on the whole plane."""
    return float(best_loss(surface, Limits((), surface.others)).loss[0])


def warnings(
    belief: Belief,
    budget: Budget,
    limits: Limits,
    surface: Surface,
    best: Optima,
    draws: Optima | None,
    interval: tuple[float, float],
) -> list[Finding]:
    """All warnings of a plan over params and tokens."""
    point = {axis: float(v[0, 0]) for axis, v in surface.at(best.x[:, None], best.d[:, None]).items()}
    out = [*outside(belief, point), *_edges(surface, limits, best), *_about_budget(surface, budget, point)]
    if draws is not None:
        out += infeasible(draws.x, budget.loss)
    low, high = interval
    if math.isfinite(high) and high > WIDE * low:
        out.append(
            _warn(
                "size-open",
                f"the best size is only known to within a factor of {high / low:.0f}",
                "the loss is flat near the optimum, so the runs say little about where it lies",
                "read the expected regret and the near-optimal range rather than the size",
            )
        )
    return [*out, *about_slots(belief), *about_fit(belief)]


def about_slots(belief: Belief) -> list[Finding]:
    """What of a law of several pieces is taken from others, and that its pieces act alone."""
    out = []
    origins: dict[str, list[str]] = {}
    for slot in belief.slots:
        if slot.status == "borrowed":
            origins.setdefault(slot.origin, []).append(slot.name)
    if origins and (belief.fit is not None or len(origins) > 1):
        listed = "; ".join(f"{', '.join(names)} from {origin}" for origin, names in origins.items())
        out.append(
            Finding(
                "borrowed", "note", (), None,
                f"not fitted here: {listed}",
                "constants of one set-up seldom hold in another, and those without a stated range carry no uncertainty",
                "fit them on runs of your own, or give them a range: values={NAME: 'LOW:HIGH'}, --value NAME=LOW:HIGH",
            )
        )  # fmt: skip
    if belief.assumed_separable:
        pairs = "; ".join(f"{a} and {b}" for a, b in belief.assumed_separable)
        out.append(
            Finding(
                "assumed-separable", "note", (), None,
                f"no paper has fitted these together, so that each acts as if alone is assumed: {pairs}",
                "where the effect of one depends on the other, the plan is off by what no interval holds",
                "make a few runs that change both, and look at their residuals",
            )
        )  # fmt: skip
    return out


def about_searched(settled: Settled, others: Mapping[str, Any]) -> list[Finding]:
    """Searched axes whose best value is an end of what was searched."""
    out = []
    for tied, span in settled.spans.items():
        value = float(others[tied[0]])
        if min(abs(math.log(value / span.low)), abs(math.log(value / span.high))) < 1e-5:
            name = "=".join(tied)
            out.append(
                Finding(
                    "search-end", "note", (), name,
                    f"{name} {value:.4g} is an end of the stretch {span.low:g} to {span.high:g} that was searched",
                    "a value beyond it may be better, or mean nothing",
                    f"search further where the law holds: --choose {name}=LOW:HIGH",
                )
            )  # fmt: skip
    return out


def outside(belief: Belief, point: Mapping[str, float]) -> list[Finding]:
    """How far the plan leaves the rows of the fit."""
    fit = belief.fit
    if fit is None:
        return []
    out = []
    for axis, values in fit.x.items():
        if axis not in point:  # a column at its reference
            continue
        low, high = float(np.min(values)), float(np.max(values))
        factor = max(point[axis] / high, low / point[axis])
        if factor > 1:
            end = (
                f"largest ({format_count(high)})" if point[axis] > high else f"smallest ({format_count(low)})"
            )
            out.append(
                _warn(
                    "extrapolation",
                    f"{axis} {format_count(point[axis])} is {factor:.3g} times beyond the {end} in the fit",
                    "the intervals hold the law's form for true out there; that is not tested by the runs",
                    "run a rung between, predict it first, and compare",
                )
            )
    if belief.plane:
        size = next(axis for axis in SIZES if axis in belief.law.axes)
        ratios = fit.x["tokens"] / fit.x[size]
        ratio, low, high = point["tokens"] / point[size], float(ratios.min()), float(ratios.max())
        if not low <= ratio <= high:
            out.append(
                _warn(
                    "ratio-outside-data",
                    f"{ratio:.3g} tokens per parameter; the fit has {low:.3g} to {high:.3g}",
                    "exponents fitted at one ratio are known to change at far larger ones "
                    "(Sardana et al. 2024, arXiv:2401.00448)",
                    "add small runs at that ratio",
                )
            )
    return out


def infeasible(draws: Array, loss: float | None) -> list[Finding]:
    """How many draws have no optimum (NaN or infinite in ``draws``)."""
    share = float(np.mean(~np.isfinite(draws))) if len(draws) else 0.0
    if not share:
        return []
    return [
        _warn(
            "infeasible-draws",
            f"{share:.1%} of the draws do not reach loss {loss:g} within the limits",
            "in those worlds no spend is enough: they count as endless in the intervals of params, tokens "
            "and cost, and not at all in those of ratios and rates",
            "ask for a higher loss, or add runs that pin the irreducible loss down",
        )
    ]


def about_fit(belief: Belief) -> list[Finding]:
    """What the fit itself warned of and every interval here inherits."""
    if belief.fit is None:
        return []
    out = [w for w in belief.fit.warnings if w.code in PASSED_ON]
    if len(belief.draws) < 2:
        out.append(
            _warn("no-draws", "the fit has no draws, so the plan has no intervals", "a plan without them hides "
                  "how open it is", "fit with draws=1000")
        )  # fmt: skip
    if belief.fit.result == "not-converged":
        out.append(
            _warn("not-converged", "the fit did not converge", "its optimum may move", "fit with more starts")
        )
    return out


def _edges(surface: Surface, limits: Limits, best: Optima) -> list[Finding]:
    out = []
    x, d = float(best.x[0]), float(best.d[0])
    if min(x, d) < 1e-3 or max(x, d) > EDGE - 1e-3:
        out.append(
            _warn(
                "search-edge",
                f"the optimum lies on the edge of the search: {math.exp(x):.3g} parameters, "
                f"{math.exp(d):.3g} tokens (from 1 to 1e30 are searched)",
                "the law sees no reason to stop there, so the point means nothing",
                "check the law's exponents, or limit the other axis too",
            )
        )
    loss, by_size, by_tokens = surface.slopes(best.x[:, None], best.d[:, None])
    most = float(limits.frontier(best.x[:, None])[0][0, 0])
    if d < most - 1e-6 and abs(by_tokens[0, 0]) < 1e-6 * loss[0, 0]:
        out.append(
            _warn(
                "tokens-unspent",
                f"beyond {format_count(math.exp(d))} tokens the law's loss rises at this size, so {_limits_text(limits)} "
                f"not used up: {format_count(math.exp(most))} would be allowed",
                "more tokens make a model harder to quantise, by the law's term",
                "store it in more bits, or allow a larger model",
            )
        )
    for name, slope in ((surface.size, by_size), ("tokens", by_tokens)):
        if slope[0, 0] > 1e-9 * abs(loss[0, 0]):
            out.append(
                _warn(
                    f"loss-rises-with-{name}",
                    f"at the plan the law's loss rises with {name}",
                    "a plan spends all it may on tokens, which does not pay here",
                    "check the fit: its exponent may have the wrong sign",
                )
            )
    return out


def _limits_text(limits: Limits) -> str:
    """The limits on tokens in words, with their verb."""
    names = [limit.name for limit in limits.held if limit.cost.bounds("tokens")]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _about_budget(surface: Surface, budget: Budget, point: Mapping[str, float]) -> list[Finding]:
    out = []
    counted = {"total_flops", "money"} & {*budget.given, budget.objective}
    if budget.serve_tokens and not counted:
        out.append(
            _warn(
                "serving-not-counted",
                "serve_tokens are given, but no limit and no aim counts serving",
                "flops and device_hours are of training only, so serving did not move the plan",
                "limit total_flops or money instead",
            )
        )
    if surface.size == "params_nonembedding":
        out.append(
            _warn(
                "params-without-embeddings",
                "the law counts parameters without embeddings, and so do the FLOPs and bytes here",
                "true costs are higher, most of all for models below about 100M parameters",
                "add the embeddings to params before comparing with a device or a file",
            )
        )
    if surface.unique is not None and point["tokens"] > surface.unique * (1 + 1e-9):
        epochs = point["tokens"] / surface.unique
        out.append(
            Finding(
                "repeated-tokens", "note", (), "tokens",
                f"the plan passes {epochs:.3g} times over the {format_count(surface.unique)} tokens available",
                "repeated tokens are worth less, as the law says",
                "compare with loss_for_tokens, the worth of more unique ones",
            )
        )  # fmt: skip
    return out


def _warn(code: str, text: str, why: str, do: str) -> Finding:
    return Finding(code, "warning", (), None, text, why, do)
