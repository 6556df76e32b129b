"""takes a file, data frame, dicts or a W&B or MLflow export, gives Runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from isoloss.runs.cells import Cells, kind_of, to_array
from isoloss.runs.columns import CANONICAL, listed, options, resolve
from isoloss.runs.derive import unit_note, unit_was_stated
from isoloss.runs.exports import rename_export, unpack
from isoloss.runs.sources import (
    columns_of_file,
    columns_of_frame,
    columns_of_mapping,
    columns_of_records,
)
from isoloss.runs.table import Runs
from isoloss.runs.units import convert, is_loss_unit

__all__ = ["from_rows", "read"]


def read(
    source: object,
    *,
    columns: Mapping[str, str] | str | None = None,
    where: str | None = None,
    units: Mapping[str, str] | str | None = None,
    curves: object = None,
    format: str | None = None,
) -> Runs:
    """Read a table of runs.

    Args:
        source: a path (csv, tsv, json, jsonl, parquet; text may be gzipped), a pandas data frame,
            a list of dicts, a dict of columns, or Runs.
        columns: canonical name -> name in the source, or ``"params=N,tokens=D,loss=val_loss"``.
            The name in the source may be its last part (``val_loss`` for ``metrics.val_loss``)
            where that is unique. A column that stood under the canonical name before is kept as
            ``loss_in_source``. A new name that is not canonical is fine too: it only renames.
        where: rows to keep, as in ``Runs.where``.
        units: column -> unit of its numbers, or ``"loss=bits/token,params=millions"``; see
            ``isoloss.runs.units.convert``. Unsaid, losses are nats per token and counts are plain.
        curves: the long table of the same runs, read with the same ``columns`` and ``units`` as
            far as it has those columns; needs a column ``run`` in both.
        format: ``csv``, ``tsv``, ``json``, ``jsonl`` or ``parquet``, where name and content do not
            tell.

    Returns:
        Counts plain, losses in nats, text where a column is text. Rows with missing, infinite or
        diverged values are all kept: ``isoloss.runs.check`` names them.

    Raises:
        ValueError: the source cannot be read as a table, a cell of a canonical numeric column is
            not a number (file, row and column are named), a column or unit is unknown, or no row
            matches ``where``.

    Example:
        >>> runs = read([{"N": "70B", "D": "1.4T", "val_loss": 2.8}],
        ...             columns="params=N,tokens=D,loss=val_loss", units="loss=bits/token")
        >>> runs["params"].tolist(), runs["loss"].round(4).tolist(), runs.units["loss"]
        ([70000000000.0], [1.9408], 'nats/token')
    """
    chosen = _pairs(columns, "columns", "params=N,tokens=D,loss=val_loss")
    stated = _pairs(units, "units", "loss=bits/token,params=millions")
    runs = _renamed(source, chosen) if isinstance(source, Runs) else _built(source, chosen, format, stated)
    runs = _in_units(runs, stated)
    if curves is not None:
        runs = _with_curves(runs, curves, chosen, stated)
    return runs if where is None else runs.where(where)


def from_rows(rows: Sequence[Mapping[str, object]]) -> Runs:
    """Runs from a list of dicts, one per run; nested dicts are flattened with dots.

    Raises:
        ValueError: as ``read``.

    Example:
        >>> from_rows([{"params": 1e8, "tokens": 2e9, "loss": 3.4}])
        Runs(1 row of memory: params 100M, tokens 2B, loss 3.4 nats/token)
    """
    return read(list(rows))


def _pairs(given: Mapping[str, str] | str | None, option: str, example: str) -> dict[str, str]:
    """The ``a=b,c=d`` of an option as a dict."""
    if given is None:
        return {}
    if not isinstance(given, str):
        return {str(key): str(value) for key, value in given.items()}
    pairs: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in given.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and value):
            raise ValueError(
                f"{option}: cannot read {item!r}. Do: write it like {example}, the canonical name first"
            )
        if key in pairs:
            raise ValueError(
                f"{option}: {key!r} is given twice, {pairs[key]!r} and {value!r}. Do: give it once"
            )
        pairs[key] = value
    return pairs


def _raw(source: object, format: str | None) -> tuple[dict[str, Cells], str]:
    """The raw columns of any source, with its name for messages."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return columns_of_file(path, format), str(source)
    pandas = sys.modules.get("pandas")  # a frame can only come from a pandas that is imported
    if pandas is not None and isinstance(source, pandas.DataFrame):
        return columns_of_frame(source), "data frame"
    if isinstance(source, Mapping):
        return columns_of_mapping("memory", source), "memory"
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return columns_of_records("memory", source), "memory"
    raise TypeError(
        "needed a path, a pandas data frame, a list of dicts, a dict of columns or Runs, got"
        f" {type(source).__name__}"
    )


def _built(source: object, chosen: Mapping[str, str], format: str | None, stated: Mapping[str, str]) -> Runs:
    raw, name = _raw(source, format)
    raw = unpack(raw, name)
    length = len(next(iter(raw.values()), ()))
    if length == 0:
        raise ValueError(f"{name} holds no rows. Do: give one row per run")
    names = _source_names(raw, chosen, name)
    names = rename_export(raw, names) | names
    placed = _placed(raw, names)
    rows = np.arange(1, length + 1)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for column, cells in placed.items():
        told = f" (from {names[column]!r})" if column in names else ""
        arrays[column] = to_array(cells, kind_of(column), f"{name}, column {column!r}{told}", rows)
        if kind_of(column) == "count" and (column in stated or names.get(column) in stated):
            _refuse_suffixes(cells, f"{name}, column {column!r}{told}")
    units = {
        c: CANONICAL[c].unit for c in arrays if c in CANONICAL and CANONICAL[c].kind in ("count", "loss")
    }
    units |= {
        c: "nats/token"
        for c in arrays
        if c.startswith("loss_") and c != "loss_sd" and arrays[c].dtype.kind == "f"
    }
    if "loss_sd" in arrays:
        units["loss_sd"] = units.get("loss", "nats/token")
    return Runs(arrays, rows, units, {}, source=name, names=_kept_names(names))


def _kept_names(names: Mapping[str, str]) -> dict[str, str]:
    return {name: original for name, original in names.items() if name != original}


def _source_names(available: Mapping[str, object], chosen: Mapping[str, str], source: str) -> dict[str, str]:
    """Each chosen column with its full name in the source."""
    names = {}
    for canonical, wanted in chosen.items():
        try:
            names[canonical] = resolve(wanted, available)
        except ValueError as error:
            hint = ""
            if wanted in CANONICAL and canonical in available:
                hint = f". Do: the canonical name comes first: {wanted}={canonical}"
            elif canonical not in available and (likely := options([canonical], available)):
                hint = f". Do: perhaps {likely}"
            raise ValueError(f"{source}, columns {canonical}={wanted}: {error}{hint}") from None
    return names


def _placed(columns: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The columns under their canonical names, in the order of the source."""
    placed: dict[str, Any] = {}
    for column, cells in columns.items():
        targets = [canonical for canonical, original in names.items() if original == column]
        if not targets and column in names:
            targets = [f"{column}_in_source"]  # pushed aside by another column, not lost
        placed |= dict.fromkeys(targets or [column], cells)
    return placed


def _refuse_suffixes(cells: Cells, place: str) -> None:
    """A unit for the column on top of one in the cell would be multiplied twice."""
    for row, cell in enumerate(cells, start=1):
        if isinstance(cell, str) and re.fullmatch(r"\s*[\d._]+(e[+-]?\d+)?\s*[kKmMbBgGtTpPE]\s*", cell):
            raise ValueError(
                f"{place}, row {row}: {cell.strip()!r} has a unit of its own, and units state another for the"
                " column. Do: leave the column out of units"
            )


def _renamed(runs: Runs, chosen: Mapping[str, str]) -> Runs:
    """Runs with columns renamed, read anew where a column becomes canonical."""
    if not chosen:
        return runs
    names = _source_names(runs.columns, chosen, runs.source)
    units = _placed({c: runs.units.get(c) for c in runs.columns}, names)
    derived = _placed({c: runs.derived.get(c) for c in runs.columns}, names)
    arrays = {}
    for column, values in _placed(runs.columns, names).items():
        kind = kind_of(column) if column in chosen else None
        arrays[column] = (
            to_array(values, kind, f"{runs.source}, column {column!r}", runs.rows) if kind else values
        )
        if units[column] is None and kind in ("count", "loss"):
            units[column] = CANONICAL[column].unit
    return replace(
        runs,
        columns=arrays,
        units={c: unit for c, unit in units.items() if unit},
        derived={c: how for c, how in derived.items() if how},
        names=_kept_names({**runs.names, **names}),
    )


def _in_units(runs: Runs, stated: Mapping[str, str]) -> Runs:
    columns, units, derived = dict(runs.columns), dict(runs.units), dict(runs.derived)
    for wanted, unit in stated.items():
        name = next(
            (c for c, original in runs.names.items() if original == wanted and wanted not in columns),
            wanted,
        )
        try:
            name = resolve(name, columns)
        except ValueError as error:
            raise ValueError(f"{runs.source}, units {wanted}={unit}: {error}") from None
        if unit_was_stated(runs, name):
            raise ValueError(
                f"{runs.source}, units {wanted}={unit}: column {name!r} was {runs.derived[name]} "
                f"already and is in {runs.units[name]} now. Do: read the source again"
            )
        (values,) = runs.numeric(name)
        plain = CANONICAL[name].unit if name in CANONICAL and CANONICAL[name].kind == "count" else "count"
        try:
            values, units[name] = _converted(values, unit, plain, runs.rows)
        except ValueError as error:
            raise ValueError(f"{runs.source}, column {name!r}: {error}") from None
        if is_loss_unit(units[name]) != (kind_of(name) == "loss") and kind_of(name) is not None:
            raise ValueError(
                f"{runs.source}, column {name!r}: {unit!r} is no unit of {CANONICAL[name].meaning}"
            )
        columns[name], derived[name] = values, unit_note(unit)
    if "loss_sd" in columns and "loss" in stated:
        columns["loss_sd"], units["loss_sd"] = _converted_sd(runs, stated["loss"], units["loss"])
    return replace(runs, columns=columns, units=units, derived=derived) if stated else runs


def _converted(
    values: npt.NDArray[np.float64], unit: str, plain: str, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], str]:
    with np.errstate(divide="ignore", invalid="ignore"):
        converted, now = convert(values, unit, plain)
    lost = np.flatnonzero(np.isfinite(values) & ~np.isfinite(converted))
    if len(lost):
        raise ValueError(f"row {rows[lost[0]]}: needed a {unit} above 0, got {values[lost[0]]:g}")
    return converted, now


def _converted_sd(runs: Runs, unit: str, now: str) -> tuple[npt.NDArray[np.float64], str]:
    """A standard deviation scales with the slope of the conversion: 1 / perplexity, or the factor."""
    sd, loss = runs.numeric("loss_sd", "loss")
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (convert(loss * (1 + 1e-6), unit)[0] - convert(loss, unit)[0]) / (loss * 1e-6)
    return sd * factor, now


def _with_curves(runs: Runs, curves: object, chosen: Mapping[str, str], stated: Mapping[str, str]) -> Runs:
    long = read(curves)
    present = {}
    for canonical, wanted in chosen.items():
        try:
            present[canonical] = resolve(wanted, long.columns)
        except ValueError:
            continue  # the long table need not repeat what is constant along a run
    long = read(long, columns=present)
    long = read(long, units={name: unit for name, unit in stated.items() if name in long})
    for table, what in ((runs, "the table of runs"), (long, "the table of curves")):
        if "run" not in table:
            raise ValueError(
                f"{table.source}: {what} needs a column 'run' that names the run, got"
                f" {listed(table.columns)}. Do: --columns run=COLUMN"
            )
    strange = sorted(set(long["run"].tolist()) - set(runs["run"].tolist()))
    if len(strange) == len(set(long["run"].tolist())):
        raise ValueError(
            f"{long.source}: no run of the curves ({listed(strange, 3)}) is in {runs.source}"
            f" ({listed(dict.fromkeys(runs['run'].tolist()), 3)})"
        )
    return replace(runs, curves=long)
