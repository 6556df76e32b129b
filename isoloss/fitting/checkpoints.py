"""Which checkpoints of each run: the final one, the last fifth, or all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from isoloss.runs import Runs
from isoloss.runs.groups import group_ids

ORDER = ("step", "fraction_of_run", "tokens")  # what says which checkpoint is later, as in final_checkpoints
LAST = 0.8  # the last 20 % begin here
MOST = 20_000  # rows that are refitted unasked


def subsets(runs: Runs, axes: Sequence[str], target: str) -> tuple[dict[str, Runs], str]:
    """The final checkpoints, the last 20 % and all, from the table or its curves; or why there are none.

    Args:
        runs: a table with several rows per run, or one row per run and ``curves``.
        axes: of the law; a size that the curves lack is that of the run.
        target: of the law.

    Example:
        >>> import isoloss
        >>> table = isoloss.read({
        ...     "run": ["a", "a", "b"], "step": [1, 2, 2], "tokens": [1, 2, 4], "loss": [5, 4, 3.5]})
        >>> {name: len(part) for name, part in subsets(table, ["tokens"], "loss")[0].items()}
        {'final checkpoints': 2, 'last 20 % of each run': 2, 'all checkpoints': 3}
    """
    if "run" not in runs:
        return {}, "the table has no column run"
    if runs["run"].dtype.kind != "U":
        return {}, "the column run does not name runs"
    long, why = (runs, "") if _repeats(runs) else _curves(runs, axes, target)
    if why:
        return {}, why
    if len(long) > MOST:
        return {}, f"{len(long)} checkpoints, above {MOST}: fit them on their own"
    order = next(name for name in ORDER if name in long)
    (position,) = long.numeric(order)
    if not np.isfinite(position).all():
        return {}, f"{order} is missing in some rows"
    ids = group_ids([long["run"]], len(long))
    end = np.full(int(ids.max()) + 1, -np.inf)
    np.maximum.at(end, ids, position)
    named = long["run"] != ""
    share = np.where(named, position / end[ids], 1.0)
    return {
        "final checkpoints": long.take(share >= 1.0),
        "last 20 % of each run": long.take(share >= LAST),
        "all checkpoints": long,
    }, ""


def _repeats(runs: Runs) -> bool:
    """Whether some run has rows at different positions."""
    order = next((name for name in ORDER if name in runs), None)
    if order is None:
        return False
    named = np.flatnonzero(runs["run"] != "")
    pairs = group_ids([runs["run"][named], runs.numeric(order)[0][named]], len(named))
    return len(np.unique(pairs)) > len(np.unique(runs["run"][named]))


def _curves(runs: Runs, axes: Sequence[str], target: str) -> tuple[Runs, str]:
    """The curves of these runs, with the sizes of the runs; or why they cannot be fitted."""
    long = runs.curves
    if long is None:
        return runs, "one row per run, and no curves"
    names = runs["run"]
    if len(np.unique(names)) < len(names):
        return runs, "several rows per run beside the curves"
    long = long.take(np.isin(long["run"], names[names != ""]))
    order = np.argsort(names)
    row = order[np.searchsorted(names[order], long["run"])] if len(long) else np.zeros(0, dtype=int)
    for axis in axes:
        if axis not in long and axis.startswith("params") and axis in runs:
            columns = {**long.columns, axis: runs.numeric(axis)[0][row]}
            long = replace(long, columns=columns, units={**long.units, axis: runs.units.get(axis, "")})
    missing = [name for name in (*axes, target) if name not in long.derive()]
    if missing or not any(name in long for name in ORDER):
        return runs, f"the curves have no {', no '.join(missing or ['step'])}"
    if not len(long):
        return runs, "the curves are of other runs"
    return long, ""
