"""A layer's weight as a function of what is learned of it: roundings, scales, entries of tables and of codebooks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from isoloss.compress.formats import Coded, Encoded, Float, Grid, Integer, NormalFloat, Table, Vectors
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.layers import Layer
from isoloss.compress.solvers.adaround import DECIDED, Between, logit, relaxed
from isoloss.compress.solvers.refine import PLAIN_SCALES


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of the block.

    Attributes:
        layer: whose weight it is.
        weight: as it was, (out, in).
        encoded: as a solver left it.
    """

    layer: Layer
    weight: Tensor
    encoded: Encoded


def learnable(part: Part) -> bool:
    """Whether a layer can take part: one code per weight or per vector, a tensor of its own."""
    format = part.encoded.format
    return part.layer.index is None and (
        isinstance(format, Vectors) or (isinstance(format, Coded) and format.bits <= 8)
    )


def relax(part: Part, rounding: bool, values: bool) -> Relaxed | Book:
    """A layer's weight with what is to be learned of it.

    Args:
        part: a layer that is :func:`learnable`.
        rounding: whether each weight moves between its neighbours; of vector codes never.
        values: whether scales, entries of tables or codebooks change.
    """
    if isinstance(part.encoded.format, Vectors):
        return Book.of(part, part.encoded.format, values)
    return Relaxed.of(part, rounding, values)


@dataclass(eq=False)
class Book:
    """A weight of vector codes: codes stay, the codebook changes.

    ``values`` are changes of the codebook (count, length), relative to the root mean square of its vectors.
    """

    part: Part
    format: Vectors
    codes: Tensor
    codebook: Tensor
    reach: Tensor
    values: Tensor | None
    v: None = None

    @classmethod
    def of(cls, part: Part, format: Vectors, values: bool) -> Book:
        """As it is stored."""
        codes, codebook = format.codes(part.encoded), part.encoded.parts["codebook"].float()
        used = codebook[torch.unique(codes)]
        reach = used.square().mean().sqrt()
        return cls(
            part,
            format,
            codes,
            codebook,
            reach,
            torch.zeros_like(codebook).requires_grad_() if values else None,
        )

    def weight(self) -> Tensor:
        """(out, in), with gradients."""
        rows, columns = as_matrix(self.part.weight).shape
        return self._book()[self.codes].reshape(rows, -1)[:, :columns]

    def hardened(self) -> Encoded:
        """As stored."""
        limit = torch.finfo(torch.float16).max
        book = self._book().detach().clamp(-limit, limit)
        return self.format.encoded(self.codes, book, self.part.encoded.shape)

    def undecided(self) -> tuple[int, int]:
        """There are no roundings."""
        return 0, 0

    def _book(self) -> Tensor:
        return self.codebook if self.values is None else self.codebook + self.values * self.reach


@dataclass(eq=False)
class Relaxed:
    """A layer's weight as a function of what is learned.

    ``v`` moves each weight between its two neighbours; ``values`` are changes of scales (out, groups) or of the entries of
    tables (out, groups, count), relative to the scale or to the table's reach.
    """

    part: Part
    grid: Grid
    between: Between | None
    v: Tensor | None
    values: Tensor | None
    codes: Tensor
    reach: Tensor | None = field(default=None)

    @classmethod
    def of(cls, part: Part, rounding: bool, learned: bool) -> Relaxed:
        """As a solver left it; roundings start at the weights themselves."""
        grid, codes = part.encoded.grid(), part.encoded.codes()
        between = Between.of(grid, as_matrix(part.weight)) if rounding else None
        v = None if between is None else logit(between.start).requires_grad_()
        values, reach = None, None
        if learned and isinstance(grid.format, Table):
            reach = grid.table.abs().amax(dim=2, keepdim=True)
            values = torch.zeros_like(grid.table).requires_grad_()
        elif learned and _has_scales(grid):
            values = torch.zeros_like(grid.scale).requires_grad_()
        return cls(part, grid, between, v, values, codes, reach)

    def weight(self) -> Tensor:
        """(out, in), with gradients."""
        if self.reach is not None:
            table = self._table()
            if self.between is None or self.v is None:
                return self._entry(table, self.codes)
            low, high = self._entry(table, self.between.below), self._entry(table, self.between.above)
            return low + relaxed(self.v) * (high - low)
        if self.between is None or self.v is None:
            plain = self.grid.decode(self.codes)
        else:
            plain = self.between.at(relaxed(self.v))
        return plain if self.values is None else plain * self.grid.spread(1 + self.values)

    def hardened(self) -> Encoded:
        """As stored."""
        codes = self.codes
        if self.between is not None and self.v is not None:
            codes = self.between.codes(relaxed(self.v) >= 0.5)
        grid, shape = self.grid, self.part.encoded.shape
        size = (grid.rows, grid.columns)
        if self.reach is not None:
            assert isinstance(grid.format, Table)
            limit = torch.finfo(torch.float16).max
            table = self._table().detach().clamp(-limit, limit)
            place = table.argsort(dim=2, stable=True).argsort(dim=2, stable=True)
            codes = self._entry(place, codes).to(torch.uint8)
            return grid.format.given(size, table).encoded(codes, shape)
        if self.values is None:
            return grid.encoded(codes, shape)
        scale = (grid.scale * (1 + self.values.detach())).clamp(min=torch.finfo(torch.float16).tiny)
        if isinstance(grid.format, Integer):
            return grid.format.given(size, scale, grid.zero).encoded(codes, shape)
        assert isinstance(grid.format, (Float, NormalFloat))
        return grid.format.given(size, scale).encoded(codes, shape)

    def undecided(self) -> tuple[int, int]:
        """How many roundings are not decided, of how many."""
        if self.v is None:
            return 0, 0
        h = relaxed(self.v.detach())
        return int((torch.minimum(h, 1 - h) > DECIDED).sum()), h.numel()

    def _table(self) -> Tensor:
        assert self.values is not None
        assert self.reach is not None
        return self.grid.table + self.values * self.reach

    def _entry(self, table: Tensor, codes: Tensor) -> Tensor:
        """The entry of each code, (out, columns)."""
        count = table.shape[2]
        widths = torch.tensor([stop - start for start, stop in self.grid.groups])
        group = torch.arange(len(widths)).repeat_interleave(widths).to(table.device)
        flat = table.reshape(table.shape[0], -1).expand(self.grid.rows, -1)
        return flat.gather(1, codes.long() + count * group)


def _has_scales(grid: Grid) -> bool:
    format = grid.format
    return isinstance(format, (Integer, Float, NormalFloat)) and format.scales in PLAIN_SCALES
