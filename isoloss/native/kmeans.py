"""k-means on a line in native code: arrays checked, then handed over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoloss.native.library import library, status

Floats = NDArray[np.float32] | NDArray[np.float64]


def kmeans_rows(
    x: Floats,
    weights: Floats | None,
    centres: NDArray[np.float64],
    codes: NDArray[np.uint8],
    cost: NDArray[np.float64],
    instructions: str | None = None,
) -> None:
    """Exact k-means of every row of ``x``, written to ``centres``, ``codes`` and ``cost``.

    Args:
        x: (rows, n), float32 or float64, finite.
        weights: (rows, n) or (n,), float32 or float64, finite, at least 0; ``None``: all one.
        centres: (rows, levels).
        codes: (rows, n).
        cost: (rows,).
        instructions: one of ``status().sets``; the best by default.

    Raises:
        RuntimeError: there is no native code.
        ValueError: shapes, types or layouts other than these.
        MemoryError: no room to work in.

    Example:
        >>> from isoloss import native
        >>> centres, codes, cost = np.empty((1, 2)), np.empty((1, 3), np.uint8), np.empty(1)
        >>> if native.available():
        ...     kmeans_rows(np.array([[1.0, 5.0, 2.0]]), None, centres, codes, cost)
        ...     assert centres.tolist() == [[1.5, 5.0]] and codes.tolist() == [[0, 1, 0]]
    """
    found = library()
    if found is None:
        raise RuntimeError(f"native code was asked for, but there is none: {status().reason}")
    rows, n = x.shape
    check("x", x, ((rows, n),), ("f4", "f8"))
    if weights is not None:
        check("weights", weights, ((rows, n), (n,)), ("f4", "f8"))
    check("centres", centres, ((rows, centres.shape[-1]),), ("f8",))
    check("codes", codes, ((rows, n),), ("u1",))
    check("cost", cost, ((rows,),), ("f8",))
    sets = status().sets
    answer = found.isoloss_kmeans_rows(
        x.ctypes.data, x.itemsize == 8, rows, n,
        None if weights is None else weights.ctypes.data,
        weights is not None and weights.itemsize == 8, weights is not None and weights.ndim == 1,
        centres.shape[1], centres.ctypes.data, codes.ctypes.data, cost.ctypes.data,
        0 if instructions is None else sets.index(instructions),
    )  # fmt: skip
    if answer == 1:
        raise MemoryError(f"k-means of rows of {n} numbers found no memory")
    if answer:
        raise ValueError(f"native k-means takes 1 to 256 levels and rows of 1 to 2^29 numbers, got {x.shape}")


def check(
    name: str, array: NDArray[np.generic], shapes: tuple[tuple[int, ...], ...], kinds: tuple[str, ...]
) -> None:
    """Refuse what C code would read wrongly.

    Raises:
        ValueError: another shape, type or layout.
    """
    native = array.dtype.isnative and array.dtype.str[1:] in kinds
    if array.shape not in shapes or not native or not (array.flags.c_contiguous and array.flags.aligned):
        wanted = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name} needs shape {wanted}, type {' or '.join(kinds)} and aligned, contiguous rows, "
            f"got {array.shape} of {array.dtype}"
        )
