r"""Codes and the numbers they stand for, improved in turn until the output error stops falling.

Of a matrix with rows :math:`w` and rounded rows :math:`q`, each row loses :math:`(q - w) H (q - w)^\top`. Given the
codes, q is linear in the table's entries (or in the scales), so that the best ones solve least squares; given those,
sweeps of coordinate descent improve codes. Neither step raises the error, but for the rounding of what is stored; rows
where that costs more than was won stay as they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.compress.formats import Float, Grid, Integer, NormalFloat, Table
from isoloss.compress.solvers.columns import descend
from isoloss.compress.solvers.levels import Levels, group_of_columns
from isoloss.compress.solvers.moments import Curvature

PLAIN_SCALES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix as rounded: what stands where.

    Columns are in the order of the curvature; (columns, rows).

    Attributes:
        grid: of the weight, columns in their own order.
        codes: uint8.
        q: the numbers; where ``kept``, any.
        slope: :math:`(q - w) H`, half the gradient of the error.
        loss: what each row loses, float64.
    """

    grid: Grid
    codes: Tensor
    q: Tensor
    slope: Tensor
    loss: Tensor


def rounded(w: Tensor, grid: Grid, codes: Tensor, q: Tensor, curvature: Curvature) -> Rounded:
    """With its slope and what it loses."""
    gap = q - w
    slope = curvature.second @ gap
    return Rounded(grid, codes, q, slope, gap.mul_(slope).sum(dim=0, dtype=torch.float64))


def improve(
    w: Tensor,
    found: Rounded,
    curvature: Curvature,
    kept: Tensor | None,
    *,
    rounds: int,
    sweeps: int,
    steps: int,
    tolerance: float,
) -> Rounded:
    """Refit the grid, then sweep over the codes; again until that wins less than ``tolerance`` of the error.

    Args:
        w: the weight, (columns, rows) in order.
        found: where to start.
        curvature: its H.
        kept: where numbers are free to be any.
        rounds: at most so many.
        sweeps: over the codes in each round.
        steps: of conjugate gradients in each refit; 0 leaves the grid as it is.
        tolerance: relative.
    """
    best = float(found.loss.sum())
    for _ in range(rounds):
        if steps:
            found = refit(w, found, curvature, kept, steps)
        found = sweep(w, found, curvature, kept, sweeps)
        error = float(found.loss.sum())
        if error >= best * (1 - tolerance):
            break
        best = error
    return found


def sweep(w: Tensor, found: Rounded, curvature: Curvature, kept: Tensor | None, sweeps: int) -> Rounded:
    """Sweeps of coordinate descent; fewer, where one changes nothing."""
    levels = Levels.of(found.grid)
    group = group_of_columns(found.grid)[curvature.order]
    diagonal = curvature.second.diagonal()[:, None]
    q = found.q.clone()
    wanted = q - found.slope / diagonal
    places = None
    for _ in range(sweeps):
        places, changed = descend(wanted, q, levels, group, curvature.second, kept)
        if changed == 0:
            break
    if places is None:
        return found
    return _better(found, rounded(w, found.grid, levels.code(places, group), q, curvature))


def refit(w: Tensor, found: Rounded, curvature: Curvature, kept: Tensor | None, steps: int) -> Rounded:
    r"""The grid's tables or scales by least squares, codes held.

    q is :math:`C t` with the entries (or scales) t of a row: the minimum of :math:`(w - C t)^\top H (w - C t)` has
    :math:`C^\top H C\, t = C^\top H w`. Conjugate gradients from the present t, with the diagonal of H summed by entry
    as preconditioner, need a product with H per step, and as many steps as t has entries to be exact; three or four
    come within 0.1 %.

    A grid with other parts (fixed point, powers of two as scales, one scale for all rows) is left as it is.
    """
    linear = _Linear.of(found, group_of_columns(found.grid)[curvature.order], kept)
    if linear is None:
        return found
    t = linear.solve(found.slope, curvature.second, steps)
    grid, codes = linear.stored(found, t)
    q = _numbers(grid, codes, curvature.order)
    q = q if kept is None else torch.where(kept, found.q, q)
    return _better(found, rounded(w, grid, codes, q, curvature))


def _numbers(grid: Grid, codes: Tensor, order: Tensor) -> Tensor:
    """What codes in order stand for, in order."""
    own = torch.empty_like(codes)
    own[order] = codes
    return grid.decode(own.T.contiguous()).T[order]


def _better(old: Rounded, new: Rounded) -> Rounded:
    """Row by row the one that loses less."""
    take = new.loss < old.loss
    if bool(take.all()):
        return new
    parts = {
        name: part
        if part.shape[0] == 1 and new.grid.rows > 1
        else _where(take[:, None], part, old.grid.parts[name])
        for name, part in new.grid.parts.items()
    }
    grid = Grid(new.grid.format, new.grid.rows, new.grid.columns, parts)
    return Rounded(
        grid,
        torch.where(take, new.codes, old.codes),
        torch.where(take, new.q, old.q),
        torch.where(take, new.slope, old.slope),
        torch.where(take, new.loss, old.loss),
    )


def _where(take: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(take[..., None] if new.ndim == 3 else take, new, old)


@dataclass(frozen=True, eq=False)
class _Linear:
    """q as a linear function of unknowns: ``unit * t[index]``.

    Attributes:
        t: now, (unknowns, rows).
        index: which unknown a number is a multiple of, int64 (columns, rows) or (columns, 1).
        unit: of what size; None: one everywhere, and 0 where ``kept``.
        entries: of a table; 1 for scales.
    """

    t: Tensor
    index: Tensor
    unit: Tensor | None
    entries: int

    @classmethod
    def of(cls, found: Rounded, group: Tensor, kept: Tensor | None) -> _Linear | None:
        grid, rows = found.grid, found.grid.rows
        format = grid.format
        if format.group == "tensor" and rows > 1:
            return None
        free = None if kept is None else (~kept).float()
        if isinstance(format, Table):
            t = grid.table  # (rows, groups, entries)
            index = found.codes.long() + (group.long() * t.shape[2])[:, None]
            return cls(t.reshape(rows, -1).T.contiguous(), index, free, t.shape[2])
        if not isinstance(format, (Integer, Float, NormalFloat)) or format.scales not in PLAIN_SCALES:
            return None
        scale = grid.scale.T.contiguous()  # (groups, rows)
        index = group.long()[:, None].expand(found.codes.shape)
        unit = found.q / scale.gather(0, index).clamp(min=torch.finfo(torch.float32).tiny)
        return cls(scale, index, unit if free is None else unit * free, 1)

    def expand(self, t: Tensor) -> Tensor:
        q = t.gather(0, self.index)
        return q if self.unit is None else q * self.unit

    def collect(self, slope: Tensor) -> Tensor:
        slope = slope if self.unit is None else slope * self.unit
        return torch.zeros_like(self.t).scatter_add_(0, self.index, slope)

    def solve(self, slope: Tensor, second: Tensor, steps: int) -> Tensor:
        """t after some steps of conjugate gradients; an unknown that no number depends on stays."""
        diagonal = second.diagonal()[:, None].expand(slope.shape)
        diagonal = diagonal if self.unit is None else diagonal * self.unit
        scale = self.collect(diagonal)
        scale = torch.where(scale > 0, 1 / scale, 0.0)
        t, left = self.t, -self.collect(slope)
        ready = left * scale
        way, size = ready, (left * ready).sum(dim=0)
        for _ in range(min(steps, len(t))):
            bent = self.collect(second @ self.expand(way))
            curve = (way * bent).sum(dim=0)
            far = torch.where(curve > 0, size / curve, 0.0)
            t, left = t + far * way, left - far * bent
            ready = left * scale
            before, size = size, (left * ready).sum(dim=0)
            way = ready + torch.where(before > 0, size / before, 0.0) * way
        return t

    def stored(self, found: Rounded, t: Tensor) -> tuple[Grid, Tensor]:
        """The grid with these unknowns, rounded as stored; codes renamed where entries of a table change places."""
        grid, format = found.grid, found.grid.format
        shape, rows = (grid.rows, grid.columns), grid.rows
        if isinstance(format, Table):
            table = t.T.reshape(rows, -1, self.entries)
            limit = torch.finfo(torch.float16).max
            place = table.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
            renamed = place.reshape(rows, -1).T.gather(0, self.index).to(torch.uint8)
            return format.given(shape, table.clamp(-limit, limit)), renamed
        # A scale that would turn around, or vanish, stays.
        scale = torch.where(t > 0, t, self.t).T
        if isinstance(format, Integer):
            return format.given(shape, scale, grid.zero), found.codes
        assert isinstance(format, (Float, NormalFloat))
        return format.given(shape, scale), found.codes
