"""The rows a law is fitted to, taken from a table of runs: nothing dropped unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.laws.law import Law
from isoloss.runs import Removed, Runs

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Data:
    """Inputs, targets and weights of the rows in the fit, in an order that does not depend on the table's.

    Attributes:
        x: axis -> (n,).
        y: target, (n,).
        weights: (n,), mean 1.
        clusters: (n,) integers; rows of one cluster are resampled together.
        rows: row in the source, (n,).
        removed: rows of the table that are not in the fit, with code and why.
        fingerprint: of the columns used.
    """

    x: Mapping[str, Array]
    y: Array
    weights: Array
    clusters: Array
    rows: Array
    removed: tuple[Removed, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.y)

    @property
    def cluster_count(self) -> int:
        """Number of independent units."""
        return len(np.unique(self.clusters))


def prepare(
    law: Law,
    runs: Runs,
    *,
    weights: str | None = None,
    sd: str | None = None,
    cluster: str | None = None,
) -> Data:
    """The rows of ``runs`` that ``law`` can be fitted to.

    Rows with a missing or non-finite target, axis, weight or sd are removed and returned as such.

    Raises:
        ValueError: a column is missing, or holds values that the law cannot mean (counts at or below 0).
        NoAnswer: fewer than two rows are left.
    """
    axes, runs = _axes(law, runs)
    extra = [name for name in (weights, sd) if name is not None]
    used = [*dict.fromkeys(axes.values()), law.target, *extra]
    columns = dict(zip(used, runs.numeric(*used), strict=True))
    removed = list(runs.removed)
    keep = np.ones(len(runs), dtype=bool)
    for name in used:
        bad = ~np.isfinite(columns[name])
        for i in np.flatnonzero(bad & keep):
            value = columns[name][i]
            missing = name != law.target
            removed.append(
                Removed(
                    int(runs.rows[i]),
                    "missing-value" if missing else "nonfinite-loss",
                    f"{name} is {'missing' if np.isnan(value) else value}",
                )
            )
        keep &= ~bad
    _refuse_nonpositive(law, runs, columns, axes, sd, keep)
    if weights:
        bad = np.flatnonzero(keep & (columns[weights] < 0))
        if len(bad) or not np.any(columns[weights][keep] > 0):
            at = f"{columns[weights][bad[0]]:g} in row {int(runs.rows[bad[0]])}" if len(bad) else "only zeros"
            raise ValueError(f"{law.slug} needs weights {weights} at or above 0, not all 0, got {at}")
        for i in np.flatnonzero(keep & (columns[weights] == 0)):
            removed.append(Removed(int(runs.rows[i]), "zero-weight", f"{weights} is 0"))
        keep &= columns[weights] != 0
    if keep.sum() < 2 and keep.all():
        raise NoAnswer(
            f"{len(runs)} row{'s' if len(runs) != 1 else ''} cannot determine {law.spec}",
            f"more runs: at least three more rows than its {len(law.parameters)} parameters",
        )
    if keep.sum() < 2:
        raise NoAnswer(
            f"{int(keep.sum())} of {len(runs)} rows can be fitted",
            f"rows with finite {', '.join(used)}; `isoloss check` names what is wrong with the others",
        )
    x = {axis: columns[name][keep] for axis, name in axes.items()}
    _refuse_unmeant(law, x, runs.rows[keep])
    y = columns[law.target][keep]
    w = columns[weights][keep] if weights else np.ones(len(y))
    if sd:
        w = w / columns[sd][keep] ** 2
    groups = _clusters(runs, cluster, keep) if cluster else np.arange(len(y))
    if len(np.unique(groups)) < 2:
        raise NoAnswer(
            f"all {len(y)} rows have the same {cluster}, so nothing is independent of anything",
            f"at least two values of {cluster}, better a dozen, or leave --cluster out",
        )
    # One order for any order of the table: then the same seed draws the same resamples.
    labels = np.unique(groups, return_inverse=True)[1] if cluster else np.zeros(len(y))
    order = np.lexsort([labels, w, *(x[axis] for axis in reversed(list(x))), y])
    _, first, codes = np.unique(groups[order], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return Data(
        {axis: value[order] for axis, value in x.items()},
        y[order],
        (w / w.mean())[order],
        rank[codes],
        runs.rows[keep][order],
        tuple(removed),
        runs.fingerprint([*used, *([cluster] if cluster else [])]),
    )


def _axes(law: Law, runs: Runs) -> tuple[dict[str, str], Runs]:
    """Axis of the law -> column of the table; derivable columns are derived, defaults filled."""
    needed = [axis for axis in law.axes if axis not in law.defaults]
    if any(axis not in runs or not np.isfinite(runs.numeric(axis)[0]).all() for axis in needed):
        runs = runs.derive()
    axes = {}
    for axis in law.axes:
        name = axis if axis in runs else law.defaults.get(axis, axis)
        runs[name]  # the table's own error says which column is missing and what to do
        axes[axis] = name
    runs[law.target]
    return axes, runs


def _clusters(runs: Runs, cluster: str, keep: Array) -> Array:
    """The labels of the rows in the fit; a row without one belongs to no known unit."""
    groups = runs[cluster][keep]
    missing = groups == "" if groups.dtype.kind in "US" else np.isnan(groups)
    if missing.any():
        row = int(runs.rows[keep][np.argmax(missing)])
        raise ValueError(
            f"cluster needs a value of {cluster} in every row, got none in row {row} "
            f"({int(missing.sum())} such rows). Fill them in, or leave the rows out with where="
        )
    return groups


def _refuse_nonpositive(
    law: Law, runs: Runs, columns: Mapping[str, Array], axes: Mapping[str, str], sd: str | None, keep: Array
) -> None:
    """Axes, target and known noise below what the law can mean: 0, and mostly not 0 either."""
    may_be_zero = {axes[axis] for axis in law.may_be_zero}
    names = [*axes.values(), *([] if law.signed else [law.target]), *([sd] if sd else [])]
    for name in dict.fromkeys(names):
        zero = name in may_be_zero
        bad = np.flatnonzero(keep & ((columns[name] < 0) if zero else (columns[name] <= 0)))
        if len(bad):
            code = "nonpositive-loss" if name == law.target else "nonpositive-count"
            raise ValueError(
                f"{law.slug} needs {name} {'at or ' if zero else ''}above 0, got {columns[name][bad[0]]:g} in row "
                f"{int(runs.rows[bad[0]])} ({len(bad)} such rows). Mend them, or leave them out with "
                f"--drop {code}"
            )


def _refuse_unmeant(law: Law, x: Mapping[str, Array], rows: Array) -> None:
    """Points that the law cannot mean although each axis is of the right sign."""
    verdict = law.accepts(x)
    if verdict is None or verdict[0].all():
        return
    bad = np.flatnonzero(~verdict[0])
    at = ", ".join(f"{axis} {values[bad[0]]:g}" for axis, values in x.items())
    raise ValueError(
        f"{law.slug} needs {verdict[1]}, got {at} in row {int(rows[bad[0]])} ({len(bad)} such rows). "
        "Mend them, or leave them out with where="
    )
