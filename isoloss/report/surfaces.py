"""Takes a fitted law of size and tokens, gives pictures of its surface: IsoFLOP, isoloss, the frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.planning.curves import Band, Curve, Frontier
from isoloss.report.canvas import (
    ACCENT,
    AMBER,
    BLUE,
    GREY,
    INK,
    SMALL,
    counts,
    dress,
    equal_flops,
    legend,
    losses,
    named,
    padded,
    shades,
)
from isoloss.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

NEAR = 0.15  # runs whose FLOPs are this close in logs to a curve's are drawn in its colour


def size_axis(fit: Fit) -> str:
    """The axis of the law that is a size."""
    return next(axis for axis in fit.law.axes if axis.startswith("params"))


def run_flops(fit: Fit) -> Array:
    """Training FLOPs 6ND of every run in the fit."""
    return np.asarray(6.0 * fit.x[size_axis(fit)] * fit.x["tokens"])


def draw_isoflops(axes: Axes, fit: Fit, curves: Mapping[float, Curve]) -> None:
    """Loss over size along budgets of training FLOPs, each with its band and its optimum.

    Args:
        axes: to draw into.
        fit: whose runs are shown, in a curve's colour where they took about its FLOPs.
        curves: training FLOPs -> what :func:`isoloss.planning.curves.isoflop_curve` gives.
    """
    size, budgets = size_axis(fit), np.array(list(curves))
    cmap, norm = shades(budgets)
    flops = run_flops(fit)
    everything = np.concatenate([fit.x[size], *(curve.params for curve in curves.values())])
    for budget, curve in curves.items():
        colour = cmap(norm(budget))
        axes.plot(curve.params, curve.loss.value, color=colour, lw=1.6, zorder=3)
        _band(axes, curve.params, curve.loss, colour)
        lowest = int(np.argmin(curve.loss.value))
        axes.plot([curve.params[lowest]], [curve.loss.value[lowest]], "*", ms=11, color=colour, mec="white",
                  mew=0.6, zorder=5)  # fmt: skip
        own = np.abs(np.log(flops / budget)) < NEAR
        axes.plot(fit.x[size][own], fit.y[own], "o", ms=4.5, color=colour, mec="white", mew=0.5, zorder=4)
    counts(axes, "x", np.append(everything, 1.8 * everything.max()), 0.01)
    curved = np.concatenate([curve.loss.value for curve in curves.values()])
    bands = np.concatenate([np.append(c.loss.low, c.loss.high) for c in curves.values()])
    reach = float(np.ptp(curved)) or 1.0
    known = bands[np.isfinite(bands)]
    losses(
        axes, "y", np.append(curved, np.clip(known, curved.min() - 0.3 * reach, curved.max() + 0.2 * reach))
    )
    for budget, curve in curves.items():
        axes.annotate(
            flops_text(budget), (curve.params[-1], curve.loss.value[-1]), xytext=(3, 0),
            textcoords="offset points", va="center", color=cmap(norm(budget)), fontsize=SMALL, zorder=6,
        )  # fmt: skip
    dress(axes, named(size), named(fit.law.target, fit.units.get(fit.law.target, "")), "",
          "at a curve's end: training FLOPs; star: optimum; dots: runs near a curve")  # fmt: skip


def draw_isolosses(axes: Axes, fit: Fit, curves: Mapping[float, Curve], line: Frontier | None = None) -> None:
    """Tokens over size along equal losses, each with its band; the line through the optima.

    Args:
        axes: to draw into.
        fit: whose runs are shown.
        curves: loss -> what :func:`isoloss.planning.curves.isoloss_curve` gives.
        line: the compute-optimal points, if they are to be shown.
    """
    size, levels = size_axis(fit), np.array(list(curves))
    cmap, norm = shades(levels, log=False)
    n, d = fit.x[size], fit.x["tokens"]
    marked = [n, d]
    if line is not None:
        marked = [np.append(n, line.params.value), np.append(d, line.tokens.value)]
    counts(axes, "x", marked[0], 0.08)
    counts(axes, "y", marked[1], 0.08)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    equal_flops(axes)
    for loss, curve in curves.items():
        colour = cmap(1.0 - float(norm(loss)))  # the costlier, the brighter, as along budgets
        tokens = np.where(np.isfinite(curve.tokens.value), curve.tokens.value, np.nan)
        axes.plot(curve.params, tokens, color=colour, lw=1.6, zorder=3)
        far = Band(tokens, tokens, curve.tokens.low, np.minimum(curve.tokens.high, 1e3 * top))
        _band(axes, curve.params, far, colour)
        _name_inside(axes, curve, number(loss, 3), colour, ((left, right), (bottom, top)))
    axes.plot(n, d, "o", ms=3.5, color=INK, mec="white", mew=0.4, zorder=4)
    if line is not None:
        axes.plot(line.params.value, line.tokens.value, color=ACCENT, lw=1.4, ls="--", zorder=4)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    optimal = "; red: compute-optimal" if line is not None else ""
    unit = fit.units.get(fit.law.target, "")
    dress(axes, named(size), named("tokens"), "",
          f"on a curve: {named(fit.law.target, unit)}{optimal}; grey: equal FLOPs", lift=9.0)  # fmt: skip


def draw_frontier(axes: Axes, line: Frontier, size: str = "params", asked: float | None = None) -> None:
    """The compute-optimal size and tokens over training FLOPs, with their bands.

    Args:
        axes: to draw into.
        line: what :func:`isoloss.planning.curves.frontier` gives.
        size: what the size counts.
        asked: training FLOPs to mark.
    """
    counts(axes, "x", line.flops, 0.0)
    both = np.concatenate([line.params.value, line.tokens.value])
    for band, name, colour in ((line.params, named(size), BLUE), (line.tokens, named("tokens"), AMBER)):
        _band(axes, line.flops, Band(band.value, band.median, band.low, np.minimum(band.high, 1e30)), colour)
        axes.plot(line.flops, band.value, color=colour, lw=1.8, zorder=3, label=name)
    low, high = padded(both, 0.08)
    counts(axes, "y", np.array([low, high]), 0.0)
    _asked(axes, asked)
    _flops_ticks(axes)
    legend(axes, "upper left")
    dress(axes, named("flops"), "compute-optimal amount", "", _bands_note(line))


def draw_frontier_loss(axes: Axes, line: Frontier, fit: Fit, asked: float | None = None) -> None:
    """The loss at the compute-optimal point over training FLOPs, with its band, above it the runs."""
    flops = run_flops(fit)
    counts(axes, "x", np.append(line.flops, flops), 0.01)
    _band(axes, line.flops, line.loss, BLUE)
    axes.plot(line.flops, line.loss.value, color=BLUE, lw=1.8, zorder=3, label="compute-optimal")
    axes.plot(flops, fit.y, "o", ms=3.5, color=GREY, mec="white", mew=0.4, zorder=2, label="runs")
    losses(axes, "y", np.concatenate([line.loss.value, fit.y]))
    _asked(axes, asked)
    _flops_ticks(axes)
    legend(axes, "upper right")
    name = named(fit.law.target, fit.units.get(fit.law.target, ""))
    dress(axes, named("flops"), name, "", _bands_note(line))


def _asked(axes: Axes, asked: float | None) -> None:
    if asked is not None:
        axes.axvline(asked, color=ACCENT, lw=1.1, ls=(0, (5, 3)), zorder=2, label="asked budget")


def _bands_note(line: Frontier) -> str:
    return f"{100 * line.coverage:g}% bands" if np.isfinite(line.loss.low).any() else "no draws, so no bands"


def _band(axes: Axes, x: Array, band: Band, colour: Any) -> None:
    if np.isfinite(band.low).any():
        axes.fill_between(x, band.low, band.high, color=colour, alpha=0.16, lw=0, zorder=1)


def flops_text(flops: float) -> str:
    """FLOPs in two digits, with an exponent.

    Example:
        >>> flops_text(7.29e12), flops_text(1e22)
        ('7.3e12', '1e22')
    """
    mantissa, _, exponent = f"{flops:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _flops_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: flops_text(value)))


def _name_inside(
    axes: Axes, curve: Curve, name: str, colour: Any, limits: tuple[tuple[float, float], ...]
) -> None:
    """The name of an isoloss curve where it enters the picture from the left or from above."""
    from matplotlib.patheffects import withStroke

    (left, right), (bottom, top) = limits
    tokens = curve.tokens.value
    inside = (curve.params > left * (right / left) ** 0.03) & (curve.params < right) & np.isfinite(tokens)
    inside &= (tokens < top / (top / bottom) ** 0.05) & (tokens > bottom * (top / bottom) ** 0.04)
    if inside.any():
        i = int(np.flatnonzero(inside)[0])
        axes.annotate(
            name, (curve.params[i], tokens[i]), xytext=(3, 4), textcoords="offset points", color=colour,
            fontsize=SMALL, weight="bold", zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def nice_budgets(flops: Array, asked: float | None, count: int = 4) -> list[float]:
    """Budgets for pictures: spread over the runs' FLOPs in two digits, and the asked one.

    Example:
        >>> nice_budgets(np.array([1e18, 1e20, 1e21]), 1e22, 3)
        [1e+18, 3.2e+19, 1e+21, 1e+22]
    """
    low, high = float(flops.min()), float(flops.max())
    spread: Sequence[float] = np.geomspace(low, high, count).tolist() if high > 1.5 * low else [high]
    known = {float(f"{value:.2g}") for value in spread}
    if asked is not None:
        known = {value for value in known if abs(np.log(value / asked)) > 0.2} | {asked}
    return sorted(known)
