"""``isoloss plan``: what to train under a budget, or the cheapest way to a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.axes import axis_rows, print_axes, print_between
from isoloss.cli.budget import (
    Batch,
    Bits,
    BitsCost,
    Borrow,
    Bytes,
    Choose,
    DeviceHours,
    Flops,
    Hold,
    LearningRate,
    Loss,
    Minimise,
    Money,
    Params,
    Peak,
    Price,
    ServeTokens,
    ServeUtilisation,
    Tokens,
    TotalFlops,
    Utilisation,
    Value,
    budget_of,
    is_published,
    rule_of,
    values_of,
    with_pieces,
)
from isoloss.cli.options import Json, Latex, Markdown, leading_fit, style_of
from isoloss.cli.show import Style, Table, for_people, interval, number, say, show, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoloss.planning.budget import Budget


def plan(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FIT",
            help="File of `isoloss fit --json`, or LAW@PUBLISHED without intervals, of several pieces each with its own.",
        ),
    ],
    flops: Flops = None,
    total_flops: TotalFlops = None,
    tokens: Tokens = None,
    params: Params = None,
    stored: Bytes = None,
    device_hours: DeviceHours = None,
    money: Money = None,
    loss: Loss = None,
    minimise: Minimise = None,
    serve_tokens: ServeTokens = None,
    bits: Bits = None,
    peak: Peak = None,
    utilisation: Utilisation = None,
    serve_utilisation: ServeUtilisation = None,
    price_per_device_hour: Price = None,
    bits_cost: BitsCost = False,
    hold: Hold = None,
    choose: Choose = None,
    borrow: Borrow = None,
    value: Value = None,
    lr: LearningRate = None,
    batch: Batch = None,
    within: Annotated[float, typer.Option(help="Near-optimal: loss within this share of the best.")] = 0.001,
    coverage: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="Of intervals; default the fit's.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Which fit of `isoloss fit --by`.")] = None,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Plan a run under a budget.

    Best loss within limits, or with --loss the cheapest way to it; every number comes with its interval.
    Exit 3 if the fit or the budget has no answer: then the reason, and the least that would be needed.
    """
    from isoloss.planning.axes import parse_choose, parse_hold
    from isoloss.planning.optimum import plan as make_plan

    style, (source, theta, note) = style_of(md, latex), _source(path, group, borrow, value or [])
    budget = budget_of(
        flops, total_flops, tokens, params, stored, device_hours, money, loss, minimise, serve_tokens, bits, peak,
        utilisation, serve_utilisation, price_per_device_hour, bits_cost,
    )  # fmt: skip
    document = make_plan(
        source, budget, coverage=coverage, within=within, theta=theta, hold=parse_hold(hold or []),
        choose=parse_choose(choose or []), learning_rate=rule_of(lr), batch=rule_of(batch),
    ).to_json()  # fmt: skip
    with for_people(json):
        if note:
            say(note, style)
        _print(document, budget, style)
    if json is not None:
        write_json(json, document)
    return 0


def _source(
    path: str, group: str | None, borrow: str | None, values: Sequence[str]
) -> tuple[Any, dict[str, float] | None, str]:
    """A fit from its file, with what it borrows; or pieces with published fits and values of what these leave open.

    Of a stack its leading fit, and a line that says so.
    """
    if is_published(path):
        if borrow is not None:
            raise ValueError(f"--borrow goes with a fit's file: write the pieces behind {path} instead")
        return path, _numbers(values_of(values)), ""
    found, note = leading_fit(path, group, "a plan")
    return with_pieces(found, borrow, values), None, note


def _numbers(given: dict[str, float | str]) -> dict[str, float] | None:
    """Values beside published fits: these have no draws, so a range would say nothing."""
    out = {}
    for name, value in given.items():
        try:
            out[name] = float(value)
        except ValueError:
            raise ValueError(f"--value {name} needs a number beside published fits, got {value!r}") from None
    return out or None


def _print(document: dict[str, Any], budget: Budget, style: Style) -> None:
    from isoloss.runs.units import format_count

    def amount(value: float | None) -> str:
        return "—" if value is None else format_count(value)

    goal = "best loss" if budget.loss is None else f"least {budget.objective} for loss {budget.loss:g}"
    limits = ", ".join(f"{name} {_cost(name, value)}" for name, value in budget.given.items())
    say(f"{document['law']}: {goal}{' within ' + limits if limits else ''}", style)
    coverage = document["coverage"]
    rows = []
    for key in ("params", "tokens", "tokens_per_param", "loss", "loss_run"):
        entry = document.get(key)
        if entry is None or (key == "loss_run" and entry["low"] is None):
            continue
        plain = key.startswith("loss")
        shown = [number(entry[e], 5) if plain else amount(entry[e]) for e in ("value", "low", "high")]
        label = {"loss_run": "loss of one run", "tokens_per_param": "tokens per parameter"}.get(key, key)
        rows.append([label, shown[0], "—" if entry["low"] is None else f"{shown[1]} to {shown[2]}"])
    rows += axis_rows(document)
    aim = document["objective"]
    for name, value in document["costs"].items():
        if name == "total_flops" and "serve_flops" not in document["costs"]:
            continue  # those of training
        least = aim["low"] is not None and aim["minimise"] == name
        ends = f"{_cost(name, aim['low'])} to {_endless(name, aim['high'])}" if least else ""
        rows.append([name.replace("_", " "), _cost(name, value), ends])
    head = f"{100 * coverage:g}% interval" if coverage else "interval"
    show(Table(["plan", "value", head], rows), style)
    if budget.bits_cost:
        say("training FLOPs are counted in 16-bit units, 6ND times bits/16", style)
    _print_choices(document, amount, style)
    print_axes(document, style)
    rates = [
        [
            name,
            number(e["value"], 3),
            interval(e["low"], e["high"], 3) if e["low"] is not None else "—",
            e["reading"],
        ]
        for name, e in document["exchange_rates"].items()
    ]
    if rates:
        show(Table(["exchange rate", "value", head, "reading"], rates, words=["reading"]), style)
    print_between(document, style)
    if document["binding"]:
        say(f"binding limits: {', '.join(document['binding'])}", style)
    for entry in document["warnings"]:
        say(f"{entry['level']} [{entry['code']}] {entry['text']}", style)
        say(f"    why: {entry['why']}", style)
        say(f"    do:  {entry['do']}", style)


def _cost(name: str, value: float) -> str:
    from isoloss.runs.units import format_count

    if name == "bytes":  # 8 billion bytes are 8 GB
        short = format_count(value)
        return (short.removesuffix("B") + "G" if short.endswith("B") else short) + "B"
    return format_count(value) if name in ("params", "tokens") else number(value, 3)


def _endless(name: str, value: float | None) -> str:
    return "no limit" if value is None else _cost(name, value)


def _print_choices(document: dict[str, Any], amount: Any, style: Style) -> None:
    regret, near = document.get("regret_choice"), document.get("near_optimal")
    if regret and regret["expected_regret"] is not None:
        chosen = any(axis["how"] in ("chosen", "searched") for axis in document["axes"])
        say(
            f"least expected regret{' with these choices' if chosen else ''}: {amount(regret['params'])} parameters on {amount(regret['tokens'])} tokens, "
            f"expected regret {number(regret['expected_regret'], 2)} "
            f"(of the plan above: {number(regret['expected_regret_of_plug_in'], 2)})",
            style,
        )
    if near:
        say(
            f"loss within {near['within']:.1%} of the best: {amount(near['params_low'])} to "
            f"{amount(near['params_high'])} parameters",
            style,
        )
