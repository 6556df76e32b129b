"""Exact weighted k-means on a line, for every row of a matrix: the best table of levels that a row can have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isoloss import native
from isoloss.compress.kmeans_numpy import kmeans_rows as numpy_rows
from isoloss.native import library
from isoloss.native.kmeans import Floats
from isoloss.native.kmeans import kmeans_rows as native_rows

MOST_LEVELS = 256
_PIECES = 4  # parts of the rows per thread, so that no thread waits long for the last


class Tables(NamedTuple):
    """A table of levels per row, and what is lost by it.

    Args:
        centres: (rows, levels), float64, ascending. A row with fewer different numbers than levels repeats its last.
        codes: (rows, n), uint8: which level stands for the number. Equal numbers have equal codes.
        cost: (rows,), the sum of weight times squared error.
    """

    centres: NDArray[np.float64]
    codes: NDArray[np.uint8]
    cost: NDArray[np.float64]


def kmeans_rows(x: ArrayLike, weights: ArrayLike | None, levels: int, *, threads: int = 1) -> Tables:
    r"""For every row the levels and codes that lose least: :math:`\min \sum_i w_i (x_i - c_{k(i)})^2`, exactly.

    On a line each level stands for a run of neighbours, and the best runs are found without trying all. With
    native code a price per level takes the place of the number of levels: the best partition at a price costs
    :math:`n \log n`, and at the right price, it is the best of all with that many levels. Without it, dynamic
    programming in NumPy gives the same least cost, 50 to 100 times slower, and a ``native.SlowPath`` warning.

    Exact means to rounding in float64: about 1e-15 of the row's :math:`\sum w (x - \text{median})^2`. Numbers are taken
    from their median and scaled first, so that offset and unit do not matter. Of partitions that cost the same
    either may come. The result does not depend on ``threads`` or the instruction set.

    Args:
        x: (rows, n) or (n,), one row; finite. float32 and float64 are read as they are, float16 as float32,
            integers as float64.
        weights: what an error counts: shape of ``x``, or (n,) for all rows; finite, at least 0; ``None``: all one. A
            number of weight 0 has no say and is given to the nearest level (of two, the lower); so is one below 2^-48
            of its row's total, which float64 sums lose. A row of zeros counts as equal weights, with cost 0.
        levels: 1 to 256.
        threads: rows are shared among so many.

    Raises:
        ValueError: no numbers, another shape, or levels or threads out of range; a row with a NaN or an infinite number,
            or with such a weight or a negative one.
        TypeError: numbers that are no floats or integers.

    Source:
        The price: A. Aggarwal, B. Schieber, T. Tokuyama, Finding a minimum-weight k-link path in graphs with the concave
        Monge property, 1994; for k-means A. Grønlund et al., 2017, arXiv 1701.07204. Dynamic programming: H. Wang, M. Song,
        Ckmeans.1d.dp, 2011.

    Example:
        >>> x = [[-2.1, -1.9, -1.0, -0.2, 0.0, 0.1, 0.4, 1.2, 1.3, 2.6]]
        >>> tables = kmeans_rows(x, [1, 2, 1, 5, 8, 5, 2, 1, 3, 0.5], 3)
        >>> tables.centres.round(5).tolist(), tables.codes.tolist(), tables.cost.round(6).tolist()
        ([[-1.725, 0.015, 1.42222]], [[0, 0, 0, 1, 1, 1, 1, 2, 2, 2]], [2.080778])
    """
    numbers = _floats("x", x)
    numbers = numbers[None] if numbers.ndim == 1 else numbers
    if numbers.ndim != 2 or numbers.shape[1] == 0:
        raise ValueError(f"x needs rows of at least one number, got shape {numbers.shape}")
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels need to be 1 to {MOST_LEVELS}, got {levels}")
    if threads < 1:
        raise ValueError(f"threads need to be at least 1, got {threads}")
    rows, n = numbers.shape
    _refuse(~np.isfinite(numbers), "x needs finite numbers")
    weigh = None if weights is None else _weights(weights, rows, n)

    tables = Tables(np.empty((rows, levels)), np.empty((rows, n), np.uint8), np.empty(rows))
    if not native.available():
        library.warn_slow("k-means in NumPy takes 50 to 100 times as long as in native code")

    def solve(first: int, last: int) -> None:
        part = slice(first, last)
        weighed = weigh if weigh is None or weigh.ndim == 1 else weigh[part]
        run = native_rows if native.available() else numpy_rows
        run(numbers[part], weighed, tables.centres[part], tables.codes[part], tables.cost[part])

    if threads == 1:
        solve(0, rows)
    else:
        count = max(1, min(rows, threads * _PIECES))
        cuts = [rows * i // count for i in range(count + 1)]
        with ThreadPoolExecutor(threads) as pool:  # native code runs without the interpreter's lock
            list(pool.map(solve, cuts[:-1], cuts[1:]))
    return tables


def _floats(name: str, given: ArrayLike) -> Floats:
    """As float32 or float64 that C code can read."""
    array = np.asarray(given)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} needs floats, got {array.dtype}")
    kind = np.float32 if array.dtype.kind == "f" and array.itemsize <= 4 else np.float64
    return np.require(array, kind, ["C", "A"])


def _weights(given: ArrayLike, rows: int, n: int) -> Floats:
    weights = _floats("weights", given)
    if weights.shape not in ((rows, n), (n,)):
        raise ValueError(f"weights need the shape {(rows, n)} or {(n,)}, got {weights.shape}")
    _refuse(~(np.isfinite(weights) & (weights >= 0)), "weights need to be finite and at least 0")
    return weights


def _refuse(bad: NDArray[np.bool_], needed: str) -> None:
    """Name the first row that cannot be used."""
    if bad.any():
        first = np.unravel_index(int(bad.argmax()), bad.shape)
        where = f"row {first[0]}, column {first[1]}" if bad.ndim == 2 else f"column {first[0]}"
        count = int(bad.sum())
        raise ValueError(f"{needed}, got others at {where}" + (f" and {count - 1} more" if count > 1 else ""))
