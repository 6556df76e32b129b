"""A plan: the point to train at, how sure it is, what it costs and what moving away from it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.planning.budget import Budget
from isoloss.runs import Finding
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from isoloss.planning.belief import Belief

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "isoloss/plan/1"


@dataclass(frozen=True)
class Quantity:
    """A value with its interval; ``nan`` is unknown, ``inf`` is more than any amount."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """What one thing is worth in another at the plan, with a sentence that says it."""

    value: float
    low: float
    high: float
    unit: str
    reading: str


@dataclass(frozen=True)
class RegretChoice:
    """The point at which the loss given away, averaged over the draws, is least.

    Attributes:
        params, tokens, loss: the point, and the loss of the plug-in law there.
        expected_regret: mean over the draws of the loss there minus that draw's own best at the same
            spend [unit of the loss].
        expected_regret_of_plug_in: the same for the plan's own point, never less.
    """

    params: float
    tokens: float
    loss: float
    expected_regret: float
    expected_regret_of_plug_in: float


@dataclass(frozen=True)
class NearOptimal:
    """Sizes whose loss at the same spend is at most ``within`` (a share) above the best."""

    within: float
    params_low: float
    params_high: float


@dataclass(frozen=True)
class Objective:
    """What the plan makes small, and its least value: in the plug-in law and over the draws."""

    minimise: str
    value: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """The answer to a budget.

    Intervals of ``params``, ``tokens`` and ``tokens_per_param`` are over the optima of the single draws:
    how well the runs determine the optimum. Intervals of ``loss`` and ``loss_run`` are over the draws *at
    the planned point*: how well the runs determine what will be measured there.

    Attributes:
        law: its name.
        size: what ``params`` counts: ``"params"`` or ``"params_nonembedding"``.
        coverage: of all intervals.
        objective: what was made small.
        params, tokens, tokens_per_param: the plan [count, count, 1].
        loss: level of the law there; loss_run: what one new run would show.
        regret_choice: the point of least expected regret, beside the plug-in optimum above.
        near_optimal: sizes that are nearly as good.
        costs: name -> value at the plan, units as in :mod:`isoloss.planning.costs`.
        binding: limits that are used up (and ``loss`` where a loss is wanted).
        exchange_rates: name -> rate at the plan.
        budget: what was asked.
        warnings: what a reader of the plan must know, each with a code and a why.
        belief: the law with its draws that the plan was made from; not in the JSON.

    Example:
        >>> import isoloss
        >>> plan = isoloss.plan("hoffmann", isoloss.Budget(flops=1e21), theta="besiroglu-2024")
        >>> round(plan.params.value / 1e9, 3), round(plan.tokens_per_param.value, 1), plan.binding
        (2.778, 21.6, ('flops',))
        >>> plan.to_json()["near_optimal"]["within"]
        0.001
    """

    law: str
    size: str
    coverage: float
    objective: Objective
    params: Quantity
    tokens: Quantity
    tokens_per_param: Quantity
    loss: Quantity
    loss_run: Quantity
    regret_choice: RegretChoice
    near_optimal: NearOptimal
    costs: Mapping[str, float]
    binding: tuple[str, ...]
    exchange_rates: Mapping[str, Rate]
    budget: Budget
    warnings: tuple[Finding, ...]
    belief: Belief

    def to_json(self) -> dict[str, Any]:
        """The document of ``isoloss plan --json``; unknown or infinite values are null."""
        parts = ("params", "tokens", "loss", "loss_run", "tokens_per_param", "regret_choice", "near_optimal")
        return {
            "schema": SCHEMA,
            "law": self.law,
            "size": self.size,
            "coverage": self.coverage,
            "objective": _finite(asdict(self.objective)),
            **{part: _finite(asdict(getattr(self, part))) for part in parts},
            "costs": _finite(self.costs),
            "binding": list(self.binding),
            "exchange_rates": {name: _finite(asdict(rate)) for name, rate in self.exchange_rates.items()},
            "budget": self.budget.to_json(),
            "warnings": [{"code": w.code, "text": w.text, "why": w.why, "do": w.do} for w in self.warnings],
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value and interval of every quantity, as text for tables."""
        named = {
            self.size: self.params,
            "tokens": self.tokens,
            "tokens per parameter": self.tokens_per_param,
            "loss (mean)": self.loss,
            "loss (one run)": self.loss_run,
        }
        out = [
            (name, _shown(name, q.value), _interval(name, q))
            for name, q in named.items()
            if not math.isnan(q.value) and not (q is self.loss_run and math.isnan(q.low))
        ]
        if self.objective.minimise != "loss":
            aim = self.objective
            name = f"least {aim.minimise}"
            out.append(
                (name, _shown(name, aim.value), _interval(name, Quantity(aim.value, aim.low, aim.high)))
            )
        return out

    def __repr__(self) -> str:
        parts = "; ".join(f"{n} {v}{f' ({i})' if i else ''}" for n, v, i in self.rows()[:4])
        return f"Plan({self.law}: {parts}; binding {', '.join(self.binding) or 'nothing'})"

    def __str__(self) -> str:
        sure = "no" if math.isnan(self.loss.low) else f"{100 * self.coverage:g}%"
        lines = [f"plan by {self.law}, {sure} intervals"]
        lines += [f"  {name:<22}{value:>10}  {ends}".rstrip() for name, value, ends in self.rows()]
        lines += [f"  {note}" for note in self._notes()]
        lines += [f"  {rate.reading}" for rate in self.exchange_rates.values()]
        lines += [f"  {w.level} {w.code}: {w.text}" for w in self.warnings]
        return "\n".join(lines)

    def _notes(self) -> list[str]:
        """Regret, near-optimal sizes, limits and costs, a line each."""
        choice, near, notes = self.regret_choice, self.near_optimal, []
        if not math.isnan(choice.expected_regret):
            notes.append(
                f"least expected regret at {format_count(choice.params)} on {format_count(choice.tokens)} "
                f"tokens: {choice.expected_regret:.2g} (here {choice.expected_regret_of_plug_in:.2g})"
            )
        if not math.isnan(near.params_low):
            ends = f"{format_count(near.params_low)} to {format_count(near.params_high)}"
            notes.append(f"within {near.within:.2%} of the loss from {ends}")
        return [
            *notes,
            f"binding: {', '.join(self.binding) or 'nothing'}",
            f"costs: {', '.join(self._costs())}",
        ]

    def _costs(self) -> list[str]:
        """The costs as text; total FLOPs only where they are more than those of training."""
        defined = self.budget.defined
        return [
            f"{name} {defined[name].text(value)}"
            for name, value in self.costs.items()
            if name != "total_flops" or "serve_flops" in self.costs
        ]

    def _repr_html_(self) -> str:
        table = "".join(f"<tr><td>{escape(n)}</td><td>{v}</td><td>{i}</td></tr>" for n, v, i in self.rows())
        lines = [*self._notes(), *(rate.reading for rate in self.exchange_rates.values())]
        readings = "".join(f"<li>{escape(line)}</li>" for line in lines)
        notes = "".join(f"<li><b>{w.code}</b>: {escape(w.text)}</li>" for w in self.warnings)
        head = "interval" if math.isnan(self.loss.low) else f"{100 * self.coverage:g}% interval"
        return (
            f"<p><b>plan by {escape(self.law)}</b></p>"
            f"<table><tr><th></th><th>plan</th><th>{head}</th></tr>{table}</table>"
            f"<ul>{readings}</ul><ul>{notes}</ul>"
        )


def spread(values: Array, coverage: float) -> tuple[float, float]:
    """Ends of the central interval over the draws; infinite draws count, unknown (NaN) ones do not."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return math.nan, math.nan
    ends = [(1 - coverage) / 2, (1 + coverage) / 2]
    if np.isfinite(known).all():
        low, high = np.quantile(known, ends)
    else:  # interpolating between a number and infinity would give NaN
        low = np.quantile(known, ends[0], method="lower")
        high = np.quantile(known, ends[1], method="higher")
    return float(low), float(high)


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}


def _shown(name: str, value: float) -> str:
    if math.isinf(value):
        return "no limit"
    return f"{value:.4f}" if name.startswith("loss") else format_count(value)


def _interval(name: str, q: Quantity) -> str:
    return "" if math.isnan(q.low) else f"{_shown(name, q.low)} to {_shown(name, q.high)}"
