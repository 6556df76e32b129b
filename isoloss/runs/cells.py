"""takes the raw cells of one column, gives a float64 array, or a str array where it is text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from isoloss.runs.columns import CANONICAL, Kind
from isoloss.runs.units import parse_count

__all__ = ["Cells", "kind_of", "to_array"]

Cells = Sequence[Any] | npt.NDArray[Any]
"""Raw cells: text of a CSV file, Python objects of JSON, or an array of a data frame or Parquet file."""

_MISSING = frozenset({"", "na", "n/a", "nan", "-nan", "none", "null", "nil", "<na>", "-", "?"})
_DIVERGED = frozenset({"diverged", "divergent", "diverge", "overflow"})


def kind_of(name: str) -> Kind | None:
    """How the cells of a column are read; None for a column that is not canonical.

    Example:
        >>> kind_of("params"), kind_of("loss_c4"), kind_of("dataset")
        ('count', None, None)
    """
    return CANONICAL[name].kind if name in CANONICAL else None


def to_array(cells: Cells, kind: Kind | None, place: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The column as an array; a canonical numeric column must be numbers, any other may be text.

    Args:
        cells: one per row.
        kind: of the canonical column, or None.
        place: for messages, such as ``"runs.csv, column 'loss'"``.
        rows: the row numbers, for messages.

    Returns:
        float64 with NaN for missing, or ``str`` with ``""`` for missing.

    Raises:
        ValueError: a cell of a numeric canonical column is not a number, or any cell is complex.

    Example:
        >>> to_array(["70B", "1e9", ""], "count", "memory, column 'params'", np.array([1, 2, 3]))
        array([7.e+10, 1.e+09,    nan])
    """
    if isinstance(cells, np.ndarray):
        if cells.dtype.kind in "fiu" and kind != "text":
            return cells.astype(np.float64)
        cells = list(cells.tolist())
    if kind == "text":
        return _as_text(cells)
    strict = kind in ("count", "loss", "number")
    numbers = _all_numbers(cells, strict)
    if numbers is not None:
        return numbers
    parsed = np.empty(len(cells))
    for i, cell in enumerate(cells):
        value = _number(cell, kind)
        if value is None:
            if isinstance(cell, complex):
                raise ValueError(
                    f"{place}, row {rows[i]}: needed a number, got the complex number {cell!r}. Do:"
                    " keep its real part"
                )
            if strict:
                raise ValueError(
                    f"{place}, row {rows[i]}: needed a number, got {_short(cell)}. Do: {_advice(cell)}"
                )
            return _as_text(cells)
        parsed[i] = value
    return parsed


def _all_numbers(cells: Sequence[Any], strict: bool) -> npt.NDArray[np.float64] | None:
    """The fast path: every cell reads as a float as it stands."""
    kinds = set(map(type, cells))
    if not kinds <= {str, float, int} or not kinds:
        return None
    if kinds == {str} and not strict and any("_" in cell for cell in cells):
        return None  # float("1_0") is 10, but an experiment called 1_0 is a name
    try:
        return np.fromiter(map(float, cells), dtype=np.float64, count=len(cells))
    except (ValueError, OverflowError):
        return None


def _number(cell: object, kind: Kind | None) -> float | None:
    """A number, NaN where the cell is missing, None where it is something else."""
    if cell is None:
        return math.nan
    if isinstance(cell, bool | np.bool_):
        return None if kind in ("count", "loss", "number") else float(cell)
    if isinstance(cell, int | float | np.integer | np.floating):
        try:
            return float(cell)
        except OverflowError:
            return None
    if not isinstance(cell, str):
        return None
    text = cell.strip()
    if text.lower() in _MISSING:
        return math.nan
    if kind in (None, "label"):
        if text in ("True", "False", "true", "false"):
            return float(text.lower() == "true")
        if "_" in text:
            return None
    elif kind == "loss" and text.lower() in _DIVERGED:
        return math.inf
    try:
        return float(text)
    except ValueError:
        pass
    if kind != "count":
        return None
    try:
        return parse_count(text)
    except ValueError:
        return None


def _as_text(cells: Sequence[Any]) -> npt.NDArray[np.str_]:
    return np.array([_text(cell) for cell in cells], dtype=np.str_)


def _text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:
        return str(int(cell))  # a run called 7 is not called 7.0 because another run has no name
    if isinstance(cell, list | dict | tuple):
        return json.dumps(cell, default=str)
    return str(cell).strip()


def _short(cell: object) -> str:
    text = repr(cell)
    return text if len(text) <= 60 else text[:57] + "…"


def _advice(cell: object) -> str:
    """What to do about a cell that should be a number."""
    text = cell.strip() if isinstance(cell, str) else ""
    if re.fullmatch(r"[+-]?\d{1,3}([,' \u00a0\u202f]\d{3})+(\.\d+)?", text):
        plain = re.sub(r"[,' \u00a0\u202f]", "", text)
        point = f", or {text.replace(',', '.')} if the comma is decimal" if text.count(",") == 1 else ""
        return f"write {plain}, without thousands separators{point}"
    if re.fullmatch(r"[+-]?\d*,\d+(e[+-]?\d+)?", text, re.IGNORECASE):
        return f"write {text.replace(',', '.')}, with a decimal point"
    if text.endswith("%"):
        return f"write the number alone, {text[:-1].strip()}"
    if re.search(r"\d\s*[kmgtpe]i?b$", text, re.IGNORECASE):
        return "a size in bytes is not a count; write it like 7B, 350M or 1.4T"
    if isinstance(cell, bool):
        return "this column is a number; give a true/false column another name with --columns NAME=COLUMN"
    return (
        "correct the cell, leave it empty if the value is missing, "
        "or give the column another name with --columns NAME=COLUMN if it is not this quantity"
    )
