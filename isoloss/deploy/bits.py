r"""Products of whole numbers of any bits, exact, from planes of bits: takes codes, gives sums.

With planes :math:`u = \sum_i 2^i u_i`, :math:`u_i \in \{0, 1\}`, packed along the columns,

.. math:: u \cdot v = \sum_{i, j} 2^{i+j} |u_i \wedge v_j|,

which takes one AND and one count of bits for 64 (a register of 512 bits: for 512) columns. Bipolar numbers, the odd ones
from :math:`-(2^b - 1)` to :math:`2^b - 1`, are :math:`x = 2u - (2^b - 1)`, so that

.. math:: x \cdot y = 4\, u \cdot v - 2\beta \sum u - 2\alpha \sum v + n\alpha\beta, \quad
          \alpha = 2^p - 1,\ \beta = 2^q - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoloss import native
from isoloss.native.products import plane_product


@dataclass(frozen=True, eq=False)
class BitPlanes:
    """Rows of unsigned whole numbers as planes of bits.

    Attributes:
        words: (rows, bits, words), each of 64 columns; those behind the last column are 0.
        columns: how many numbers a row has.
        sums: (rows,), of the numbers.
    """

    words: NDArray[np.uint64]
    columns: int
    sums: NDArray[np.int64]

    @property
    def bits(self) -> int:
        """Per number."""
        return int(self.words.shape[1])


def planes(codes: NDArray[np.integer], bits: int) -> BitPlanes:
    """Whole numbers from 0 to 2^bits - 1, (rows, columns), as planes.

    Raises:
        ValueError: not 1 to 8 bits, numbers beyond them, other shapes.

    Example:
        >>> planes(np.array([[1, 2, 3]]), 2).words.tolist()  # 101 and 110, read from the right
        [[[5], [6]]]
    """
    if not 1 <= bits <= 8 or codes.ndim != 2:
        raise ValueError(
            f"planes need 1 to 8 bits and codes of shape (rows, columns), got {bits} and {codes.shape}"
        )
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < 1 << bits:
        raise ValueError(
            f"codes of {bits} bits need 0 to {(1 << bits) - 1}, got {codes.min()} to {codes.max()}"
        )
    rows, columns = codes.shape
    words = -(-columns // 64)
    small = codes.astype(np.uint8)
    out = np.zeros((rows, bits, 8 * words), np.uint8)
    for i in range(bits):
        packed = np.packbits(small >> i & 1, axis=1, bitorder="little")
        out[:, i, : packed.shape[1]] = packed
    return BitPlanes(
        out.view("<u8").astype(np.uint64, copy=False), columns, codes.sum(axis=1, dtype=np.int64)
    )


def product(a: BitPlanes, b: BitPlanes, instructions: str | None = None) -> NDArray[np.int64]:
    """All products of a row of ``a`` with a row of ``b``: (rows, other rows), exact.

    Raises:
        ValueError: rows of other lengths.

    Example:
        >>> product(planes(np.array([[1, 2, 3]]), 2), planes(np.array([[7, 0, 5], [1, 1, 1]]), 3)).tolist()
        [[22, 6]]
    """
    if a.columns != b.columns:
        raise ValueError(f"rows need the same length, got {a.columns} and {b.columns}")
    out = np.zeros((len(a.words), len(b.words)), np.int64)
    if native.available():
        plane_product(a.words, b.words, out, 0, len(a.words), instructions)
        return out
    for i in range(a.bits):
        for j in range(b.bits):
            both = a.words[:, None, i] & b.words[None, :, j]
            out += _counted(both).sum(axis=-1, dtype=np.int64) << (i + j)
    return out


def bipolar_product(a: BitPlanes, b: BitPlanes, instructions: str | None = None) -> NDArray[np.int64]:
    """The same for the odd numbers 2 u - (2^bits - 1) that codes u stand for.

    Example:
        >>> one = planes(np.array([[0, 1, 1]]), 1)  # -1, 1, 1
        >>> bipolar_product(one, planes(np.array([[0, 3, 1]]), 2)).tolist()  # -3, 3, -1
        [[5]]
    """
    alpha, beta = (1 << a.bits) - 1, (1 << b.bits) - 1
    inner = 4 * product(a, b, instructions)
    return inner - 2 * beta * a.sums[:, None] - 2 * alpha * b.sums[None, :] + a.columns * alpha * beta


_COUNT = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def _counted(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Bits that are set."""
    return _COUNT[np.ascontiguousarray(words).view(np.uint8)]
