"""``isoloss report``: one page that a reader can trust, open and print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

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
    rule_of,
    with_pieces,
)
from isoloss.cli.options import leading_fit
from isoloss.cli.show import check_writable, say

if TYPE_CHECKING:
    from isoloss.errors import NoAnswer
    from isoloss.fitting.result import Fit
    from isoloss.planning.budget import Budget
    from isoloss.planning.result import Plan


def report(
    path: Annotated[str, typer.Argument(metavar="FIT", help="File of `isoloss fit --json`.")],
    out: Annotated[str, typer.Option(help="The page to write.")] = "report.html",
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
    group: Annotated[str | None, typer.Option(help="Which fit of `isoloss fit --by`.")] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> int:
    """Write one HTML page about a fit.

    Data, residuals, joint uncertainty, back-test, checklist, plan and how all was made, in one file that
    needs no network. Without a budget it plans for ten times the dearest run.
    """
    from isoloss.report.page import write_report

    check_writable(out)
    found, note = leading_fit(path, group, "a report")
    limits = (flops, total_flops, tokens, params, stored, device_hours, money, loss)
    budget = None
    if any(limit is not None for limit in limits):
        budget = budget_of(
            flops, total_flops, tokens, params, stored, device_hours, money, loss, minimise, serve_tokens,
            bits, peak, utilisation, serve_utilisation, price_per_device_hour, bits_cost,
        )  # fmt: skip
    else:
        _refuse_unused({
            "--minimise": minimise, "--serve-tokens": serve_tokens, "--bits": bits, "--peak": peak,
            "--utilisation": utilisation, "--serve-utilisation": serve_utilisation,
            "--price-per-device-hour": price_per_device_hour, "--bits-cost": bits_cost or None, "--hold": hold,
            "--choose": choose, "--lr": lr, "--batch": batch,
        })  # fmt: skip
    if note:
        say(note)
    found = with_pieces(found, borrow, value or [])
    asked: Budget | Plan | NoAnswer | None = budget
    if budget is not None and any((hold, choose, lr, batch)):
        asked = _planned(found, budget, hold or [], choose or [], lr, batch)
    page = write_report(found, out, asked)
    if found.result != "identified":
        say(f"the fit is {found.result}: the page says so first")
    say(str(page))
    if show:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def _planned(
    found: Fit, budget: Budget, hold: list[str], choose: list[str], lr: str | None, batch: str | None
) -> Plan | NoAnswer:
    """The plan with its choices, or why there is none: the page says it."""
    from isoloss.errors import NoAnswer
    from isoloss.planning.axes import parse_choose, parse_hold
    from isoloss.planning.optimum import plan

    try:
        return plan(
            found, budget, hold=parse_hold(hold), choose=parse_choose(choose), learning_rate=rule_of(lr),
            batch=rule_of(batch),
        )  # fmt: skip
    except NoAnswer as answer:
        return answer


def _refuse_unused(settings: Mapping[str, object]) -> None:
    """Settings of a budget without a budget would be left aside in silence."""
    given = [option for option, value in settings.items() if value is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} belongs to a budget, which needs a limit or a wanted loss: add --flops 1e22 or "
            "--loss 2.5, say"
        )
