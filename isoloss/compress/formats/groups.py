"""How the columns of a matrix are cut into groups that share a scale or a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Group = int | Literal["tensor", "channel"]


@dataclass(frozen=True)
class Piece:
    """Columns from ``start`` to ``stop`` that are groups ``first`` to ``last`` (exclusive) of equal width."""

    start: int
    stop: int
    first: int
    last: int

    def of(self, matrix: Tensor) -> Tensor:
        """(rows, columns) -> (rows, groups, width), a view."""
        columns = matrix[:, self.start : self.stop]
        return columns.view(matrix.shape[0], self.last - self.first, -1)


@dataclass(frozen=True)
class Groups:
    """``columns`` columns in groups of ``width``; the last may be shorter.

    Example:
        >>> groups = Groups(300, 128)
        >>> groups.bounds, groups.of(299)
        (((0, 128), (128, 256), (256, 300)), 2)
    """

    columns: int
    width: int

    @property
    def count(self) -> int:
        """How many groups."""
        return -(-self.columns // self.width)

    @property
    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First column and the one behind the last, of each group."""
        starts = range(0, self.columns, self.width)
        return tuple((start, min(start + self.width, self.columns)) for start in starts)

    def of(self, column: int) -> int:
        """The group of a column."""
        return column // self.width

    def pieces(self) -> Iterator[Piece]:
        """At most two: the whole groups, and the short one."""
        whole = self.columns // self.width
        if whole:
            yield Piece(0, whole * self.width, 0, whole)
        if self.columns % self.width:
            yield Piece(whole * self.width, self.columns, whole, whole + 1)


def groups_of(group: Group, columns: int) -> Groups:
    """The groups of a matrix of so many columns."""
    return Groups(columns, min(group, columns) if isinstance(group, int) else columns)


def check_group(group: Group) -> None:
    """Refuse what is no group."""
    if group not in ("tensor", "channel") and not (isinstance(group, int) and group >= 1):
        raise ValueError(f"a group is 'tensor', 'channel' or a number of columns, got {group!r}")


def group_word(group: Group) -> str:
    """``g128``, ``tensor`` or ``channel``."""
    return f"g{group}" if isinstance(group, int) else group
