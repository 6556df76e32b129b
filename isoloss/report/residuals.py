"""Takes a fit, gives pictures of what the law leaves: residuals along a quantity, and their quantiles."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.report.canvas import ACCENT, BLUE, GREY, INK, QUIET, SMALL, counts, dress, legend, losses, named
from isoloss.report.fits import LARGE, LINEAR, large_residuals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

NUMBERED = 8  # ringed residuals with their row number beside them
CROWD = 300  # dots, above which they are small
THIRDS = 3
SAMPLES = 400  # of normal noise, for the band of the quantile picture
FITTED = "fitted"


def robust_scale(fit: Fit) -> float:
    """Robust standard deviation of the residuals: 1.4826 times the median distance from the median."""
    return 1.4826 * float(np.median(np.abs(fit.residuals - np.median(fit.residuals))))


def shown_residuals(fit: Fit) -> Array:
    """Residuals as pictures and tables show them: in per cent where they are of logs."""
    return np.asarray(100 * fit.residuals if fit.objective.residual == "log" else fit.residuals)


def residual_name(fit: Fit) -> str:
    """What the residuals are, with their unit."""
    if fit.objective.residual == "log":
        return "residual (%)"
    unit = fit.units.get(fit.law.target, "")
    return f"residual ({unit})" if "/" in unit else "residual"


def draw_residuals(axes: Axes, fit: Fit, along: str = FITTED) -> None:
    """Residuals, measured minus fitted, along the fitted value or one axis of the law.

    The line is the median of each third of the runs with a bar of two standard errors: a law of the right
    shape keeps the bars over zero. Residuals beyond ``LARGE`` robust standard deviations are ringed and
    carry their row number.

    Args:
        axes: to draw into.
        fit: the fit.
        along: ``"fitted"``, or an axis of the law.
    """
    x = _along(fit, along)
    r = shown_residuals(fit)
    (losses if _plain(fit, along) else counts)(axes, "x", x)
    axes.axhline(0.0, color=GREY, lw=1.0, zorder=0)
    axes.plot(x, r, "o", color=BLUE, zorder=2, **marks(len(r)))
    parts = thirds(fit, along)
    if parts:
        centre, middle, error = np.array(parts).T
        axes.errorbar(
            centre, middle, 2 * error, color=INK, lw=1.3, marker="s", ms=4, capsize=2, zorder=3,
            label="median of a third, ± 2 s.e.",
        )  # fmt: skip
    _ring(axes, fit, x, r)
    _room(axes, r)
    legend(axes, "upper right")
    name = f"fitted {named(fit.law.target)}" if along == FITTED else named(along)
    dress(axes, name, residual_name(fit), "")


def _plain(fit: Fit, along: str) -> bool:
    """Whether the quantity has no log scale: losses, and axes that may be 0."""
    return along in (FITTED, *LINEAR, *fit.law.may_be_zero)


def thirds(fit: Fit, along: str = FITTED) -> list[tuple[float, float, float]]:
    """Mean place, median residual and its standard error in each third of the runs along a quantity.

    Runs of one value stay in one third. The standard error of a median is 1.25 robust standard deviations
    over the root of the count. Empty for fewer than 9 runs, or where the quantity has fewer than 3 values.
    """
    x, r = _along(fit, along), shown_residuals(fit)
    known = np.unique(x)
    if len(x) < 3 * THIRDS or len(known) < THIRDS:
        return []
    cuts = np.unique(np.quantile(x, [1 / THIRDS, 2 / THIRDS], method="inverted_cdf"))
    place = np.searchsorted(cuts, x, side="left")
    scale = robust_scale(fit) * (100 if fit.objective.residual == "log" else 1)
    out = []
    for part in np.unique(place):
        own = place == part
        centre = np.mean(x[own]) if _plain(fit, along) else np.exp(np.mean(np.log(x[own])))
        out.append((float(centre), float(np.median(r[own])), 1.2533 * scale / float(np.sqrt(own.sum()))))
    return out if len(out) == THIRDS else []


def draw_quantiles(axes: Axes, fit: Fit) -> None:
    """Ordered residuals against normal quantiles, with the line of a normal of their median and spread.

    The spread is robust, so that a few outliers stand out instead of bending the line. The band holds 90 %
    of samples of normal noise of the same size, treated alike, point by point.
    """
    r = np.sort(shown_residuals(fit))
    n = len(r)
    normal = NormalDist()
    q = np.array([normal.inv_cdf((i + 0.5) / n) for i in range(n)])
    middle, scale = float(np.median(r)), robust_scale(fit) * (100 if fit.objective.residual == "log" else 1)
    low, high = np.quantile(_normal_samples(n), [0.05, 0.95], axis=0)
    axes.fill_between(q, middle + scale * low, middle + scale * high, color=GREY, alpha=0.25, lw=0, zorder=0,
                      label="90% of normal samples")  # fmt: skip
    axes.plot(q, middle + scale * q, color=GREY, lw=1.2, zorder=1)
    axes.plot(q, r, "o", color=BLUE, zorder=2, **marks(len(r)))
    order = np.argsort(fit.residuals, kind="stable")
    large = large_residuals(fit)[order]
    axes.plot(q[large], r[large], "o", ms=9, mfc="none", mec=ACCENT, mew=1.2, zorder=3)
    _room(axes, r)
    legend(axes, "upper left")
    dress(axes, "normal quantile (s.d.)", residual_name(fit), "")


@dataclass(frozen=True)
class Normality:
    """How the residuals compare with normal noise.

    Attributes:
        outside: ordered residuals outside the band of :func:`draw_quantiles`.
        farthest: distance of the farthest residual from their median, in robust standard deviations.
        share: of samples of normal noise of the same size that leave the band as often, or that reach as
            far, whichever is the rarer, times two for having looked at both. Points of one sample move
            together, so a tenth outside the band is only the average.
    """

    outside: int
    farthest: float
    share: float


def normality(fit: Fit) -> Normality:
    """The residuals against samples of normal noise; a small share means that the scatter is not normal."""
    r, scale = np.sort(fit.residuals), robust_scale(fit)
    samples = _normal_samples(len(r))
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    own = np.sum((samples < low) | (samples > high), axis=1)
    z = (r - np.median(r)) / max(scale, 1e-300)
    outside = int(np.sum((z < low) | (z > high)))
    farthest = float(np.max(np.abs(z)))
    often = float(np.mean(own >= outside))
    far = float(np.mean(np.max(np.abs(samples), axis=1) >= farthest))
    return Normality(outside, farthest, min(1.0, 2.0 * min(often, far)))


def _normal_samples(n: int) -> Array:
    """Ordered samples of standard normal noise (S, n), each scaled by its own median and spread."""
    samples = max(200, min(SAMPLES, 400_000 // n))
    drawn = np.sort(np.random.default_rng(0).normal(size=(samples, n)), axis=1)
    drawn -= np.median(drawn, axis=1, keepdims=True)
    drawn /= 1.4826 * np.median(np.abs(drawn), axis=1, keepdims=True) + 1e-300
    return drawn


def _along(fit: Fit, along: str) -> Array:
    if along == FITTED:
        return np.asarray(fit.law.evaluate(fit.theta, **fit.x))
    return np.asarray(fit.x[along])


def _ring(axes: Axes, fit: Fit, x: Array, r: Array) -> None:
    large = np.flatnonzero(large_residuals(fit))
    if not len(large):
        return
    axes.plot(x[large], r[large], "o", ms=9, mfc="none", mec=ACCENT, mew=1.2, zorder=4,
              label=f"beyond {LARGE:g} robust s.d.")  # fmt: skip
    for i in large[np.argsort(-np.abs(r[large]))][:NUMBERED]:
        axes.annotate(
            str(int(fit.rows[i])), (x[i], r[i]), xytext=(6, 3), textcoords="offset points", color=QUIET,
            fontsize=SMALL - 1, annotation_clip=False,
        )  # fmt: skip


def marks(count: int) -> dict[str, Any]:
    """Dots with a white rim where they are few, smaller and without where they would be all rim."""
    if count <= CROWD:
        return {"ms": 4, "mec": "white", "mew": 0.4, "alpha": 0.8}
    return {"ms": 2.5, "mec": "none", "alpha": 0.5}


def _room(axes: Axes, r: Array) -> None:
    """Space above for the legend."""
    low, high = min(float(r.min()), 0.0), max(float(r.max()), 0.0)
    span = (high - low) or 1.0
    axes.set_ylim(low - 0.08 * span, high + 0.3 * span)
