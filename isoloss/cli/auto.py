"""``isoloss fit auto``: every law the table allows, compared, weighed and stacked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from isoloss.cli.compare import print_comparison
from isoloss.cli.show import Style, for_people, progress, say

if TYPE_CHECKING:
    from isoloss.comparing.stack import Stack
    from isoloss.fitting.objective import Objective
    from isoloss.runs import Runs


def fit_auto(
    runs: Runs,
    *,
    objective: Objective | None,
    cluster: str | None,
    weights: str | None,
    draws: int,
    starts: int,
    coverage: float,
    seed: int,
    refused: Mapping[str, object],
    style: Style,
    json: str | None,
) -> Stack:
    """Compare, stack, and print both; the leading fit is printed by the verb, as any other.

    Raises:
        ValueError: an option that belongs to one law. NoAnswer: too few rows to hold any back.
    """
    from isoloss.comparing.stack import auto

    given = [name for name, value in refused.items() if value]
    if given:
        raise ValueError(
            f"fit auto fits many laws, {', '.join(given)} belongs to one. Name the law, or leave it out"
        )
    advance, stop = progress(draws)
    try:
        found = auto(
            runs, objective=objective, cluster=cluster, weights=weights, draws=draws, starts=starts,
            coverage=coverage, seed=seed, progress=advance,
        )  # fmt: skip
    finally:
        stop()
    with for_people(json):
        print_comparison(found.comparison, style)
        parts = ", ".join(f"{w:.2f} {f.law.spec}" for w, f in zip(found.weights, found.members, strict=True))
        if found.recency:
            say(
                f"rows weighted by {found.axes[0]}^{found.recency:g}: the end of a curve is what is carried on",
                style,
            )
        say(f"stack: {parts}; the leading fit:", style)
    return found
