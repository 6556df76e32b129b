"""The main job, on real input: fit a ladder of small runs, predict a larger one, train it, compare.

    make demo

The table `examples/stdlib_ladder.csv` holds byte-level language models trained on the standard library of
one Python. If yours has the same text, the table is fitted as it is and only the held-back rung is trained
here. If not, its losses would not be comparable: a short ladder is trained first.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import isoloss
from demo import ladder
from demo.picture import draw
from demo.trainer import Config, Row, corpus
from isoloss.fitting.prediction import Prediction
from isoloss.runs import from_rows
from isoloss.runs.units import format_count

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "examples" / "stdlib_ladder.csv"
OUT = ROOT / "out"
COVERAGE = 0.9


def main() -> int:
    """Run the demo; returns 0 whether or not the interval holds: that is the measurement."""
    console = Console(width=None if sys.stdout.isatty() else 100)
    started = time.monotonic()
    text = corpus()
    runs = isoloss.read(TABLE)
    same = str(runs["text_sha256"][0]) == text.sha256
    console.print(
        f"Text: {len(text.train) / 1e6:.1f} MB of this Python's standard library, "
        f"{'the text of' if same else 'not the text of'} examples/stdlib_ladder.csv"
    )
    rungs = [rung for rung in ladder.held_back() if rung.seed == 0]
    if not same:
        configs, rung = ladder.short_ladder()
        rungs = [rung]
        console.print(f"So a short ladder of {len(configs)} runs is trained first.")
        runs = from_rows(trained(configs, "ladder", console))

    console.rule("1  check")
    findings = [entry for entry in isoloss.check(runs) if entry.level != "note"]
    for entry in findings:
        console.print(f"{entry.level} [{entry.code}] {entry.text}", markup=False)
    console.print(f"{len(runs)} finished runs, {len(findings)} warnings")

    console.rule("2  fit")
    fit = isoloss.fit("hoffmann", runs, draws=4000, coverage=COVERAGE)
    show_parameters(fit, console)
    for entry in fit.warnings:
        console.print(f"{entry.level} [{entry.code}] {entry.text}", markup=False, highlight=False)

    console.rule("3  predict, before the runs")
    points = {"params": [r.params for r in rungs], "tokens": [r.tokens for r in rungs]}
    prediction = fit.predict(of="run", **points)
    show_predictions(prediction, rungs, float(runs["flops"].max()), console)

    console.rule("4  do it")
    measured = [float(row["loss"]) for row in trained(rungs, "held-back runs", console)]

    console.rule("5  compare")
    for i, (rung, loss) in enumerate(zip(rungs, measured, strict=True)):
        inside = prediction.low[i] <= loss <= prediction.high[i]
        console.print(
            f"{format_count(rung.params)} parameters: measured [bold]{loss:.4f}[/bold], predicted "
            f"{prediction.median[i]:.4f} ({loss / prediction.median[i] - 1:+.2%}): "
            + ("[green]inside[/green]" if inside else "[red]outside[/red]")
            + f" {prediction.low[i]:.4f} to {prediction.high[i]:.4f}"
        )

    console.rule("6  plan")
    flops = 100 * float(runs["flops"].max())
    console.print(f"for {flops:.1e} FLOPs, a hundred times the dearest run in the fit:")
    try:
        console.print(str(isoloss.plan(fit, isoloss.Budget(flops=flops))), markup=False, highlight=False)
    except isoloss.NoAnswer as reason:
        console.print(f"no answer: {reason}", markup=False)

    OUT.mkdir(exist_ok=True)
    fit.save(OUT / "demo-fit.json")
    picture = OUT / "demo.png"
    draw(fit, runs, prediction, measured, picture)
    console.print(f"\nPicture: {picture.relative_to(ROOT)}   ({time.monotonic() - started:.0f} s)")
    return 0


def show_predictions(prediction: Prediction, rungs: list[Config], dearest: float, console: Console) -> None:
    table = Table("parameters", "bytes", "compute", "loss", f"{COVERAGE:.0%} of runs")
    for i, rung in enumerate(rungs):
        table.add_row(
            format_count(rung.params),
            format_count(rung.tokens),
            f"{rung.flops / dearest:.1f}x the dearest fitted",
            f"{prediction.median[i]:.4f}",
            f"{prediction.low[i]:.4f} to {prediction.high[i]:.4f}",
        )
    console.print(table)


def trained(configs: list[Config], what: str, console: Console) -> list[Row]:
    """Train on two workers of one thread each, with a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=len(configs))

        def finished(done: int, _total: int, _row: Row) -> None:
            bar.update(task, completed=done)

        return ladder.train_all(configs, workers=min(2, len(configs)), finished=finished)


def show_parameters(fit: isoloss.Fit, console: Console) -> None:
    table = Table("", "value", "s.e.", "90 % interval", title=f"loss = {fit.law.formula}")
    for name, e in fit.parameters.items():
        table.add_row(name, f"{e.value:.4g}", f"{e.stderr:.2g}", f"{e.low:.4g} to {e.high:.4g}")
    console.print(table)
    console.print(
        f"{len(fit.y)} runs, {fit.agreeing_starts:.0%} of {fit.starts} starts agree, "
        f"R² {fit.r2:.4f}, result: {fit.result}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
