"""``isoloss study``: run a ladder, predict what comes next, make it, score the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoloss.cli import NO_ANSWER
from isoloss.cli.options import Json
from isoloss.cli.show import (
    Table,
    check_writable,
    for_people,
    interval,
    number,
    plural,
    say,
    show,
    write_json,
)

if TYPE_CHECKING:
    from isoloss.study.ledger import Ledger
    from isoloss.study.steps import Told
    from isoloss.study.study import Study

study = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Run a ladder, predict what comes next, make it, and score the prediction.",
)

File = Annotated[str, typer.Argument(metavar="FILE", help="Study file; `isoloss study init` writes one.")]
Report = Annotated[
    str | None,
    typer.Option(metavar="PAGE", help="Write an HTML page about the fit and its predictions here."),
]
FitFile = Annotated[
    str | None,
    typer.Option("--fit", metavar="FILE", help="Write the first law's fit here, for predict, plan, report."),
]
Changed = Annotated[
    bool, typer.Option("--changed-trainer", help="Go on although the trainer's file has changed.")
]
Retry = Annotated[
    bool, typer.Option("--retry-failed", help="Try the runs again that failed, from their checkpoints.")
]
SHOWN = 30  # predictions in a table; --json has all


@study.command()
def init(path: Annotated[str, typer.Argument(metavar="FILE", help="To write.")] = "study.toml") -> int:
    """Write a commented study file that runs as it is."""
    from isoloss.study.study import write_template

    write_template(Path(path))
    say(f"{path}: edit it, then `isoloss study run {path}`")
    return 0


@study.command()
def run(path: File, report: Report = None, fit: FitFile = None, json: Json = None) -> int:
    """Start a study and run it to its end.

    What is done is kept at once: after a crash or Ctrl-C, `isoloss study resume` goes on.
    """
    from isoloss.study.study import Study

    found = Study.read(path)
    begun = _begun(found)
    if begun:
        raise ValueError(
            f"the study {found.name!r} has begun: {plural(begun, 'run')} in {found.store_path}. Do: isoloss study "
            f"resume {path}, or give the study another name"
        )
    return _go(found, path, report, fit, json)


@study.command()
def resume(
    path: File,
    report: Report = None,
    fit: FitFile = None,
    json: Json = None,
    changed_trainer: Changed = False,
    retry_failed: Retry = False,
) -> int:
    """Go on with a study: what is finished is not made again, what was cut off goes on from its checkpoint.

    Also after a change of the file: runs that are new in it are made.
    """
    from isoloss.study.study import Study

    return _go(Study.read(path), path, report, fit, json, changed_trainer, retry_failed)


@study.command()
def status(path: File, json: Json = None) -> int:
    """Show how far a study is, what was predicted, and how it came out."""
    from isoloss.study.progress import read_status
    from isoloss.study.study import Study

    found = Study.read(path)
    seen = read_status(found)
    with for_people(json):
        rows = [
            [r.name, str(r.runs), str(r.done), str(r.diverged), str(r.stopped), str(r.failed), str(r.begun), number(r.seconds, 3)]
            for r in seen.rungs
        ]  # fmt: skip
        headings = ["rung", "runs", "done", "diverged", "stopped", "failed", "begun", "core-seconds"]
        show(Table(headings, rows, title=found.name), "terminal")
        for run in seen.under_way:
            share = "" if run.done is None else f", {run.done:.0%} done"
            value = "" if run.value is None else f", {found.objective.target} {number(run.value, 4)}"
            say(f"begun: {run.key}{share}{value}")
        for bad in seen.ended_badly:
            said = ". Log: ".join(part for part in (bad.why, bad.log) if part)
            say(f"{bad.status}: {bad.key}{': ' + said if said else ''}")
        if seen.ledger is not None:
            _print_predictions(seen.ledger)
        say(seen.sentence(path))
    if json is not None:
        write_json(json, seen.to_json())
    return 0


def _begun(found: Study) -> int:
    from isoloss.study.store import Store

    if not found.store_path.exists():
        return 0
    return len(Store(found.store_path, read_only=True).run_entries(found.name))


def _go(
    found: Study,
    path: str,
    report: str | None,
    fit: str | None,
    json: str | None,
    changed_trainer: bool = False,
    retry_failed: bool = False,
) -> int:
    from isoloss.cli.watch import Watch

    for place in (report, fit, json):
        if place is not None:
            check_writable(place)
    with for_people(json):
        with Watch(found) as watch:
            try:
                told = found.run(watch.tell, changed_trainer=changed_trainer, retry_failed=retry_failed)
            except KeyboardInterrupt:
                watch.close()
                say(f"stopped; nothing is lost. Go on with: isoloss study resume {path}")
                raise
        _print_told(found, told, path)
        if report is not None:
            _report(told, report)
        if fit is not None:
            _save(told, fit)
    if json is not None:
        write_json(json, told.to_json())
    return 0 if told.complete else NO_ANSWER  # a limit, or nothing to go on with


def _print_told(found: Study, told: Told, path: str) -> None:
    counts = {s: list(told.statuses.values()).count(s) for s in dict.fromkeys(told.statuses.values())}
    say(f"{found.name}: {', '.join(f'{n} {status}' for status, n in counts.items())}")
    _print_predictions(told.ledger, told.targets)
    if counts.get("failed"):
        say(
            f"why runs failed is said by `isoloss study status {path}`; logs are in {found.folder_path}. To try "
            f"them again: isoloss study resume {path} --retry-failed"
        )
    if not told.complete:
        say(f"not complete: {told.why}" if told.why else f"go on with: isoloss study resume {path}")
    say(f"kept in {found.store_path}: `isoloss ledger {found.store_path}` scores every prediction in it")


def _print_predictions(ledger: Ledger, targets: tuple[str, ...] = ()) -> None:
    """What was predicted of the target (else of all runs), and what came."""
    from isoloss.study.early import LAW

    pairs = [(p, f) for p, f in zip(ledger.predictions, ledger.fates, strict=True) if p["law"] != LAW]
    scored = [(p, f) for p, f in pairs if f.status == "scored" and f.value is not None]
    shown = [(p, f) for p, f in pairs if p["key"] in targets] or scored[-SHOWN:]
    names = {p["key"]: p["key"].rpartition("@")[0] for p, _ in shown}
    unlike = len(set(names.values())) == len(names)
    rows = []
    for p, fate in shown:
        middle = p["quantiles"][len(p["quantiles"]) // 2]
        value = "—" if fate.value is None else number(fate.value, 5)
        held = "" if fate.value is None else "yes" if p["low"] <= fate.value <= p["high"] else "NO"
        far = "—" if p["distance"] is None else f"{p['distance']:.3g}x"
        rows.append(
            [
                names[p["key"]] if unlike else p["key"],
                p["law"],
                far,
                number(middle, 5),
                interval(p["low"], p["high"], 5),
                value,
                held,
            ]
        )
    if rows:
        percent = f"{100 * shown[0][0]['coverage']:g}% interval"
        headings = ["run", "law", "compute", "predicted", percent, "measured", "inside"]
        show(Table(headings, rows, title="predicted before the run"), "terminal")
        say("compute: over that of the dearest run in the fit.")
    inside = sum(p["low"] <= f.value <= p["high"] for p, f in scored if f.value is not None)
    if scored:
        say(f"{inside} of {len(scored)} predictions of this study held what was measured.")


def _report(told: Told, path: str) -> None:
    from isoloss.comparing.stack import Stack
    from isoloss.report.page import write_report

    if not told.fits:
        say("no report: no law has been fitted")
        return
    found = next(iter(told.fits.values()))
    page = write_report(found.leading if isinstance(found, Stack) else found, path, ledger=told.ledger)
    say(f"report: {page}")


def _save(told: Told, path: str) -> None:
    if not told.fits:
        say("no fit to write: no law has been fitted")
        return
    next(iter(told.fits.values())).save(path)
    say(f"fit: {path}, for `isoloss predict {path}`, `isoloss plan {path}`")
