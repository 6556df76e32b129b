"""How the columns of a compressed matrix are cut into runs, and where their activations lie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

RUN = 512
"""Columns that have one scale of activations at most: a block of eight planes of 64."""
PLANES, PLANE, BLOCK, TILE = 8, 64, 32, 16


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of columns that have one scale of activations.

    Attributes:
        columns: of the matrix.
        segments: groups of columns that have one table or scale.
        start: (runs,): first column.
        count: (runs,): columns.
        wide: (runs,): columns per plane.
        stride: bytes from plane to plane.
        place: (runs,): first byte of its activations.
        segment: (runs,): its group.
        width: bytes of a token's activations.
    """

    columns: int
    segments: int
    start: NDArray[np.int32]
    count: NDArray[np.int32]
    wide: NDArray[np.int32]
    stride: int
    place: NDArray[np.int64]
    segment: NDArray[np.int32]
    width: int

    @cached_property
    def blocks(self) -> NDArray[np.int32]:
        """(runs,): blocks of 32 columns."""
        return -(-self.count // BLOCK)

    @cached_property
    def planes_bytes(self) -> int:
        """Bytes of one bit of a row whose columns are lanes."""
        return int(self.wide.sum())


def table_runs(columns: int, group: int) -> Runs:
    """Columns as lanes: runs of 512 in eight planes of 64; the last of a group in eight planes of an eighth.

    Example:
        >>> runs = table_runs(1000, 1000)
        >>> runs.count.tolist(), runs.wide.tolist(), runs.width
        ([512, 488], [64, 61], 1024)
    """
    start, count, segment = _cut(columns, group)
    wide = np.where(count == RUN, PLANE, -(-count // PLANES)).astype(np.int32)
    place = np.arange(len(count), dtype=np.int64) * RUN
    groups = -(-columns // group)
    return Runs(columns, groups, start, count, wide, PLANE, place, segment, RUN * len(count))


def group_runs(columns: int, group: int) -> Runs:
    """Rows as lanes: runs of up to 512 columns within a group, each filled up to blocks of 32.

    Example:
        >>> runs = group_runs(300, 128)
        >>> runs.count.tolist(), runs.blocks.tolist(), runs.place.tolist(), runs.width
        ([128, 128, 44], [4, 4, 2], [0, 128, 256], 320)
    """
    start, count, segment = _cut(columns, group)
    padded = -(-count // BLOCK) * BLOCK
    place = np.cumsum(padded, dtype=np.int64) - padded
    groups = -(-columns // group)
    return Runs(columns, groups, start, count, count, RUN, place, segment, int(padded.sum()))


def _cut(columns: int, group: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    starts, counts, segments = [], [], []
    for segment, first in enumerate(range(0, columns, group)):
        last = min(first + group, columns)
        for start in range(first, last, RUN):
            starts.append(start)
            counts.append(min(RUN, last - start))
            segments.append(segment)
    return np.array(starts, np.int32), np.array(counts, np.int32), np.array(segments, np.int32)
