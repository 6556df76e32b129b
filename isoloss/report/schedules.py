"""Takes a fit of schedules, gives the picture of its curves: measured, and as the law has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.curves import Curve
from isoloss.fitting.schedule_fit import ScheduleFit
from isoloss.report.canvas import GREY, counts, dress, legend, losses, named, shades
from isoloss.report.words import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

POINTS = 150  # of a predicted curve
DOTS = 60  # measured losses shown of one curve, at most
EARLY = 0.1  # of the summed rate of the longest fitted curve: what is before is left out


def draw_schedules(axes: Axes, fit: ScheduleFit, unseen: Sequence[Curve] = ()) -> None:
    """Loss over steps: measured as dots, the law as lines; of curves that were not fitted the band of one run.

    Args:
        axes: to draw into.
        fit: the curves that it was fitted to are grey where there are others.
        unseen: curves of the same model under other schedules, predicted from the fit.
    """
    every = [*fit.curves, *unseen]
    places, _ = shades(np.arange(max(len(unseen or fit.curves), 2)), log=False)
    tint = iter(places(np.linspace(0.0, 1.0, len(unseen or fit.curves))))
    shown: list[tuple[Array, Array]] = []
    for i, curve in enumerate(every):
        own = i < len(fit.curves)
        grey = own and bool(unseen)
        colour = GREY if grey else next(tint)
        steps, level = _along(fit, curve)
        name = ("fitted" if i == 0 else None) if grey else curve.name
        axes.plot(steps, level, color=colour, lw=1.2, zorder=2, label=name)
        if not own and len(fit.draws):
            band = fit.predict(curve.schedule, steps, of="run")
            axes.fill_between(steps, band.low, band.high, color=colour, alpha=0.15, lw=0, zorder=1)
        some = np.unique(np.linspace(0, len(curve.steps) - 1, DOTS).astype(int))
        axes.plot(curve.steps[some], curve.loss[some], ".", ms=2.5, color=colour, zorder=3)
        late = _late(fit, curve)
        shown.append((curve.steps[late], curve.loss[late]))
    counts(axes, "x", np.concatenate([steps for steps, _ in shown]), 0.02)
    losses(axes, "y", np.concatenate([loss for _, loss in shown]))
    legend(axes, "upper right")
    others = f" predicts {len(unseen)} more" if unseen else ""
    title = f"{fit.law.slug} of {plural(len(fit.curves), 'curve')}{others}"
    bands = f"; bands: {100 * fit.coverage:g}% of one run" if unseen and len(fit.draws) else ""
    dress(axes, "step", named("loss", "nats/token"), title, f"dots: measured; lines: the law{bands}")


def _along(fit: ScheduleFit, curve: Curve) -> tuple[Array, Array]:
    """Steps from the curve's first to its last, denser early, and the law's loss there."""
    steps = np.unique(np.round(np.geomspace(curve.steps[0], curve.steps[-1], POINTS)))
    return steps, np.asarray(fit.law.value(fit.theta, curve.schedule, steps))


def _late(fit: ScheduleFit, curve: Curve) -> Array:
    """Rows after the first steep fall, beside which all else would be pressed together."""
    least = EARLY * max(float(one.schedule.sums[-1]) for one in fit.curves)
    late = curve.schedule.sums[curve.steps.astype(int)] >= least
    return late if late.any() else np.ones(len(curve.steps), dtype=bool)
