"""A plan: the point to train at, how sure it is, what it costs and what moving away from it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

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
class Between:
    """Per cent of ``of`` for one per cent of ``per`` at the same loss, at the plan; negative: one replaces the other."""

    of: str
    per: str
    rate: Quantity


@dataclass(frozen=True)
class Step:
    """What the step from a chosen value to a neighbouring one does to the loss, and what that is worth.

    Attributes:
        axis: its name; of tied axes ``bits_weights=bits_kv``.
        value, to: the plan's, and the neighbouring value.
        loss: the loss there minus that of the plan, size and tokens unchanged [unit of the loss].
        params, tokens: the factor by which each would change for that loss at the plan's value; 0 and infinite where
            no change does.
        reading: a sentence.
    """

    axis: str
    value: float
    to: float
    loss: Quantity
    params: Quantity
    tokens: Quantity
    reading: str


@dataclass(frozen=True)
class Alternative:
    """One value that an axis could have.

    Attributes:
        value: the value.
        objective: the least objective with it (loss, or the cost made small) in the plug-in law; infinite where none.
        gap: how much more that is than with the plan's choices: of a loss the difference, of a cost the share. The
            interval is over the draws, size and tokens found anew in each.
        p_best: share of the draws in which it is the best value; NaN without draws.
        expected_regret: mean over the draws of what it gives away against the draw's own best, as ``gap``.
    """

    value: float
    objective: float
    gap: Quantity
    p_best: float
    expected_regret: float


@dataclass(frozen=True)
class Axis:
    """A further axis of the law in a plan.

    Attributes:
        name: of tied axes ``bits_weights=bits_kv``.
        how: ``held``, ``chosen`` from values, ``searched``, or ``left-out`` (absent, at its reference).
        value: the plan's, with the interval over the best values of the draws; NaN where left out.
        alternatives: of a chosen one every value, in order.
        by_default: nothing was said about it, so that the values are those of isoloss.
    """

    name: str
    how: Literal["held", "chosen", "searched", "left-out"]
    value: Quantity
    alternatives: tuple[Alternative, ...]
    by_default: bool


@dataclass(frozen=True)
class Slot:
    """Where the value of one parameter of the law comes from.

    Attributes:
        name: the parameter.
        status: ``fitted``, ``tied``, ``fixed``, ``borrowed`` or ``at-bound``.
        origin: of a borrowed one the published fit, or the range it is drawn from; else empty.
    """

    name: str
    status: str
    origin: str


@dataclass(frozen=True)
class Tuned:
    """A hyper-parameter by its own law, at the planned point.

    Attributes:
        name: ``lr`` or ``batch_tokens``.
        law: its law.
        value: at the planned point; the interval is over the draws of that law.
        over_optima: the same value with the interval over the draws of both: each draw of the law at the optimum of a
            draw of the plan.
        reach: how far the point lies outside the rows of its fit, 1 inside; NaN where they are not known.
        valid_for: what its paper says it holds for.
    """

    name: str
    law: str
    value: Quantity
    over_optima: Quantity
    reach: float
    valid_for: str


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

    Intervals of ``params``, ``tokens`` and ``tokens_per_param`` are over the optima of the single draws, with the
    further axes as planned: how well the runs determine the optimum. Intervals of ``loss`` and ``loss_run`` are over the draws *at
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
        axes: the law's further axes (bits, experts, streams), each held, chosen, searched or left out.
        epochs: passes over the tokens available, where the law may repeat them; else None.
        rates_between: what each axis is worth in each other one.
        steps: what a step from each chosen value to its neighbours is worth.
        slots: where the value of each parameter comes from.
        assumed_separable: pieces of the law that no paper fitted together.
        tuned: learning rate and batch by their own laws.
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
    axes: tuple[Axis, ...]
    epochs: Quantity | None
    rates_between: tuple[Between, ...]
    steps: tuple[Step, ...]
    slots: tuple[Slot, ...]
    assumed_separable: tuple[tuple[str, str], ...]
    tuned: tuple[Tuned, ...]
    budget: Budget
    warnings: tuple[Finding, ...]
    belief: Belief

    @property
    def others(self) -> dict[str, float]:
        """Values of the further axes at the plan, those left out not among them."""
        return {
            name: axis.value.value
            for axis in self.axes
            if axis.how != "left-out"
            for name in axis.name.split("=")
        }

    @property
    def has_choices(self) -> bool:
        """Whether a further axis was chosen or searched, so that a draw may have another best value of it."""
        return any(axis.how in ("chosen", "searched") for axis in self.axes)

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
            "axes": [_finite(asdict(axis)) for axis in self.axes],
            "epochs": None if self.epochs is None else _finite(asdict(self.epochs)),
            "rates_between": [_finite(asdict(rate)) for rate in self.rates_between],
            "steps": [_finite(asdict(step)) for step in self.steps],
            "slots": [asdict(slot) for slot in self.slots],
            "assumed_separable": [list(pair) for pair in self.assumed_separable],
            "tuned": [_finite(asdict(entry)) for entry in self.tuned],
            "budget": self.budget.to_json(),
            "warnings": [
                {"code": w.code, "level": w.level, "text": w.text, "why": w.why, "do": w.do}
                for w in self.warnings
            ],
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
        more = [
            *((f"{axis.name} ({axis.how})", axis.value) for axis in self.axes if axis.how != "left-out"),
            *([("epochs", self.epochs)] if self.epochs is not None else []),
            *((entry.name, entry.over_optima) for entry in self.tuned),
        ]
        out += [
            (name, _shown(name, q.value), "" if " (held)" in name else _interval(name, q)) for name, q in more
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
        lines += [f"  {reading}" for reading in self._readings()]
        lines += [f"  {w.level} {w.code}: {w.text}" for w in self.warnings]
        return "\n".join(lines)

    def _readings(self) -> list[str]:
        """Every rate and step as a sentence."""
        return [
            *(rate.reading for rate in self.exchange_rates.values()),
            *(step.reading for step in self.steps),
        ]

    def _notes(self) -> list[str]:
        """Regret, near-optimal sizes, limits and costs, a line each."""
        choice, near, notes = self.regret_choice, self.near_optimal, []
        if not math.isnan(choice.expected_regret):
            with_ = " with these choices" if self.has_choices else ""
            notes.append(
                f"least expected regret{with_} at {format_count(choice.params)} on {format_count(choice.tokens)} "
                f"tokens: {choice.expected_regret:.2g} (here {choice.expected_regret_of_plug_in:.2g})"
            )
        if not math.isnan(near.params_low):
            ends = f"{format_count(near.params_low)} to {format_count(near.params_high)}"
            notes.append(f"within {near.within:.2%} of the loss from {ends}")
        return [
            *notes,
            *self._about_axes(),
            f"binding: {', '.join(self.binding) or 'nothing'}",
            f"costs: {', '.join(self._costs())}",
        ]

    def _about_axes(self) -> list[str]:
        """How sure each choice is, what was left out and what a hyper-parameter's law holds for, a line each."""
        out = []
        for axis in self.axes:
            shares = {a.value: a.p_best for a in axis.alternatives if a.p_best >= 0.005}
            if shares:
                best = ", ".join(f"{v:g} in {p:.0%}" for v, p in sorted(shares.items(), key=lambda e: -e[1]))
                out.append(f"{axis.name} best at {best} of the draws")
            if axis.how == "left-out":
                out.append(f"{axis.name} left out: the law at its reference, that of tuned runs")
        for entry in self.tuned:
            q = entry.value
            own = "" if math.isnan(q.low) else f", at the planned point {_interval(entry.name, q)}"
            valid = f". Valid for: {entry.valid_for}" if entry.valid_for else ""
            out.append(f"{entry.name} by {entry.law}{own}{valid}")
        return out

    def _costs(self) -> list[str]:
        """The costs as text; total FLOPs only where they are more than those of training."""
        defined = self.budget.defined
        units = " in 16-bit units" if self.budget.bits_cost else ""
        return [
            f"{name} {defined[name].text(value)}{units if name == 'train_flops' else ''}"
            for name, value in self.costs.items()
            if name != "total_flops" or "serve_flops" in self.costs
        ]

    def _repr_html_(self) -> str:
        table = "".join(f"<tr><td>{escape(n)}</td><td>{v}</td><td>{i}</td></tr>" for n, v, i in self.rows())
        lines = [*self._notes(), *self._readings()]
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


def _finite(entry: Any) -> Any:
    """JSON has no NaN and no infinity: null, at any depth."""
    if isinstance(entry, Mapping):
        return {k: _finite(v) for k, v in entry.items()}
    if isinstance(entry, tuple):
        return [_finite(v) for v in entry]
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry


def _shown(name: str, value: float) -> str:
    if math.isinf(value):
        return "no limit"
    if name == "lr":
        return f"{value:.3g}"
    return f"{value:.4f}" if name.startswith("loss") else format_count(value)


def _interval(name: str, q: Quantity) -> str:
    return "" if math.isnan(q.low) else f"{_shown(name, q.low)} to {_shown(name, q.high)}"
