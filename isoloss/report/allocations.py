"""Takes an allocation (optima without a law), gives its parabolas or its line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.approaches import Allocation, Optimum
from isoloss.report.canvas import ACCENT, INK, SMALL, counts, dress, legend, losses, named, shades
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

POINTS = 60  # of a parabola


def draw_allocation(axes: Axes, found: Allocation) -> None:
    """Parabolas where the optima have them, else the optimal sizes over FLOPs."""
    if all(optimum.sizes for optimum in found.optima):
        _parabolas(axes, found)
    else:
        _line(axes, found)


def _headline(found: Allocation) -> str:
    return (
        f"{found.approach}: N ∝ C^{found.a.value:.3f} ({_ends(found.a.low, found.a.high)}), "
        f"D ∝ C^{found.b.value:.3f}"
    )


def _ends(low: float, high: float) -> str:
    return "no interval" if np.isnan(low) else f"{low:.3f} to {high:.3f}"


def _note(found: Allocation, what: str) -> str:
    left = f"; {len(found.left_out)} left out" if found.left_out else ""
    return f"{len(found.optima)} {what}{left}; intervals {100 * found.coverage:g}%"


def _parabolas(axes: Axes, found: Allocation) -> None:
    """Runs and parabola of each budget, its vertex, and where the line through all vertices falls."""
    from matplotlib.patheffects import withStroke

    cmap, norm = shades(np.array([optimum.flops for optimum in found.optima]))
    sizes = np.concatenate([optimum.sizes for optimum in found.optima])
    measured = np.concatenate([optimum.losses for optimum in found.optima])
    named_ones = {o.flops for o in found.optima[:: max(1, -(-len(found.optima) // 10))]}
    for optimum in found.optima:
        colour = cmap(norm(optimum.flops))
        x = np.geomspace(min(optimum.sizes), max(optimum.sizes), POINTS)
        axes.plot(x, _loss(optimum, x), color=colour, lw=1.4, zorder=2)
        axes.plot(optimum.sizes, optimum.losses, "o", ms=4.5, color=colour, mec="white", mew=0.5, zorder=3)
        if optimum.flops in named_ones:
            axes.annotate(
                format_count(float(f"{optimum.flops:.2g}")), (x[-1], float(_loss(optimum, x[-1:])[0])), xytext=(4, 0),
                textcoords="offset points", va="center", color=colour, fontsize=SMALL,
                path_effects=[withStroke(linewidth=2.5, foreground="white")], zorder=4,
            )  # fmt: skip
    on_line = np.array([found.at(optimum.flops)[0] for optimum in found.optima])
    heights = [float(_loss(o, n)) for o, n in zip(found.optima, on_line, strict=True)]
    axes.plot(on_line, heights, color=ACCENT, lw=1.4, ls="--", zorder=4, label="line through the optima")
    vertices = [(optimum.params, optimum.loss) for optimum in found.optima]
    axes.plot(*zip(*vertices, strict=True), "*", ms=12, color=ACCENT, mec="white", ls="none", zorder=5,
              label="optimum of a budget")  # fmt: skip
    counts(axes, "x", np.append(sizes, sizes.max() * 1.6))
    losses(axes, "y", measured)
    legend(axes, "upper right")
    dress(axes, named("params"), "loss", _headline(found), _note(found, "budgets, named in training FLOPs"))


def _loss(optimum: Optimum, n: Any) -> Any:
    return optimum.loss + optimum.curvature * np.log(n / optimum.params) ** 2


def _line(axes: Axes, found: Allocation) -> None:
    """Optimal size over FLOPs, and the line with its interval."""
    flops = np.array([optimum.flops for optimum in found.optima])
    size = np.array([optimum.params for optimum in found.optima])
    counts(axes, "x", flops)
    counts(axes, "y", size)
    grid = np.geomspace(*axes.get_xlim(), POINTS)
    centre = float(np.exp(np.mean(np.log(flops))))
    middle = found.at(centre)[0]
    if not np.isnan(found.a.low):
        ends = [middle * (grid / centre) ** slope for slope in (found.a.low, found.a.high)]
        axes.fill_between(grid, np.minimum(*ends), np.maximum(*ends), color=ACCENT, alpha=0.15, lw=0, zorder=1,
                          label="interval of the exponent")  # fmt: skip
    axes.plot(flops, size, ".", ms=4, color=INK, alpha=0.5, zorder=2, label="optimal size")
    axes.plot(grid, found.at(1.0)[0] * grid**found.a.value, color=ACCENT, lw=1.6, zorder=3, label="line")
    axes.set_xlim(grid[0], grid[-1])
    legend(axes, "upper left")
    dress(axes, named("flops"), named("params"), _headline(found), _note(found, "points"))
