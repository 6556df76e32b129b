"""Takes runs, gives pictures of where they lie and of their curves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoloss.report.canvas import (
    ACCENT,
    GREY,
    INK,
    SMALL,
    chosen,
    counts,
    dress,
    equal_flops,
    losses,
    name_ends,
    named,
    shades,
)
from isoloss.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, np.dtype[Any]]

SIZES = ("params", "params_nonembedding", "params_active")
AMOUNTS = (*SIZES, "tokens", "tokens_unique", "flops")
TIMES = ("step", "tokens", "fraction_of_run")
COLOURED = 12  # runs with a name on the curves' picture before colour stands for size
FENCE = 3.0  # losses this many quartile ranges above the upper quartile share a colour


def draw_runs(axes: Axes, runs: Runs) -> None:
    """The design, the one axis that varies, or the curves, whichever the table is."""
    if not len(runs):
        raise ValueError(f"{runs.source} has no rows to draw. Do: plot a table with runs")
    target = _target(runs)
    time = _time(runs)
    if time is not None:
        _curves(axes, runs, target, time)
        return
    full = runs.derive()
    varied = [axis for axis in AMOUNTS if axis in full and _varies(full, axis)]
    size = next((axis for axis in varied if axis in SIZES), None)
    if size and "tokens" in varied:
        _design(axes, full, target, size)
    else:
        _one_axis(axes, full, target, varied[0] if varied else _any_axis(full, target))


def _target(runs: Runs) -> str:
    found = [name for name in ("loss", "error") if name in runs]
    found += [name for name in runs.columns if name.startswith("loss_") and name != "loss_sd"]
    if not found:
        raise ValueError(
            f"{runs.source}: a picture needed a loss, got columns {list(runs.columns)}. Do: "
            "isoloss.read(..., columns='loss=COLUMN')"
        )
    return found[0] if not ("error" in found and found[0] == "loss" and _only_link(runs)) else "error"


def _only_link(runs: Runs) -> bool:
    """Whether the table is one of losses and errors, without a size or an amount of data."""
    return not any(axis in runs for axis in AMOUNTS)


def _time(runs: Runs) -> str | None:
    """The column along which runs with several rows each are curves."""
    if "run" not in runs or len(np.unique(runs["run"])) == len(runs):
        return None
    for name in TIMES:
        if name in runs:
            rows = list(zip(runs["run"].tolist(), runs[name].tolist(), strict=True))
            if len(set(rows)) > len(set(runs["run"].tolist())):
                return name
    return None


def _varies(runs: Runs, axis: str) -> bool:
    if runs[axis].dtype.kind != "f":
        return False
    values = runs[axis]
    return len(np.unique(values[np.isfinite(values) & (values > 0)])) > 1


def _any_axis(runs: Runs, target: str) -> str:
    rest = [name for name in runs.columns if not (name.startswith("loss") and target != "error")]
    found = [name for name in rest if name not in (target, "seed", "weight") and _varies(runs, name)]
    if not found:
        raise ValueError(
            f"{runs.source}: a picture needed a quantity that varies beside {target}, got columns "
            f"{list(runs.columns)}. Do: isoloss.read(..., columns='params=COLUMN,tokens=COLUMN')"
        )
    return found[0]


def _design(axes: Axes, runs: Runs, target: str, size: str) -> None:
    """Size and tokens of every run, coloured by loss; a run without a finite loss is a cross."""
    n, d, loss = runs.numeric(size, "tokens", target)
    placed = np.isfinite(n) & np.isfinite(d) & (n > 0) & (d > 0)
    good = placed & np.isfinite(loss)
    counts(axes, "x", n[placed], 0.1)
    counts(axes, "y", d[placed], 0.1)
    equal_flops(axes)
    if good.any():
        _coloured(axes, n[good], d[good], loss[good], named(target, runs.units.get(target, "")))
    lost = placed & ~good
    if lost.any():
        axes.plot(n[lost], d[lost], "x", color=ACCENT, ms=6)
    absent = int((~placed).sum())
    note = "lines: equal training FLOPs, 6ND"
    note += f"; ×: no finite {target} ({lost.sum()})" if lost.any() else ""
    note += f"; not drawn for lack of size or tokens: {absent}" if absent else ""
    dress(axes, named(size), named("tokens"), _headline(runs), note, lift=9.0)


def _coloured(axes: Axes, x: Array, y: Array, loss: Array, name: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours, _ = shades(loss, log=False)
    low, high = np.quantile(loss, [0.25, 0.75])
    # a diverged run must not take all colours for itself
    usual = loss[loss <= high + FENCE * (high - low)]
    beyond = len(usual) < len(loss)
    norm = Normalize(float(usual.min()), max(float(usual.max()), float(usual.min()) + 1e-9))
    order = np.argsort(-loss)
    axes.scatter(
        x[order], y[order], c=loss[order], cmap=colours, norm=norm, s=30, edgecolors="white", linewidths=0.5,
        zorder=3,
    )  # fmt: skip
    bar = axes.get_figure(root=True).colorbar(  # type: ignore[union-attr]
        ScalarMappable(norm, colours), ax=axes, pad=0.02, aspect=28, extend="max" if beyond else "neither"
    )
    bar.set_label(name, color=INK, fontsize=SMALL)
    bar.ax.tick_params(colors=INK, labelsize=SMALL)
    bar.outline.set_visible(False)


def _one_axis(axes: Axes, runs: Runs, target: str, axis: str) -> None:
    x, y = runs.numeric(axis, target)
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    (counts if axis in AMOUNTS else losses)(axes, "x", x[good])
    losses(axes, "y", y[good])
    axes.plot(x[good], y[good], "o", ms=5, color=INK, mec="white", mew=0.6)
    absent = int((~good).sum())
    note = f"not drawn for lack of {axis} or a finite {target}: {absent}" if absent else ""
    units = runs.units
    dress(axes, named(axis, units.get(axis, "")), named(target, units.get(target, "")), _headline(runs), note)


def _curves(axes: Axes, runs: Runs, target: str, time: str) -> None:
    """One line a run; colour stands for size where that differs, else for the run."""
    x, y = runs.numeric(time, target)
    good = np.isfinite(x) & np.isfinite(y) & (x > 0)
    names = runs["run"][good]
    lines = {name: _averaged(x[good][names == name], y[good][names == name]) for name in np.unique(names)}
    wide = len(x[good]) and x[good].max() > 20 * x[good].min()
    (counts if wide else losses)(axes, "x", x[good])
    losses(axes, "y", y[good])
    colours, labels = _curve_colours(runs, list(lines))
    for name, (steps, loss) in lines.items():
        axes.plot(steps, loss, "-" if len(steps) > 1 else ".", color=colours[name], lw=1.3, alpha=0.9)
    units = runs.units
    dress(axes, named(time), named(target, units.get(target, "")), f"{len(lines)} training curves")
    name_ends(
        axes,
        [float(lines[run][1][-1]) for run in labels],
        list(labels.values()),
        [colours[r] for r in labels],
    )


def _averaged(x: Array, y: Array) -> tuple[Array, Array]:
    """One value a step, in order: rows of one step (several validation sets, say) are averaged."""
    steps, place = np.unique(x, return_inverse=True)
    return steps, np.bincount(place, weights=y) / np.bincount(place)


def _curve_colours(runs: Runs, names: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Colour of every run, and the names written at the ends of some."""
    from isoloss.runs.units import format_count

    size = next((axis for axis in SIZES if axis in runs and _varies(runs, axis)), None)
    if size is not None:
        of = {name: float(runs[size][runs["run"] == name][0]) for name in names}
        picked = chosen(np.array(list(of.values())))
        cmap, norm = shades(picked)
        colours = {name: cmap(norm(value)) for name, value in of.items()}
        first = {value: name for name, value in reversed(of.items())}
        return colours, {first[value]: format_count(value) for value in picked.tolist()}
    if len(names) > COLOURED:
        return dict.fromkeys(names, GREY), {}
    cmap, norm = shades(np.arange(len(names)), log=False)
    return {name: cmap(norm(i)) for i, name in enumerate(names)}, {name: _short(name) for name in names}


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _headline(runs: Runs) -> str:
    removed = f", {len(runs.removed)} removed" if runs.removed else ""
    place = runs.source.rpartition("/")[2].rpartition("\\")[2]
    return f"{len(runs)} runs{'' if place == 'memory' else f' of {place}'}{removed}"
