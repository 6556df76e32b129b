"""Takes a fit, gives the sections of the page that test it: back-test, checklist, sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoloss.comparing.backtest import Backtest, backtest
from isoloss.errors import NoAnswer
from isoloss.fitting.borrow import fitted_part
from isoloss.fitting.checklist import Item
from isoloss.fitting.result import Fit
from isoloss.fitting.sensitivity import Variant, made, outside, place
from isoloss.report.backtests import draw_backtest, draw_backtest_error, inside
from isoloss.report.blocks import Part, Row, Section, Table, picture, table
from isoloss.report.words import interval, listed, number, plural

SMALL_SIZE = (4.4, 3.4)
MANY = 40  # held-back runs, above which the table has only those outside their interval


def back_tested(fit: Fit) -> Backtest | str:
    """The back-test of a fit, of what is borrowed nothing; or the reason why there is none."""
    try:
        return backtest(fitted_part(fit))
    except NoAnswer as error:
        return f"{error.reason.rstrip('.')}. Needed: {error.needed.rstrip('.')}."
    except ValueError as error:  # rows without an order by cost
        return f"{str(error).rstrip('.')}."


def backtest_sentence(found: Backtest) -> str:
    """How good the predictions were, in a sentence."""
    low, high = found.band
    share = found.hits / len(found)
    where = (
        "too narrow"
        if high < found.coverage
        else "wider than they need be"
        if low > found.coverage
        else "compatible with what they promise"
    )
    return (
        f"{found.hits} of {plural(len(found), 'dearer run')} held back fell inside the {100 * found.coverage:g}% "
        f"interval predicted for {'it' if len(found) == 1 else 'them'} ({share:.0%}; 95% band {low:.0%} to "
        f"{high:.0%}): the intervals are {where}."
    )


def backtest_section(fit: Fit, found: Backtest | str) -> Section:
    """Dearer runs predicted from cheaper ones, with scores."""
    title = "Back-test: dearer runs predicted from cheaper ones"
    if isinstance(found, str):
        return Section("backtest", title, (f"No back-test: {found}",))
    said = [
        f"Runs were ordered by cost ({found.cost_rule}); the law was fitted to the cheaper ones alone, and each of "
        "the next dearer ones predicted before it was looked at."
    ]
    if not len(found):
        return Section("backtest", title, (*said, "No fold could be scored."), (_folds(found),))
    unit = fit.units.get(fit.law.target, "")
    said += [
        backtest_sentence(found) + " Points of one fold share a fit, so the true band is wider.",
        f"The median prediction was off by {number(100 * found.relative_error, 2)}% on average; the mean CRPS, the "
        f"distance between prediction and outcome, was {number(found.mean_crps, 3)} {unit if '/' in unit else ''}".rstrip()
        + ".",
    ]
    doubtful = sum(fold.result != "identified" for fold in found.folds)
    if doubtful:
        said.append(
            f"In {plural(doubtful, 'fold')} of {len(found.folds)} the cheaper runs alone do not determine the law."
        )
    said += [f"{note[:1].upper()}{note[1:]}." for note in found.notes]
    parts: list[Part] = [
        Row(
            (
                picture(
                    lambda figure: draw_backtest(figure.subplots(), found, fit.law.target, unit), "backtest",
                    f"Predicted against measured {fit.law.target} of {plural(len(found), 'run')} held back.",
                    "On the line, prediction and measurement agree.", SMALL_SIZE,
                ),
                picture(
                    lambda figure: draw_backtest_error(figure.subplots(), found), "backtesterror",
                    "Measured over predicted along the distance from the fitted runs.",
                    "Errors by how much dearer a run is than the dearest fitted one.", SMALL_SIZE,
                ),
            )
        ),
        _folds(found),
        _points(found),
    ]  # fmt: skip
    return Section("backtest", title, tuple(said), tuple(parts))


def _folds(found: Backtest) -> Table:
    hit = inside(found)
    rows = []
    for k, fold in enumerate(found.folds):
        own = found.fold == k
        error = float(np.mean(np.abs(found.median[own] / found.y[own] - 1))) if own.any() else float("nan")
        rows.append(
            (
                str(fold.fitted), str(fold.held), number(fold.largest, 3),
                f"{int(hit[own].sum())} of {int(own.sum())}" if own.any() else "—",
                f"{number(100 * error, 2)}%" if own.any() else "—", fold.result, fold.reason or "—",
            )
        )  # fmt: skip
    heads = ("fitted", "held back", "dearest fitted", "inside", "mean error", "result of the fit", "reason")
    return table("Folds", heads, rows, (0, 1, 2, 3, 4))


def _points(found: Backtest) -> Table:
    """Every run held back, or where they are many those outside their interval."""
    hit = inside(found)
    many = len(found) > MANY
    shown = np.flatnonzero(~hit) if many else np.arange(len(found))
    rows = [
        (
            str(int(found.row[i])), number(float(found.cost[i]), 3), f"{found.distance[i]:.3g}×",
            number(float(found.y[i])), number(float(found.median[i])),
            interval(float(found.low[i]), float(found.high[i])), "yes" if hit[i] else "no",
        )
        for i in shown
    ]  # fmt: skip
    ends = f"{100 * found.coverage:g}% interval"
    heads = ("row", "cost", "distance", "measured", "predicted", ends, "inside")
    caption = (
        f"The {len(shown)} of {len(found)} held-back runs outside their interval"
        if many
        else "Every run held back"
    )
    return table(caption, heads, rows, (0, 1, 2, 3, 4, 5))


def checklist_section(fit: Fit, seen: Backtest | str) -> Section:
    """What a reader must know to judge a fit, answered or open; the back-test answers for held-out runs."""
    title = "Checklist"
    if not fit.checklist:
        return Section("checklist", title, ("This fit holds no checklist.",))
    shown = isinstance(seen, Backtest) and len(seen) > 0

    def said_by(item: Item) -> tuple[str, str]:
        if item.source == "missing" and item.key == "held-out" and shown:
            return "the back-test of the section above", "this page"
        return item.answer or "not stated", item.source

    missing = [item for item in fit.checklist if said_by(item)[1] == "missing"]
    said = (
        f"What a reader must know to judge a fit: {len(fit.checklist) - len(missing)} of "
        f"{plural(len(fit.checklist), 'question')} answered, by the fit, its table or its maker. "
        + (
            f"Open: {listed([item.key for item in missing])}; isoloss fit --about KEY=TEXT answers them."
            if missing
            else "None is open."
        )
    )
    parts = []
    for name in dict.fromkeys(item.section for item in fit.checklist):
        rows = [(item.question, *said_by(item)) for item in fit.checklist if item.section == name]
        parts.append(table(f"{name[:1].upper()}{name[1:]}", ("question", "answer", "said by"), rows))
    return Section("checklist", title, (said,), tuple(parts))


def sensitivity_section(fit: Fit) -> Section:
    """What the answer would have been with another choice."""
    title = "Sensitivity: the same fit with one choice changed"
    variants = fit.sensitivity
    held = made(variants)
    if not held:
        return Section("sensitivity", title, ("This fit holds no sensitivity table.",))
    base = held[0]
    names = list(base.values)
    rows = []
    for variant in variants:
        own = tuple(number(variant.values[name]) if name in variant.values else "—" for name in names)
        seen = "—" if variant.prediction is None else number(variant.prediction)
        note = variant.why or ("" if variant.result == "fitted" else variant.result)
        rows.append((f"{variant.what}: {variant.setting}", *own, seen, str(variant.rows or "—"), note or "—"))
    heads = ("choice", *names, f"{fit.law.target} there", "rows", "note")
    parts = (table("Refits", heads, rows, tuple(range(1, len(names) + 3))),)
    return Section("sensitivity", title, (_sensitivity_said(fit, variants, base),), parts)


def _sensitivity_said(fit: Fit, variants: Sequence[Variant], base: Variant) -> str:
    where = f"Each row is a refit; the {fit.law.target} is predicted at {place(base.at)}."
    seen = [v.prediction for v in made(variants) if v.prediction is not None]
    if len(seen) < 2 or base.prediction is None:
        return where
    span = (
        f" There the refits say {number(min(seen))} to {number(max(seen))}, the fit {number(base.prediction)}"
    )
    if len(fit.draws) < 2 or fit.result == "not-identified":
        return f"{where}{span}."
    at: dict[str, Any] = dict(base.at)
    level = fit.predict(**at)
    low, high = float(level.low[0]), float(level.high[0])
    moved = outside(variants, low, high)
    ends = f" ({interval(low, high)}, {100 * fit.coverage:g}%)."
    if not moved:
        return (
            f"{where}{span}{ends} No reasonable choice of objective or rows leads outside the fit's interval."
        )
    return (
        f"{where}{span}{ends} Outside the fit's interval: {listed([v.setting for v in moved])}. The interval does "
        "not hold the doubt about these choices."
    )
