"""What a table says of how its runs were made: ranges, counting, repetition, checkpoints, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.checkpoints import ORDER
from isoloss.runs import Runs
from isoloss.runs.columns import CANONICAL, listed
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from isoloss.fitting.result import Fit

Array = np.ndarray[Any, np.dtype[Any]]

SIZES = ("params", "params_nonembedding")
TREND = 0.3  # rank correlation from which a setting is said to move with size
FEW = 4  # texts that are listed


def span(values: Array) -> str:
    """``0.001 to 0.02``, or the one value.

    Example:
        >>> span(np.array([3e-4, 1e-3])), span(np.array([2.0]))
        ('0.0003 to 0.001', '2')
    """
    low, high = float(np.min(values)), float(np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _counts(values: Array) -> str:
    low, high = (format_count(float(f"{v:.3g}")) for v in (np.min(values), np.max(values)))
    return low if low == high else f"{low} to {high}"


def size_of(used: Runs) -> str:
    """Rows in the fit, and how many runs they are of."""
    rows = f"{len(used)} row{'' if len(used) == 1 else 's'}"
    if "run" not in used or used["run"].dtype.kind != "U":
        return f"{rows}, taken as one run each"
    names = used["run"]
    count = len(np.unique(names[names != ""])) + int(np.sum(names == ""))
    return f"{rows} of {count} run{'' if count == 1 else 's'}"


def ranges_of(fit: Fit) -> str:
    """Range of each axis, and of tokens per parameter."""
    parts = [
        f"{axis} {_counts(values) if np.min(values) >= 1000 else span(values)}"
        for axis, values in fit.x.items()
    ]
    size = next((axis for axis in fit.x if axis in SIZES), None)
    if size and "tokens" in fit.x:
        parts.append(f"tokens per parameter {span(fit.x['tokens'] / fit.x[size])}")
    return ", ".join(parts)


def counting_of(fit: Fit, runs: Runs) -> str:
    """What the counts of the axes are: the meaning of their columns, or how they were derived."""
    parts = []
    for axis in fit.law.axes:
        if axis in fit.derived:
            parts.append(f"{axis} = {fit.derived[axis]}")
        elif axis in CANONICAL and CANONICAL[axis].kind == "count":
            named = f" (column {runs.names[axis]})" if axis in runs.names else ""
            parts.append(f"{axis}: {CANONICAL[axis].meaning}{named}")
    return "; ".join(parts)


def repetition_of(used: Runs) -> str:
    """Passes over the data, if the table says."""
    if "epochs" in used:
        (epochs,) = used.numeric("epochs")
        if np.isfinite(epochs).any():
            return f"{span(epochs[np.isfinite(epochs)])} epochs"
    if "tokens_unique" in used and "tokens" in used:
        tokens, unique = used.numeric("tokens", "tokens_unique")
        known = np.isfinite(tokens) & np.isfinite(unique) & (unique > 0)
        if known.any():
            return f"{span(tokens[known] / unique[known])} epochs"
    return ""


def checkpoints_of(used: Runs, runs: Runs) -> str:
    """Checkpoints per run, if the table names runs."""
    if "run" not in used or used["run"].dtype.kind != "U":
        return ""
    gone = sum(entry.code == "not-final-checkpoint" for entry in runs.removed)
    names, counts = np.unique(used["run"][used["run"] != ""], return_counts=True)
    if not len(names):
        return ""
    if counts.max() == 1:
        earlier = f", the last ({gone} earlier ones removed)" if gone else ""
        share = "fraction_of_run"
        if not gone and share in used and np.isfinite(used.numeric(share)[0]).all():
            earlier = f", at {span(used.numeric(share)[0])} of the run"
        return f"one per run{earlier}"
    order = next((name for name in ORDER if name in used), None)
    return f"{span(counts)} rows per run{f', told apart by {order}' if order else ''}"


def column_fact(used: Runs, names: Sequence[str], fit: Fit) -> str:
    """What the first columns of those names hold: range and trend of numbers, values of texts."""
    parts = []
    for name in names:
        if name not in used:
            continue
        values = used[name]
        if values.dtype.kind == "f":
            known = np.isfinite(values)
            if known.any():
                parts.append(f"{name} {span(values[known])}{_trend(used, values, known, fit)}")
        else:
            texts = sorted({str(text) for text in values if text})
            if texts:
                parts.append(f"{name} {listed(texts, FEW)}")
    return "; ".join(parts)


def _trend(used: Runs, values: Array, known: Array, fit: Fit) -> str:
    """Whether a setting moves with the size of the model, or with what stands for it."""
    size = next((axis for axis in (*SIZES, *fit.law.axes) if axis in used), None)
    if size is None or np.ptp(values[known]) == 0:
        return ""
    (scale,) = used.numeric(size)
    known = known & np.isfinite(scale)
    if known.sum() < 3 or np.ptp(values[known]) == 0 or np.ptp(scale[known]) == 0:
        return ""
    rho = float(np.corrcoef(_ranks(values[known]), _ranks(scale[known]))[0, 1])
    if abs(rho) < TREND:
        return f", hardly moves with {size}"
    return f", {'rises' if rho > 0 else 'falls'} with {size} (rank correlation {rho:.2f})"


def _ranks(values: Array) -> Array:
    """Ranks, equal values sharing their mean."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[codes])
