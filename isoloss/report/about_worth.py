"""Takes what variants of models are worth, gives a page: their frontier, exchange rates, and smaller models beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from isoloss.files import refuse_unwritable, write_atomically
from isoloss.planning.result import Quantity
from isoloss.planning.worth_result import Rated, Worth
from isoloss.report.blocks import Code, Part, Section, cautions, picture, table
from isoloss.report.frontiers import draw_frontier
from isoloss.report.html import Head, html
from isoloss.report.words import listed, number, plural
from isoloss.runs.units import format_count

VERDICTS = {
    "compress": "compression is better in {}",
    "train smaller": "the smaller model in {}",
    "not resolved": "{} not resolved",
}
SIZE = (7.2, 4.6)  # of the picture, inches


def write_worth(found: Worth, path: str | Path, command: str = "") -> Path:
    """Write one HTML page about variants and what they are worth; it holds everything, like that of a fit.

    Args:
        found: from :func:`isoloss.planning.worth.worth`.
        path: of the page.
        command: that writes the page again.

    Raises:
        ValueError: the file cannot be written.
    """
    place = Path(path)
    refuse_unwritable(place)
    write_atomically(place, worth_html(found, command))
    return place


def worth_html(found: Worth, command: str = "") -> str:
    """The page as text, see :func:`write_worth`."""
    sections: list[Section] = []
    for at, model in enumerate(found.models):
        sections.append(_frontier(found, model, at))
        if model.steps:
            sections.append(_steps(found, model, at))
        if any(row.smaller for row in model.rows):
            sections.append(_smaller(found, model, at))
    if command:
        sections.append(Section("making", "How this page was made", (), (Code(command),)))
    names = listed([model.model or "a model" for model in found.models])
    head = Head(
        title=f"{names}: what compression is worth", kind="report on compression", heading=names,
        formula=f"by the law {found.law}" if found.law else "", mark="", verdict="", meaning="",
        quiet="Nothing in the table gave a warning.", rest="the table",
    )  # fmt: skip
    return html(head, _short(found), cautions([]), sections)


def _short(found: Worth) -> tuple[str, ...]:
    said = []
    for model in found.models:
        kept = [row for row in model.rows if row.place == "frontier" and row.variant != "original"]
        name = model.model or "the model"
        places = (
            listed([f"{row.variant} ({row.bits:.3g} bits, {_signed(row.rise)})" for row in kept[:4]])
            or "none"
        )
        said.append(
            f"{name}: {plural(len(model.rows), 'variant')} measured; on the frontier beyond errors: {places}."
        )
        said += _against(found, model, name)
        if model.best:
            first = max(model.best, key=lambda one: one.params_per_byte.value)
            sure = "errors unknown" if math.isnan(first.p_best) else f"in {first.p_best:.0%} of the draws"
            open_ = "" if first.p_best >= found.coverage else ", which does not resolve it"
            said.append(f"{name}: most parameters for a byte in {first.variant}, {sure}{open_}.")
    return (*said, *(f"{note[:1].upper()}{note[1:]}." for note in found.notes))


def _against(found: Worth, model: Rated, name: str) -> list[str]:
    """How often compression beats a smaller model of the same bytes, along the hull."""
    said = []
    for bits in found.against:
        verdicts = [one.verdict for row in model.rows if row.hull for one in row.smaller if one.bits == bits]
        if verdicts:
            counts = [
                words.format(count) for name_, words in VERDICTS.items() if (count := verdicts.count(name_))
            ]
            what = "comparisons on the hull" if model.tokens else "variants on the hull"
            said.append(
                f"{name}: of {len(verdicts)} {what}, against smaller models in {bits:g} bits, {listed(counts)}."
            )
    return said


def _frontier(found: Worth, model: Rated, at: int) -> Section:
    percent = f"{100 * found.coverage:g} %"
    said = [
        "A variant is on the frontier where every other that is no larger loses more, beyond the errors of all comparisons "
        "together; dominated where one that is no larger loses less, beyond errors.",
    ]
    if found.law:
        tokens = f" on {format_count(model.tokens)} tokens, {model.tokens_how}" if model.tokens else ""
        said.append(
            f"{format_count(model.params or math.nan)} {found.size}{tokens}. Worth is the share of parameters or tokens with "
            f"which the law has the same loss; intervals hold {percent} of the draws of law and measurement."
        )
    heads = ["variant", "by", "bits", "bytes", "rise", "s.e.", "place"]
    if found.law:
        heads += ["worth parameters", *(["worth tokens"] if model.tokens else [])]
    rows = []
    for row in model.rows:
        cells = [
            row.variant,
            row.solver,
            f"{row.bits:.4g}",
            f"{row.bytes:,.0f}",
            _signed(row.rise),
            number(row.rise_se, 2),
        ]
        cells.append(row.place)
        if found.law:
            equal = [row.params_equal, *([row.tokens_equal] if model.tokens else [])]
            cells += ["—" if row.variant == "original" else _with_ends(value, _per_cent) for value in equal]
        rows.append(cells)
    parts: list[Part] = [
        picture(
            lambda figure: draw_frontier(figure.subplots(), model, found.coverage), f"frontier{at}",
            "Rise of the loss over stored bytes, with errors; the original's size, and what smaller models would lose.",
            "The blue line is the hull of what was measured, the star the original.",
            SIZE,
        ),
        table("Measured variants", heads, rows, (2, 3, 4, 5)),
    ]  # fmt: skip
    on = f" on {model.data}" if model.data else ""
    return Section(
        f"frontier-{at}", f"Frontier of {model.model or 'the model'}{on}", tuple(said), tuple(parts)
    )


def _steps(found: Worth, model: Rated, at: int) -> Section:
    heads = ["from", "to", "bits", "loss of a bit"]
    if found.law:
        heads += ["as parameters", *(["as tokens"] if model.tokens else [])]
    rows = [
        [
            step.of, step.to, f"{step.low:.3g} to {step.high:.3g}", _with_ends(step.loss, _signed),
            *(_with_ends(value, _factor) for value in (step.params, step.tokens) if value is not None),
        ]
        for step in model.steps
    ]  # fmt: skip
    said = (
        "Between neighbours on the hull of the frontier: the change of the loss for one more bit a weight, and the change of "
        "parameters or tokens that is worth as much.",
    )
    return Section(
        f"rates-{at}", f"What a bit is worth: {model.model or 'the model'}", said if found.law else said[:1],
        (table("Exchange rates", heads, rows),),
    )  # fmt: skip


def _smaller(found: Worth, model: Rated, at: int) -> Section:
    every = [(row.variant, one) for row in model.rows for one in row.smaller]
    far = any(one.reach > 1 for _, one in every)
    heads = [
        "compressed",
        "smaller model",
        *(["with"] if model.tokens else []),
        "difference",
        "P(compress)",
        "better",
    ]
    heads += ["outside the rows"] if far else []
    rows = []
    for variant, one in every:
        cells = [
            variant,
            f"{format_count(one.params)} in {one.bits:g} bits",
            *([one.how] if model.tokens else []),
        ]
        cells += [_with_ends(one.difference, _signed), number(one.p_compress, 2), one.verdict]
        rows.append([*cells, *([f"{one.reach:.2g} times" if one.reach > 1 else ""] if far else [])])
    said = (
        "Loss of a smaller model of the same bytes less that of the compressed one, as the law expects it: above 0 "
        "compression is better. The smaller model is taken to lose nothing by its bits unless the law reads bits_weights.",
    )
    best = [
        [
            one.variant,
            one.solver,
            f"{one.bits:.3g}",
            _with_ends(one.params_per_byte, lambda v: f"{v:.3g}"),
            number(one.p_best, 2),
        ]
        for one in sorted(model.best, key=lambda one: -one.params_per_byte.value)
    ]
    return Section(
        f"smaller-{at}", f"Train smaller, or compress {model.model or 'this one'}?", said,
        (
            table("At equal bytes", heads, rows),
            table("Parameters for a byte", ("variant", "by", "bits", "equal parameters for a byte", "P(most)"), best, (2, 4)),
        ),
    )  # fmt: skip


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+.3g}" if math.isfinite(value) else "—"


def _per_cent(value: float) -> str:
    return "no limit" if math.isinf(value) else f"{100 * value:.3g} %"


def _factor(value: float) -> str:
    return (
        "endless"
        if math.isinf(value)
        else f"{value:.3g} times"
        if value > 10
        else f"{100 * (value - 1):+.2g} %"
    )


def _with_ends(value: Quantity | None, write: Callable[[float], str]) -> str:
    if value is None or math.isnan(value.value):
        return "—"
    if math.isnan(value.low):
        return write(value.value)
    return f"{write(value.value)} ({write(value.low)} to {write(value.high)})"
