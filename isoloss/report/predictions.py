"""Takes a prediction, gives the picture of its intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.prediction import Prediction
from isoloss.report.canvas import ACCENT, INK, SMALL, dress
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

NAMED = 24  # points with a name each
FAR = 1.05  # a point outside the fitted rows by more than this factor is marked


def draw_prediction(axes: Axes, prediction: Prediction) -> None:
    """A bar for the interval at each point, from the first axis' smallest; a dot for the median."""
    flat = {axis: np.ravel(values) for axis, values in prediction.x.items()}
    order = np.lexsort(tuple(flat.values())[::-1])
    low, median, high, reach = (
        np.ravel(values)[order]
        for values in (prediction.low, prediction.median, prediction.high, prediction.reach)
    )
    place = np.arange(len(order))
    far = reach > FAR
    width, dot = (6.0, 6.0) if len(order) <= NAMED else (1.5, 3.0)
    axes.hlines(place, low, high, color=INK, lw=width, alpha=0.3)
    for some, face in ((~far, INK), (far, "white")):
        axes.plot(median[some], place[some], "o", ms=dot, mec=INK, mfc=face)
    names = [", ".join(format_count(float(flat[a][i])) for a in flat) for i in order]
    _name_rows(axes, names, low, high, reach)
    of = "one new run" if prediction.of == "run" else "the mean"
    dress(
        axes, f"predicted for {of}", _order(list(flat), len(order)), f"Prediction for {of}",
        f"dot: median; bar: {100 * prediction.coverage:g}% interval"
        + ("; ×: factor beyond the runs in the fit" if far.any() else ""),
    )  # fmt: skip


def _order(axes: list[str], points: int) -> str:
    names = ", ".join(axes)
    return names if points <= NAMED else f"{points} points in order of {names}"


def _name_rows(axes: Axes, names: list[str], low: Array, high: Array, reach: Array) -> None:
    """The points' names at the left, and at the right end of a bar how far the point is outside."""
    axes.set_ylim(-0.6, len(names) - 0.4)
    margin = 0.08 * float(max(high.max() - low.min(), 1e-3 * abs(high.max()), 1e-12))
    axes.set_xlim(low.min() - margin, high.max() + 2 * margin)
    if len(names) > NAMED:
        axes.set_yticks([])
        return
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    for row in np.flatnonzero(reach > FAR):
        axes.annotate(
            f"× {reach[row]:.3g}", (high[row], row), xytext=(5, 0), textcoords="offset points", va="center",
            color=ACCENT, fontsize=SMALL,
        )  # fmt: skip
