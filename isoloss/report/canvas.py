"""Takes axes and numbers, gives what every picture shares: colours, ticks that people read, direct labels."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from isoloss.runs.units import format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

Array = np.ndarray[Any, np.dtype[Any]]
Which = Literal["x", "y"]

INK, ACCENT, GREY, QUIET = "#22223b", "#d1495b", "#8d99ae", "#5c677d"
BLUE, AMBER = "#3b528b", "#edae49"
SIZE = (6.0, 4.2)  # inches
DPI = 120
SMALL, TEXT = 8.5, 9.5
LABELS = 7  # curves named in one picture
WIDE = 3.0  # a loss that varies by more than this factor is drawn on a log scale
NAMES = {
    "params": "parameters",
    "params_nonembedding": "parameters without embeddings",
    "params_active": "parameters used per token",
    "tokens": "training tokens",
    "tokens_unique": "distinct tokens",
    "flops": "training FLOPs",
    "error": "error (share wrong)",
}


def new_axes() -> Axes:
    """Axes on a figure of their own, outside pyplot's list of open figures; a notebook shows them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    return figure.add_subplot(axes_class=_panel())


@cache
def _panel() -> type[Axes]:
    from io import BytesIO

    from matplotlib.axes import Axes

    class Panel(Axes):
        """Axes that are a picture where they are the value of a notebook's cell."""

        def _repr_png_(self) -> bytes:
            out = BytesIO()
            self.get_figure(root=True).savefig(out, format="png")  # type: ignore[union-attr]
            return out.getvalue()

    return Panel


def dress(
    axes: Axes, x: str, y: str, title: str, note: str = "", alarm: bool = False, lift: float = 0.0
) -> None:
    """Labels, a title on the left with a smaller note below it, and no frame on the right and above.

    Args:
        axes: to dress.
        x, y: what stands along them.
        title: what is drawn.
        note: how it was made; ``alarm`` prints it in the accent colour.
        lift: points left free above the axes.
    """
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(which="both", colors=INK, labelsize=SMALL)
    axes.set_xlabel(x, color=INK, fontsize=TEXT)
    axes.set_ylabel(y, color=INK, fontsize=TEXT)
    lines = textwrap.wrap(note, 78)
    pad = 6.0 + lift + 1.3 * SMALL * len(lines)
    axes.set_title(textwrap.fill(title, 68), loc="left", color=INK, fontsize=TEXT, weight="bold", pad=pad)
    if lines:
        axes.annotate(
            "\n".join(lines), (0, 1), xytext=(0, 5 + lift), xycoords="axes fraction", textcoords="offset points",
            color=ACCENT if alarm else INK, fontsize=SMALL, linespacing=1.15,
        )  # fmt: skip


def named(axis: str, unit: str = "") -> str:
    """What stands along an axis: ``training tokens``, ``loss (nats/token)``.

    Example:
        >>> named("tokens", "count"), named("loss", "nats/byte")
        ('training tokens', 'loss (nats/byte)')
    """
    name = NAMES.get(axis, axis.replace("_", " "))
    shown = unit if unit not in ("", "count", "FLOP", "fraction wrong") else ""
    return f"{name} ({shown})" if shown else name


def counts(axes: Axes, which: Which, values: Array, share: float = 0.06) -> None:
    """A log scale over the values, with counts as ticks: 100K, 1M."""
    low, high = padded(values, share)
    decades = math.log10(high / low)
    _log_scale(axes, which, low, high, (1,) if decades > 3.5 else (1, 3) if decades > 1.3 else (1, 2, 5))


def losses(axes: Axes, which: Which, values: Array, log: bool | None = None) -> None:
    """A scale over the values: linear, or ``log``, by default where they vary by more than ``WIDE``."""
    good = values[np.isfinite(values)]
    ratio = float(good.max() / good.min()) if len(good) and good.min() > 0 else 1.0
    if ratio > WIDE if log is None else log and ratio > 1:
        low, high = padded(good, 0.04)
        subs: Sequence[float] = (1,) if ratio > 1e3 else (1, 2, 5) if ratio > 6 else (1, 1.5, 2, 3, 4, 5, 7)
        _log_scale(axes, which, low, high, subs if ratio > 2 else (1, *np.arange(1.1, 10, 0.1)))
    elif len(good):
        margin = 0.06 * (float(np.ptp(good)) or abs(float(good[0])) or 1.0)
        (axes.set_xlim if which == "x" else axes.set_ylim)(good.min() - margin, good.max() + margin)


def diagonal(axes: Axes, values: Array) -> None:
    """The line of equal values, also where all values are one: a line needs two points that differ."""
    low = float(values.min())
    high = max(float(values.max()), low + (abs(low) or 1.0))
    axes.axline((low, low), (high, high), color=GREY, lw=1.0, zorder=0)


def _log_scale(axes: Axes, which: Which, low: float, high: float, subs: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low, high)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    axis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis=which, which="both", colors=INK, labelsize=SMALL)


def padded(values: Array, share: float = 0.06) -> tuple[float, float]:
    """The range of the positive values, a little wider in logs, and never empty.

    Example:
        >>> low, high = padded(np.array([1.0, 100.0]), 0.5)
        >>> round(low, 6), round(high, 6)
        (0.1, 1000.0)
    """
    good = values[np.isfinite(values) & (values > 0)]
    if not len(good):
        return 1.0, 10.0
    low, high = float(good.min()), float(good.max())
    factor = (high / low) ** share if high > 1.001 * low else 1.5
    return low / factor, high * factor


def chosen(values: Array, limit: int = LABELS) -> Array:
    """The distinct values if few, else ``limit`` of them at about equal ratios, both ends among them.

    Example:
        >>> chosen(np.arange(1.0, 101.0), 3).tolist()
        [1.0, 10.0, 100.0]
    """
    known = np.unique(values)
    if len(known) <= limit:
        return known
    logs = np.log(known)
    wanted = np.linspace(logs[0], logs[-1], limit)
    return np.asarray(known[np.unique([int(np.argmin(np.abs(logs - w))) for w in wanted])])


def shades(values: Array, log: bool = True) -> tuple[Colormap, Normalize]:
    """Colours over the values, dark to light, that differ in brightness as well as in hue."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize

    part = ListedColormap(colormaps["viridis"](np.linspace(0.0, 0.82, 256)))
    low, high = float(np.min(values)), float(np.max(values))
    if not high > low:
        low, high = (0.5 * low, 2.0 * high) if log else (low - 1.0, high + 1.0)
    return part, LogNorm(low, high) if log else Normalize(low, high)


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as needed to stand ``gap`` apart, in their order.

    Example:
        >>> apart([0.5, 0.5], 0.2)
        [0.4, 0.6]
        >>> apart([0.1, 0.9], 0.2)
        [0.1, 0.9]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    groups: list[list[float]] = []  # each: sum of the wanted starts, members
    for place, i in enumerate(order):
        groups.append([heights[i] - place * gap, 1.0])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + members]
    starts = [total / members for total, members in groups for _ in range(int(members))]
    out = [0.0] * len(heights)
    for place, i in enumerate(order):
        out[i] = round(starts[place] + place * gap, 12)
    return out


def name_ends(axes: Axes, heights: Sequence[float], names: Sequence[str], colours: Sequence[Any]) -> None:
    """Names at the right of curves that end at these heights, none over another; scales must be set."""
    if not names:
        return
    known = np.array([(1.0, height) for height in heights])
    inside = axes.transData + axes.transAxes.inverted()
    wanted = inside.transform(known)[:, 1]
    box = axes.get_window_extent()
    gap = 1.3 * SMALL * axes.get_figure(root=True).dpi / 72.0 / max(box.height, 1.0)  # type: ignore[union-attr]
    shown = apart(np.clip(wanted, 0.0, 1.0).tolist(), gap)
    for height, name, colour in zip(shown, names, colours, strict=True):
        axes.annotate(
            name, (1.0, height), xytext=(4, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", color=colour, fontsize=SMALL, annotation_clip=False,
        )  # fmt: skip


def legend(axes: Axes, place: Literal["upper left", "upper center", "upper right", "lower right"]) -> None:
    """A legend of what has a name, if anything has."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc=place, fontsize=SMALL, labelcolor=INK, framealpha=0.85, edgecolor="none", borderpad=0.3,
            handlelength=1.6, labelspacing=0.35,
        )  # fmt: skip


def equal_flops(axes: Axes) -> None:
    """Lines of equal training FLOPs, :math:`6ND`, over log axes of size and tokens whose limits are set."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    low, high = math.log10(6 * left * bottom), math.log10(6 * right * top)
    step = max(1, math.ceil((high - low) / 7))
    for exponent in range(math.ceil(low), math.ceil(high), step):
        flops = 10.0**exponent
        ends = np.array([left, right])
        axes.plot(ends, flops / (6 * ends), color=GREY, lw=0.7, alpha=0.7, zorder=0)
        x, y = max(left, flops / (6 * top)), min(top, flops / (6 * left))
        if x < left * (right / left) ** 0.93 and y > bottom * (top / bottom) ** 0.06:
            axes.annotate(
                f"1e{exponent}", (x, y), xytext=(4, 2), textcoords="offset points", va="bottom",
                color=QUIET, fontsize=7.5, annotation_clip=False,
            )  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
