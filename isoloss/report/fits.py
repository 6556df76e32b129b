"""Takes a fit, gives the picture of the law through its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.prediction import Prediction, quantiles
from isoloss.fitting.result import Fit
from isoloss.report.canvas import (
    ACCENT,
    BLUE,
    GREY,
    INK,
    QUIET,
    SMALL,
    WIDE,
    chosen,
    counts,
    diagonal,
    dress,
    legend,
    losses,
    name_ends,
    named,
    shades,
)
from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

POINTS = 60  # of a curve
LARGE = 5.0  # robust standard deviations: a residual beyond is ringed
SAME = 0.03  # sizes this close in logs to a curve's are of its colour
ENDLESS = 1e200  # stands for infinite size or data
LINEAR = ("loss", "error")


def draw_fit(axes: Axes, fit: Fit) -> None:
    """Curves for laws of one and two axes; for more, predicted against measured.

    So too for a law that cannot mean every point between its rows: one of shares, or of a count that begins at 1.
    """
    anywhere = not fit.law.may_be_zero and fit.law.accepts(fit.x) is None
    draw = {1: _one_axis, 2: _two_axes}.get(len(fit.law.axes), _against) if anywhere else _against
    draw(axes, fit)


def title(fit: Fit) -> str:
    """``hoffmann: loss = E + A/N^alpha + B/D^beta``."""
    return f"{fit.law.spec}: {fit.law.target} = {fit.law.formula}"


def large_residuals(fit: Fit) -> Array:
    """Which rows lie more than ``LARGE`` robust standard deviations off the law; none without scatter."""
    middle = np.median(fit.residuals)
    scale = 1.4826 * float(np.median(np.abs(fit.residuals - middle)))
    if scale <= 1e-9 * max(float(np.max(np.abs(fit.residuals))), 1e-300):
        return np.zeros(len(fit.residuals), dtype=bool)
    return np.asarray(np.abs(fit.residuals - middle) > LARGE * scale)


def _note(fit: Fit, what: str) -> tuple[str, bool]:
    """What the picture shows; first, where the fit found no answer, that."""
    band = (
        f"; {what}: {100 * fit.coverage:g}% for one new run" if len(fit.draws) else "; no draws, so no band"
    )
    text = f"{len(fit.y)} runs{band}"
    if fit.result == "identified":
        return text, False
    return f"{fit.result.replace('-', ' ')}: read no number off this picture; {len(fit.y)} runs", True


def _band(fit: Fit, x: dict[str, Array]) -> tuple[Array, Prediction | None]:
    """The plug-in curve, and the prediction of a new run where the fit has draws."""
    level = fit.law.evaluate(fit.theta, **x)
    if not len(fit.draws):
        return level, None
    points: dict[str, Any] = x
    return level, fit.predict(of="run", **points)


def _curve(axes: Axes, fit: Fit, x: dict[str, Array], along: str, colour: Any) -> Array:
    """The law's curve and its band; gives what the picture must make room for."""
    level, band = _band(fit, x)
    axes.plot(x[along], level, color=colour, lw=1.5, zorder=2)
    if band is None:
        return level
    axes.fill_between(x[along], band.low, band.high, color=colour, alpha=0.15, lw=0, zorder=1)
    return np.concatenate([level, band.low, band.high])


def _ring(axes: Axes, fit: Fit, x: Array, y: Array) -> None:
    large = large_residuals(fit)
    if large.any():
        name = f"residual beyond {LARGE:g} robust s.d. ({int(large.sum())})"
        axes.plot(x[large], y[large], "o", ms=10, mfc="none", mec=ACCENT, mew=1.3, zorder=4, label=name)


def _grid(values: Array, linear: bool = False) -> Array:
    low, high = float(values.min()), float(values.max())
    if linear:
        return np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), POINTS)
    return np.geomspace(low / (high / low) ** 0.02, high * (high / low) ** 0.05, POINTS)


def _two_axes(axes: Axes, fit: Fit) -> None:
    """Target over the second axis, a curve for each of a few values of the first."""
    size, along = fit.law.axes
    n, d = fit.x[size], fit.x[along]
    picked = chosen(n)
    cmap, norm = shades(picked)
    grid = _grid(d)
    ends, room = [], [fit.y]
    for value in picked:
        x = {size: np.full(POINTS, value), along: grid}
        values = _curve(axes, fit, x, along, cmap(norm(value)))
        ends.append(float(values[POINTS - 1]))
        room.append(values)
    counts(axes, "x", d)
    axes.set_xlim(grid[0], grid[-1])
    _limits(axes, fit, np.concatenate(room))
    _points(axes, fit, n, d, picked)
    _ring(axes, fit, d, fit.y)
    legend(axes, "upper right")
    text, alarm = _note(fit, "bands")
    dress(axes, named(along), named(fit.law.target, _unit(fit)), title(fit), text, alarm)
    name_ends(axes, ends, [format_count(float(v)) for v in picked], [cmap(norm(v)) for v in picked])
    axes.annotate(
        named(size), (1.0, 1.0), xytext=(4, 6), xycoords="axes fraction", textcoords="offset points",
        ha="center" if len(named(size)) < 12 else "right", color=QUIET, fontsize=SMALL, annotation_clip=False,
    )  # fmt: skip


def _points(axes: Axes, fit: Fit, n: Array, d: Array, picked: Array) -> None:
    """The runs: in their curve's colour where they have one, grey where their size has no curve."""
    cmap, norm = shades(picked)
    near = picked[np.argmin(np.abs(np.log(n[:, None] / picked)), axis=1)]
    own = np.abs(np.log(n / near)) < SAME
    if not own.all():
        axes.plot(d[~own], fit.y[~own], "o", ms=3.5, color=GREY, mec="white", mew=0.4, label="other sizes")
    colours = cmap(norm(near[own]))
    axes.scatter(d[own], fit.y[own], s=26, c=colours, edgecolors="white", linewidths=0.6, zorder=3)


def _one_axis(axes: Axes, fit: Fit) -> None:
    """Target over the axis: linear for a link, else logs along the axis, and the floor."""
    axis = fit.law.axes[0]
    linear = axis in LINEAR
    grid = _grid(fit.x[axis], linear)
    values = _curve(axes, fit, {axis: grid}, axis, BLUE)
    (losses if linear else counts)(axes, "x", fit.x[axis])
    axes.set_xlim(grid[0], grid[-1])
    floor = None if linear else _floor(fit, axis)
    room = np.concatenate([fit.y, values])
    shown = floor is not None and floor[0] > 0.25 * float(fit.y.min())
    _limits(axes, fit, np.append(room, [floor[0]] if floor and shown else []))
    shown = shown and floor is not None and floor[0] > axes.get_ylim()[0]  # the limits leave out what is far
    axes.plot(fit.x[axis], fit.y, "o", ms=5.5, color=INK, mec="white", mew=0.6, zorder=3)
    _ring(axes, fit, fit.x[axis], fit.y)
    if floor:
        _mark_floor(axes, floor, shown)
    legend(axes, "lower right" if linear else "upper right")
    text, alarm = _note(fit, "band")
    dress(
        axes, named(axis, fit.units.get(axis, "")), named(fit.law.target, _unit(fit)), title(fit), text, alarm
    )


def _floor(fit: Fit, axis: str) -> tuple[float, float, float] | None:
    """What endless size or data leaves, with its interval; None for a law without a floor."""
    with np.errstate(all="ignore"):
        level = float(fit.law.evaluate(fit.theta, **{axis: ENDLESS}))
        own = fit.law.evaluate(fit.draws, **{axis: ENDLESS})
    if not np.isfinite(level) or not 1e-9 * float(fit.y.min()) < level < float(fit.y.max()):
        return None
    known = own[np.isfinite(own)]
    return (level, *(quantiles(known, fit.coverage) if len(known) > 1 else (np.nan, np.nan)))


def _mark_floor(axes: Axes, floor: tuple[float, float, float], shown: bool) -> None:
    level, low, high = floor
    ends = "" if np.isnan(low) else f" ({low:.3g} to {high:.3g})"
    if shown:
        axes.axhline(level, color=QUIET, lw=1.0, ls=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"floor {level:.4g}{ends}" + ("" if shown else ", below the picture"),
        (0.01, level if shown else 0.01), xytext=(0, 3), textcoords="offset points", color=QUIET, fontsize=SMALL,
        xycoords=("axes fraction", "data" if shown else "axes fraction"),
    )  # fmt: skip


def _limits(axes: Axes, fit: Fit, room: Array) -> None:
    """The measured runs and the curves in full; of a band that runs away only a part."""
    low, high = float(fit.y.min()), float(fit.y.max())
    log = low > 0 and high / low > WIDE
    margin = (high - low) or abs(low)
    ends = (low / (high / low), high * (high / low)) if log else (low - margin, high + margin)
    losses(axes, "y", np.clip(room[np.isfinite(room)], *ends), log)


def _against(axes: Axes, fit: Fit) -> None:
    """Predicted against measured."""
    level, band = _band(fit, dict(fit.x))
    both = np.concatenate([level, fit.y])
    losses(axes, "x", both)
    losses(axes, "y", both)
    diagonal(axes, both)
    if band is not None:
        axes.vlines(fit.y, band.low, band.high, color=BLUE, alpha=0.3, lw=2.0, zorder=1)
    axes.plot(fit.y, level, "o", ms=4.5, color=BLUE, mec="white", mew=0.5, zorder=3)
    _ring(axes, fit, fit.y, level)
    legend(axes, "upper left")
    text, alarm = _note(fit, "bars")
    name = named(fit.law.target, _unit(fit))
    dress(axes, f"measured {name}", f"predicted {name}", title(fit), text, alarm)


def _unit(fit: Fit) -> str:
    return fit.units.get(fit.law.target, "")
