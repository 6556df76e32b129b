"""``isoloss schedule``: from a few training curves to the curve under any other schedule, and which to choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import (
    Columns,
    Coverage,
    Format,
    Json,
    Latex,
    Markdown,
    Seed,
    Units,
    Where,
    style_of,
    table,
)
from isoloss.cli.show import (
    Style,
    Table,
    check_writable,
    findings,
    for_people,
    interval,
    number,
    plural,
    progress,
    say,
    show,
    write_json,
)

if TYPE_CHECKING:
    from isoloss.fitting.schedule_fit import ScheduleFit
    from isoloss.laws.schedules.schedule import Schedule
    from isoloss.planning.schedules import Choice

schedule = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Fit a law of learning-rate schedules to training curves, predict other schedules, choose one.",
)

File = Annotated[str, typer.Argument(metavar="FIT", help="File of `isoloss schedule fit --json`.")]
Warmup = Annotated[
    int | None,
    typer.Option(
        min=0, help="Steps of the linear warm-up before the log; needed where it begins after step 1."
    ),
]
NEAR = 1.01  # a reach below is none worth a word
SHOWN = 10  # steps in a table; --json has those asked for


@schedule.command()
def fit(
    law: Annotated[str, typer.Argument(help="multi-power or lr-annealing.")],
    path: Annotated[
        str, typer.Argument(metavar="CURVES", help="Table: curve, step, lr, loss; a row a logged step.")
    ],
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    warmup: Warmup = None,
    fix: Annotated[
        list[str] | None, typer.Option(help="Hold a parameter: memory=1000. Repeat for several.")
    ] = None,
    draws: Annotated[int, typer.Option(min=0, help="Joint parameter draws.")] = 200,
    starts: Annotated[int, typer.Option(min=1, help="Starting points.")] = 16,
    unseen: Annotated[
        float | None,
        typer.Option(min=0.0, help="Sd of log loss by which the law misses a schedule it has not seen."),
    ] = None,
    coverage: Coverage = 0.9,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Fit a law of schedules to one or more training curves."""
    from isoloss.fitting.schedule_fit import UNSEEN
    from isoloss.fitting.schedules import fit_schedules

    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    held = _held(fix or [])
    advance, end = progress(draws * 5)
    try:
        found = fit_schedules(
            law, table(path, columns, where, units, format), warmup=warmup, fix=held, draws=draws, starts=starts,
            coverage=coverage, unseen=UNSEEN if unseen is None else unseen, seed=seed, progress=advance,
        )  # fmt: skip
    finally:
        end()
    with for_people(json):
        _print_fit(found, style)
    if json is not None:
        write_json(json, found.to_json())
    return 0


@schedule.command()
def predict(
    path: File,
    words: Annotated[
        str,
        typer.Option(
            "--schedule", help="cosine:steps=24000,peak=3e-4,end=3e-5,warmup=2160, or a table of step and lr."
        ),
    ],
    steps: Annotated[
        str | None, typer.Option(help="Where: 1000,2000,...; default ten, the last included.")
    ] = None,
    of: Annotated[str, typer.Option(help="run: one new run; mean: the law's level alone.")] = "run",
    warmup: Warmup = None,
    coverage: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="Of the intervals; default the fit's.")
    ] = None,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Predict the loss along a run under another schedule."""
    import numpy as np

    from isoloss.fitting.schedule_fit import ScheduleFit
    from isoloss.runs.units import parse_count

    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    found, asked = ScheduleFit.load(path), _schedule(words, warmup)
    first = max(asked.warmup, 1)
    count = min(SHOWN, asked.steps - first + 1)
    at: Any = (
        np.unique(np.round(np.linspace(first, asked.steps, count)))
        if steps is None
        else [parse_count(word) for word in steps.split(",")]
    )
    if of not in ("run", "mean"):
        raise ValueError(f"--of must be run or mean, got {of!r}")
    seen = found.predict(asked, at, of="run" if of == "run" else "mean", coverage=coverage)
    with for_people(json):
        rows = [
            [f"{s:.0f}", f"{asked.rates[int(s)]:.3g}", number(m), interval(lo, hi), f"{r:.2f}"]
            for s, m, lo, hi, r in zip(
                seen.x["step"], seen.median, seen.low, seen.high, seen.reach, strict=True
            )
        ]
        head = f"{100 * seen.coverage:g}% interval"
        what = "one new run" if of == "run" else "level of the law"
        say(f"{found.law.slug}: {what} under {asked.words}", style)
        show(Table(["step", "lr", "loss", head, "reach"], rows), style)
        if (seen.reach > NEAR).any():
            say("reach: how far the summed rate, or the rate, leaves the fitted curves, as a factor.", style)
    if json is not None:
        write_json(json, seen.to_json())
    return 0


@schedule.command()
def choose(
    path: File,
    steps: Annotated[str, typer.Option(help="Steps of the run, warm-up included.")],
    peak: Annotated[float, typer.Option(help="Peak learning rate.")],
    end: Annotated[
        float | None, typer.Option(help="Last and lowest rate; default a tenth of the peak.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps of the linear warm-up.")] = 0,
    words: Annotated[
        list[str] | None,
        typer.Option("--schedule", help="One more candidate, as in predict. Repeat for several."),
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(
            metavar="RATES", help="Also seek the best schedule that never rises; its rates go here (CSV)."
        ),
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(min=0.01, max=0.999, help="Of the intervals; default the fit's.")
    ] = None,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Compare schedules by predicted final loss: constant, cosine, linear, and stable-then-decay in several forms."""
    from isoloss.fitting.schedule_fit import ScheduleFit
    from isoloss.planning.schedules import best_schedule, family
    from isoloss.planning.schedules import choose as compare
    from isoloss.runs.units import parse_count

    style = style_of(md, latex)
    for place in (json, best):
        if place is not None:
            check_writable(place)
    found = ScheduleFit.load(path)
    total, lowest = int(parse_count(steps)), peak / 10 if end is None else end
    named = family(steps=total, peak=peak, end=lowest, warmup=warmup)
    named |= {text: _schedule(text, warmup) for text in words or []}
    if best is not None:
        named["best"] = best_schedule(found, steps=total, peak=peak, end=lowest, warmup=warmup)
    choice = compare(found, named, coverage=coverage)
    with for_people(json):
        _print_choice(choice, style)
        if best is not None:
            _write_rates(best, named["best"])
            say(f"best: its rates are in {best}", style)
    if json is not None:
        write_json(json, choice.to_json())
    return 0


def _held(words: list[str]) -> dict[str, float]:
    out = {}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        try:
            out[name] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise ValueError(f"--fix needs NAME=VALUE, got {word!r}. Write memory=1000")
    return out


def _schedule(words: str, warmup: int | None) -> Schedule:
    """A schedule in words, or the table of rates at a path."""
    from isoloss.laws.schedules.schedule import Schedule

    if not Path(words).is_file():
        if ":" not in words:
            raise ValueError(
                f"needed a schedule in words, cosine:steps=24000,peak=3e-4,end=3e-5, or a table of step and lr; there "
                f"is no file {words!r}"
            )
        return Schedule.parse(words)
    from isoloss.runs import read

    return Schedule.of_table(*read(words).numeric("step", "lr"), warmup=warmup)


def _write_rates(path: str, found: Schedule) -> None:
    """Every step and its rate; no digit lost."""
    from isoloss.files import write_atomically

    lines = [f"{step},{rate!r}" for step, rate in enumerate(found.rates.tolist())]
    write_atomically(Path(path), "\n".join(["step,lr", *lines]) + "\n")


def _print_fit(found: ScheduleFit, style: Style) -> None:
    say(f"{found.law.slug}: loss = {found.law.formula}", style)
    removed = f", {plural(len(found.removed), 'row')} removed" if found.removed else ""
    say(
        f"{plural(len(found.curves), 'curve')}, {found.rows} losses{removed}; {found.agreeing_starts:.0%} of "
        f"{found.starts} starts agree; {plural(len(found.draws), 'draw')}, seed {found.seed}",
        style,
    )
    rows = [
        [name, number(e.value), number(e.stderr, 2), interval(e.low, e.high), e.status]
        for name, e in found.parameters.items()
    ]
    show(Table(["parameter", "value", "s.e.", f"{100 * found.coverage:g}% interval", "status"], rows), style)
    import numpy as np

    curves = [
        [c.name, str(len(c.steps)), f"{c.schedule.peak:.3g}", f"{c.schedule.rates[int(c.steps[-1])]:.3g}",
         number(float(c.loss[-1])), f"{np.mean(np.abs(c.loss * np.expm1(-r))):.4f}"]
        for c, r in zip(found.curves, found.residuals, strict=True)
    ]  # fmt: skip
    show(Table(["curve", "losses", "peak", "last rate", "last loss", "mean |error|"], curves), style)
    findings(found.warnings, style)
    say(f"result: {found.result}", style)


def _print_choice(choice: Choice, style: Style) -> None:
    share = f"{100 * choice.coverage:g}%"
    rows = [
        [c.name, number(c.loss), interval(c.low, c.high), f"{c.best:.2f}", f"{c.behind:.4f}",
         "" if i == 0 else f"{c.behind_low:.4f} to {c.behind_high:.4f}", "tied" if c.tied and i else ""]
        for i, c in enumerate(choice.candidates)
    ]  # fmt: skip
    headings = ["schedule", "final loss", f"{share} interval", "P(best)", "behind", f"{share} interval", ""]
    show(Table(headings, rows, title=f"{choice.law}: final loss by schedule"), style)
    far = [c.name for c in choice.candidates if c.reach > NEAR]
    if far:
        say(f"outside the fitted curves, in summed rate or rate: {', '.join(far)}", style)
    if choice.winner is not None:
        say(f"best: {choice.winner}", style)
    else:
        tied = [c.name for c in choice.candidates if c.tied]
        behind = [c.name for c in choice.candidates if not c.tied]
        said = f"; behind them: {', '.join(behind)}" if behind else ""
        say(f"not resolved between {plural(len(tied), 'schedule')}: {', '.join(tied)}{said}", style)
