"""takes Runs, gives them as one line, an HTML table, a data frame or a CSV file."""

from __future__ import annotations

import csv
import html as escaping
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isoloss.runs.columns import CANONICAL
from isoloss.runs.units import format_count, is_loss_unit

if TYPE_CHECKING:
    import pandas as pd

    from isoloss.runs.table import Runs

__all__ = ["describe", "frame", "html", "write_csv"]

_SHOWN = ("params", "tokens", "flops", "loss")


def describe(runs: Runs) -> str:
    """The table in one line: how many rows, from where, and what its main columns span.

    Example:
        >>> import isoloss.runs
        >>> describe(isoloss.runs.from_rows([{"params": 1e8, "loss": 3.4}]))
        '1 row of memory: params 100M, loss 3.4 nats/token'
    """
    shown = [_span(runs, name) for name in _SHOWN if name in runs]
    text = f"{len(runs)} row{'' if len(runs) == 1 else 's'} of {runs.source}: "
    text += ", ".join(shown) if shown else f"{len(runs.columns)} columns"
    if runs.curves is not None:
        text += f"; {len(runs.curves)} rows of curves"
    if runs.removed:
        text += f"; {len(runs.removed)} removed"
    return text


def _span(runs: Runs, name: str) -> str:
    values = runs[name]
    if values.dtype.kind != "f":
        return f"{name} (text)"
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return f"{name} missing"
    unit = runs.units.get(name, "")
    loss = is_loss_unit(unit)
    low, high = (f"{v:.4g}" if loss else format_count(float(v)) for v in (values.min(), values.max()))
    return f"{name} {low if low == high else f'{low} to {high}'}" + (f" {unit}" if loss else "")


def html(runs: Runs, limit: int = 8) -> str:
    """The first rows as an HTML table, for notebooks; columns that are empty are left out."""
    names = [
        n for n in runs.columns if np.any(runs[n] != "" if runs[n].dtype.kind == "U" else ~np.isnan(runs[n]))
    ]
    head = "".join(
        f"<th>{_cell(n)}<br><small>{_cell(runs.units.get(n, ''))}</small></th>" for n in ("row", *names)
    )
    body = "".join(
        f"<tr><td>{runs.rows[i]}</td>"
        + "".join(f"<td>{_cell(_shown(runs, n, i))}</td>" for n in names)
        + "</tr>"
        for i in range(min(limit, len(runs)))
    )
    more = (
        f"<tr><td colspan={len(names) + 1}>… {len(runs) - limit} more</td></tr>" if len(runs) > limit else ""
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}{more}</tbody></table>"
    return f"<p>{_cell(describe(runs))}</p>{table}"


def _shown(runs: Runs, name: str, i: int) -> str:
    value = runs[name][i]
    if isinstance(value, str):
        return value
    if np.isnan(value):
        return ""
    count = name in CANONICAL and CANONICAL[name].kind == "count"
    return format_count(float(value)) if count else f"{value:.5g}"


def _cell(text: str) -> str:
    return escaping.escape(text)


def frame(runs: Runs) -> pd.DataFrame:
    """A pandas data frame with the columns, copied, indexed by row number."""
    import pandas as pd

    return pd.DataFrame(
        {name: values.copy() for name, values in runs.columns.items()},
        index=pd.Index(runs.rows.copy(), name="row"),
    )


def write_csv(runs: Runs, path: Path) -> None:
    """Write the columns as CSV, all or nothing: a reader never sees half a file.

    Raises:
        ValueError: the folder does not exist or cannot be written.
    """
    from isoloss.files import write_atomically

    columns = [[_written(v) for v in values.tolist()] for values in runs.columns.values()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(runs.columns)
    writer.writerows(zip(*columns, strict=True))
    write_atomically(path, text.getvalue())


def _written(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value != value:
        return ""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
