"""Takes a weight and a format, gives it rounded with a gradient: straight through to the weight, and to scales or tables."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from isoloss.compress.formats import (
    Coded,
    Encoded,
    Fixed,
    Float,
    Grid,
    Integer,
    NormalFloat,
    RangeSearch,
    Table,
)
from isoloss.compress.formats.groups import groups_of

Kind = Literal["learned", "fitted", "held"]
KINDS: tuple[Kind, ...] = ("learned", "fitted", "held")
SLACK = 1.005  # a stored scale is at most so much smaller than the one that covers the largest number
SMALLEST = 1e-5  # a learned scale does not fall below it: fp16 holds it to 0.6 %


class Steps(nn.Module):
    r"""A weight on the values of a format, as a module whose parameters are the scales or tables.

    The forward pass encodes and decodes, so that its result is what a reader of the stored weight gets, bit for bit. The
    backward pass takes :math:`\hat x = s\, q(x/s)` as if q were the identity within its range:

    - :math:`\partial \hat x/\partial x = 1` for :math:`l \le x/s \le u`, 0 outside, with l and u the ends of the format
      at scale 1;
    - ``learned`` scales: :math:`\partial \hat x/\partial s = q(v) - v` inside, :math:`l` or :math:`u` outside, with
      :math:`v = x/s`, summed over the numbers that share the scale, times :math:`1/\sqrt{n u}` for n of them. Rounding the
      scale to its stored form passes the gradient on;
    - ``learned`` tables: the sum of the gradients of the numbers that have the entry, which is exact, times
      :math:`1/\sqrt n`; for the weight the range reaches half a gap beyond the outermost entries.

    ``fitted`` takes scales from the weight anew each time, as the format's own ``encode`` does; ``held`` keeps those of
    the start.

    Args:
        format: with one code per weight.
        start: scales, zero-points or tables to begin with; zero-points are never learned.
        kind: one of the three.

    Raises:
        ValueError: no such kind; learned scales of a format without any; tables fitted at every step.

    Source:
        S. Esser et al., Learned Step Size Quantization, ICLR 2020, arXiv 1902.08153, whose range is open where this one is
        closed, so that weights that begin on the outermost values can leave them; tables: S. Han et al., Deep Compression,
        ICLR 2016, arXiv 1510.00149.

    Example:
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.26, -0.9, 1.4]], requires_grad=True)
        >>> int2 = formats.get("int2/tensor")
        >>> steps = Steps(int2, int2.given((1, 3), torch.tensor([[1.0]])))
        >>> steps(weight).sum().backward()
        >>> weight.grad.tolist()  # 1.4 is beyond the range
        [[1.0, 1.0, 0.0]]
        >>> [round(float(x), 4) for x in (steps.scale.grad * 3**0.5).flatten()]  # -0.26 + (-1 + 0.9) + 1
        [0.64]
    """

    zero: Tensor | None
    count: Tensor

    def __init__(self, format: Coded, start: Grid, kind: Kind = "learned") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"steps are learned, fitted or held, got {kind!r}")
        if kind == "fitted" and isinstance(format, Table):
            raise ValueError(f"{format.spec} cannot be fitted at every step. Learn its tables, or hold them")
        self.format, self.kind, self.shape = format, kind, (start.rows, start.columns)
        self.groups = groups_of(format.group, start.columns)
        if kind == "learned":
            if isinstance(format, Table):
                self.table = nn.Parameter(start.table.clone())
            elif has_scale(format):
                self.scale = nn.Parameter(start.scale.clone())
            else:
                raise ValueError(f"{format.spec} has no scale to learn. Take fitted steps")
        elif kind == "held":
            for name, part in start.parts.items():
                self.register_buffer(f"part_{name}", part.clone())
        zero = start.zero if isinstance(format, Integer) else None
        self.register_buffer("zero", zero if zero is None else zero.clone())
        widths = torch.tensor([float(stop - first) for first, stop in self.groups.bounds])
        self.register_buffer(
            "count", widths * (start.rows if format.group == "tensor" else 1), persistent=False
        )

    @property
    def learned(self) -> list[nn.Parameter]:
        """Scales or tables, if learned."""
        return [
            own for own in (getattr(self, "scale", None), getattr(self, "table", None)) if own is not None
        ]

    def grid(self, matrix: Tensor) -> Grid:
        """The values of the codes, as they are now."""
        return self._grid(matrix, self._scale(), self._table())

    def encode(self, matrix: Tensor) -> Encoded:
        """The weight as stored; it decodes to what :meth:`forward` gives."""
        grid = self.grid(matrix)
        return grid.encoded(grid.encode(matrix))

    def forward(self, matrix: Tensor) -> Tensor:
        """The rounded weight, float32 (rows, columns)."""
        scale, table = self._scale(), self._table()
        grid = self._grid(matrix, scale, table)
        if table is not None:
            return applied(_LookedUp, matrix, table, grid, self.count.rsqrt())
        if scale is not None:
            low, high = self._range(matrix)
            share = (self.count * largest(self.format)).rsqrt()
            return applied(_Scaled, matrix, scale, grid, low, high, share)
        return applied(_Straight, matrix, grid, *self._ends(grid, matrix))

    def _scale(self) -> Tensor | None:
        own: Tensor | None = getattr(self, "scale", None)
        return None if own is None else own.abs().clamp_min(SMALLEST)

    def _table(self) -> Tensor | None:
        own: Tensor | None = getattr(self, "table", None)
        return None if own is None else own.sort(dim=-1).values

    def _grid(self, matrix: Tensor, scale: Tensor | None, table: Tensor | None) -> Grid:
        if table is not None:
            return cast(Table, self.format).given(self.shape, table)
        if scale is not None:
            if isinstance(self.format, Integer) and self.zero is not None:
                return self.format.given(self.shape, scale, self.zero)
            return cast(Any, self.format).given(self.shape, scale)  # type: ignore[no-any-return]
        if self.kind == "held":
            parts = {name[5:]: part for name, part in self.named_buffers() if name.startswith("part_")}
            return Grid(self.format, *self.shape, parts)
        return self.format.grid(matrix.detach())

    def _range(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Ends at scale 1, of a shape that broadcasts against the scales."""
        low, high = (matrix.new_tensor([[end]]) for end in ends(self.format))
        return (low, high) if self.zero is None else (low - self.zero, high - self.zero)

    def _ends(self, grid: Grid, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Ends of the values themselves, (rows or 1, columns or 1)."""
        if isinstance(self.format, Table):
            low, high = reach(grid.table)
            return grid.spread(low), grid.spread(high)
        first, last = (matrix.new_tensor([[end]]) for end in ends(self.format))
        if not has_scale(self.format):
            return first, last
        if grid.zero is not None:
            first, last = first - grid.zero, last - grid.zero
        # A scale may be rounded down when it is stored.
        return grid.spread(first * grid.scale) * SLACK, grid.spread(last * grid.scale) * SLACK


def has_scale(format: Coded) -> bool:
    """Whether there are scales to choose."""
    return isinstance(format, (Integer, NormalFloat)) or (
        isinstance(format, Float) and format.scales is not None
    )


def largest(format: Coded) -> float:
    """The largest number at scale 1; of integers the largest level."""
    return float(format.top) if isinstance(format, Integer) else ends(format)[1]


def ends(format: Coded) -> tuple[float, float]:
    """Least and largest number at scale 1; of ``asym`` the codes, before the zero-point is taken off.

    Raises:
        TypeError: the format has no such ends.

    Example:
        >>> from isoloss.compress import formats
        >>> [ends(formats.get(word)) for word in ("int3", "int3/narrow", "int3/asym", "int1/bipolar", "fp4-e2m1", "nf4")]
        [(-4.0, 3.0), (-3.0, 3.0), (0.0, 7.0), (-1.0, 1.0), (-6.0, 6.0), (-1.0, 1.0)]
    """
    if isinstance(format, Integer):
        return float(format.lowest + (format.zero == "narrow")), float(format.top)
    if isinstance(format, Float):
        return -format.type.maximum, format.type.maximum
    if isinstance(format, NormalFloat):
        return -1.0, 1.0
    if isinstance(format, Fixed):
        return -(2.0 ** (format.integer - 1)), 2.0 ** (format.integer - 1) - 2.0**-format.fraction
    raise TypeError(f"{format.spec} has no ends at scale 1")


def reach(table: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cells of the outermost entries end, half a gap beyond them: (rows or 1, groups)."""
    gap = (table[..., 1:] - table[..., :-1]) / 2
    return table[..., 0] - gap[..., 0], table[..., -1] + gap[..., -1]


def started(format: Coded, matrix: Tensor) -> Grid:
    """Scales that lose least squared error, or tables; where the format says how to search, that is done."""
    searchable = isinstance(format, (Integer, NormalFloat)) or (
        isinstance(format, Float) and has_scale(format)
    )
    if searchable and not (isinstance(format, Integer) and format.bits == 1 and format.zero == "bipolar"):
        own: Any = format
        if own.search is None:
            return Grid(
                format,
                matrix.shape[0],
                matrix.shape[1],
                replace(own, search=RangeSearch(2.0)).grid(matrix).parts,
            )
    return format.grid(matrix)


class _Straight(torch.autograd.Function):
    """Encoded and decoded; the gradient passes within the range."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
        ctx.save_for_backward((weight >= low) & (weight <= high))
        return grid.decode(grid.encode(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None


class _Scaled(torch.autograd.Function):
    """Encoded and decoded; the gradient passes within the range, and to the scales as LSQ has it."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, grid: Grid, low: Tensor, high: Tensor, share: Tensor
    ) -> Tensor:
        out = grid.decode(grid.encode(weight))
        ctx.save_for_backward(weight, out, low, high, share)
        ctx.grid = grid
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight, out, low, high, share = ctx.saved_tensors
        grid: Grid = ctx.grid
        dense = grid.spread(torch.where(grid.scale > 0, grid.scale, 1.0))
        v, level = weight / dense, out / dense
        inside = (v >= _wide(grid, low)) & (v <= _wide(grid, high))
        along = _sums(gradient * torch.where(inside, level - v, level), grid, grid.scale.shape[0])
        return gradient * inside, along * share, None, None, None, None


class _LookedUp(torch.autograd.Function):
    """Encoded and decoded; the gradient passes within the range, and every entry gets that of its numbers."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, table: Tensor, grid: Grid, share: Tensor) -> Tensor:
        codes = grid.encode(weight)
        low, high = reach(grid.table)
        inside = (weight >= grid.spread(low)) & (weight <= grid.spread(high))
        ctx.save_for_backward(codes, inside, share)
        ctx.grid = grid
        return grid.decode(codes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        codes, inside, share = ctx.saved_tensors
        grid: Grid = ctx.grid
        table = grid.table
        sums = [_sums(gradient * (codes == k), grid, table.shape[0]) for k in range(table.shape[-1])]
        return gradient * inside, torch.stack(sums, dim=-1) * share[:, None], None, None


def _wide(grid: Grid, per_group: Tensor) -> Tensor:
    return per_group if per_group.numel() == 1 else grid.spread(per_group)


def _sums(x: Tensor, grid: Grid, rows: int) -> Tensor:
    """(rows, columns) -> (rows or 1, groups): the sum over the numbers of each group."""
    sums = torch.stack([x[:, start:stop].sum(dim=1) for start, stop in grid.groups], dim=1)
    return sums if rows == sums.shape[0] else sums.sum(dim=0, keepdim=True)


def applied(function: Any, *given: Any) -> Tensor:
    """What a function with a gradient of its own gives."""
    out: Tensor = function.apply(*given)
    return out


def gradient_share(count: int, largest: float) -> float:
    r"""LSQ's factor :math:`1/\sqrt{n u}` of the gradient of a step that n numbers share."""
    return 1 / math.sqrt(count * largest)
