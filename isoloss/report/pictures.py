"""Takes a table, fit, prediction, plan or allocation, gives the picture of it: the verb ``plot``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoloss.comparing.versus_result import Versus
    from isoloss.fitting.approaches import Allocation
    from isoloss.fitting.prediction import Prediction
    from isoloss.fitting.result import Fit
    from isoloss.fitting.schedule_fit import ScheduleFit
    from isoloss.measure.roofline import Roofline
    from isoloss.planning.result import Plan
    from isoloss.runs import Runs

_DRAWN_BY = {
    "Runs": ("isoloss.runs.table", "isoloss.report.tables", "draw_runs"),
    "Fit": ("isoloss.fitting.result", "isoloss.report.fits", "draw_fit"),
    "Prediction": ("isoloss.fitting.prediction", "isoloss.report.predictions", "draw_prediction"),
    "Plan": ("isoloss.planning.result", "isoloss.report.plans", "draw_plan"),
    "Allocation": ("isoloss.fitting.approaches", "isoloss.report.allocations", "draw_allocation"),
    "Versus": ("isoloss.comparing.versus_result", "isoloss.report.versus", "draw_versus"),
    "ScheduleFit": ("isoloss.fitting.schedule_fit", "isoloss.report.schedules", "draw_schedules"),
    "Roofline": ("isoloss.measure.roofline", "isoloss.report.rooflines", "draw_roofline"),
}


def plot(
    thing: Runs | Fit | Prediction | Plan | Allocation | Versus | ScheduleFit | Roofline,
    ax: Axes | None = None,
) -> Axes:
    """The picture of a result, with its intervals.

    - runs: where they lie over size and tokens, coloured by loss, with lines of equal training FLOPs; loss
      over the one axis that varies; a table of curves as curves;
    - a fit: the law through its runs with the band of one new run, runs far off it ringed;
    - a prediction: the interval at each point;
    - a plan: the loss along the budget with the optimum, the choice of least expected regret and the
      near-optimal sizes; for a wanted loss the sizes and tokens that reach it;
    - an allocation (:func:`isoloss.isoflop`, :func:`isoloss.envelope`): the optima and the line through them;
    - a comparison of two fits (:func:`isoloss.versus`): both curves with their bands, the interval of the
      crossing, and where each has rows;
    - a fit of schedules: its training curves, measured and as the law has them; of others,
      :func:`isoloss.report.schedules.draw_schedules`;
    - a roofline (:func:`isoloss.measure.roofline.roofline`): what a machine reaches, over FLOPs for a byte.

    Args:
        thing: what to draw.
        ax: axes to draw into; by default new ones on a figure of their own, which a notebook shows and
            ``plot(...).figure.savefig("fit.png")`` writes. No setting of matplotlib is changed.

    Raises:
        TypeError: of anything else there is no picture. ValueError: a table without a loss, or without a
            quantity to draw it over.

    Example:
        >>> import isoloss
        >>> fit = isoloss.fit("power", {"tokens": [1e6, 2e6, 4e6, 8e6], "loss": [8, 4, 2, 1.0]}, draws=50)
        >>> axes = plot(fit)
        >>> axes.get_xlabel(), axes.get_title(loc="left")
        ('training tokens', 'power(tokens): loss = b/x^c')
    """
    for kind, (home, drawer, name) in _DRAWN_BY.items():
        if isinstance(thing, getattr(importlib.import_module(home), kind)):
            draw: Any = getattr(importlib.import_module(drawer), name)
            axes = _axes(ax)
            draw(axes, thing)
            return axes
    raise TypeError(
        f"plot needs a {', '.join(_DRAWN_BY)}, got {type(thing).__name__}. Do: isoloss.read(...) makes runs of a "
        "table, isoloss.fit(...) a fit of runs, isoloss.plan(...) a plan of a fit"
    )


def _axes(ax: Axes | None) -> Axes:
    from matplotlib.axes import Axes

    from isoloss.report.canvas import new_axes

    if ax is None:
        return new_axes()
    if not isinstance(ax, Axes):
        raise TypeError(f"plot needs ax as matplotlib Axes, got {type(ax).__name__}. Do: leave ax out")
    return ax
