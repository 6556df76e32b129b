"""Columns rounded one after another in native code: arrays checked, then handed over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoloss.native.kmeans import check
from isoloss.native.library import library, status

MOST_LEVELS = 256


def round_columns(
    x: NDArray[np.float32],
    levels: NDArray[np.float32],
    group: NDArray[np.int32],
    moves: NDArray[np.float32],
    codes: NDArray[np.uint8],
    moved: NDArray[np.float32],
    old: NDArray[np.float32] | None = None,
    kept: NDArray[np.bool_] | None = None,
    instructions: str | None = None,
) -> None:
    """Each column of ``x`` in turn to its nearest values, its change passed on to other columns.

    A matrix is held column by column, (columns, rows).

    Args:
        x: (columns, rows); holds afterwards what each number was at its turn, with ``old`` at the end.
        levels: (groups, count, rows), ascending along the second.
        group: (columns,): which of the groups.
        moves: (columns, columns): a change d of column j adds ``d * moves[j, k]`` to column k.
        codes: (columns, rows): the place of the value, written.
        moved: (columns, rows): the change, written.
        old: (columns, rows): changes are from these, and go to all other columns; default: from the number at its turn, to
            the columns behind.
        kept: (columns, rows): true where a number stays as it is at its turn.
        instructions: one of ``status().sets``; the best by default.

    Raises:
        RuntimeError: there is no native code.
        ValueError: shapes, types or layouts other than these.
        MemoryError: no room to work in.

    Example:
        >>> from isoloss import native
        >>> x, codes, moved = np.float32([[0.4], [1.0]]), np.empty((2, 1), np.uint8), np.empty((2, 1), np.float32)
        >>> levels, moves = np.float32([[[0], [1]]]), np.float32([[1, 2], [0, 1]])
        >>> if native.available():  # 0.4 goes to 0; the change, -0.4 twice, brings 1.0 to 0.2
        ...     round_columns(x, levels, np.zeros(2, np.int32), moves, codes, moved)
        ...     assert codes.tolist() == [[0], [0]] and np.allclose(x, [[0.4], [0.2]])
    """
    found = library()
    if found is None:
        raise RuntimeError(f"native code was asked for, but there is none: {status().reason}")
    columns, rows = x.shape
    check("x", x, ((columns, rows),), ("f4",))
    check("levels", levels, ((levels.shape[0], levels.shape[1], rows),), ("f4",))
    check("group", group, ((columns,),), ("i4",))
    check("moves", moves, ((columns, columns),), ("f4",))
    check("codes", codes, ((columns, rows),), ("u1",))
    check("moved", moved, ((columns, rows),), ("f4",))
    if old is not None:
        check("old", old, ((columns, rows),), ("f4",))
    if kept is not None:
        check("kept", kept, ((columns, rows),), ("b1",))
    answer = found.isoloss_round_columns(
        x.ctypes.data, columns, rows, levels.ctypes.data, levels.shape[1], group.ctypes.data, levels.shape[0],
        moves.ctypes.data, None if old is None else old.ctypes.data, None if kept is None else kept.ctypes.data,
        codes.ctypes.data, moved.ctypes.data, 0 if instructions is None else status().sets.index(instructions),
    )  # fmt: skip
    if answer == 1:
        raise MemoryError(f"rounding {columns} columns found no memory")
    if answer:
        raise ValueError(
            f"native rounding takes 1 to {MOST_LEVELS} values and groups of 0 to {levels.shape[0] - 1}, "
            f"got {levels.shape[1]} and up to {int(group.max())}"
        )
