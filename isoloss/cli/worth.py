"""``isoloss worth``: what compression costs, in parameters and tokens, and whether a smaller model would do better."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.budget import is_published
from isoloss.cli.options import (
    Columns,
    Format,
    Json,
    Latex,
    Markdown,
    Seed,
    Where,
    leading_fit,
    style_of,
    table,
)
from isoloss.cli.show import Style, Table, check_writable, for_people, number, say, show, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from isoloss.planning.result import Quantity
    from isoloss.planning.worth_result import Rated, Worth


def worth(
    path: Annotated[
        str, typer.Argument(metavar="TABLE", help="Table that `isoloss compress --frontier` wrote.")
    ],
    law: Annotated[
        str | None,
        typer.Option(
            help="File of `isoloss fit --json`, or LAW@PUBLISHED: a law of params, or of params and tokens."
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="That the model was trained on: 20B. If not given, the table's, or those for which its size is "
            "compute-optimal by the law."
        ),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Bits that a smaller model is trained and stored in: 16,8.")
    ] = "16",
    at: Annotated[
        float | None, typer.Option(help="Bits a weight at which you ask what a bit is worth.")
    ] = None,
    hold: Annotated[
        list[str] | None, typer.Option(help="A further axis of the law: bits_kv=8. Repeatable.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Which fit of `isoloss fit --by`.")] = None,
    columns: Columns = None,
    where: Where = None,
    format: Format = None,
    coverage: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="Of intervals; default the fit's.")
    ] = None,
    report: Annotated[str | None, typer.Option(help="Write an HTML page here.")] = None,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Say what compression is worth.

    Which measured variants are worth their bytes; with a law, how many parameters and tokens each costs, what a bit is
    worth, and whether a smaller model of the same bytes would have been better.
    """
    from isoloss.planning.axes import parse_hold
    from isoloss.planning.worth import worth as rate
    from isoloss.runs.units import parse_count

    style = style_of(md, latex)
    for target in (json, report):
        if target is not None:
            check_writable(target)
    bits = _bits(against)
    source: Any = None
    note = ""
    if law is not None and is_published(law):
        source = law
    elif law is not None:
        source, note = leading_fit(law, group, "this")
    found = rate(
        table(path, columns, where, None, format),
        source,
        tokens=None if tokens is None else parse_count(tokens),
        against=bits,
        at=at,
        hold=parse_hold(hold or []),
        coverage=coverage,
        seed=seed,
    )
    with for_people(json):
        if note:
            say(note, style)
        for model in found.models:
            _print(found, model, style)
        for text in found.notes:
            say(f"note: {text}", style)
        if report is not None:
            from isoloss.report.about_worth import write_worth

            given: dict[str, object] = {
                "law": law, "tokens": tokens, "against": None if against == "16" else against, "at": at, "group": group,
                "columns": columns, "where": where, "format": format, "coverage": coverage, "seed": seed or None,
            }  # fmt: skip
            say(str(write_worth(found, report, _command(path, given, hold or []))), style)
    if json is not None:
        write_json(json, found.to_json())
    return 0


def _bits(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < bits <= 64 for bits in found):
        raise ValueError(f"--against needs bits above 0 and up to 64, 16,8, got {text!r}")
    return found


def _command(path: str, given: dict[str, object], hold: list[str]) -> str:
    """What writes the page again."""
    words = ["isoloss", "worth", path]
    for name, value in given.items():
        words += [] if value is None else [f"--{name}", str(value)]
    for one in hold:
        words += ["--hold", one]
    return shlex.join([*words, "--report", "PAGE"])


def _print(found: Worth, model: Rated, style: Style) -> None:
    from isoloss.runs.units import format_count

    on = f" on {model.data}" if model.data else ""
    of = f", {format_count(model.params)} {found.size}" if model.params else ""
    trained = f", {format_count(model.tokens)} tokens ({model.tokens_how})" if model.tokens else ""
    law = f"; by {found.law}" if found.law else ""
    say(f"{model.model or 'the model'}{on}{of}{trained}{law}", style)
    percent = f"{100 * found.coverage:g}% interval"
    heads = ["variant", "by", "bits", "bytes", "rise of the loss", "place"]
    if found.law:
        heads += ["worth params, " + percent, *(["worth tokens"] if model.tokens else [])]
    rows = []
    for row in model.rows:
        cells = [row.variant, row.solver, f"{row.bits:.4g}", f"{row.bytes:,.0f}"]
        cells += [_with_error(row.rise, row.rise_se), row.place]
        if found.law:
            equal = [row.params_equal, *([row.tokens_equal] if model.tokens else [])]
            cells += [
                "—" if value is None or row.rise == row.rise_se == 0 else _share(value) for value in equal
            ]
        rows.append(cells)
    show(Table(heads, rows, words=["variant", "by", *heads[4:]]), style)
    if model.steps:
        show(_steps(found, model, percent), style)
    if found.law:
        if any(row.smaller for row in model.rows):
            show(_smaller(model, percent), style)
        _say_best(found, model, style)
    if model.at is not None:
        say(_at(model), style)


def _steps(found: Worth, model: Rated, percent: str) -> Table:
    heads = ["from", "to", "bits", "loss of a bit, " + percent]
    if found.law:
        heads += ["as params", *(["as tokens"] if model.tokens else [])]
    rows = []
    for step in model.steps:
        cells = [step.of, step.to, f"{step.low:.3g} to {step.high:.3g}", _with_ends(step.loss, _signed)]
        cells += [_with_ends(value, _factor) for value in (step.params, step.tokens) if value is not None]
        rows.append(cells)
    return Table(heads, rows, "what a bit a weight is worth, along the hull", words=heads)


def _smaller(model: Rated, percent: str) -> Table:
    """Of the variants on the hull; the JSON and the page have all."""
    from isoloss.runs.units import format_count

    heads = ["compressed", "smaller", "difference, " + percent, "P(compress)", "better"]
    rows = [
        [
            row.variant,
            f"{format_count(one.params)} in {one.bits:g} bits"
            + (f", {one.how}" if one.tokens is not None else "")
            + (f", {one.reach:.2g}x outside the rows" if one.reach > 1 else ""),
            _with_ends(one.difference, _signed),
            "—" if math.isnan(one.p_compress) else f"{one.p_compress:.2f}",
            one.verdict,
        ]
        for row in model.rows
        if row.hull
        for one in row.smaller
    ]
    title = (
        "train smaller, or compress this one? Loss of a smaller model of the same bytes, less that of this"
    )
    return Table(heads, rows, title, words=heads)


def _say_best(found: Worth, model: Rated, style: Style) -> None:
    if not model.best:
        return
    first, *rest = sorted(model.best, key=lambda one: -one.params_per_byte.value)
    if math.isnan(first.p_best):
        say(f"most parameters for a byte: {first.variant}; not resolved, as an error is not known", style)
        return
    verdict = "" if first.p_best >= found.coverage else "; not resolved"
    others = ", ".join(f"{one.variant} {one.p_best:.2f}" for one in rest if one.p_best >= 0.005)
    say(
        f"most parameters for a byte: {first.variant} ({first.bits:.3g} bits), "
        f"{first.params_per_byte.value:.3g} each, in {first.p_best:.0%} of the draws{verdict}"
        + (f" (others: {others})" if others else ""),
        style,
    )


def _at(model: Rated) -> str:
    step = model.at
    assert step is not None
    text = f"a bit between {step.low:.3g} and {step.high:.3g}: the loss changes by {_with_ends(step.loss, _signed)}"
    for value, what in ((step.params, "parameters"), (step.tokens, "tokens")):
        if value is not None:
            text += f", as with {_with_ends(value, _factor)} {what}"
    return text


def _with_error(value: float, se: float) -> str:
    if value == se == 0:
        return "0"
    return f"{_signed(value)} ± {number(se, 2)}" if math.isfinite(se) else _signed(value)


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.2g}" if math.isfinite(value) else "—"


def _share(value: Quantity) -> str:
    """``91.4 % (87.1 to 95.7)``."""
    if math.isnan(value.value):
        return "—"
    ends = [("no limit" if math.isinf(v) else f"{100 * v:.3g}") for v in (value.value, value.low, value.high)]
    return f"{ends[0]} %" + ("" if math.isnan(value.low) else f" ({ends[1]} to {ends[2]})")


def _factor(value: float) -> str:
    if math.isnan(value):
        return "—"
    if math.isinf(value) or value > 2:
        return "endless" if math.isinf(value) else f"{value:.2g}x"
    return f"{100 * (value - 1):+.2g} %"


def _with_ends(value: Quantity, write: Callable[[float], str]) -> str:
    if math.isnan(value.low):
        return write(value.value)
    return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"
