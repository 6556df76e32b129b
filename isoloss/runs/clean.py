"""takes Runs, gives the rows that a reduction leaves out, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isoloss.runs.groups import group_ids, members

if TYPE_CHECKING:
    from isoloss.runs.table import Runs

__all__ = ["not_best", "not_final"]

_ORDER = ("step", "fraction_of_run", "tokens")


def not_final(runs: Runs, by: tuple[str, ...]) -> dict[int, str]:
    """Row -> why, for every row that is not the last checkpoint of its run. See ``Runs.final_checkpoints``.

    Raises:
        ValueError: no column says which row is last, or it is missing in a row.
    """
    order = next((name for name in _ORDER if name in runs), None)
    if order is None:
        raise ValueError(
            f"{runs.source}: needed a column step, fraction_of_run or tokens to tell which"
            " checkpoint is last. Do: --columns step=COLUMN"
        )
    (position,) = runs.numeric(order)
    names = [runs[name] for name in by]
    named = np.logical_and.reduce([n != "" if n.dtype.kind == "U" else ~np.isnan(n) for n in names])
    reasons: dict[int, str] = {}
    for group in members(group_ids(names, len(runs))):
        group = group[named[group]]
        if len(group) < 2:
            continue
        unknown = group[np.isnan(position[group])]
        if len(unknown):
            raise ValueError(
                f"{runs.source}, row {runs.rows[unknown[0]]}, column {order!r}: missing, so the"
                " last checkpoint of its run is unknown. Do: fill it in, or remove the row"
            )
        last = position[group].max()
        for i in group[position[group] < last]:
            reasons[int(runs.rows[i])] = f"{order} {position[i]:.12g} of a run that goes on to {last:.12g}"
    return reasons


def not_best(runs: Runs, over: tuple[str, ...], at: tuple[str, ...], target: str) -> dict[int, str]:
    """Row -> why, for every row whose setting is not the best at its point. See ``Runs.best_of_sweep``.

    Raises:
        ValueError: a column is missing.
    """
    (loss,) = runs.numeric(target)
    loss = np.where(np.isnan(loss), np.inf, loss)
    points = group_ids([runs[name] for name in at], len(runs))
    settings = group_ids([points.astype(np.float64), *(runs[name] for name in over)], len(runs))
    # rows are summed in the order of their value, so that the order of the file cannot change a tie
    order = np.lexsort((loss, settings))
    mean = np.array([loss[order[group]].mean() for group in members(settings[order])])[settings]
    reasons: dict[int, str] = {}
    for group in members(points):
        best = mean[group].min()
        if not np.isfinite(best):
            continue  # nothing to choose from; a check names these rows
        winner = settings[group[mean[group] == best]].min()
        for i in group[settings[group] != winner]:
            setting = ", ".join(
                (f"{name} {runs[name][i]:.6g}" if runs[name].dtype.kind == "f" else f"{name} {runs[name][i]}")
                for name in over
            )
            reasons[int(runs.rows[i])] = (
                f"{setting}: mean {target} {mean[i]:.6g}, the best setting at this point has {best:.6g}"
            )
    return reasons
