"""Takes a fit, its runs and the runs it predicted, gives the picture that `make demo` ends in."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from isoloss import Fit, NoAnswer, Runs
from isoloss.fitting.prediction import Prediction
from isoloss.planning.curves import frontier
from isoloss.report.canvas import ACCENT, INK, counts
from isoloss.runs.units import format_count


def draw(fit: Fit, runs: Runs, ahead: Runs, path: Path) -> None:
    """Two panels: loss against tokens with bands and the runs predicted; isoloss curves with the optimum.

    Args:
        fit: what predicted.
        runs: that it was fitted to.
        ahead: that were predicted, then trained.
        path: of the picture.
    """
    prediction = fit.predict(of="run", params=ahead["params"], tokens=ahead["tokens"])
    style = {
        "font.size": 10, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.4), layout="constrained")
        curves(left, fit, runs, prediction, ahead)
        levels(right, fit, runs, prediction)
        figure.suptitle(
            "isoloss: a law fitted to small runs, and larger runs predicted before they were trained",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.savefig(path, dpi=150)
        plt.close(figure)


def curves(axes: Axes, fit: Fit, runs: Runs, prediction: Prediction, ahead: Runs) -> None:
    """Measured runs by size, the law with its band for one new run, predictions and outcomes."""
    params, tokens, loss = runs["params"], runs["tokens"], runs["loss"]
    ahead_n, ahead_d = prediction.x["params"], prediction.x["tokens"]
    sizes = np.unique(np.append(params, ahead_n))
    colours = dict(zip(sizes, plt.get_cmap("viridis")(np.linspace(0.0, 0.78, len(sizes))), strict=True))
    end = max(float(tokens.max()), float(ahead_d.max())) * 1.15
    labels: list[float] = []
    gap = 0.033 * (float(loss.max()) - float(ahead["loss"].min()))  # between the names of two curves
    for size in sizes:
        mine = params == size
        first = tokens[mine].min() if mine.any() else tokens.min()
        line = np.geomspace(first, end, 80)
        band = fit.predict(params=size, tokens=line, of="run")
        axes.fill_between(line, band.low, band.high, color=colours[size], alpha=0.13, lw=0)
        axes.plot(line, band.median, color=colours[size], lw=1.4, ls="-" if mine.any() else "--")
        axes.plot(tokens[mine], loss[mine], "o", ms=5, color=colours[size], mec="white", mew=0.6)
        height = float(band.median[-1])
        while any(abs(height - other) < gap for other in labels):
            height -= gap / 10  # neighbours make room for each other's names
        labels.append(height)
        axes.annotate(
            format_count(float(size)), (end, height), xytext=(4, 0),
            textcoords="offset points", va="center", color=colours[size], fontsize=9,
        )  # fmt: skip
    for i, outcome in enumerate(ahead["loss"]):
        low, median, high = prediction.low[i], prediction.median[i], prediction.high[i]
        axes.errorbar(
            [ahead_d[i]], [median], yerr=[[median - low], [high - median]], color=ACCENT, capsize=5, lw=2,
            fmt="none", zorder=5,
        )  # fmt: skip
        axes.plot(
            [ahead_d[i]], [outcome], "*", ms=15, color=ACCENT, mec="white", mew=0.8, zorder=6,
            label=f"{format_count(ahead_n[i])}: predicted {low:.3f} to {high:.3f}, measured {outcome:.3f}",
        )  # fmt: skip
    counts(axes, "x", np.append(tokens, 1.3 * end))
    axes.set(xlabel="training tokens (bytes)", ylabel="validation loss (nats/byte)")
    axes.set_title(
        f"Loss by model size, with the {prediction.coverage:.0%} band of one new run", loc="left", fontsize=10
    )
    axes.legend(frameon=False, loc="upper right")


def levels(axes: Axes, fit: Fit, runs: Runs, prediction: Prediction) -> None:
    """Curves of equal loss over size and tokens; the cheapest way to each, with its 90 % band."""
    params, tokens = runs["params"], runs["tokens"]
    ahead_n, ahead_d = prediction.x["params"], prediction.x["tokens"]
    n = np.geomspace(params.min() / 2, ahead_n.max() * 4, 160)
    d = np.geomspace(tokens.min() / 1.5, ahead_d.max() * 20, 160)
    grid_n, grid_d = np.meshgrid(n, d)
    surface = fit.law.evaluate(fit.theta, params=grid_n, tokens=grid_d)
    lines = axes.contour(
        grid_n, grid_d, surface, levels=np.round(np.linspace(surface.min(), 2.1, 12), 2),
        colors="#8d99ae", linewidths=1.0, zorder=1,
    )  # fmt: skip
    axes.clabel(lines, fmt="%.2f", fontsize=9, colors=INK)
    flops = np.geomspace(float(runs["flops"].min()), 6 * n[-1] * d[-1], 25)
    try:
        size = frontier(fit, flops).params
    except NoAnswer:
        axes.plot([], [], color=ACCENT, lw=2, label="cheapest way to a loss: left open by these runs")
    else:
        axes.fill(
            np.concatenate([size.low, size.high[::-1]]),
            np.concatenate([flops / (6 * size.low), (flops / (6 * size.high))[::-1]]),
            color=ACCENT, alpha=0.13, lw=0,
        )  # fmt: skip
        label = "cheapest way to a loss, 90 % band"
        axes.plot(size.value, flops / (6 * size.value), color=ACCENT, lw=2, label=label)
    axes.plot(params, tokens, "o", ms=5, color=INK, mec="white", mew=0.6, label="runs in the fit")
    axes.plot(ahead_n, ahead_d, "*", ms=15, color=ACCENT, mec="white", label="runs predicted, then trained")
    counts(axes, "x", n, share=0)
    counts(axes, "y", d, share=0)
    axes.set(xlabel="parameters", ylabel="training tokens (bytes)")
    axes.set_title("Curves of equal loss", loc="left", fontsize=10)
    axes.legend(loc="upper left", framealpha=0.95, edgecolor="none")
