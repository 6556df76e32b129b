"""``isoloss plan``: what to train under a budget, or the cheapest way to a loss."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.budget import (
    Bits,
    Bytes,
    DeviceHours,
    Flops,
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
    budget_of,
)
from isoloss.cli.options import Json, Latex, Markdown, leading_fit, style_of
from isoloss.cli.show import Style, Table, for_people, interval, number, say, show, write_json

if TYPE_CHECKING:
    from isoloss.planning.budget import Budget


def plan(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FIT", help="File of `isoloss fit --json`, or LAW@PUBLISHED without intervals."
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
    from isoloss.planning.optimum import plan as make_plan

    style, (source, theta, note) = style_of(md, latex), _source(path, group)
    budget = budget_of(
        flops, total_flops, tokens, params, stored, device_hours, money, loss, minimise, serve_tokens, bits, peak,
        utilisation, serve_utilisation, price_per_device_hour,
    )  # fmt: skip
    document = make_plan(source, budget, coverage=coverage, within=within, theta=theta).to_json()
    with for_people(json):
        if note:
            say(note, style)
        _print(document, budget, style)
    if json is not None:
        write_json(json, document)
    return 0


def _source(path: str, group: str | None) -> tuple[Any, str | None, str]:
    """A fit from its file, or a law and the name of a published fit from ``hoffmann@besiroglu-2024``.

    Of a stack its leading fit, and a line that says so.
    """
    from isoloss.laws import get

    match = re.fullmatch(r"([\w-]+(?:\(\w+\))?)@([\w.-]+)", path)
    if match is None:
        found, note = leading_fit(path, group, "a plan")
        return found, None, note
    law = get(match[1])
    law.published_fit(match[2])  # names what there is, if this is not
    return law, match[2], ""


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
    for name, value in document["costs"].items():
        rows.append([name.replace("_", " "), _cost(name, value), ""])
    head = f"{100 * coverage:g}% interval" if coverage else "interval"
    show(Table(["plan", "value", head], rows), style)
    _print_choices(document, amount, style)
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
        show(Table(["exchange rate", "value", head, "reading"], rates), style)
    if document["binding"]:
        say(f"binding limits: {', '.join(document['binding'])}", style)
    for entry in document["warnings"]:
        say(f"warning [{entry['code']}] {entry['text']}", style)
        say(f"    why: {entry['why']}", style)
        say(f"    do:  {entry['do']}", style)


def _cost(name: str, value: float) -> str:
    from isoloss.runs.units import format_count

    if name == "bytes":  # 8 billion bytes are 8 GB
        short = format_count(value)
        return (short.removesuffix("B") + "G" if short.endswith("B") else short) + "B"
    return format_count(value) if name in ("params", "tokens") else number(value, 3)


def _print_choices(document: dict[str, Any], amount: Any, style: Style) -> None:
    regret, near = document.get("regret_choice"), document.get("near_optimal")
    if regret and regret["expected_regret"] is not None:
        say(
            f"least expected regret: {amount(regret['params'])} parameters on {amount(regret['tokens'])} tokens, "
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
