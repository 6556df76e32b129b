"""Optimal Brain Quantization, one weight at a time, and rounding by enumeration: exact, for a few columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np


def obq(w, h, nearest: Callable[[float, int], float], order=None):
    """Row ``w`` rounded one weight after another, the rest updated each time.

    Args:
        w: (n,).
        h: (n, n), positive definite.
        nearest: a number and its column -> the nearest value there.
        order: of columns; None: greedy, the one that costs least next.

    Returns:
        The rounded row, and each weight as it was at its turn.
    """
    w, inverse = np.array(w, float), np.linalg.inv(np.array(h, float))
    left, turn, rounded = list(range(len(w))), np.zeros(len(w)), np.zeros(len(w))
    for step in range(len(w)):
        if order is None:
            j = min(left, key=lambda i: (nearest(w[i], i) - w[i]) ** 2 / inverse[i, i])
        else:
            j = order[step]
        turn[j], rounded[j] = w[j], nearest(w[j], j)
        column = inverse[:, j].copy()
        w = w - (w[j] - rounded[j]) / column[j] * column
        inverse = inverse - np.outer(column, column) / column[j]
        left.remove(j)
    return rounded, turn


def best_rounding(w, h, values):
    """The row with the least (w - q) H (w - q) of all that have each entry among its column's values."""
    rows = np.array(list(itertools.product(*values)))
    gap = rows - np.asarray(w)
    cost = np.einsum("ij,jk,ik->i", gap, h, gap)
    return rows[cost.argmin()], float(cost.min())
