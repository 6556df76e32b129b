"""Takes how fast models generate, gives the picture of them below what the machine's memory allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.report.canvas import ACCENT, AMBER, BLUE, GREY, INK, SMALL, counts, dress, name_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoloss.deploy.bench import Speed

Array = np.ndarray[Any, np.dtype[Any]]
COLOURS = (BLUE, ACCENT, AMBER, INK)


def draw_speeds(axes: Axes, speeds: Sequence[Speed]) -> None:
    """Tokens a second over the bytes that a token reads: a line for each number of threads, where bandwidth is all; a
    dot for each model, with its interval.

    Args:
        axes: to draw into.
        speeds: as timed.
    """
    swept = sorted({one.threads for one in speeds})
    colour = {threads: COLOURS[i % len(COLOURS)] for i, threads in enumerate(swept)}
    sizes = [one.bytes / 1e6 for one in speeds]
    across = np.array([min(sizes) / 1.6, max(sizes) * 1.6])
    rates = [1 / end for one in speeds for end in (one.token.low, one.token.high)]
    rates += [one.bandwidth / 1e6 / x for one in speeds for x in across if not math.isnan(one.bandwidth)]
    counts(axes, "x", across)
    counts(axes, "y", np.array([min(rates), max(rates)]))
    ends, names, colours = [], [], []
    for threads in swept:
        bandwidth = next((one.bandwidth for one in speeds if one.threads == threads), math.nan)
        if math.isnan(bandwidth):
            continue
        axes.plot(across, bandwidth / 1e6 / across, color=colour[threads], lw=1.2, zorder=1)
        ends.append(bandwidth / 1e6 / across[1])
        names.append(f"{bandwidth / 1e9:.3g} GB/s, {threads} thread{'' if threads == 1 else 's'}")
        colours.append(colour[threads])
    for one in speeds:
        x, y = one.bytes / 1e6, one.tokens_per_second
        axes.plot([x, x], [1 / one.token.high, 1 / one.token.low], color=colour[one.threads], lw=1.5)
        axes.plot(x, y, "o", ms=6, color=colour[one.threads], mec="white", zorder=3)
    for name in dict.fromkeys(one.model for one in speeds):
        own = max((one for one in speeds if one.model == name), key=lambda one: one.tokens_per_second)
        axes.annotate(
            name, (own.bytes / 1e6, own.tokens_per_second), xytext=(0, 8), textcoords="offset points",
            ha="center", color=INK, fontsize=SMALL, annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(across[0], across[1])
    if ends:
        name_ends(axes, ends, names, colours)
    axes.grid(True, which="major", color=GREY, alpha=0.2, lw=0.6)
    busy = max((load for one in speeds for load in one.load if not math.isnan(load)), default=math.nan)
    said = "" if math.isnan(busy) else f"; load of the machine {busy:.2g}"
    dress(
        axes, "weights read for a token (MB)", "tokens per second", "Generating, below what memory allows",
        f"lines: reading the weights alone, at the measured bandwidth{said}",
    )  # fmt: skip
