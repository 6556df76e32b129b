"""Best rate and batch of grids of runs, as Li et al. 2025, Step Law, arXiv:2503.04715 need them, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.bowl import MOST, Bowl, bowl, monomials
from isoloss.observing.measured import Measured
from isoloss.special import student_quantile

Array = np.ndarray[Any, np.dtype[Any]]

WINDOW = 0.02
"""Cells within this share of a grid's least loss are near its optimum: there the loss is a cubic in the logs."""
LEAST = 12
"""A grid keeps at least so many of its best cells, if it has them, where the window holds fewer."""
SPARE = 8  # rows beyond the parameters that a cubic needs: with fewer, a parabola


@dataclass(frozen=True)
class GridOptimum:
    """The best setting of one grid.

    Attributes:
        at: what the runs of the grid share (size, tokens).
        lr: best learning rate; NaN where the grid does not hold it, its interval then one-sided.
        batch: best batch, in the unit given; None where the batch was not varied.
        lr_sd, batch_sd: standard errors of their logs.
        correlation: of the two errors: rates and batches that are both low are hard to tell from both high.
        loss: at the optimum, by the surface; below the least measured loss where that was luck.
        best: the cell of the least measured loss: rate, batch (NaN if not varied), loss.
        used: cells near its least loss; the surface is fitted to them unless the grid has an edge.
        far, missing: cells outside the window; cells without a finite loss. Neither is used.
        edge: where the optimum lies outside the grid, in words; empty where it lies inside.
    """

    at: Mapping[str, float]
    lr: Measured
    batch: Measured | None
    lr_sd: float
    batch_sd: float
    correlation: float
    loss: float
    best: tuple[float, float, float]
    used: int
    far: int
    missing: int
    edge: str


@dataclass(frozen=True, eq=False)
class Optima:
    """The best settings of several grids, and the surface that they share.

    Attributes:
        grids: one each, by their shared values.
        form: ``"cubic"`` or ``"parabola"`` in the logs of rate and batch.
        curvature: second derivatives of ln loss at the optimum, (d, d), in the order rate, batch.
        slope: d ln(best rate) / d ln(batch) at given size and tokens, at the optimum; NaN if one was not varied.
        scatter: standard deviation of ln loss about the surface.
        shared_sd: of ln rate and ln batch, the standard error that all optima have in common, by the noise of the
            shape and by the form; NaN where the batch was not varied. The table hands it to the fit.
        window: share of the least loss within which cells were used.
        kept: of the rows given, those that the surface was fitted to, in order.
    """

    grids: tuple[GridOptimum, ...]
    form: str
    curvature: Array
    slope: float
    scatter: float
    shared_sd: tuple[float, float]
    window: float
    kept: Array

    def __repr__(self) -> str:
        outside = sum(bool(grid.edge) for grid in self.grids)
        return (
            f"Optima({len(self.grids)} grid{'s' * (len(self.grids) > 1)}, {self.form}, {outside} with an optimum "
            f"outside; {len(self.kept)} cells, scatter {100 * self.scatter:.2g} %)"
        )

    def table(self) -> dict[str, list[float]]:
        """Columns that :func:`isoloss.read` takes: a row per grid, for ``step-law`` and its like.

        ``lr_weight`` and ``batch_weight`` are for ``fit(..., weights=)``: 1 for an optimum known as well as the
        median one or better, less for a flat grid. An optimum outside its grid has no value and no weight.
        ``lr_shared_sd`` and ``batch_tokens_shared_sd`` are in every row the same; a fit adds them to its draws.
        """
        names = list(self.grids[0].at)
        out: dict[str, list[float]] = {name: [grid.at[name] for grid in self.grids] for name in names}
        batched = any(grid.batch is not None for grid in self.grids)
        for column, which, sd in (("lr", "lr", "lr_sd"), ("batch_tokens", "batch", "batch_sd")):
            if which == "batch" and not batched:
                continue
            measured = [getattr(grid, which) for grid in self.grids]
            errors = np.array([getattr(grid, sd) for grid in self.grids])
            out[column] = [entry.value for entry in measured]
            out[f"{which}_low"], out[f"{which}_high"] = [e.low for e in measured], [e.high for e in measured]
            out[f"{which}_sd"] = errors.tolist()
            out[f"{which}_weight"] = _weights(errors).tolist()
            out[f"{column}_shared_sd"] = [self.shared_sd[which == "batch"]] * len(self.grids)
        out["loss"] = [grid.loss for grid in self.grids]
        return out


def _weights(errors: Array) -> Array:
    known = np.isfinite(errors)
    if not known.any():
        return np.zeros(len(errors))
    middle = float(np.median(errors[known]))
    shares = np.divide(middle, errors, out=np.ones(len(errors)), where=known & (errors > 0))
    return np.where(known, np.minimum(1.0, shares) ** 2, 0.0)


def grid_optima(
    lr: Any,
    loss: Any,
    batch: Any = None,
    by: Mapping[str, Any] | None = None,
    *,
    window: float = WINDOW,
    least: int = LEAST,
    coverage: float = 0.9,
) -> Optima:
    r"""Best learning rate and batch of every grid, by one surface in logs that all grids share.

    .. math:: \ln L = \ell_g + P(\ln \eta - \ln \eta^*_g,\; \ln B - \ln B^*_g)

    with a level and an optimum of each grid g, and one polynomial P of second and third order for all: a grid alone
    tells its curvature poorly, and the shape hardly changes with scale. The fit is robust (Huber weights), over
    the cells near each optimum; runs that diverged are far, and only counted.

    The interval holds the noise of the cells and how far the optimum moves, beyond that noise, when the window is
    halved. On a flat grid it is wide. An optimum that the surface puts outside the grid is not given; its bound is.

    Args:
        lr: peak learning rate of each run, (n,).
        loss: its final loss, smoothed if it is a training loss; NaN or infinite where it diverged.
        batch: its batch, in tokens if the result is to be one; None where it was not varied.
        by: what makes a grid: ``{"params_nonembedding": ..., "tokens": ...}``, each (n,). None: one grid.
        window: share of the least loss of a grid within which its cells are used.
        least: but never fewer of its best cells, if it has them.
        coverage: of the intervals.

    Raises:
        ValueError: lengths that differ, rates or batches that are not above 0, losses at or below 0.
        NoAnswer: too few cells, a rate that was not varied, or no minimum in the cells.

    Example:
        >>> u = np.log([0.25, 0.5, 1, 2, 4])
        >>> found = grid_optima(1e-3 * np.exp(u), 2 * np.exp(0.01 * (u - 0.3) ** 2))
        >>> round(found.grids[0].lr.value, 6), found.form
        (0.00135, 'parabola')
    """
    names, keys, logs, y = _inputs(lr, loss, batch, by)
    if not (0 < window < 1 and least >= 3 and 0 < coverage < 1):
        raise ValueError(
            f"needed 0 < window < 1, least at or above 3 and 0 < coverage < 1, got {window}, {least}, {coverage}"
        )
    labels, codes = np.unique(keys, axis=0, return_inverse=True)
    codes = codes.ravel()
    # One order of rows for any order of the table: rounding then is the same too.
    order = np.lexsort([y, *logs.T[::-1], codes])
    logs, y, codes = logs[order], y[order], codes[order]
    varied = np.array([np.ptp(logs[codes == g], axis=0) > 0 for g in range(len(labels))])
    used_axes = np.flatnonzero(varied.any(axis=0))
    if 0 not in used_axes:
        raise NoAnswer(
            f"the learning rate was not varied within any of {len(labels)} grids"
            + (f" by {', '.join(names)}" if names else ""),
            "several rates per grid; rows of one grid agree in every digit of what they share",
        )
    z = logs[:, used_axes]
    _enough(z, y, codes, labels, names)
    near = _near(y, codes, window, least)
    found, edges = _shared(z, y, codes, near)
    inside = np.array([g not in edges for g in range(len(labels))])
    half = _near(y, codes, window / 2, min(least, LEAST)) & inside[codes]
    moved, shared = _moves(found, z, y, codes, half)
    whole = _Spread(found, moved, np.cumsum(inside) - 1, edges)
    grids = tuple(
        _grid(whole, g, dict(zip(names, label, strict=True)), z, y, codes, near, logs, coverage)
        for g, label in enumerate(labels.tolist())
    )
    two = len(used_axes) == 2
    slope = -found.curvature[0, 1] / found.curvature[0, 0] if two else math.nan
    return Optima(
        grids,
        found.form,
        found.curvature,
        float(slope),
        found.scatter,
        (shared[0], shared[-1] if two else math.nan),
        window,
        np.sort(order[near & inside[codes]]),
    )


def _inputs(
    lr: Any, loss: Any, batch: Any, by: Mapping[str, Any] | None
) -> tuple[tuple[str, ...], Array, Array, Array]:
    """Names and values of the groups (n, k), logs of rate and batch (n, 2 or 1), ln loss with NaN where there is none."""
    axes = {"lr": lr} if batch is None else {"lr": lr, "batch": batch}
    columns = {name: np.asarray(values, dtype=float).ravel() for name, values in axes.items()}
    groups = {name: np.asarray(values, dtype=float).ravel() for name, values in (by or {}).items()}
    y = np.asarray(loss, dtype=float).ravel()
    for name, values in {**columns, **groups}.items():
        if len(values) != len(y) or not len(y):
            raise ValueError(f"needed {name} of every loss, got {len(values)} for {len(y)} losses")
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            raise ValueError(
                f"needed {name} finite and above 0, got {bad[0]:g} ({len(bad)} such rows). Leave those rows out"
            )
    finite = np.isfinite(y)
    if (y[finite] <= 0).any():
        raise ValueError(f"needed losses above 0, got {y[finite].min():g}. Leave that row out")
    keys = np.column_stack(list(groups.values())) if groups else np.zeros((len(y), 0))
    logs = np.log(np.column_stack(list(columns.values())))
    return tuple(groups), keys, logs, np.log(np.where(finite, y, np.nan))


def _enough(z: Array, y: Array, codes: Array, labels: Array, names: Sequence[str]) -> None:
    for g, label in enumerate(labels):
        cells = z[(codes == g) & np.isfinite(y)]
        if not len(cells) or min(len(np.unique(np.round(axis, 9))) for axis in cells.T) < 3:
            where = ", ".join(f"{name} {value:g}" for name, value in zip(names, label, strict=True))
            raise NoAnswer(
                f"the grid{' of ' + where if where else ''} has fewer than three values of what was varied with a "
                "finite loss",
                "three rates and, where the batch is varied, three batches in every grid, or leave that grid out",
            )


def _near(y: Array, codes: Array, window: float, least: int) -> Array:
    """Rows within the window of their grid's least loss, and at least its ``least`` best ones; not those above MOST."""
    keep = np.zeros(len(y), dtype=bool)
    for g in np.unique(codes):
        rows = np.flatnonzero((codes == g) & np.isfinite(y))
        excess = y[rows] - y[rows].min()
        edge = max(math.log1p(window), min(np.sort(excess)[min(least, len(rows)) - 1], MOST))
        keep[rows[excess <= edge]] = True
    return keep


def _moves(found: Bowl, z: Array, y: Array, codes: Array, half: Array) -> tuple[Array, list[float]]:
    """How far each optimum moves at half the window beyond what noise explains, (m, d), and the shared errors, (d,).

    Fewer rows move an estimate by the difference of the two variances (Hausman 1978); what is more is the form's.
    """
    try:
        narrow = _surface(z, y, codes, half)
    except NoAnswer:  # half the cells have no minimum: the optimum is not known better than the window
        return np.full_like(found.centres, np.inf), [math.inf] * found.centres.shape[1]
    away = narrow.centres - found.centres
    own = [np.einsum("gii->gi", entry.covariances) for entry in (narrow, found)]
    moved = np.sqrt(np.maximum(away**2 - np.maximum(own[0] - own[1], 0.0), 0.0))
    all_of = [np.diag(entry.common) for entry in (narrow, found)]
    form = np.maximum(away.mean(axis=0) ** 2 - np.maximum(all_of[0] - all_of[1], 0.0), 0.0)
    return moved, [float(v) for v in np.sqrt(all_of[1] + form)]


def _shared(z: Array, y: Array, codes: Array, near: Array) -> tuple[Bowl, dict[int, Array]]:
    """The surface of the grids that hold their optimum, and where the others' would be.

    A grid on one side of its optimum bends the shape that all share. So grids whose best cell is at an end of what
    was varied join only if the surface, fitted with the sure ones, puts their optimum inside.
    """
    many = int(codes.max()) + 1
    ends = {g: _at_an_end(z[codes == g], y[codes == g]) for g in range(many)}
    sure = [g for g in range(many) if not ends[g].any()]
    if not 0 < len(sure) < many:
        return _surface(z, y, codes, near), {}
    members, edges = list(sure), {}
    try:
        _surface(z, y, codes, near & np.isin(codes, sure))
    except NoAnswer:  # too few sure ones to tell: all together
        return _surface(z, y, codes, near), {}
    for g in (g for g in range(many) if g not in sure):
        trial = sorted([*sure, g])
        try:
            centre = _surface(z, y, codes, near & np.isin(codes, trial)).centres[trial.index(g)]
        except NoAnswer:
            centre = ends[g] * np.inf
            centre[np.isnan(centre)] = z[codes == g].mean(axis=0)[np.isnan(centre)]
        if _outside(z[codes == g], y[codes == g], centre).any():
            edges[g] = centre
        else:
            members.append(g)
    return _surface(z, y, codes, near & np.isin(codes, sorted(members))), edges


def _at_an_end(z: Array, y: Array) -> Array:
    """-1, 0 or 1 for each axis: the cell of the least loss is the lowest there is, neither, or the highest."""
    finite = z[np.isfinite(y)]
    best = z[int(np.nanargmin(y))]
    return np.where(best <= finite.min(axis=0), -1.0, np.where(best >= finite.max(axis=0), 1.0, 0.0))


def _outside(z: Array, y: Array, centre: Array) -> Array:
    """-1, 0 or 1 for each axis: below the cells of a grid, within, above."""
    finite = z[np.isfinite(y)]
    low, high = finite.min(axis=0), finite.max(axis=0)
    return np.where(centre < low, -1, np.where(centre > high, 1, 0))


def _surface(z: Array, y: Array, codes: Array, rows: Array) -> Bowl:
    """Of these rows the cubic, or the parabola where they are too few for it or the cubic has no minimum."""
    count = int(rows.sum())
    labels = np.unique(codes[rows], return_inverse=True)[1].ravel()
    many, d = int(labels.max()) + 1, z.shape[1]
    for degree in (3, 2):
        parameters = many * (1 + d) + len(monomials(d, degree))
        if count < parameters + (SPARE if degree == 3 else 1):
            continue
        found = bowl(z[rows], y[rows], labels, degree)
        if found is not None:
            return found
    raise NoAnswer(
        f"{count} cells near the optima of {many} grid{'s' if many > 1 else ''} do not make a bowl: ln loss has no "
        "minimum in the logs of what was varied",
        "grids that reach past the best setting on every side, with more cells near it, or a wider window",
    )


@dataclass(frozen=True, eq=False)
class _Spread:
    """The surface, how far its centres move at half the window, each grid's place in it, and the grids not in it."""

    surface: Bowl
    moved: Array
    places: Array
    edges: Mapping[int, Array]


def _grid(
    whole: _Spread,
    g: int,
    at: Mapping[str, float],
    z: Array,
    y: Array,
    codes: Array,
    near: Array,
    logs: Array,
    coverage: float,
) -> GridOptimum:
    mine, finite = codes == g, np.isfinite(y)
    found, place, d = whole.surface, int(whole.places[g]), z.shape[1]
    if g in whole.edges:
        centre, covariance, moved = whole.edges[g], np.full((d, d), np.nan), np.full(d, np.nan)
    else:
        centre, covariance, moved = found.centres[place], found.covariances[place], whole.moved[place]
    low, high = z[mine & finite].min(axis=0), z[mine & finite].max(axis=0)
    side = _outside(z[mine], y[mine], centre)
    sd = np.sqrt(np.diag(covariance) + moved**2)
    outside = [
        f"{name} {'above' if way > 0 else 'below'} {math.exp(end[1] if way > 0 else end[0]):.4g}"
        for name, way, end in zip(("rate", "batch"), side, np.column_stack([low, high]), strict=False)
        if way
    ]
    width = student_quantile(0.5 + coverage / 2, found.freedom)
    how = f"{found.form} in logs over {int((mine & near).sum())} cells"
    measured = []
    for i in range(len(centre)):
        ends = centre[i] - width * sd[i], centre[i] + width * sd[i]
        if not outside:
            value, below, above = (math.exp(e) if e < 700 else math.inf for e in (centre[i], *ends))
        else:  # the surface is not known out there: a bound for what lies outside, nothing for the rest
            value = math.nan
            below = math.exp(high[i]) if side[i] > 0 else 0.0
            above = math.exp(low[i]) if side[i] < 0 else math.inf
        measured.append(Measured(value, below, above, coverage, how))
    best = int(np.flatnonzero(mine & finite)[np.argmin(y[mine & finite])])
    two = len(centre) == 2
    known = not outside
    return GridOptimum(
        at=at,
        lr=measured[0],
        batch=measured[1] if two else None,
        lr_sd=float(sd[0]) if known else math.nan,
        batch_sd=float(sd[1]) if two and known else math.nan,
        correlation=float(covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1]))
        if two and covariance[0, 0] * covariance[1, 1] > 0
        else math.nan,
        loss=math.exp(found.levels[place]) if known else math.nan,
        best=(
            math.exp(logs[best, 0]),
            math.exp(logs[best, 1]) if logs.shape[1] == 2 else math.nan,
            math.exp(y[best]),
        ),
        used=int((mine & near).sum()),
        far=int((mine & finite & ~near).sum()),
        missing=int((mine & ~finite).sum()),
        edge="; ".join(outside),
    )
