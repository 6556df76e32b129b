"""What GPTQ and tables with error feedback have in common: rows rounded column by column, some weights kept beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isoloss.compress.formats import Coded, Encoded, Format, Grid, WithOutliers, add_outliers
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.formats.sparse import largest
from isoloss.compress.solvers.columns import feedback
from isoloss.compress.solvers.levels import Levels, coded, group_of_columns, joined, rows_of
from isoloss.compress.solvers.moments import Curvature, Order, curvature, seconds
from isoloss.compress.solvers.refine import Rounded, improve, rounded

Weights = Literal["diagonal", "conditional"]

ROWS = 256  # worked on at once


@dataclass(frozen=True)
class Refinement:
    """How codes and grid are improved after the column loop; see :func:`isoloss.compress.solvers.refine.improve`."""

    rounds: int
    sweeps: int
    steps: int
    tolerance: float

    def __post_init__(self) -> None:
        if self.rounds < 0 or self.sweeps < 0 or self.steps < 0 or not 0 <= self.tolerance < 1:
            raise ValueError(
                f"needed rounds, sweeps and steps of at least 0 and a tolerance of 0 to 1, got {self.rounds}, "
                f"{self.sweeps}, {self.steps} and {self.tolerance}"
            )


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of a weight that share inputs, few enough that what is computed of them stays in the cache."""

    rows: slice
    curvature: Curvature


def solve_columns(
    weight: Tensor,
    format: Format,
    second: Tensor,
    name: str,
    damp: float,
    order: Order,
    start: Callable[[Coded, Tensor, Tensor, Tensor | None], Grid],
    refit_groups: bool,
    refinement: Refinement,
    weights: Weights,
) -> Encoded:
    """A weight in a coded format, alone or with outliers beside it, column by column.

    Args:
        weight: any shape.
        format: coded, or :class:`WithOutliers` of a coded one.
        second: (groups, in, in).
        name: of the solver, for its errors.
        damp: see :func:`curvature`.
        order: of columns.
        start: the first grid, from the format, the matrix (out, in), what an error at each place costs (out, in), and the
            places kept beside.
        refit_groups: choose each group's scale anew as its turn comes.
        refinement: what follows.
        weights: what an error at a place costs by itself (``diagonal``), or once those behind make up for it
            (``conditional``).

    Raises:
        ValueError: other weights.
    """
    if weights not in ("diagonal", "conditional"):
        raise ValueError(f"weights need to be diagonal or conditional, got {weights!r}")
    matrix = as_matrix(weight).float()
    dense = coded(format.dense if isinstance(format, WithOutliers) else format, name)
    parts = [
        Part(slice(start_, min(start_ + ROWS, rows.stop)), made)
        for rows, h in seconds(weight, second)
        for made in [curvature(h, damp, order)]
        for start_ in range(rows.start, rows.stop, ROWS)
    ]
    cost = torch.empty_like(matrix)
    for part in parts:
        each = part.curvature.conditional if weights == "conditional" else part.curvature.second.diagonal()
        cost[part.rows, part.curvature.order] = each
    kept = None
    count = format.count(tuple(weight.shape)) if isinstance(format, WithOutliers) else 0
    if count:
        # Which cost most is asked of a grid without the largest: a range or table that spans them would hide them.
        kept = largest(matrix, count)
        kept = dearest(matrix, start(dense, *_without(kept, matrix, cost), kept), cost, count)
        grid = start(dense, *_without(kept, matrix, cost), kept)
    else:
        grid = start(dense, matrix, cost, None)
    grids, codes, values = [], torch.empty(matrix.shape, dtype=torch.uint8), torch.empty_like(matrix)
    for part in parts:
        order_, rows = part.curvature.order, part.rows
        w = matrix[rows].T[order_].contiguous()
        keep = None if kept is None else kept[rows].T[order_].contiguous()
        found = _round(w, rows_of(grid, rows), part.curvature, keep, refit_groups)
        if refinement.rounds:
            found = improve(
                w, found, part.curvature, keep, rounds=refinement.rounds, sweeps=refinement.sweeps,
                steps=refinement.steps, tolerance=refinement.tolerance,
            )  # fmt: skip
        grids.append(found.grid)
        codes[rows, order_] = found.codes.T
        values[rows, order_] = found.q.T
    encoded = joined(grids).encoded(codes, tuple(weight.shape))
    return encoded if kept is None else add_outliers(encoded, values, kept)


def _round(w: Tensor, grid: Grid, curvature: Curvature, kept: Tensor | None, refit_groups: bool) -> Rounded:
    """The column loop over (columns, rows) in order."""
    x = w.clone()
    if not refit_groups:
        levels, group = Levels.of(grid), group_of_columns(grid)[curvature.order]
        places = feedback(x, levels, group, curvature.moves, kept, 0, len(x))
        codes, q = levels.code(places, group), levels.value(places, group)
    else:
        codes, q = torch.empty(x.shape, dtype=torch.uint8), torch.empty_like(x)
        importance = curvature.second.diagonal()
        first = torch.zeros(len(x), dtype=torch.int32)
        for k, (start, stop) in enumerate(grid.groups):
            now = x[start:stop] if kept is None else x[start:stop].masked_fill(kept[start:stop], 0)
            grid = grid.refit(k, now.T.contiguous(), importance[start:stop])
            levels = Levels.of(grid.group(k))
            places = feedback(x, levels, first, curvature.moves, kept, start, stop)
            codes[start:stop] = levels.code(places, first[start:stop])
            q[start:stop] = levels.value(places, first[start:stop])
    q = q if kept is None else torch.where(kept, x, q)
    return rounded(w, grid, codes, q, curvature)


def _without(kept: Tensor, matrix: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    return matrix.masked_fill(kept, 0), cost.masked_fill(kept, 0)


def dearest(matrix: Tensor, grid: Grid, cost: Tensor, count: int) -> Tensor:
    """True at the ``count`` weights whose rounding to nearest loses most."""
    return largest((matrix - grid.decode(grid.encode(matrix))).square() * cost, count)
