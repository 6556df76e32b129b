"""Exchange rates at a plan: what one per cent of one thing is worth in per cent of another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.planning.costs import Cost
from isoloss.planning.result import Rate, spread
from isoloss.planning.search import Optima, tokens_for
from isoloss.planning.surface import EDGE, Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]

PER_CENT = "per cent per per cent"


@dataclass(frozen=True, eq=False)
class Solved:
    """One law (or all draws), where its optimum lies, and what bounded it.

    ``cost`` is what was made small, None for the loss.
    """

    surface: Surface
    limits: Limits
    optima: Optima
    cost: Cost | None


def exchange_rates(plug_in: Solved, draws: Solved | None, coverage: float) -> dict[str, Rate]:
    """All rates at the plan.

    Shadow prices are taken at each draw's own optimum; rates along the isoloss curve at the plan's point,
    on the curve that each draw sees there.
    """
    rates: dict[str, tuple[Array, str]] = {}
    best = plug_in.optima
    values = [_along_isoloss(one.surface, best) for one in (plug_in, draws) if one]
    prices = [_shadow_prices(one) for one in (plug_in, draws) if one]
    rates["tokens_for_params"] = _joined(values, "tokens_for_params"), PER_CENT
    for name in prices[0]:
        if np.isfinite(prices[0][name]).all() and prices[0][name].any():  # 0: the limit does not bind
            rates[name] = _joined(prices, name), PER_CENT
    for name in ("tokens_at_half_params", "flops_at_half_params"):
        if np.isfinite(values[0][name]).all():
            rates[name] = _joined(values, name), "ratio"
    return {name: _rate(name, value, unit, coverage) for name, (value, unit) in rates.items()}


def _joined(parts: list[dict[str, Array]], name: str) -> Array:
    """The plug-in's value first, then the draws'."""
    return np.concatenate([part[name] for part in parts])


def _along_isoloss(surface: Surface, best: Optima) -> dict[str, Array]:
    """Slope of the isoloss curve through the plan, and where it passes half the size."""
    x, d = best.x[:1, None], best.d[:1, None]
    loss, by_size, by_tokens = surface.slopes(x, d)
    with np.errstate(all="ignore"):
        slope = 0.0 - by_size / by_tokens
        half = np.exp(tokens_for(surface, loss, x - math.log(2.0)) - d)
    return {
        "tokens_for_params": slope[:, 0],
        "tokens_at_half_params": half[:, 0],
        "flops_at_half_params": half[:, 0] / 2.0,
    }


def _shadow_prices(one: Solved) -> dict[str, Array]:
    """d ln objective / d ln limit for every limit that binds, by the Lagrange multipliers.

    At an optimum the gradient of the objective is a combination of the gradients of what binds; where two
    limits meet both multipliers exist, each with the other limit held.
    """
    x, d = one.optima.x[:, None], one.optima.d[:, None]
    loss, by_size, by_tokens = (part[:, 0] for part in one.surface.slopes(x, d))
    log_loss = np.stack([by_size, by_tokens], axis=-1) / loss[:, None]
    point = one.limits.point(np.exp(x[:, 0]), np.exp(d[:, 0]))
    names = [limit.name for limit in one.limits.held]
    used = one.limits.at(x[:, 0], d[:, 0])
    gradients = [_gradient(limit.cost, point) for limit in one.limits.held]
    if one.cost is not None:
        names, used = ["loss", *names], [np.ones(len(loss), dtype=bool), *used]
        gradients = [log_loss, *gradients]
    aim = log_loss if one.cost is None else _gradient(one.cost, point)
    valid = np.isfinite(x[:, 0]) & (x[:, 0] > 1e-9) & (np.maximum(x, d)[:, 0] < EDGE - 1e-9)
    jacobian = np.where(np.stack(used, axis=-1)[..., None], np.stack(gradients, axis=1), 0.0)
    jacobian = np.where(valid[:, None, None] & np.isfinite(jacobian), jacobian, 0.0)
    price = np.einsum("ra,raj->rj", np.where(np.isfinite(aim), aim, 0.0), np.linalg.pinv(jacobian))
    of = "loss" if one.cost is None else one.cost.name
    out = {f"{of}_for_{name}": np.where(valid, price[:, j], np.nan) for j, name in enumerate(names)}
    return {**out, **_of_loss(one, out, loss)} if one.cost is None else out


def _of_loss(one: Solved, prices: dict[str, Array], loss: Array) -> dict[str, Array]:
    """What follows from the prices of a best loss: of its reducible part, of one limit in another."""
    out: dict[str, Array] = {}
    x, d = one.optima.x[:, None], one.optima.d[:, None]
    unique = one.surface.unique_slope(x, d)[:, 0]
    if np.any(unique != 0):
        out["loss_for_tokens"] = unique / loss
    floor = one.surface.floor()[:, 0]
    with np.errstate(all="ignore"):
        scale = np.where(floor > 1e-9 * loss, loss / (loss - floor), np.nan)
        out["reducible_loss_for_flops"] = prices.get("loss_for_flops", np.full_like(loss, np.nan)) * scale
        for name in ("bytes", "params", "tokens"):
            if f"loss_for_{name}" in prices and "loss_for_flops" in prices:
                out[f"flops_for_{name}"] = -prices[f"loss_for_{name}"] / prices["loss_for_flops"]
    return out


def _gradient(cost: Cost, point: dict[str, Array]) -> Array:
    """d ln cost / d (ln N, ln D), (R, 2)."""
    parts = [
        np.broadcast_to(cost.elasticity(axis, point), point["params"].shape) for axis in ("params", "tokens")
    ]
    return np.stack(parts, axis=-1)


def _rate(name: str, values: Array, unit: str, coverage: float) -> Rate:
    value = float(values[0])
    low, high = spread(values[1:], coverage)
    return Rate(value, low, high, unit, _reading(name, value))


_WORDS = {
    "flops": "training FLOPs",
    "train_flops": "training FLOPs",
    "total_flops": "FLOPs in training and serving",
    "tokens": "training tokens",
    "params": "parameters",
    "bytes": "bytes at serving",
    "device_hours": "device-hours",
    "money": "money",
    "loss": "loss",
    "reducible_loss": "reducible loss",
}


def _reading(name: str, value: float) -> str:
    """The rate as a sentence."""
    if name == "tokens_at_half_params":
        return f"half the parameters need {value:.3g} times the tokens for the same loss"
    if name == "flops_at_half_params":
        return f"half the parameters need {value:.3g} times the training FLOPs for the same loss"
    if name == "tokens_for_params":
        return f"1 % fewer parameters need {-value:.3g} % more training tokens for the same loss"
    of, what = name.split("_for_")
    if of.endswith("loss"):
        way = "falls" if value <= 0 else "rises"
        return f"the {_WORDS[of]} {way} by {abs(value):.3g} % per 1 % more {_WORDS[what]}"
    if what == "loss":
        return f"0.1 % lower loss takes {-0.1 * value:.3g} % more {_WORDS[of]}"
    if of == "flops":
        return f"1 % fewer {_WORDS[what]} take {-value:.3g} % more training FLOPs for the same loss"
    way = "less" if value <= 0 else "more"
    return f"1 % more {_WORDS[what]} takes {abs(value):.3g} % {way} {_WORDS[of]} for the same loss"
