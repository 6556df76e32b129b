"""takes Runs, gives Runs whose missing counts are computed from the others: flops = 6 * params * tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from isoloss.runs.table import Runs

__all__ = ["can_derive", "derive", "is_measured", "row_ranges", "unit_note", "unit_was_stated"]

Floats = npt.NDArray[np.float64]

_PARTLY = "measured; "
_STATED = "read as "


def is_measured(runs: Runs, name: str) -> bool:
    """Whether any cell of the column was measured.

    Example:
        >>> import isoloss.runs
        >>> is_measured(isoloss.runs.from_rows([{"params": 1e9, "tokens": 2e10}]).derive(), "flops")
        False
    """
    return name in runs and runs.derived.get(name, _PARTLY).startswith(_PARTLY)


def unit_note(unit: str) -> str:
    """What ``Runs.derived`` says of a column that was measured in a stated unit.

    Example:
        >>> unit_note("bits/token")
        'measured; read as bits/token'
    """
    return f"{_PARTLY}{_STATED}{unit}"


def unit_was_stated(runs: Runs, name: str) -> bool:
    """Whether somebody said in which unit the column is, so that nobody needs to guess.

    Example:
        >>> import isoloss.runs
        >>> unit_was_stated(isoloss.runs.read([{"loss": 8.0}], units="loss=perplexity"), "loss")
        True
    """
    return runs.derived.get(name, "").startswith(_PARTLY + _STATED)


def can_derive(runs: Runs, name: str) -> bool:
    """Whether ``derive`` would make this absent column.

    Example:
        >>> import isoloss.runs
        >>> can_derive(isoloss.runs.from_rows([{"params": 1e9, "tokens": 2e10}]), "flops")
        True
    """
    have = {column for column in ("params", "tokens", "flops", "params_active") if column in runs}
    if name == "tokens_per_param":
        return len(have & {"params", "tokens", "flops"}) >= 2
    needs = {
        "flops": ({"params", "tokens"}, {"params_active", "tokens"}),
        "tokens": ({"params", "flops"}, {"params_active", "flops"}),
        # in a mixture of experts FLOPs say nothing about the parameters at rest
        "params": () if "params_active" in have else ({"tokens", "flops"},),
    }
    return any(need <= have for need in needs.get(name, ()))


def derive(runs: Runs) -> Runs:
    """See ``Runs.derive``."""
    active = "params_active" if "params_active" in runs else "params"
    given = {name: _numbers(runs, name) for name in ("params", active, "tokens", "flops")}
    with np.errstate(all="ignore"):
        computed = {
            "flops": (6 * given[active] * given["tokens"], f"6 * {active} * tokens", "FLOP"),
            "tokens": (given["flops"] / (6 * given[active]), f"flops / (6 * {active})", "count"),
            "params": (given["flops"] / (6 * given["tokens"]), "flops / (6 * tokens)", "count"),
        }
    for name, (values, how, unit) in computed.items():
        if name in runs or can_derive(runs, name):
            runs = _fill(runs, name, values, how, unit)
    if "params" in runs and "tokens" in runs:
        with np.errstate(all="ignore"):
            ratio = _numbers(runs, "tokens") / _numbers(runs, "params")
        runs = _fill(runs, "tokens_per_param", ratio, "tokens / params", "count")
    return runs


def _numbers(runs: Runs, name: str) -> Floats:
    return runs.numeric(name)[0] if name in runs else np.full(len(runs), np.nan)


def _fill(runs: Runs, name: str, values: Floats, how: str, unit: str) -> Runs:
    """The column with its missing cells filled where the computed value is a usable count."""
    old = _numbers(runs, name)
    gap = np.isnan(old) & np.isfinite(values) & (values > 0)
    if not gap.any():
        return runs
    measured = is_measured(runs, name) and not np.isnan(old).all()
    note = how
    if measured:
        before = runs.derived.get(name, "measured")
        note = f"{before}; {how} in rows {row_ranges(runs.rows[gap])}"
    return replace(
        runs,
        columns={**runs.columns, name: np.where(gap, values, old)},
        units={**runs.units, name: unit},
        derived={**runs.derived, name: note},
    )


def row_ranges(rows: npt.NDArray[np.int64] | tuple[int, ...]) -> str:
    """Row numbers as ranges.

    Example:
        >>> row_ranges((3, 4, 5, 9))
        '3-5, 9'
    """
    ordered = np.sort(np.asarray(rows, dtype=np.int64))
    pieces = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else f"{p[0]}" for p in pieces if len(p))
