"""``isoloss predict``: the loss of a run before it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import Columns, Format, Json, Latex, Markdown, Units, Where, style_of, table
from isoloss.cli.show import Style, Table, findings, for_people, interval, number, say, show, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from isoloss.comparing.stack import Stack
    from isoloss.fitting.chain import Chain
    from isoloss.fitting.prediction import Prediction
    from isoloss.fitting.result import Fit
    from isoloss.runs import Finding
    from isoloss.study.ledger import Correction

Count = str | None
ASSUMED = ("assumed-separable", "borrowed")  # codes of fits that hold for every prediction from them


def predict(
    path: Annotated[
        str, typer.Argument(metavar="FIT", help="File of `isoloss fit --json`, also of `fit auto`.")
    ],
    params: Annotated[Count, typer.Option(help="7B; several: 1B,7B.")] = None,
    params_nonembedding: Annotated[Count, typer.Option(help="As --params, without embeddings.")] = None,
    tokens: Annotated[Count, typer.Option(help="2T.")] = None,
    tokens_unique: Annotated[Count, typer.Option(help="Distinct tokens; default: all of them.")] = None,
    flops: Annotated[Count, typer.Option(help="1e21; for laws of compute.")] = None,
    loss: Annotated[Count, typer.Option(help="For links from loss to error.")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Any other input: NAME=VALUE.")] = None,
    at: Annotated[str | None, typer.Option(metavar="TABLE", help="Predict every row of a table.")] = None,
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    of: Annotated[str, typer.Option(help="mean: the level of the law; run: one new run.")] = "mean",
    coverage: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="Of intervals; default the fit's.")
    ] = None,
    group: Annotated[str | None, typer.Option(help="Which fit of `isoloss fit --by`.")] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A fit from the loss to something else (loss-to-error): predict that."
        ),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the prediction of one new run down here, before the run."),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Text to keep with it, with --ledger.")] = None,
    recalibrate: Annotated[
        bool, typer.Option(help="Widths as the ledger's history asks; with --ledger and --of run.")
    ] = False,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Predict a run before it is made.

    Points are given as options or as a table; each comes with its interval. With --ledger they are written
    down, to be scored by `isoloss ledger` when the runs are made.
    """
    from isoloss.comparing.files import load
    from isoloss.comparing.stack import Stack

    if of not in ("mean", "run"):
        raise ValueError(f"--of needs mean or run, got {of!r}")
    if ledger is None and (recalibrate or note is not None):
        raise ValueError(f"{'--recalibrate' if recalibrate else '--note'} needs a ledger. Do: --ledger FILE")
    if recalibrate and of != "run":
        raise ValueError("--recalibrate needs --of run: a history of runs says nothing of the mean")
    if link is not None and (ledger is not None or at is not None):
        raise ValueError(f"--link needs points as options. Leave {'--ledger' if ledger else '--at'} out")
    style = style_of(md, latex)
    found = load(path, group=group)
    behind = _link(link, found)
    given = {
        "params": params,
        "params_nonembedding": params_nonembedding,
        "tokens": tokens,
        "tokens_unique": tokens_unique,
        "flops": flops,
        "loss": loss,
    }
    words = {name: text for name, text in given.items() if text is not None}
    for entry in axis or ():
        name, equals, text = entry.partition("=")
        if not equals:
            raise ValueError(f"--axis needs NAME=VALUE, got {entry!r}")
        if name in words:
            raise ValueError(f"{name} is given twice: {words[name]} and {text}")
        words[name] = text
    measured = None
    if at is not None:
        if words:
            raise ValueError(f"--at takes the points from the table: leave out {', '.join(words)}")
        points, measured = _table_points(found, at, columns, where, units, format)
    else:
        points = _points(found, words)
    source = behind or found
    prediction = source.predict(of=of, coverage=coverage, **points)  # type: ignore[arg-type]
    correction, numbers = None, None
    if ledger is not None:
        _refuse_measured(at, measured)
        prediction, correction, numbers = _write_down(
            found, prediction, points, ledger, path, note or "", recalibrate
        )
    document = prediction.to_json()
    fits = [*(found.members if isinstance(found, Stack) else (found,)), *([behind.link] if behind else [])]
    document["target"] = fits[-1].law.target
    document["warnings"] = [
        {name: getattr(entry, name) for name in ("code", "level", "text", "why", "do")}
        for entry in (_told(fits))
    ]
    if numbers is not None:
        document["ledger"] = ledger
        for entry, number_ in zip(document["predictions"], numbers, strict=True):
            entry["id"] = number_
    if correction is not None:
        document["recalibration"] = correction.to_json()
    if measured is not None:
        for entry, value in zip(document["predictions"], measured, strict=True):
            entry["measured"] = value
    with for_people(json):
        _print(found, behind, prediction, document, style)
        for fit in fits:
            if fit.result != "identified":
                say(f"the fit is {fit.result}: trust the prediction near the fitted rows only", style)
        findings(_told(fits), style)
        if correction is not None:
            say(correction.sentence(), style)
        if numbers is not None:
            _say_written(ledger or "", numbers, style)
    if json is not None:
        write_json(json, document)
    return 0


def _points(found: Fit | Stack, words: dict[str, str]) -> dict[str, Any]:
    import numpy as np

    from isoloss.runs.units import parse_count

    name, axes, defaults, derived = _reads(found)
    made = derived if len(set(derived) & set(words)) >= 2 else ()
    needed = [axis for axis in axes if axis not in words and axis not in (*defaults, *made)]
    extra = [name for name in words if name not in (*axes, *derived)]
    if needed or extra:
        options = " ".join(f"--{axis.replace('_', '-')} VALUE" for axis in axes)
        raise ValueError(
            f"{name} predicts from {', '.join(axes)}; missing: {', '.join(needed) or 'none'}; "
            f"not used: {', '.join(extra) or 'none'}. Give {options}"
        )
    return {name: np.array([parse_count(part) for part in text.split(",")]) for name, text in words.items()}


def _table_points(
    found: Fit | Stack, at: str, columns: str | None, where: str | None, units: str | None, format: str | None
) -> tuple[dict[str, Any], list[float | None] | None]:
    import numpy as np

    (_, axes, defaults, _), runs = _reads(found), table(at, columns, where, units, format)
    if any(axis not in runs and axis not in defaults for axis in axes):
        runs = runs.derive()
    names = [axis for axis in axes if axis in runs or axis not in defaults]
    fit = _leading(found)
    law = fit.law
    points = dict(zip(names, runs.numeric(*names), strict=True))
    for name, values in points.items():
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise ValueError(
                f"{at}: {name} must be finite and above 0, got {values[bad[0]]:g} in row "
                f"{int(runs.rows[bad[0]])} ({len(bad)} such rows). Mend them or leave them out with --where"
            )
    if law.target not in runs:
        return points, None
    here, there = runs.units.get(law.target, ""), fit.units.get(law.target, "")
    if here and there and here != there:
        raise ValueError(
            f"{at}: {law.target} is in {here}, the fit predicts {there}: they cannot be compared. State the "
            f"unit with --units {law.target}=..., or leave the column out"
        )
    return points, [float(v) if np.isfinite(v) else None for v in runs[law.target]]


def _refuse_measured(at: str | None, measured: list[float | None] | None) -> None:
    """What the table has measured is no prediction any more."""
    known = [i + 1 for i, value in enumerate(measured or ()) if value is not None]
    if known:
        raise ValueError(
            f"{at}: {len(known)} rows (the first is row {known[0]} of those predicted) are measured already, and a "
            "ledger takes predictions made before. Leave them out with --where, or score them with --at alone"
        )


def _write_down(
    found: Fit | Stack,
    prediction: Prediction,
    points: dict[str, Any],
    ledger: str,
    source: str,
    note: str,
    recalibrated: bool,
) -> tuple[Prediction, Correction | None, tuple[int, ...]]:
    """Append to the ledger; what to show, how it was recalibrated, and the numbers of the entries."""
    from isoloss.study.ledger import Ledger
    from isoloss.study.promise import promise, recalibrate
    from isoloss.study.store import Store

    # a fit that cannot promise makes no file
    plain = promise(
        found, points, coverage=prediction.coverage, asked=prediction.of, source=source, note=note
    )
    store, correction = Store(ledger), None
    if recalibrated:
        history = Ledger.read(store)
        better = recalibrate(found, prediction, history)
        prediction, correction = better.prediction, better.correction
        plain = promise(
            found, points, coverage=prediction.coverage, asked=prediction.of, source=source, note=note,
            history=history,
        )  # fmt: skip
    return prediction, correction, store.add_predictions(plain)


def _say_written(ledger: str, numbers: tuple[int, ...], style: Style) -> None:
    shown = ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
    what = "prediction" if len(numbers) == 1 else "predictions"
    say(f"written down in {ledger}, for one new run each: {what} {shown}", style)


def _reads(found: Fit | Stack) -> tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Name, axes, those with a default, and those that a stack derives from the others."""
    from isoloss.comparing.stack import DERIVED, Stack

    if isinstance(found, Stack):
        defaults = tuple(axis for fit in found.members for axis in fit.law.defaults)
        return "the stack", found.axes, defaults, DERIVED
    law = found.law
    optional = tuple(axis for axis in law.axes if axis not in law.given(()).axes)
    return law.spec, law.axes, (*law.defaults, *optional), ()


def _title(found: Fit | Stack) -> str:
    """The law, or the stack with its weights."""
    from isoloss.comparing.stack import Stack

    if not isinstance(found, Stack):
        return found.law.spec
    parts = [f"{w:.2f} {fit.law.spec}" for w, fit in zip(found.weights, found.members, strict=True)]
    return f"stack of {', '.join(parts)}"


def _leading(found: Fit | Stack) -> Fit:
    """The fit, or the stack's member of most weight."""
    from isoloss.comparing.stack import Stack

    return found.leading if isinstance(found, Stack) else found


def _link(path: str | None, found: Fit | Stack) -> Chain | None:
    """The two stages, where a link is given."""
    from isoloss.fitting.chain import chain
    from isoloss.fitting.result import load

    return None if path is None else chain(found, load(path))


def _told(fits: Sequence[Fit]) -> list[Finding]:
    """What a reader of a prediction must know of its fits: why one is not settled, what is assumed or borrowed."""
    told = {
        (entry.code, entry.text): entry
        for fit in fits
        for entry in fit.warnings
        if entry.code in ASSUMED
        or (fit.result != "identified" and (entry.level == "error" or entry.code == fit.result))
    }
    return list(told.values())


def _print(
    found: Fit | Stack, behind: Chain | None, prediction: Prediction, document: dict[str, Any], style: Style
) -> None:
    from isoloss.runs.units import format_count

    what = "level of the law" if prediction.of == "mean" else "one new run"
    title = _title(found) if behind is None else f"{_title(found)} -> {behind.link.law.spec}"
    say(f"{title}: {document['target']}, {what}", style)
    scored = any(p.get("measured") is not None for p in document["predictions"])
    headings = [*prediction.x, "median", f"{100 * prediction.coverage:g}% interval", "reach"]
    headings += ["measured", "inside"] if scored else []
    rows, inside = [], []
    for p in document["predictions"]:
        row = [format_count(value) for value in p["at"].values()]
        row += [number(p["median"], 5), interval(p["low"], p["high"], 5), f"{p['reach']:.3g}x"]
        if scored:
            value = p.get("measured")
            held = value is not None and p["low"] <= value <= p["high"]
            inside += [held] if value is not None else []
            row += [
                "—" if value is None else number(value, 5),
                "" if value is None else "yes" if held else "NO",
            ]
        rows.append(row)
    show(Table(headings, rows), style)
    say("reach: factor by which the point lies outside the fitted rows (1x: inside).", style)
    if inside:
        say(f"{sum(inside)} of {len(inside)} measured values lie inside their interval.", style)
