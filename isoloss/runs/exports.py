"""takes raw columns, gives them with what W&B and MLflow pack into cells and prefixes laid out."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.runs.cells import Cells
from isoloss.runs.columns import CANONICAL, last_part
from isoloss.runs.sources import columns_of_records

__all__ = ["rename_export", "unpack"]

_PACKED = frozenset({"summary", "config", "summary_metrics", "params", "metrics", "tags"})


def unpack(columns: Mapping[str, Cells], source: str) -> dict[str, Cells]:
    """Columns whose cells are dict literals, as W&B's ``summary``, become ``summary.loss`` and so on.

    Raises:
        ValueError: a cell of a column called summary, config, params, metrics or tags starts like
            a dict and is none, or an unpacked name exists already.

    Example:
        >>> unpack({"summary": ["{'loss': 2.5}"], "name": ["a"]}, "memory")
        {'summary.loss': [2.5], 'name': ['a']}
    """
    unpacked: dict[str, Cells] = {}
    for name, cells in columns.items():
        records = _records(name, cells, source)
        if records is None:
            fresh: dict[str, Cells] = {name: cells}
        else:
            fresh = {f"{name}.{key}": value for key, value in columns_of_records(source, records).items()}
        twice = [key for key in fresh if key in unpacked]
        if twice:
            raise ValueError(f"{source}: column name {twice[0]!r} stands twice. Do: rename one")
        unpacked.update(fresh)
    return unpacked


def _records(name: str, cells: Cells, source: str) -> list[dict[str, Any]] | None:
    """The cells as dicts, or None where the column holds none."""
    if isinstance(cells, np.ndarray):
        return None
    first = next((cell for cell in cells if cell not in (None, "")), None)
    if not isinstance(first, str) or not first.lstrip().startswith("{"):
        return None
    records: list[dict[str, Any]] = []
    for row, cell in enumerate(cells, 1):
        record = {} if cell in (None, "") else _literal(str(cell))
        if record is None and name in _PACKED:
            raise ValueError(
                f"{source}, row {row}, column {name!r}: {str(cell)[:40]!r} is no dict literal or"
                " JSON object. Do: export it again"
            )
        if record is None:
            return None
        records.append(record)
    return records


def _literal(text: str) -> dict[str, Any] | None:
    # str() of a dict writes nan and inf bare, which no literal parser takes
    bare = re.sub(
        r"(?<=[:\[,])\s*(-?)(nan|inf)\s*(?=[,}\]])",
        lambda m: f" {m[1]}1e999" if m[2] == "inf" else " None",
        text,
    )
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(bare)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    return None


def rename_export(columns: Mapping[str, Cells], chosen: Mapping[str, str]) -> dict[str, str]:
    """Canonical names that need no asking, as canonical -> name in the table.

    Only where the canonical column is neither in the table nor chosen: the end of a run (``State``,
    ``status``) is ``state``; beside it the W&B ``Name`` or MLflow ``run_id`` is ``run``; and a
    prefixed name such as ``metrics.loss`` is ``loss`` where no other column ends the same.

    Example:
        >>> rename_export({"Name": ["a"], "State": ["finished"], "metrics.loss": [2.0]}, {})
        {'state': 'State', 'run': 'Name', 'loss': 'metrics.loss'}
    """
    taken = set(columns) | set(chosen)
    sources = set(chosen.values())
    found: dict[str, str] = {}

    def claim(canonical: str, *names: str) -> None:
        for name in names:
            if canonical not in taken and name in columns and name not in sources:
                found[canonical] = name
                taken.add(canonical)
                sources.add(name)

    claim("state", "State", "status", "Status", "info.status", "attributes.status")
    packed = any(name.startswith(("summary.", "config.")) for name in columns)
    if "state" in found or "state" in columns or packed:
        claim("run", "run_id", "info.run_id", "Name", "name", "ID", "id")
    for canonical in CANONICAL:
        ends = [name for name in columns if last_part(name) == canonical and name != canonical]
        if len(ends) == 1:
            claim(canonical, ends[0])
    return found
