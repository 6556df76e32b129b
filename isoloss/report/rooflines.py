"""Takes a machine's roofline and what a pass moves, gives the picture of operators under their ceilings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.measure.roofline import Ceiling, Roofline
from isoloss.report.canvas import ACCENT, BLUE, GREY, INK, SMALL, counts, dress, name_ends

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from isoloss.measure.traffic import Traffic

Array = np.ndarray[Any, np.dtype[Any]]

NAMED = 6  # operators with a name in the picture
SHORT = {"_scaled_dot_product_flash_attention_for_cpu": "attention", "addmm": "addmm (linear)"}
SHORT_TYPES = {"float32": "fp32", "bfloat16": "bf16"}
LEAST = 0.05  # FLOP/byte at the left end


def draw_roofline(axes: Axes, roof: Roofline, moved: Traffic | None = None) -> None:
    """FLOP/s over intensity: every measured ceiling as a line, every operator that computes as a dot.

    Args:
        axes: to draw into.
        roof: of the machine.
        moved: of a timed pass; its ceiling is the one that is set out. A dot's area is its share of the time.
    """
    points = [
        (one.intensity, one.flops / one.seconds, one.seconds, SHORT.get(one.name, one.name))
        for one in (moved.operators if moved is not None else ())
        if one.flops and one.seconds > 0
    ]
    ridges = [ceiling.ridge for ceiling in roof.ceilings]
    across = np.array([min([LEAST, *(p[0] for p in points)]), 8 * max([*ridges, *(p[0] for p in points)])])
    peaks = [ceiling.flops for ceiling in roof.ceilings]
    floor = min([c.bandwidth * across[0] for c in roof.ceilings] + [p[1] for p in points])
    counts(axes, "x", across)
    counts(axes, "y", np.array([floor, 1.5 * max(peaks)]))
    own = moved.ceiling if moved is not None else None
    for ceiling in roof.ceilings:
        _line(axes, ceiling, across, ceiling == own)
    whole = sum(p[2] for p in points)
    for rank, (x, y, seconds, name) in enumerate(sorted(points, key=lambda p: -p[2])):
        axes.plot(
            x, y, "o", ms=4 + 10 * (seconds / whole) ** 0.5, color=BLUE, mec="white", alpha=0.85, zorder=3
        )
        if rank < NAMED:
            axes.annotate(
                name, (x, y), xytext=(7, -3), textcoords="offset points", color=INK, fontsize=SMALL,
                annotation_clip=False,
            )  # fmt: skip
    axes.set_xlim(across[0], across[1])
    colours = [ACCENT if ceiling == own else INK for ceiling in roof.ceilings]
    name_ends(axes, peaks, [_named(ceiling) for ceiling in roof.ceilings], colours)
    dress(
        axes, "intensity (FLOP per byte moved)", "FLOP/s", f"Roofline of {roof.machine}",
        f"measured {roof.day}; dot: an operator, area: its share of the time" if points else f"measured {roof.day}",
    )  # fmt: skip


def _line(axes: Axes, ceiling: Ceiling, across: Array, own: bool) -> None:
    x = np.array([across[0], ceiling.ridge, across[1]])
    y = np.minimum(x * ceiling.bandwidth, ceiling.flops)
    axes.plot(x, y, color=ACCENT if own else GREY, lw=2.0 if own else 1.0, zorder=2 if own else 1)


def _named(ceiling: Ceiling) -> str:
    threads = f"{ceiling.threads} thread{'' if ceiling.threads == 1 else 's'}"
    return f"{SHORT_TYPES.get(ceiling.dtype, ceiling.dtype)}, {threads}"
