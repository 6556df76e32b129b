"""Learning rate and batch next to size and tokens: their own laws, read at the planned point."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.laws.law import Law
from isoloss.planning.belief import Belief, named
from isoloss.planning.costs import Cost
from isoloss.planning.rates import Solved
from isoloss.planning.result import Quantity, Tuned, spread
from isoloss.planning.surface import SIZES
from isoloss.runs import Finding

Array = np.ndarray[Any, np.dtype[Any]]

TARGETS = {"lr": ("lr",), "batch_tokens": ("batch_tokens", "critical_batch")}
READS = (*SIZES, "tokens", "flops", "loss", "batch_tokens")
OPTIONS = {"lr": "learning_rate", "batch_tokens": "batch"}


@dataclass(frozen=True, eq=False)
class Rule:
    """A law of a hyper-parameter with its theta and draws."""

    name: str
    belief: Belief


@dataclass(frozen=True, eq=False)
class Entry:
    """A hyper-parameter at the plan, and the law behind it."""

    tuned: Tuned
    law: Law
    drawn: bool


def rule(given: Fit | str, target: str) -> Rule:
    """The law of a hyper-parameter, from a fit or ``"LAW@PUBLISHED"``.

    Raises:
        ValueError: no law of this target, or one that reads what a plan does not give. TypeError: neither.
    """
    if isinstance(given, Fit):
        held = Belief(given.law, given.theta, given.draws, given.coverage, given)
    elif isinstance(given, str):
        law, theta, _ = named(given, None)
        held = Belief(law, theta, np.empty((0, len(theta))), 0.9, None)
    else:
        raise TypeError(
            f"{OPTIONS[target]} needs a Fit or 'LAW@PUBLISHED', got {type(given).__name__}. Fit a law of target {target}"
        )
    if held.law.target not in TARGETS[target]:
        raise ValueError(
            f"{OPTIONS[target]} needs a law of {' or '.join(TARGETS[target])}, got {held.law.spec} of {held.law.target}. "
            "`isoloss laws` lists targets"
        )
    unknown = [axis for axis in held.law.axes if axis not in READS]
    if unknown:
        raise ValueError(
            f"{OPTIONS[target]}: {held.law.spec} reads {', '.join(unknown)}, which a plan does not give. Take a law "
            f"of {', '.join(READS)}"
        )
    return Rule(target, held)


def tune(
    rules: Sequence[Rule], plug_in: Solved, draws: Solved | None, flops: Cost, coverage: float
) -> list[Entry]:
    """Every rule at the planned point, batch first: a law of the learning rate may read it.

    Args:
        rules: in that order.
        plug_in, draws: the plan, and the optima of its draws.
        flops: of training, at any number of bits.
        coverage: of intervals.

    Raises:
        ValueError: a law reads a batch that nothing gives.
    """
    here = _point(plug_in, flops)
    there = _point(draws, flops) if draws is not None else {}
    out: list[Entry] = []
    for entry in rules:
        tuned, values = _tuned(entry, here, there, coverage)
        out.append(Entry(tuned, entry.belief.law, len(entry.belief.draws) >= 2))
        here[entry.name] = np.array([tuned.value.value])
        if there:
            there[entry.name] = values
    return out


def _point(solved: Solved, flops: Cost) -> dict[str, Array]:
    """What a law of a hyper-parameter may read, at the optima that there are."""
    found = solved.optima
    able = np.isfinite(found.x) & np.isfinite(found.d)
    params, tokens = found.params[able], found.tokens[able]
    spent = flops.value(solved.limits.point(params, tokens))
    return {**dict.fromkeys(SIZES, params), "tokens": tokens, "flops": spent, "loss": found.loss[able]}


def _tuned(
    entry: Rule, here: Mapping[str, Array], there: Mapping[str, Array], coverage: float
) -> tuple[Tuned, Array]:
    """The hyper-parameter, and its value at each draw's optimum."""
    held = entry.belief
    lacking = [axis for axis in held.law.axes if axis not in here]
    if lacking:
        raise ValueError(f"{held.law.spec} reads {lacking[0]}: give a law of it too, batch= or --batch")
    at = {axis: here[axis] for axis in held.law.axes}
    value = float(held.law.evaluate(held.theta, **at)[0])
    own = held.law.evaluate(held.draws, **at)[:, 0] if len(held.draws) >= 2 else np.empty(0)
    both, values = own, np.empty(0)
    if there:
        count = len(there["tokens"])
        thetas = np.broadcast_to(held.theta, (count, len(held.theta)))
        if len(own):  # independent of the plan's draws
            order = np.random.default_rng(0).permutation(len(held.draws))
            thetas = held.draws[order[np.arange(count) % len(order)]]
        parts = tuple(thetas[:, p] for p in range(thetas.shape[1]))
        with np.errstate(all="ignore"):
            found = held.law.value(parts, {axis: there[axis] for axis in held.law.axes})
        values = both = np.broadcast_to(np.asarray(found, dtype=float), (count,))
    reach = math.nan if held.fit is None else float(held.fit.reach(at)[0])
    return (
        Tuned(
            entry.name,
            held.law.spec,
            Quantity(value, *spread(own, coverage)),
            Quantity(value, *spread(both, coverage)),
            reach,
            valid_for(held.law),
        ),
        values,
    )


def valid_for(law: Law) -> str:
    """The words of a law's docstring on where it holds, on one line; empty where it says nothing."""
    match = re.search(r"^Valid for:\n((?:[ ]+.*\n?)+)", inspect.getdoc(law) or "", re.M)
    return " ".join(match[1].replace("``", "").split()) if match else ""


def about_rule(entry: Entry, size: str) -> list[Finding]:
    """What a reader of the hyper-parameter must know."""
    tuned, out = entry.tuned, []
    what = OPTIONS[tuned.name].replace("_", " ")
    if tuned.reach > 1:
        out.append(
            Finding(
                "extrapolation", "warning", (), tuned.name,
                f"the {what} is read {tuned.reach:.3g} times beyond the runs of {tuned.law}",
                "its interval holds that law's form for true out there; that is not tested by the runs",
                "sweep it on a rung between, and compare",
            )
        )  # fmt: skip
    read = next((axis for axis in entry.law.axes if axis in SIZES), size)
    if read != size:
        out.append(
            Finding(
                "size-counts-differ", "warning", (), tuned.name,
                f"{tuned.law} counts {read}, the plan's law {size}: the {what} is read at the plan's number",
                "embeddings are a large share of small models, so the two counts differ",
                f"read it at the planned model's own {read}",
            )
        )  # fmt: skip
    if not entry.drawn:
        out.append(
            Finding(
                "rule-without-draws", "note", (), tuned.name,
                f"the {what} is by published constants of {tuned.law}, which carry no interval",
                "how far they hold for your set-up is not in the number",
                "fit the law to sweeps of your own, or read the value as a place to begin a sweep",
            )
        )  # fmt: skip
    return out
