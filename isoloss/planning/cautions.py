"""What a reader of a plan must know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.planning.axes import Settled
from isoloss.planning.belief import Belief
from isoloss.planning.budget import Budget
from isoloss.planning.search import Optima
from isoloss.planning.surface import EDGE, SIZES, Limits, Surface
from isoloss.runs import Finding
from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]

WIDE = 100.0  # a best size open by more than this factor
PASSED_ON = ("small-sample", "at-bound", "few-agreeing-starts", "interrupted")


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
                "fit them on runs of your own, or give them a range"
                + (": values={NAME: 'LOW:HIGH'}, --value NAME=LOW:HIGH" if belief.fit is not None else
                   " beside a fit of yours: isoloss.borrow, --borrow"),
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
        if span.ends_at(value):
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
