"""``isoloss optimum``: the best learning rate and batch of grids of runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoloss.cli.options import (
    Columns,
    Coverage,
    Format,
    Json,
    Latex,
    Markdown,
    Units,
    Where,
    style_of,
    table,
)
from isoloss.cli.show import Style, Table, check_writable, for_people, number, plural, say, show, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from isoloss.observing import Optima
    from isoloss.observing.measured import Measured
    from isoloss.runs import Runs


def optimum(
    path: Annotated[str, typer.Argument(metavar="TABLE", help="csv, tsv, json, jsonl or parquet.")],
    by: Annotated[str, typer.Option(help="Columns that make a grid.")] = "params,tokens",
    columns: Columns = None,
    where: Where = None,
    units: Units = None,
    format: Format = None,
    seq_len: Annotated[
        int | None,
        typer.Option("--seq-len", min=1, help="Tokens per sequence, where batch_sequences is given."),
    ] = None,
    window: Annotated[
        float, typer.Option(help="Share of a grid's least loss that its cells may lie above.")
    ] = 0.02,
    out: Annotated[
        str | None, typer.Option(help="Write the optima here as CSV, for `isoloss fit step-law`.")
    ] = None,
    kept: Annotated[str | None, typer.Option(help="Write the cells that were used here as CSV.")] = None,
    coverage: Coverage = 0.9,
    json: Json = None,
    md: Markdown = False,
    latex: Latex = False,
) -> int:
    """Find the best learning rate and batch of each grid of runs.

    Reads lr and, where they vary, batch_tokens or batch_sequences. A law of the optima, such as step-law, can be
    fitted to what --out writes.
    """
    from isoloss.observing import grid_optima

    style = style_of(md, latex)
    for target in (json, out, kept):
        if target is not None:
            check_writable(target)
    runs = table(path, columns, where, units, format).derive()
    names = [name.strip() for name in by.split(",") if name.strip()]
    if not names:
        raise ValueError("--by needs the columns that make a grid, got none. Give params,tokens")
    lr, loss = runs.numeric("lr", "loss")
    batch = _batch(runs, seq_len)
    found = grid_optima(
        lr, loss, batch, dict(zip(names, runs.numeric(*names), strict=True)), window=window, coverage=coverage
    )
    with for_people(json):
        _print(found, names, style)
        apart = {"batch_tokens", "batch_sequences"} & {*names}
        if batch is not None and not apart and all(grid.batch is None for grid in found.grids):
            say("the batch was not varied within any grid: each best lr is that at its grid's batch.", style)
    if out is not None:
        _write(found, out)
    if kept is not None:
        runs.take(found.kept).to_csv(kept)
    if json is not None:
        write_json(json, _json(found))
    return 0


def _batch(runs: Runs, seq_len: int | None) -> Any:
    """Tokens per step, or None where the table has no batch."""
    if "batch_tokens" in runs:
        if seq_len is not None:
            raise ValueError("--seq-len is for batch_sequences; the table has batch_tokens. Leave it out")
        return runs.numeric("batch_tokens")[0]
    if "batch_sequences" not in runs:
        return None
    (sequences,) = runs.numeric("batch_sequences")
    if seq_len is None and "seq_len" not in runs:
        raise ValueError(
            "batch_sequences needs the tokens of a sequence: --seq-len 2048, or a column seq_len"
        )
    return sequences * (seq_len if seq_len is not None else runs.numeric("seq_len")[0])


def _write(found: Optima, out: str) -> None:
    from isoloss.runs import read

    # An interval without an end is an empty cell: a table of numbers has no infinity.
    rows = {k: [v if math.isfinite(v) else math.nan for v in values] for k, values in found.table().items()}
    read(rows).to_csv(out)


def _print(found: Optima, names: list[str], style: Style) -> None:
    from isoloss.runs.units import format_count

    grids, share = found.grids, f"{100 * found.grids[0].lr.coverage:g}% interval"
    batched = any(grid.batch is not None for grid in grids)
    say(
        f"{plural(len(grids), 'grid')}, {found.form} in logs that all share; scatter of a cell {number(100 * found.scatter, 2)} %; "
        f"{sum(g.used for g in grids)} cells used, {sum(g.far for g in grids)} more than {100 * found.window:g} % above "
        f"their grid's least loss, {sum(g.missing for g in grids)} without a loss",
        style,
    )
    headings = [*names, "lr", share, *(["batch", share] if batched else []), "loss", "cells"]
    rows = []
    for grid in grids:
        row = [format_count(grid.at[name]) for name in names]
        row += [_value(grid.lr, _rate), _ends(grid.lr, _rate)]
        if batched:
            batch = grid.batch
            row += ["—", "—"] if batch is None else [_value(batch, format_count), _ends(batch, format_count)]
        rows.append([*row, number(grid.loss) if math.isfinite(grid.loss) else "—", str(grid.used)])
    show(Table(headings, rows), style)
    for grid in grids:
        if grid.edge:
            at = ", ".join(f"{name} {format_count(grid.at[name])}" for name in names)
            say(f"{at}: the optimum lies outside the grid ({grid.edge}); it is left out, not guessed.", style)
    shared = [
        f"{name} {100 * v:.2g} %"
        for name, v in zip(("lr", "batch"), found.shared_sd, strict=True)
        if math.isfinite(v)
    ]
    if shared:
        say(
            f"standard error that all optima share: {', '.join(shared)}; a fit to them adds it to its draws.",
            style,
        )
    if math.isfinite(found.slope):
        say(f"at a fixed batch near the best one, the best lr goes as batch^{number(found.slope, 2)}.", style)


def _rate(value: float) -> str:
    return f"{value:.3g}"


def _value(measured: Measured, write: Callable[[float], str]) -> str:
    return write(measured.value) if math.isfinite(measured.value) else "—"


def _ends(measured: Measured, write: Callable[[float], str]) -> str:
    if math.isfinite(measured.value) and math.isfinite(measured.high):
        return f"{write(measured.low)} to {write(measured.high)}"
    if math.isinf(measured.high) and measured.low > 0:
        return f"above {write(measured.low)}"
    return f"below {write(measured.high)}" if math.isfinite(measured.high) else "open"


def _json(found: Optima) -> dict[str, Any]:
    return {
        "schema": "isoloss/optimum/1",
        "form": found.form,
        "window": found.window,
        "scatter": found.scatter,
        "slope": _known(found.slope),
        "shared_sd": {"lr": _known(found.shared_sd[0]), "batch_tokens": _known(found.shared_sd[1])},
        "grids": [
            {
                "at": dict(grid.at),
                "lr": _quantity(grid.lr, grid.lr_sd),
                "batch_tokens": None if grid.batch is None else _quantity(grid.batch, grid.batch_sd),
                "correlation": _known(grid.correlation),
                "loss": _known(grid.loss),
                "used": grid.used,
                "far": grid.far,
                "missing": grid.missing,
                "edge": grid.edge,
            }
            for grid in found.grids
        ],
    }


def _quantity(measured: Measured, sd: float) -> dict[str, float | None]:
    return {
        "value": _known(measured.value),
        "low": _known(measured.low),
        "high": _known(measured.high),
        "coverage": measured.coverage,
        "log_sd": _known(sd),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
