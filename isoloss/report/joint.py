"""Takes a fit, gives pictures of its joint draws: one pair of parameters, one parameter, all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.report.canvas import ACCENT, BLUE, GREY, INK, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, np.dtype[Any]]

FEW = 20  # draws, below which there is no picture of them
MOST = 6  # parameters in one picture of pairs
WIDE_LOG = 3.0  # a positive parameter whose draws vary by more than this factor has a log axis
ROOM = 13  # letters of the ticks along one panel
CUT = 0.005  # of the draws at each end, left outside the picture where they run away


def moving(fit: Fit) -> list[str]:
    """Parameters that the draws show something about: not fixed, not borrowed, not constant."""
    if len(fit.draws) < FEW:
        return []
    followers = {name for group in fit.constraints.tie for name in group[1:]}
    out = []
    for p, name in enumerate(fit.law.names):
        if fit.status[p] not in ("fixed", "borrowed") and name not in followers:
            column = fit.draws[:, p]
            if np.isfinite(column).all() and np.ptp(column) > 1e-12 * np.max(np.abs(column)):
                out.append(name)
    return out


def strongest(fit: Fit) -> list[tuple[str, str, float]]:
    """Pairs of parameters with their rank correlation over the draws, the strongest first."""
    names = moving(fit)
    pairs = [
        (first, second, rank_correlation(fit, first, second))
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    ]
    return sorted(pairs, key=lambda pair: -abs(pair[2]))


def rank_correlation(fit: Fit, first: str, second: str) -> float:
    """Spearman's correlation of two parameters over the draws: the same in any monotone coordinate."""
    ranks = [np.argsort(np.argsort(_draws(fit, name), kind="stable")) for name in (first, second)]
    table: Array = np.asarray(np.corrcoef(ranks))
    return float(table[0, 1])


def correlation_text(r: float) -> str:
    """A correlation with its sign, in as many digits as tell it from 1.

    Example:
        >>> correlation_text(0.28), correlation_text(-0.9974), correlation_text(0.99999)
        ('+0.28', '−0.997', '> +0.999')
    """
    if abs(r) > 0.9995:
        return "> +0.999" if r > 0 else "< −0.999"
    return f"{r:+.3f}".replace("-", "−") if abs(r) >= 0.995 else f"{r:+.2f}".replace("-", "−")


def chosen_names(fit: Fit) -> list[str]:
    """At most ``MOST`` of the parameters, those in the strongest correlations, in the law's order."""
    names = moving(fit)
    if len(names) <= MOST:
        return names
    kept: list[str] = []
    for first, second, _ in strongest(fit):
        for name in (first, second):
            if name not in kept and len(kept) < MOST:
                kept.append(name)
    return [name for name in names if name in kept]


def draw_joint(figure: Figure, fit: Fit, names: Sequence[str] | None = None) -> None:
    """Every pair below the diagonal, each parameter alone on it, the correlations above it."""
    names = list(names) if names is not None else chosen_names(fit)
    grid: Any = figure.subplots(len(names), len(names), squeeze=False)
    for i, second in enumerate(names):
        for j, first in enumerate(names):
            axes = grid[i][j]
            if i == j:
                draw_alone(axes, fit, first)
            elif i > j:
                draw_pair(axes, fit, first, second)
            else:
                draw_correlation(axes, fit, first, second)
            if i < len(names) - 1 and j <= i:
                axes.set_xlabel("")
                axes.tick_params(labelbottom=False)
            if j > 0:
                axes.set_ylabel("")
                axes.tick_params(labelleft=False)


def draw_pair(axes: Axes, fit: Fit, first: str, second: str) -> None:
    """The draws of two parameters as a cloud, the best parameters as a cross."""
    x, y = _draws(fit, first), _draws(fit, second)
    axes.plot(x, y, ".", ms=2.8, color=BLUE, alpha=0.35, mec="none", zorder=1)
    best = fit.values
    axes.plot([best[first]], [best[second]], "+", ms=9, mew=1.6, color=ACCENT, zorder=3)
    _scale(axes, "x", x, _positive(fit, first))
    _scale(axes, "y", y, _positive(fit, second))
    _frame(axes, first, second)


def draw_alone(axes: Axes, fit: Fit, name: str) -> None:
    """The draws of one parameter as a histogram, its interval shaded, the best value as a line."""
    values, entry = _draws(fit, name), fit.parameters[name]
    log = _scale(axes, "x", values, _positive(fit, name))
    low, high = axes.get_xlim()
    edges = np.geomspace(low, high, 25) if log else np.linspace(low, high, 25)
    axes.axvspan(entry.low, entry.high, color=GREY, alpha=0.2, lw=0, zorder=0)
    axes.hist(values, bins=edges.tolist(), color=BLUE, alpha=0.75, zorder=1)
    axes.axvline(entry.value, color=ACCENT, lw=1.3, zorder=2)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    _frame(axes, name, "")


def draw_correlation(axes: Axes, fit: Fit, first: str, second: str) -> None:
    """The rank correlation of two parameters over the draws, as a number on its shade."""
    r = rank_correlation(fit, first, second)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_facecolor((*_rgb(ACCENT if r > 0 else BLUE), 0.55 * r * r))
    axes.text(
        0.5, 0.5, correlation_text(r), ha="center", va="center", color=INK, fontsize=SMALL + 2,
        transform=axes.transAxes, weight="bold" if abs(r) > 0.9 else "normal",
    )  # fmt: skip


def _positive(fit: Fit, name: str) -> bool:
    return fit.law.parameters[fit.law.names.index(name)].scale == "log"


def _draws(fit: Fit, name: str) -> Array:
    return np.asarray(fit.draws[:, fit.law.names.index(name)])


def _scale(axes: Axes, which: str, values: Array, log: bool) -> bool:
    """Limits around the draws, at most four ticks; a log scale if asked for and worth it, which it says."""
    from matplotlib.ticker import NullLocator

    low, high = (float(v) for v in np.quantile(values, [CUT, 1 - CUT]))
    axis = axes.xaxis if which == "x" else axes.yaxis
    log = log and low > 0 and high / low > WIDE_LOG
    if log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        margin = (high / low) ** 0.06
        low, high = low / margin, high * margin
    else:
        margin = 0.06 * (high - low or abs(high) or 1.0)
        low, high = low - margin, high + margin
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    places = _ticks(low, high, log)
    while len(places) > 2 and sum(len(_tick(value)) for value in places) > ROOM:
        places = places[::2]
    axis.set_ticks(places, [_tick(value) for value in places])
    axis.set_minor_locator(NullLocator())
    return log


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Two to four round numbers between low and high.

    Example:
        >>> _ticks(8.0, 1200.0, True), _ticks(0.31, 0.78, False)
        ([10.0, 100.0, 1000.0], [0.4, 0.6])
    """
    from matplotlib.ticker import MaxNLocator

    if log:
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        for subs in ((1, 2, 5), (1, 3), (1,)):
            known = [float(f"{sub}e{e}") for e in decades for sub in subs]
            inside = [value for value in known if low <= value <= high]
            if 2 <= len(inside) <= 4:
                return inside
            if subs == (1,) and len(inside) > 4:
                return inside[:: -(-len(inside) // 4)]
    round_ones = np.asarray(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high), dtype=float)
    return [round(float(value), 12) for value in round_ones if low <= value <= high]


def _tick(value: float) -> str:
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", "−")


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", colors=INK, labelsize=SMALL - 1, length=2.5)
    axes.set_xlabel(x, color=INK, fontsize=SMALL + 1)
    axes.set_ylabel(y, color=INK, fontsize=SMALL + 1)


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]
