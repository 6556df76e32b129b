"""``isoloss compare``: which law predicts the dearer runs best, and whether that is resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    from isoloss.comparing.comparison import Comparison, Margin, Standing
    from isoloss.fitting.objective import Objective
    from isoloss.runs import Runs


def compare(
    laws: Annotated[list[str], typer.Argument(metavar="LAW...", help="hoffmann gadre ..., or auto.")],
    path: Annotated[str, typer.Argument(metavar="TABLE", help="csv, tsv, json, jsonl or parquet.")],
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    objective: Annotated[
        str | None, typer.Option(help="huber, least-squares, gaussian or student-t.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Of huber; default 1e-3.")] = None,
    df: Annotated[float | None, typer.Option(help="Degrees of freedom of student-t; default 4.")] = None,
    residual: Annotated[str | None, typer.Option(help="log or linear.")] = None,
    weights: Annotated[str | None, typer.Option(help="Column of row weights.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Rows equal in this column are resampled together.")
    ] = None,
    folds: Annotated[
        int, typer.Option(min=1, help="Cuts by cost; each holds the next dearer runs back.")
    ] = 4,
    draws: Annotated[int, typer.Option(min=2, help="Joint draws of each fit.")] = 200,
    starts: Annotated[int, typer.Option(min=1, help="Starting points of each fit.")] = 16,
    coverage: Coverage = 0.9,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Compare laws by how well they predict dearer runs from cheaper ones.

    All laws are fitted to the same cheap rows and scored on the same dear ones. "Not resolved" is an answer.
    """
    from isoloss.comparing.compare import compare as compare_laws

    style = style_of(md, latex)
    runs = table(path, columns, where, units, format)
    if json is not None:
        check_writable(json)
    advance, stop = progress(draws * folds)
    try:
        found = compare_laws(
            laws, runs, objective=objective_for(runs, objective, delta, df, residual), cluster=cluster,
            weights=weights, folds=folds, draws=draws, starts=starts, coverage=coverage, seed=seed,
            progress=advance,
        )  # fmt: skip
    finally:
        stop()
    with for_people(json):
        print_comparison(found, style)
    if json is not None:
        write_json(json, found.to_json())
    return 0


def objective_for(
    runs: Runs, name: str | None, delta: float | None, df: float | None, residual: str | None
) -> Objective | None:
    """The objective that the options describe for the target of the table; None for the default."""
    from isoloss.cli.fit import objective_named
    from isoloss.laws import get

    if all(value is None for value in (name, delta, df, residual)):
        return None
    return objective_named(
        get("power" if "loss" in runs else "loss-to-error"), name, delta, df, residual, "sum"
    )


def print_comparison(found: Comparison, style: Style) -> None:
    """Two tables, held out and in the fit, and what must be said beside them."""
    best = found.best.backtest
    far = f", the dearest {best.distance.max():.3g}x beyond the fitted" if len(best) else ""
    say(
        f"{plural(len(found.standings), 'law')} on {found.rows} rows; {len(best)} held out in "
        f"{plural(len(best.folds), 'fold')} by "
        f"{found.cost_rule}{far}; {found.objective}; seed {found.seed}",
        style,
    )
    head = [
        "law",
        "CRPS",
        "times the best",
        "log score",
        "error",
        f"inside {100 * found.coverage:g}%",
        "weight",
    ]
    rows = [[s.law, *_held_out(s), "best" if s is found.best else _verdict(s)] for s in found.standings]
    show(Table([*head, "against the best"], rows), style)
    least = [
        min((v for s in found.standings if (v := getattr(s.criteria, name)) is not None), default=0.0)
        for name in ("aicc", "bic")
    ]
    inside = [
        [s.law, str(s.free), s.result, f"{s.r2:.4f}", _above(s.criteria.aicc, least[0]),
         _above(s.criteria.bic, least[1])]
        for s in found.standings
    ]  # fmt: skip
    show(Table(["law", "parameters", "in the fit to all rows", "R2", "AICc", "BIC"], inside), style)
    kinds = dict.fromkeys(s.criteria.of for s in found.standings if s.criteria.aicc is not None)
    if kinds:
        say(f"AICc, BIC: above the least; of a {' or '.join(kinds)} fit to all rows.", style)
    for s in found.standings:
        if s.criteria.aicc is None:
            say(f"{s.law}: {s.criteria.of}", style)
        for k, fold in enumerate(s.backtest.folds, start=1):
            if not fold.scored:
                say(f"{s.law}: no answer in fold {k} ({fold.fitted} rows fitted): {fold.reason}", style)
        loose = [
            str(k) for k, fold in enumerate(s.backtest.folds, start=1) if fold.result == "not-identified"
        ]
        if loose:
            say(f"{s.law}: not identified in fold {', '.join(loose)}; scored all the same", style)
    for row, why in found.removed[:8]:
        say(f"left out row {row}: {why}", style)
    if len(found.removed) > 8:
        say(f"... and {len(found.removed) - 8} more rows, all in the --json file", style)
    reasons: dict[str, list[str]] = {}
    for law, why in found.left_out.items():
        reasons.setdefault(why, []).append(law)
    for why, names in reasons.items():
        say(f"left out {', '.join(names)}: {why}", style)
    say(
        f"stack of the weights: CRPS {number(found.stack_crps, 3)} against {number(found.best_crps, 3)} of the "
        "best law alone (weights chosen without the fold they predict)",
        style,
    )
    shift = found.conformal.shift
    if shift is None:
        say(found.conformal.text, style)
    else:
        wider = f"widened by {shift:.0%} of its width at either end" if shift > 0 else "not widened"
        say(f"the stack's {100 * found.coverage:g}% interval is {wider} ({found.conformal.text})", style)


def _held_out(s: Standing) -> list[str]:
    test = s.backtest
    times = "1" if s.margin is None else _times(s.margin)
    if not test.complete:
        times = "—"
    return [
        number(test.mean_crps, 3),
        times,
        number(test.mean_log_score, 3),
        f"{100 * test.relative_error:.2f}%" if len(test) else "—",
        f"{test.hits} of {len(test)}",
        f"{s.weight:.2f}",
    ]


def _times(gap: Margin) -> str:
    return f"{number(gap.ratio, 3)} ({interval(gap.low, gap.high, 3)})"


def _verdict(s: Standing) -> str:
    return s.margin.verdict if s.margin else "no answer in a fold"


def _above(value: float | None, least: float) -> str:
    return "—" if value is None else f"{value - least:.1f}"
