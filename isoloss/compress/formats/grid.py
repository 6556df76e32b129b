"""Formats with one code per weight, and the values that the codes of one matrix stand for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import (
    Encoded,
    Layout,
    Parts,
    Shape,
    as_importance,
    as_matrix,
    layout_bits,
    rows_columns,
)
from isoloss.compress.formats.groups import Group, Groups, Piece, groups_of
from isoloss.compress.formats.packing import code_dtype, pack, packed_width, unpack
from isoloss.compress.formats.rounding import Rounding, check_rounding

_BLOCK = 1 << 16  # weights worked on at once: what is computed in between stays in the cache


class Values(NamedTuple):
    """What a grid's parts mean, float32: (rows or 1, groups), tables with their entries behind.

    ``divisor`` is the scale with 1 for 0, ``middle`` what lies halfway between the entries of ``table``.
    """

    scale: Tensor | None = None
    zero: Tensor | None = None
    divisor: Tensor | None = None
    table: Tensor | None = None
    middle: Tensor | None = None

    @classmethod
    def scaled(cls, scale: Tensor, zero: Tensor | None = None) -> Values:
        """Scales and zero-points."""
        return cls(scale, zero, torch.where(scale > 0, scale, 1))

    @classmethod
    def looked_up(cls, table: Tensor) -> Values:
        """Ascending tables."""
        return cls(table=table, middle=(table[..., 1:] + table[..., :-1]) / 2)

    def at(self, rows: slice, piece: Piece, dtype: torch.dtype) -> Values:
        """For some rows and groups, as (rows or 1, groups, 1) or (rows or 1, groups, entries)."""

        def cut(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            x = (x if x.shape[0] == 1 else x[rows])[:, piece.first : piece.last].to(dtype)
            return x[..., None] if x.ndim == 2 else x

        return Values(*map(cut, self))


class Coded(ABC):
    """A format with one code of ``bits`` bits per weight, and parts that say what the codes mean."""

    bits: int
    group: Group

    @property
    @abstractmethod
    def spec(self) -> str:
        """The format in words."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts that groups have in common; all others have the groups as their second dimension."""
        return ()

    @abstractmethod
    def kept(self, rows: int, groups: int) -> Layout:
        """What is stored besides the codes; ``rows`` is 1 where the whole tensor is one group."""

    @abstractmethod
    def fit(self, matrix: Tensor, groups: Groups, importance: Tensor | None, held: Parts | None) -> Parts:
        """Parts chosen for a matrix; ``held`` gives the shared ones, where they are settled."""

    @abstractmethod
    def mean(self, parts: Parts) -> Values:
        """What parts mean."""

    @abstractmethod
    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        """Codes of (rows, groups, width) numbers, in any integer dtype."""

    @abstractmethod
    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor:
        """What the codes of (rows, groups, width) stand for."""

    def stored(self, parts: Parts) -> Parts:
        """A grid's parts as they are stored."""
        return parts

    def loaded(self, parts: Parts, rows: int, groups: int) -> Parts:
        """Stored parts, without the codes, as a grid has them."""
        return parts

    def grid(self, weight: Tensor, importance: Tensor | None = None) -> Grid:
        """The values chosen for a weight: scales, zero-points or tables.

        Raises:
            ValueError: a weight that is empty, NaN or infinite, or that this format cannot hold.
        """
        matrix = as_matrix(weight)
        groups = groups_of(self.group, matrix.shape[1])
        parts = self.fit(matrix, groups, as_importance(importance, matrix), None)
        return Grid(self, matrix.shape[0], matrix.shape[1], parts)

    def encode(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        rounding: Rounding = "nearest",
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """The weight in this format, each number rounded on its own; see :class:`Format`."""
        grid = self.grid(weight, importance)
        codes = grid.encode(as_matrix(weight), rounding=rounding, generator=generator)
        return grid.encoded(codes, tuple(weight.shape))

    def decode(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The weight that stored parts stand for."""
        rows, columns = rows_columns(shape)
        grid = self._grid_of(parts, rows, columns)
        return grid.decode(unpack(parts["codes"], self.bits, columns), dtype)

    def layout(self, shape: Shape) -> Layout:
        """What is stored for a weight of this shape."""
        rows, columns = rows_columns(shape)
        groups = groups_of(self.group, columns).count
        kept = self.kept(1 if self.group == "tensor" else rows, groups)
        return {"codes": (torch.uint8, (rows, packed_width(columns, self.bits))), **kept}

    def size(self, shape: Shape) -> int:
        """Stored bits of a weight of this shape."""
        return layout_bits(self.layout(shape))

    def _grid_of(self, parts: Parts, rows: int, columns: int) -> Grid:
        groups = groups_of(self.group, columns).count
        kept = {name: part for name, part in parts.items() if name != "codes"}
        loaded = self.loaded(kept, 1 if self.group == "tensor" else rows, groups)
        return Grid(self, rows, columns, loaded)


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that the codes of one matrix stand for: a format with its scales, zero-points or tables.

    These are as they are stored, so that what a solver sees is what a reader of the file will see.

    Args:
        format: of the codes.
        rows: of the matrix.
        columns: of the matrix.
        parts: per row and group, as the format keeps them.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.7, -0.2, 0.2, 1.4], [0.07, 0.0, 0.0, 0.0]])
        >>> grid = formats.get("int4/g2").grid(weight)
        >>> grid.groups, [[round(s, 4) for s in row] for row in grid.scale.tolist()]
        (((0, 2), (2, 4)), [[0.1, 0.2], [0.01, 1.0]])
        >>> codes = grid.encode(weight)
        >>> codes.tolist()  # level plus 8
        [[15, 6, 9, 15], [15, 8, 8, 8]]
        >>> here = grid.group(1)  # for a solver that goes column by column
        >>> here.encode(weight[:, 3]).tolist()
        [15, 8]
        >>> torch.equal(grid.encoded(codes).decode(), grid.decode(codes))
        True
    """

    format: Coded
    rows: int
    columns: int
    parts: Parts

    @cached_property
    def _groups(self) -> Groups:
        return groups_of(self.format.group, self.columns)

    @cached_property
    def _values(self) -> Values:
        return self.format.mean(self.parts)

    @cached_property
    def _known(self) -> dict[torch.dtype, Values]:
        return {}  # values of a grid of one group, as a solver asks for them column after column

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """First column and the one behind the last, of each group."""
        return self._groups.bounds

    def group_of(self, column: int) -> int:
        """The group of a column."""
        return self._groups.of(column)

    @property
    def scale(self) -> Tensor:
        """Scales as decoded, float32, (rows or 1, groups).

        Raises:
            TypeError: the format has none.
        """
        return self._part("scale", self._values.scale)

    @property
    def zero(self) -> Tensor | None:
        """Zero-points in codes, float32, (rows or 1, groups); None without them."""
        return self._values.zero

    @property
    def table(self) -> Tensor:
        """Tables as decoded, ascending, float32, (rows or 1, groups, 2^bits).

        Raises:
            TypeError: the format has none.
        """
        return self._part("table", self._values.table)

    def encode(
        self, values: Tensor, *, rounding: Rounding = "nearest", generator: torch.Generator | None = None
    ) -> Tensor:
        """The code of each value, computed in float32, or in float64 where values have it.

        Args:
            values: (rows, columns); for a grid of one group also (rows,) or (rows, any number).
            rounding: one of six ways; uneven values know ``nearest`` alone.
            generator: of the random ways.

        Returns:
            uint8 (int32 above eight bits) of the same shape, 0 to 2^bits - 1.
        """
        check_rounding(rounding, generator)
        x = values.detach() if values.dtype == torch.float64 else values.detach().float()
        if self._is_small(x):
            codes = self.format.codes(x.reshape(self.rows, 1, -1), self._of_one(x.dtype), rounding, generator)
            return codes.to(code_dtype(self.format.bits)).reshape(values.shape)
        out = torch.empty(values.shape, dtype=code_dtype(self.format.bits), device=values.device)
        for x_part, out_part, known in self._blocks(x, out, x.dtype):
            out_part.copy_(self.format.codes(x_part, known, rounding, generator))
        return out

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """What codes stand for, computed in ``dtype``.

        Codes that are floats and need a gradient (relaxed roundings) give values with one, where the value is affine in
        the code: integers and fixed point.

        Args:
            codes: (rows, columns); for a grid of one group also (rows,) or (rows, any number).
            dtype: of the result.
        """
        if self._is_small(codes):
            whole = codes.reshape(self.rows, 1, -1)
            return self.format.numbers(whole, self._of_one(dtype), dtype).reshape(codes.shape)
        if codes.is_floating_point() and codes.requires_grad:
            pieces = [
                self.format.numbers(part, known, dtype).flatten(1)
                for part, _, known in self._blocks(codes, codes, dtype, block=codes.numel())
            ]
            return torch.cat(pieces, dim=1).reshape(codes.shape)
        out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        for code_part, out_part, known in self._blocks(codes, out, dtype):
            out_part.copy_(self.format.numbers(code_part, known, dtype))
        return out

    def group(self, index: int) -> Grid:
        """The grid of one group alone, of any number of columns."""
        start, stop = self.groups[index]
        parts = {
            name: part if name in self.format.shared else part[:, index : index + 1]
            for name, part in self.parts.items()
        }
        return Grid(self.format, self.rows, stop - start, parts)

    def refit(self, index: int, values: Tensor, importance: Tensor | None = None) -> Grid:
        """This grid with one group chosen anew for other values of its columns; what groups share is held.

        Args:
            index: of the group.
            values: (rows, columns of the group).
            importance: as for :meth:`Coded.grid`, for these columns.
        """
        matrix = as_matrix(values)
        start, stop = self.groups[index]
        if matrix.shape != (self.rows, stop - start):
            raise ValueError(
                f"group {index} needs values of shape {(self.rows, stop - start)}, got {tuple(matrix.shape)}"
            )
        held = {name: self.parts[name] for name in self.format.shared}
        weights = as_importance(importance, matrix)
        new = self.format.fit(matrix, Groups(stop - start, stop - start), weights, held)
        parts = dict(self.parts)
        for name in parts.keys() - set(self.format.shared):
            parts[name] = parts[name].clone()
            parts[name][:, index : index + 1] = new[name]
        return Grid(self.format, self.rows, self.columns, parts)

    def encoded(self, codes: Tensor, shape: Shape | None = None) -> Encoded:
        """Codes of the whole matrix, stored.

        Args:
            codes: (rows, columns), whole numbers from 0 to 2^bits - 1.
            shape: of the weight; default that of the codes.

        Raises:
            ValueError: codes of another shape or beyond the bits.
        """
        if tuple(codes.shape) != (self.rows, self.columns):
            raise ValueError(
                f"this grid needs codes of shape {(self.rows, self.columns)}, got {tuple(codes.shape)}"
            )
        if int(codes.max()) >= 2**self.format.bits or int(codes.min()) < 0:
            raise ValueError(
                f"codes of {self.format.bits} bits need 0 to {2**self.format.bits - 1}, "
                f"got {int(codes.min())} to {int(codes.max())}"
            )
        parts = {"codes": pack(codes, self.format.bits), **self.format.stored(self.parts)}
        return Encoded(self.format, (self.rows, self.columns) if shape is None else tuple(shape), parts)

    def spread(self, per_group: Tensor) -> Tensor:
        """(rows or 1, groups) -> (rows, columns): each group's number at each of its columns."""
        widths = torch.tensor([stop - start for start, stop in self.groups], device=per_group.device)
        return per_group.expand(self.rows, -1).repeat_interleave(widths, dim=1, output_size=self.columns)

    def _part(self, name: str, part: Tensor | None) -> Tensor:
        if part is None:
            raise TypeError(f"{self.format.spec} has no {name}")
        return part

    def _is_small(self, x: Tensor) -> bool:
        """One group, few numbers: no blocks needed."""
        return len(self.groups) == 1 and 0 < x.numel() <= _BLOCK and x.ndim <= 2 and x.shape[0] == self.rows

    def _of_one(self, dtype: torch.dtype) -> Values:
        if dtype not in self._known:
            self._known[dtype] = self._values.at(slice(None), Piece(0, self.columns, 0, 1), dtype)
        return self._known[dtype]

    def _blocks(
        self, x: Tensor, out: Tensor, dtype: torch.dtype, block: int = _BLOCK
    ) -> Iterator[tuple[Tensor, Tensor, Values]]:
        """Views (rows, groups, width) of input and output, with the values of their groups."""
        x, out = (x[:, None], out[:, None]) if x.ndim == 1 else (x, out)
        one = len(self.groups) == 1
        if x.ndim != 2 or x.shape[0] != self.rows or (x.shape[1] != self.columns and not one):
            raise ValueError(f"this grid needs the shape {(self.rows, self.columns)}, got {tuple(x.shape)}")
        groups = Groups(x.shape[1], x.shape[1]) if one else self._groups
        for piece in groups.pieces():
            step = max(1, block // (piece.stop - piece.start))
            for start in range(0, self.rows, step):
                rows = slice(start, start + step)
                known = self._values.at(rows, piece, dtype)
                yield piece.of(x[rows]), piece.of(out[rows]), known


def grid_of(encoded: Encoded) -> Grid:
    """The grid of an encoded weight."""
    if not isinstance(encoded.format, Coded):
        raise TypeError(f"{encoded.format.spec} has no code per weight")
    return encoded.format._grid_of(encoded.parts, *rows_columns(encoded.shape))


def codes_of(encoded: Encoded) -> Tensor:
    """The codes of an encoded weight, unpacked."""
    if not isinstance(encoded.format, Coded):
        raise TypeError(f"{encoded.format.spec} has no code per weight")
    return unpack(encoded.parts["codes"], encoded.format.bits, rows_columns(encoded.shape)[1])
