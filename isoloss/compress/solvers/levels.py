"""The values that codes stand for, as lists to choose from: what the column loop needs of any coded format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.compress.formats import Coded, Format, Grid

MOST_BITS = 8  # codes are bytes in the column loop


@dataclass(frozen=True, eq=False)
class Levels:
    """Values of a grid in ascending order.

    Attributes:
        values: float32 (groups, count, rows), ascending along the second.
        codes: uint8, same shape: the code of each.
    """

    values: Tensor
    codes: Tensor

    @classmethod
    def of(cls, grid: Grid) -> Levels:
        """All values that rounding to nearest can give.

        A code that is never given (the lowest of a narrow range, a NaN) stands for its nearest neighbour instead.
        """
        count = 2**grid.format.bits
        every = (
            torch.arange(count, dtype=torch.uint8, device=_device(grid)).expand(grid.rows, count).contiguous()
        )
        values, codes = [], []
        for k in range(len(grid.groups)):
            group = grid.group(k)
            stood = group.decode(every)
            given = group.encode(torch.nan_to_num(stood, nan=0.0, posinf=0.0, neginf=0.0))
            values.append(group.decode(given).T)
            codes.append(given.T)
        ascending, place = torch.stack(values).sort(dim=1, stable=True)
        return cls(ascending.contiguous(), torch.stack(codes).gather(1, place).contiguous())

    def code(self, places: Tensor, group: Tensor) -> Tensor:
        """Codes of places.

        Args:
            places: uint8 (columns, rows).
            group: of each column.
        """
        return self._at(self.codes, places, group)

    def value(self, places: Tensor, group: Tensor) -> Tensor:
        """Values at places, as for :meth:`code`."""
        return self._at(self.values, places, group)

    def _at(self, what: Tensor, places: Tensor, group: Tensor) -> Tensor:
        groups, count, rows = what.shape
        index = places.long() if groups == 1 else places.long() + (group.long() * count)[:, None]
        return what.reshape(groups * count, rows).gather(0, index)


def coded(format: Format, solver: str) -> Coded:
    """The format, if it has one code of up to eight bits per weight.

    Raises:
        TypeError: it has not.
    """
    if not isinstance(format, Coded) or format.bits > MOST_BITS:
        raise TypeError(
            f"{solver} needs a format with one code of up to {MOST_BITS} bits per weight (int4, fp4-e2m1, table3, ...), "
            f"got {format.spec}"
        )
    return format


def group_of_columns(grid: Grid) -> Tensor:
    """The group of each column, int32."""
    widths = torch.tensor([stop - start for start, stop in grid.groups], device=_device(grid))
    return torch.arange(len(widths), dtype=torch.int32, device=widths.device).repeat_interleave(widths)


def rows_of(grid: Grid, rows: slice) -> Grid:
    """The grid of some rows alone; what all rows share stays."""
    parts = {
        name: part if part.shape[0] == 1 and grid.rows > 1 else part[rows]
        for name, part in grid.parts.items()
    }
    return Grid(grid.format, len(range(*rows.indices(grid.rows))), grid.columns, parts)


def joined(grids: list[Grid]) -> Grid:
    """Grids of rows that follow each other as one; parts that all rows share are the first's."""
    first = grids[0]
    if len(grids) == 1:
        return first
    shared = first.format.group == "tensor"
    parts = {
        name: part
        if shared or (part.shape[0] == 1 and name in first.format.shared)
        else torch.cat([grid.parts[name] for grid in grids])
        for name, part in first.parts.items()
    }
    return Grid(first.format, sum(grid.rows for grid in grids), first.columns, parts)


def _device(grid: Grid) -> torch.device:
    return next(iter(grid.parts.values())).device if grid.parts else torch.device("cpu")
