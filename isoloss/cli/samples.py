"""``isoloss samples``: how many samples to draw with an imperfect verifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isoloss.cli.options import Coverage, Format, Json, Latex, Markdown, Seed, style_of, table
from isoloss.cli.show import Style, Table, check_writable, for_people, interval, number, say, show, write_json

if TYPE_CHECKING:
    from isoloss.planning.result import Quantity
    from isoloss.planning.sampling import BestSamples, Counted, TaskType
    from isoloss.runs import Runs

COUNTS = ("tasks", "right", "right_accepted", "wrong", "wrong_accepted")
RATES = ("prior", "p", "tpr", "fpr")


def samples(
    path: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A row per type of task, counted (tasks, right, right_accepted, wrong, wrong_accepted) or as "
            "rates (prior, p, tpr, fpr); a name if you like.",
        ),
    ],
    format: Format = None,
    value: Annotated[float, typer.Option(help="Of a right answer that is accepted.")] = 1.0,
    wrong: Annotated[float, typer.Option(help="Cost of a wrong answer that is accepted.")] = 0.0,
    price: Annotated[float, typer.Option(help="Of one sample.")] = 0.0,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="All samples are drawn and paid, not each only when needed.")
    ] = False,
    draws: Annotated[int, typer.Option(min=2, help="Of the posteriors of the rates.")] = 2000,
    coverage: Coverage = 0.9,
    seed: Seed = 0,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Say how many samples to draw when a verifier accepts wrong answers too, and what accuracy it caps."""
    from isoloss.planning.sampling import best_samples

    style = style_of(md, latex)
    if json is not None:
        check_writable(json)
    types = _types(table(path, None, None, None, format))
    found = best_samples(
        types,
        value=value,
        wrong=wrong,
        price=price,
        at_once=at_once,
        draws=draws,
        coverage=coverage,
        seed=seed,
    )
    with for_people(json):
        _print(found, style)
    if json is not None:
        write_json(json, found.to_json())
    return 0


def _types(runs: Runs) -> list[TaskType | Counted]:
    """The rows as types: counts where the table has them, else rates."""
    from isoloss.planning.sampling import Counted, TaskType

    if not any(all(name in runs for name in wanted) for wanted in (COUNTS, RATES)):
        raise ValueError(
            f"needed columns {', '.join(COUNTS)}, or {', '.join(RATES)}; got {', '.join(runs.columns)}"
        )
    wanted = COUNTS if all(name in runs for name in COUNTS) else RATES
    columns = dict(zip(wanted, runs.numeric(*wanted), strict=True))
    types: list[TaskType | Counted] = []
    for i, line in enumerate(runs.rows):
        row = {name: float(values[i]) for name, values in columns.items()}
        name = str(runs["name"][i]) if "name" in runs else ""
        try:
            if wanted is RATES:
                types.append(TaskType(row["prior"], row["p"], row["tpr"], row["fpr"], name))
                continue
            bad = [what for what, count in row.items() if not count.is_integer()]
            if bad:
                raise ValueError(f"needed a whole number for {bad[0]}, got {row[bad[0]]:g}")
            tasks, *counts = (int(count) for count in row.values())
            types.append(Counted(tasks, counts[0], counts[1], counts[2], counts[3], name))
        except ValueError as error:
            raise ValueError(f"row {line}: {error}") from None
    return types


def _print(found: BestSamples, style: Style) -> None:
    open_ = found.coverage is not None
    share = f"{100 * found.coverage:g}% interval" if found.coverage is not None else ""

    def cells(q: Quantity) -> list[str]:
        return [number(q.value), interval(q.low, q.high)] if open_ else [number(q.value)]

    heads = [share] if open_ else []
    rows = [[name, *cells(cap)] for name, cap in zip(found.names, found.caps, strict=True)]
    show(
        Table(["type", "accuracy cap", *heads], [*rows, ["all, each until accepted", *cells(found.cap)]]),
        style,
    )
    curve = [[str(p.tries), *cells(p.reward), f"{p.accepted:.3f}"] for p in found.curve]
    show(Table(["at most", "reward", *heads, "answered"], curve), style)
    say(found.reading, style)
    if open_ and found.on_average != found.tries.value:
        best = "no limit" if found.on_average == float("inf") else f"{found.on_average:g}"
        say(f"averaged over what the counts leave open, best is {best}", style)
