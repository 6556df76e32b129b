"""Takes a comparison of two fits, gives both curves with their bands and where they cross."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from isoloss.comparing.versus_result import Versus
from isoloss.report.canvas import (
    ACCENT,
    AMBER,
    BLUE,
    INK,
    QUIET,
    counts,
    dress,
    legend,
    losses,
    named,
)
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (BLUE, ACCENT)
MOST = 2  # verdicts in the title
BARS = (0.05, 0.025)  # heights of the bars that show where each has rows, as shares of the axes


def draw_versus(axes: Axes, found: Versus) -> None:
    """Both losses over the scale; the interval of the crossing shaded; a bar where each has rows."""
    counts(axes, "x", np.array(found.limits), 0.02)
    shown = [part for curve in found.curves for part in (curve.low, curve.high)]
    room = np.concatenate([*shown, [_lowest(found)]])
    losses(axes, "y", room)
    for curve, name, colour in zip(found.curves, found.names, COLOURS, strict=True):
        axes.fill_between(curve.scale, curve.low, curve.high, color=colour, alpha=0.15, lw=0, zorder=1)
        axes.plot(curve.scale, curve.median, color=colour, lw=1.8, zorder=2, label=name)
    place = found.crossing.place
    if not math.isnan(place.low):
        name = f"crossing, in {found.crossing.probability:.0%} of the draws"
        axes.axvspan(place.low, place.high, color=AMBER, alpha=0.25, lw=0, zorder=0, label=name)
        axes.axvline(place.value, color=AMBER, lw=1.2, zorder=0)
    for (low, high), height, colour in zip(found.observed, BARS, COLOURS, strict=True):
        axes.plot(
            [low, high], [height] * 2, color=colour, lw=3, solid_capstyle="butt",
            transform=axes.get_xaxis_transform(), zorder=3,
        )  # fmt: skip
    for point in found.asked:
        if found.limits[0] <= point.scale <= found.limits[1]:
            axes.axvline(point.scale, color=QUIET, lw=0.9, ls=":", zorder=0)
    axes.annotate(
        "bars: runs", (found.observed[0][1], BARS[0]), xytext=(5, 0), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", va="center", color=INK, fontsize=7.5,
    )  # fmt: skip
    legend(axes, "upper right")
    dress(axes, named(found.scale), named(found.target, found.unit), _headline(found), _note(found))


def _lowest(found: Versus) -> float:
    """A little below the curves, so that the bars lie under them."""
    low = min(float(curve.low.min()) for curve in found.curves)
    high = max(float(curve.high.max()) for curve in found.curves)
    return max(low - 0.08 * (high - low), 0.9 * low)


def _headline(found: Versus) -> str:
    pair = f"{found.names[0]} against {found.names[1]}"
    verdicts = [f"at {format_count(p.scale)} {found.named(p.verdict)}" for p in found.asked[:MOST]]
    return f"{pair}: {', '.join(verdicts)}" if verdicts else pair


def _note(found: Versus) -> str:
    along = "each along its own compute-optimal frontier; " if found.scale == "flops" else ""
    return f"{along}bands: {100 * found.coverage:g}%; to {found.stretch:g} times the largest run"
