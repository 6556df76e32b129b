"""Optima and repeated data in closed form at published parameters, which no paper prints, and ours."""

from __future__ import annotations

import isoloss
from benchmarks.published.line import Array, Line, Section, count, line
from isoloss.laws import get


def closed_form(theta: Array, flops: Array | float) -> Array:
    """Compute-optimal size at ``flops`` = 6ND (Hoffmann et al. 2022, eq. 4); theta (..., 5)."""
    _, a, b, alpha, beta = (theta[..., i] for i in range(5))
    ratio = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    size: Array = ratio * (flops / 6) ** (beta / (alpha + beta))
    return size


def section() -> Section:
    """The planner's numeric optimum at published parameters against equation 4."""
    lines: list[Line] = []
    law = get("hoffmann")
    for name in ("hoffmann-2022", "besiroglu-2024"):
        theta = law.theta(name)
        for flops in (1e21, 5.76e23, 1e25):
            size = float(closed_form(theta, flops))
            plan = isoloss.plan(law, isoloss.Budget(flops=flops), theta=name)
            where = f"{name}, {count(flops)} FLOP"
            source = "eq. 4 at the published parameters"
            ratio = flops / (6 * size**2)
            lines += [
                line(f"params, {where}", source, exact(size), plan.params.value),
                line(f"tokens per parameter, {where}", source, f"{ratio:.5g}", plan.tokens_per_param.value),
            ]
    about = (
        "No paper prints these: the middle column is the closed form, computed here. "
        "`isoloss.plan` finds the optimum numerically, for any law and limit."
    )
    return Section("Optima at published parameters", about, lines)


def exact(value: float) -> str:
    """Six digits."""
    return f"{value:.5e}".replace("e+", "e")
