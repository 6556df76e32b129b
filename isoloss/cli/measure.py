"""``isoloss measure``: costs, curvature and noise of a model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import Json, Latex, Markdown, Seed, style_of
from isoloss.cli.show import (
    Style,
    Table,
    check_writable,
    findings,
    for_people,
    number,
    say,
    show,
    write_json,
)
from isoloss.report.words import amount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from isoloss.measure.measurement import Measurement
    from isoloss.measure.measuring import Measured
    from isoloss.measure.misnomer import Comparison
    from isoloss.measure.roofline import Roofline

CLASHES = 5  # contradictions that are printed


def measure(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="file.py:make, a local Hugging Face folder or GGUF file, or a checkpoint folder of isoloss.trainers.gpt. "
            "Several are set side by side.",
        ),
    ],
    what: Annotated[
        str, typer.Option(help="costs, curvature, noise, or single probes: params,flops,memory.")
    ] = "costs",
    data: Annotated[str | None, typer.Option(help="Text to measure on; what is not a cost needs it.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Examples of a batch.")] = 8,
    batches: Annotated[int, typer.Option(min=1, help="How many batches.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of an example; 128, or what the model takes if that is less."),
    ] = None,
    accuracy: Annotated[
        float, typer.Option(min=1e-4, max=1.0, help="Relative standard error at which estimates stop.")
    ] = 0.05,
    optimiser: Annotated[
        str,
        typer.Option(
            help="Of the training step whose memory is asked for: sgd, momentum, adam, adamw, muon."
        ),
    ] = "adamw",
    seconds: Annotated[
        float, typer.Option(min=1.0, help="By the clock, after which a probe of a model is given up.")
    ] = 600.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch; its own choice if not given.")] = None,
    roofline: Annotated[
        str | None,
        typer.Option(
            help="File of the machine's roofline, made where it is not there; in the cache folder if not given."
        ),
    ] = None,
    longest_prompt: Annotated[int, typer.Option(min=4, help="Tokens, of timings of generation.")] = 256,
    longest_output: Annotated[int, typer.Option(min=4, help="Tokens, of timings of generation.")] = 32,
    idle_watts: Annotated[
        float | None, typer.Option(help="Power at rest, for an estimate of energy.", rich_help_panel="Energy")
    ] = None,
    full_watts: Annotated[
        float | None, typer.Option(help="Power with all cores at work.", rich_help_panel="Energy")
    ] = None,
    grams_per_kwh: Annotated[
        float | None, typer.Option(help="CO2e of the grid, for emissions.", rich_help_panel="Energy")
    ] = None,
    pue: Annotated[
        float | None,
        typer.Option(help="Power of the data centre over its machines'.", rich_help_panel="Energy"),
    ] = None,
    region: Annotated[str, typer.Option(help="Of the grid, for the text.", rich_help_panel="Energy")] = "",
    layers: Annotated[
        bool, typer.Option("--layers", help="Print what is known of layers and operators too.")
    ] = False,
    seed: Seed = 0,
    runs: Annotated[
        str | None, typer.Option("--runs", help="Write a row for each model here as CSV, to be read as runs.")
    ] = None,
    report: Annotated[str | None, typer.Option("--report", help="Write a page here, HTML.")] = None,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Measure a model: what it costs, how its loss is curved, how noisy its gradients are.

    Each number comes with its standard error and what it cost to measure. What cannot be measured is said in a line.
    """
    style = style_of(md, latex)
    for target in (json, runs, report):
        if target is not None:
            check_writable(target)
    _torch(threads)
    from isoloss.measure.load import Wanted, load
    from isoloss.measure.measuring import Settings, in_turn, probes
    from isoloss.measure.measuring import measure as run

    names = probes(what)
    wanted = Wanted(Path(data) if data is not None else None, batch, batches, length, seed)
    power, carbon = _power(idle_watts, full_watts), _carbon(grams_per_kwh, pue, region)
    loaded = [load(model, wanted) for model in models]
    _distinct([one.subject.name for one in loaded])
    with _status() as tell:
        tell("roofline of this machine")
        roof = _roof(roofline) if "traffic" in names else None
        settings = Settings(
            seed, accuracy, optimiser, roof, power, carbon, longest_prompt, longest_output, seconds
        )
        tell("latencies in turn")
        timings = in_turn(loaded) if "latency" in names else {}
        found = []
        for one in loaded:
            name = one.subject.name

            def advance(probe: str, done: int, count: int, of: str = name) -> None:
                tell(f"{of}: {probe}, {done} of {count} done")

            found.append(run(one, names, settings, advance, timings.get(name)))
    side = _compared(found, names)
    with for_people(json):
        _print(found, side, layers, style)
    if runs is not None:
        from isoloss.runs import read

        rows = [one.row() for one in found]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        read({name: [row.get(name, float("nan")) for row in rows] for name in columns}).to_csv(runs)
    if report is not None:
        from isoloss.report.about_measure import write_measured

        write_measured(found, report, roof, side, _command(models, what))
    if json is not None:
        write_json(json, _json(found, side, roof))
    return 0 if any(one.measurements for one in found) else 3


def _torch(threads: int | None) -> None:
    try:
        import torch
    except ImportError as error:
        raise ValueError("measuring needs torch. Do: pip install 'isoloss[torch]'") from error
    if threads is not None:
        torch.set_num_threads(threads)


def _distinct(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(
            f"needed models of different names, got {', '.join(names)}. Give Subject(..., name=)"
        )


def _power(idle: float | None, full: float | None) -> Any:
    from isoloss.measure.energy import PowerModel
    from isoloss.measure.roofline import cores

    if (idle is None) != (full is None):
        raise ValueError("an estimate of energy needs both --idle-watts and --full-watts")
    return None if idle is None or full is None else PowerModel(idle, full, cores())


def _carbon(grams: float | None, pue: float | None, region: str) -> Any:
    from isoloss.measure.energy import Carbon

    if (grams is None) != (pue is None):
        raise ValueError("emissions need both --grams-per-kwh and --pue")
    return None if grams is None or pue is None else Carbon(grams, pue, region or "region not named")


def _roof(path: str | None) -> Roofline:
    from isoloss.measure.roofline import roofline

    return roofline(path)


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """What is being done, for a person who watches; silent elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("loading") as status:
        yield lambda text: status.update(text)


def _compared(found: list[Measured], names: list[str]) -> Comparison | None:
    """Costs side by side, where there are several models with costs in common.

    That some are lacking is said where all were asked for, not to who chose single ones.
    """
    from isoloss.measure import WHAT
    from isoloss.measure.misnomer import KINDS, compare

    kinds = tuple(KINDS) if set(WHAT["costs"]) <= set(names) else ()

    if len(found) < 2:
        return None
    try:
        return compare({one.name: one.measurements for one in found}, kinds=kinds)
    except ValueError:
        return None


def _print(found: list[Measured], side: Comparison | None, layers: bool, style: Style) -> None:
    if len(found) > 1:
        show(_side_by_side(found, layers), style)
    for one in found:
        shown = [each for each in one.measurements if layers or not each.of]
        if shown and len(found) == 1:
            show(
                Table(["measured", "value", "s.e.", "unit", "CPU s"], [_row(e) for e in shown], one.name),
                style,
            )
        of = f"{one.name}: " if len(found) > 1 else ""
        for unknown in shown:
            if unknown.value != unknown.value:
                say(f"{of}{_name(unknown)}: {_why_open(unknown)}", style)
        if held := len(one.measurements) - len(shown):
            say(f"{of}{held} more of layers and operators: --layers prints them", style)
        for each in one.failed:
            say(f"{of}{each.probe}: could not: {each.why}", style)
        for note in one.notes:
            say(f"{of}note: {note}", style)
        findings(one.findings, style)
    if side is not None:
        for clash in side.contradictions[:CLASHES]:
            say(str(clash), style)
        if len(side.contradictions) > CLASHES:
            say(f"{len(side.contradictions) - CLASHES} more contradictions: --json writes all", style)
        findings(side.findings, style)


def _why_open(each: Measurement) -> str:
    """Of a value that is not known: what its probe says of it."""
    at = max(each.how.find("not resolved"), 0)
    return each.how[at:]


def _name(each: Measurement) -> str:
    return f"{each.name} [{each.of}]" if each.of else each.name


def _row(each: Measurement) -> list[str]:
    sure = "exact" if each.se == 0 else number(each.se, 2) if each.se == each.se else "not known"
    sure = sure if each.value == each.value else ""
    cost = number(each.spent.cpu_seconds, 2)
    return [_name(each), amount(each.value, 5), sure, each.unit or "1", cost]


def _side_by_side(found: list[Measured], layers: bool) -> Table:
    """A column for each model; what one of them lacks is left open."""
    held = [{_name(e): e for e in one.measurements if layers or not e.of} for one in found]
    units = {name: each.unit or "1" for own in held for name, each in own.items()}
    rows = [[name, unit, *(_cell(own.get(name)) for own in held)] for name, unit in units.items()]
    return Table(["measured", "unit", *(one.name for one in found)], rows)


def _cell(each: Measurement | None) -> str:
    if each is None:
        return "—"
    sure = "" if each.se == 0 else " ± ?" if each.se != each.se else f" ± {number(each.se, 2)}"
    return f"{amount(each.value, 5)}{sure}"


def _command(models: list[str], what: str) -> str:
    return f"isoloss measure {' '.join(models)} --what {what}"


def _json(found: list[Measured], side: Comparison | None, roof: Roofline | None) -> dict[str, Any]:
    from isoloss.measure.measuring import state

    return {
        "schema": "isoloss/measure/1",
        **state(),
        "models": [one.to_json() for one in found],
        "contradictions": [
            {
                "first": clash.first,
                "second": clash.second,
                "by": clash.by,
                "against": clash.against,
                "saved": clash.saved,
                "paid": clash.paid,
            }
            for clash in (side.contradictions if side is not None else ())
        ],
        "roofline": None if roof is None else roof.to_json(),
    }
