"""takes columns, gives which rows are equal in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["group_ids", "members"]


def group_ids(columns: Sequence[npt.NDArray[Any]], length: int) -> npt.NDArray[np.intp]:
    """For each row the number of its group, 0 to groups - 1; NaN equals NaN, no column is one group.

    Example:
        >>> group_ids([np.array([1.0, 2.0, 1.0]), np.array(["a", "a", "a"])], 3)
        array([0, 1, 0])
    """
    ids = np.zeros(length, dtype=np.intp)
    for column in columns:
        _, codes = np.unique(column, return_inverse=True)
        # renumbered each time, so that the product never overflows
        _, ids = np.unique(ids * (int(codes.max(initial=0)) + 1) + codes.reshape(-1), return_inverse=True)
    return ids.reshape(-1)


def members(ids: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    """The positions in each group, groups in order of their number, positions ascending.

    Example:
        >>> members(np.array([0, 1, 0]))
        [array([0, 2]), array([1])]
    """
    if len(ids) == 0:
        return []
    order = np.argsort(ids, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(ids[order])) + 1)
