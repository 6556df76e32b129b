"""Takes a back-test, gives pictures of it: predicted against measured, and the error over the distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.comparing.backtest import Backtest
from isoloss.report.canvas import ACCENT, BLUE, GREY, counts, diagonal, dress, legend, losses, named
from isoloss.report.residuals import CROWD, marks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]


def inside(found: Backtest) -> Array:
    """Which measured values lie inside their interval, (n,)."""
    return np.asarray((found.low <= found.y) & (found.y <= found.high))


def draw_backtest(axes: Axes, found: Backtest, target: str = "loss", unit: str = "") -> None:
    """Predicted against measured for every run held back, with the interval of one new run.

    Args:
        axes: to draw into.
        found: the back-test.
        target, unit: of what was predicted.
    """
    both = np.concatenate([found.y, found.median])
    log = bool(both.min() > 0 and both.max() / both.min() > 3)
    losses(axes, "x", both, log)
    losses(
        axes, "y", np.concatenate([both, np.clip(_finite(found), 0.7 * both.min(), 1.3 * both.max())]), log
    )
    diagonal(axes, both)
    for own, colour, name in _kinds(found):
        axes.vlines(found.y[own], found.low[own], found.high[own], zorder=1, **_bars(len(found), colour))
        axes.plot(found.y[own], found.median[own], "o", color=colour, zorder=3, label=name, **marks(len(found)))  # fmt: skip
    legend(axes, "upper left")
    shown = named(target, unit)
    dress(axes, f"measured {shown}", f"predicted {shown}", "", _note(found))


def draw_backtest_error(axes: Axes, found: Backtest) -> None:
    """Measured over predicted, less 1, along the cost of the run over that of the dearest fitted run.

    Bars are the predicted intervals, around their median at zero.
    """
    error = 100 * (found.y / found.median - 1)
    low, high = 100 * (found.low / found.median - 1), 100 * (found.high / found.median - 1)
    (counts if found.distance.max() > 20 else losses)(axes, "x", found.distance)
    axes.axhline(0.0, color=GREY, lw=1.0, zorder=0)
    for own, colour, name in _kinds(found):
        axes.vlines(found.distance[own], low[own], high[own], zorder=1, **_bars(len(found), colour))
        axes.plot(found.distance[own], error[own], "o", color=colour, zorder=3, label=name, **marks(len(found)))  # fmt: skip
    reach = 3.0 * max(float(np.max(np.abs(error))), 1e-6)
    shown = np.clip(np.concatenate([error, low[np.isfinite(low)], high[np.isfinite(high)]]), -reach, reach)
    span = float(np.ptp(shown)) or 1.0
    axes.set_ylim(float(shown.min()) - 0.06 * span, float(shown.max()) + 0.28 * span)
    legend(axes, "upper right")
    dress(axes, "cost / dearest fitted run", "measured over predicted (%)", "", _note(found))


def _kinds(found: Backtest) -> list[tuple[Array, str, str]]:
    own = inside(found)
    kinds = [
        (own, BLUE, f"inside its interval ({int(own.sum())})"),
        (~own, ACCENT, f"outside ({int((~own).sum())})"),
    ]
    return [kind for kind in kinds if kind[0].any()]


def _bars(count: int, colour: str) -> dict[str, Any]:
    """Intervals in the colour of their point; grey and thin where they would be all one sees."""
    if count <= CROWD:
        return {"color": colour, "alpha": 0.35, "lw": 2.0}
    return {"color": GREY, "alpha": 0.12, "lw": 0.8}


def _note(found: Backtest) -> str:
    return f"{len(found)} runs held back; bars: {100 * found.coverage:g}% for one new run"


def _finite(found: Backtest) -> Array:
    ends = np.concatenate([found.low, found.high])
    return np.asarray(ends[np.isfinite(ends)])
