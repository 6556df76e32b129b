"""Takes a ledger, gives the section of the page on what was predicted before it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.report.blocks import Part, Section, picture, table
from isoloss.report.canvas import ACCENT, BLUE, GREY, counts, dress, legend, losses
from isoloss.report.words import interval, number
from isoloss.study.early import LAW as EARLY
from isoloss.study.join import Fate
from isoloss.study.ledger import Ledger

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def ledger_section(ledger: Ledger) -> Section:
    """Every prediction that was written down before its run, and what came."""
    pairs = [
        (p, fate)
        for p, fate in zip(ledger.predictions, ledger.fates, strict=True)
        if fate.status == "scored" and p["law"] != EARLY
    ]
    title = "Predicted before the run, then measured"
    if not pairs:
        return Section("ledger", title, ("Nothing that was predicted has been measured yet.",))
    said = []
    for law in dict.fromkeys(p["law"] for p, _ in pairs):
        own = [_held(p, fate) for p, fate in pairs if p["law"] == law]
        said.append(
            f"{law}: {sum(own)} of {len(own)} runs came out inside the interval written down for them."
        )
    said.append(
        "Each line was in the store before its run began; distance is training compute over that of the dearest run that the fit had seen."
    )
    rows = []
    for p, fate in pairs:
        middle, value = _median(p), float(fate.value or 0.0)
        far = "—" if p["distance"] is None else f"{p['distance']:.3g}×"
        rows.append(
            (
                p["key"].partition("@")[0] or str(p["id"]), p["law"], far, number(middle, 5), interval(p["low"], p["high"], 5),
                number(value, 5), f"{100 * (value / middle - 1):+.2f}%", "yes" if _held(p, fate) else "no",
            )
        )  # fmt: skip
    percent = f"{100 * pairs[0][0]['coverage']:g}% interval"
    heads = ("run", "law", "distance", "predicted", percent, "measured", "off by", "inside")
    shown = picture(
        lambda figure: draw_ledger(figure.subplots(), pairs), "ledger",
        "Measured over predicted along the distance from the runs that were known.",
        "How far off each prediction was; bars are the intervals written down.",
    )  # fmt: skip
    parts: tuple[Part, ...] = (
        shown,
        table("Predictions in the order in which they were written down", heads, rows, (2, 3, 5, 6)),
    )
    return Section("ledger", title, tuple(said), parts)


def draw_ledger(axes: Axes, pairs: list[tuple[Mapping[str, Any], Fate]]) -> None:
    """Measured over predicted, less 1, along the distance; bars are the intervals around their median."""
    middle = np.array([_median(p) for p, _ in pairs])
    error = 100 * (np.array([float(f.value or 0.0) for _, f in pairs]) / middle - 1)
    low = 100 * (np.array([p["low"] for p, _ in pairs]) / middle - 1)
    high = 100 * (np.array([p["high"] for p, _ in pairs]) / middle - 1)
    far = np.array([p["reach"] if p["distance"] is None else p["distance"] for p, _ in pairs])
    held = np.array([_held(p, f) for p, f in pairs])
    (counts if far.max() / far.min() > 20 else losses)(axes, "x", far)
    axes.axhline(0.0, color=GREY, lw=1.0, zorder=0)
    for own, colour, name in ((held, BLUE, "inside"), (~held, ACCENT, "outside")):
        if own.any():
            axes.vlines(far[own], low[own], high[own], color=colour, alpha=0.35, lw=2.0, zorder=1)
            axes.plot(
                far[own],
                error[own],
                "o",
                color=colour,
                zorder=3,
                ms=5,
                mec="white",
                label=f"{name} ({int(own.sum())})",
            )
    reach = 3.0 * max(float(np.max(np.abs(error))), 1e-6)
    axes.set_ylim(max(float(low.min()), -reach), 1.15 * min(float(high.max()), reach))
    legend(axes, "upper right")
    dress(axes, "compute / dearest run in the fit", "measured over predicted (%)", "")


def _median(p: Mapping[str, Any]) -> float:
    return float(p["quantiles"][len(p["quantiles"]) // 2])


def _held(p: Mapping[str, Any], fate: Fate) -> bool:
    return fate.value is not None and bool(p["low"] <= fate.value <= p["high"])
