"""Takes what variants of a model are worth, gives their frontier: rise of the loss over stored bytes."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from isoloss.report.canvas import ACCENT, AMBER, BLUE, GREY, INK, SMALL, counts, dress, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoloss.planning.worth_result import Rated

COLOURS = {"frontier": BLUE, "not resolved": AMBER, "dominated": GREY}
MARKS = {"frontier": "o", "not resolved": "D", "dominated": "x"}
BANDS = (ACCENT, "#3a7d44")
LEAST = 1e-4  # of the largest rise: the scale is not linear further up than that


def draw_frontier(axes: Axes, model: Rated, coverage: float) -> None:
    """Every variant with its error, the hull, the original, and what a smaller model of the same bytes would lose.

    The scale is linear around 0, as far as the errors usually reach, and logarithmic beyond.
    """
    z = NormalDist().inv_cdf((1 + coverage) / 2)
    rows = [row for row in model.rows if row.variant != "original"]
    errors = {id(row): z * row.rise_se if math.isfinite(row.rise_se) else 0.0 for row in rows}
    axes.axhline(0.0, color=GREY, lw=0.8, zorder=0)
    for (bits, points), colour in zip(model.curve, BANDS, strict=False):
        sizes = [size for size, _ in points]
        low, value, high = (
            np.array([getattr(q, end) for _, q in points]) for end in ("low", "value", "high")
        )
        if np.isfinite(low).all():
            axes.fill_between(sizes, low, high, color=colour, alpha=0.2, lw=0, zorder=0)
        axes.plot(
            sizes, value, color=colour, lw=1.5, zorder=1, label=f"smaller model in {bits:g} bits, by the law"
        )
    hull = [row for row in model.rows if row.hull]
    axes.plot(
        [row.bytes for row in hull], [row.rise for row in hull], color=BLUE, lw=1.1, alpha=0.5, zorder=2
    )
    for place, colour in COLOURS.items():
        own = [row for row in rows if row.place == place]
        if own:
            axes.errorbar(
                [row.bytes for row in own], [row.rise for row in own], yerr=[errors[id(row)] for row in own],
                fmt=MARKS[place], ms=4.5, color=colour, ecolor=colour, elinewidth=0.9, zorder=3, label=place,
            )  # fmt: skip
    if model.original_bytes is not None:
        axes.plot([model.original_bytes], [0.0], "*", ms=12, color=INK, zorder=4, label="original")
    counts(axes, "x", np.array([row.bytes for row in model.rows]), 0.08)
    _scale(axes, model, errors)
    for row in hull:
        if row.variant != "original":
            axes.annotate(
                row.variant, (row.bytes, row.rise), xytext=(6, 5), textcoords="offset points", color=BLUE,
                fontsize=SMALL - 1, zorder=5,
            )  # fmt: skip
    legend(axes, "upper right")
    dress(
        axes, "stored bytes of all tensors", "rise of the loss", model.model or "variants",
        f"bars and bands: {100 * coverage:g}%; linear around 0, logarithmic beyond",
    )  # fmt: skip


def _scale(axes: Axes, model: Rated, errors: dict[int, float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ends = [(row.rise - errors.get(id(row), 0.0), row.rise + errors.get(id(row), 0.0)) for row in model.rows]
    top = max(high for _, high in ends) or 1.0
    known = sorted(error for error in errors.values() if error > 0)
    linear = max(known[len(known) // 2] if known else 0.1 * top, LEAST * top)
    axes.set_yscale("symlog", linthresh=linear, linscale=0.8)
    axes.set_ylim(1.5 * min(min(low for low, _ in ends), -0.5 * linear), 2.0 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
