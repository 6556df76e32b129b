"""Products of float32 activations with matrices whose numbers become floats as they are read, in native code."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from isoloss.native.kmeans import check
from isoloss.native.runs import TILE

RealKind = Literal["half", "small-float", "wide-table", "vectors", "n-of-m", "blocks"]
"""In the order of the numbers that ``native/isoloss.h`` gives them."""

Type = Literal["float", "fp16", "bf16", "int16", "power", "e4m3"]
_SIZES = {"float": "f4", "fp16": "u2", "bf16": "u2", "int16": "u2", "power": "u1", "e4m3": "u1"}
MOST_COLUMNS = 1 << 20


class RealFields(ctypes.Structure):
    """``isoloss_reals`` of ``native/isoloss.h``; a test holds this against it."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "columns", "group", "kept")),
        *((name, ctypes.c_void_p) for name in ("value", "scale", "code", "zero", "unit", "index", "start")),
        *(
            (name, ctypes.c_int32)
            for name in ("kind", "type", "scale_type", "bits", "exponent", "bias", "n", "shared")
        ),
    )


@dataclass(frozen=True, eq=False)
class RealMatrix:
    """A matrix as ``isoloss_reals`` of ``native/isoloss.h``; there each kind's arrays are described.

    Attributes:
        kind: what the arrays are.
        rows, columns: of the matrix.
        group: columns that share a scale, a table, a code or a pattern.
        bits: of a code.
        value: numbers of ``type``, those of 16 bits as uint16.
        type: of them.
        code: bytes.
        scale: of ``scale_type``.
        scale_type: of it.
        unit: times all of a row, float32.
        zero: of whole numbers, what is taken from them.
        index: int32.
        start: int32.
        exponent: bits of a small float's exponent; 0: whole numbers; -1: places in a table.
        bias: of it; of whole numbers, what is added to ``n`` times the code.
        n: how many of a group are kept.

    Raises:
        ValueError: arrays of another size or type, or that lead outside of the matrix.
    """

    kind: RealKind
    rows: int
    columns: int
    group: int
    bits: int = 16
    value: NDArray[Any] | None = None
    type: Type = "float"
    code: NDArray[np.uint8] | None = None
    scale: NDArray[Any] | None = None
    scale_type: Type = "float"
    unit: NDArray[np.float32] | None = None
    zero: NDArray[np.uint8] | None = None
    index: NDArray[np.int32] | None = None
    start: NDArray[np.int32] | None = None
    exponent: int = 0
    bias: int = 0
    n: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.group) < 1 or self.columns > MOST_COLUMNS:
            raise ValueError(
                f"a matrix needs rows, columns and groups of at least 1 and at most {MOST_COLUMNS} columns, got "
                f"{self.rows}, {self.columns} and {self.group}"
            )
        for name, wanted in _sizes(self).items():
            array = getattr(self, name)
            kind = {"value": self.type, "scale": self.scale_type, "unit": "float"}.get(name)
            letters = _SIZES[kind] if kind else "i4" if name in ("index", "start") else "u1"
            if array is None:
                raise ValueError(f"a matrix of kind {self.kind} needs {name}")
            check(name, array.reshape(-1) if array.ndim != 1 else array, ((wanted,),), (letters,))
        if self.kind == "blocks":
            _refuse_blocks(self)
        if self.kind == "n-of-m":
            _refuse_places(self)

    @property
    def groups(self) -> int:
        """Of columns."""
        return -(-self.columns // self.group)

    @property
    def tiles(self) -> int:
        """Of 16 rows."""
        return -(-self.rows // TILE)

    @property
    def nbytes(self) -> int:
        """Of all arrays."""
        parts = (self.value, self.code, self.scale, self.unit, self.zero, self.index, self.start)
        return sum(0 if part is None else part.nbytes for part in parts)

    def fields(self) -> RealFields:
        """For the native product; good while this matrix lives."""

        def at(array: NDArray[Any] | None) -> int | None:
            return None if array is None else int(array.__array_interface__["data"][0])

        types = get_args(Type)
        return RealFields(
            self.rows, self.columns, self.group, 0 if self.index is None else len(self.index),
            at(self.value), at(self.scale), at(self.code), at(self.zero), at(self.unit), at(self.index), at(self.start),
            get_args(RealKind).index(self.kind), types.index(self.type), types.index(self.scale_type),
            self.bits, self.exponent, self.bias, self.n,
            self.value is not None and self.value.ndim == 3 and self.value.shape[0] == 1,
        )  # fmt: skip


def _sizes(m: RealMatrix) -> dict[str, int]:
    """Array -> how many numbers it holds."""
    whole, last = m.groups - 1, m.columns - (m.groups - 1) * m.group
    if m.kind == "half":
        return {"value": m.rows * m.columns, **({} if m.scale is None else {"scale": m.rows * m.groups})}
    if m.kind == "small-float":
        beside = {
            "scale": m.tiles * m.groups * TILE,
            "zero": m.tiles * m.groups * TILE,
            "unit": m.tiles * TILE,
        }
        beside = {name: count for name, count in beside.items() if getattr(m, name) is not None}
        if m.exponent < 0:
            beside["value"] = TILE
        return {"code": m.tiles * pairs(m.columns, m.group) * 4 * m.bits, **beside}
    if m.kind == "wide-table":
        tables = (1 if m.value is not None and m.value.shape[0] == 1 else m.rows) * m.groups
        each = whole * -(-m.group // 8) + -(-last // 8)
        return {"code": m.rows * each * m.bits, "value": tables << m.bits}
    if m.kind == "vectors":
        return {"code": m.groups * m.tiles * 2 * m.bits, "value": m.group << m.bits}
    if m.kind == "n-of-m":
        count = 0 if m.index is None else len(m.index)
        return {"value": m.rows * count, "code": m.rows * count * m.bits // 8, "index": count}
    count = 0 if m.index is None else len(m.index)
    return {"value": count * m.group * TILE, "index": count, "start": m.tiles + 1}


def pairs(columns: int, group: int) -> int:
    """Twos of columns, none of which is of two groups.

    Example:
        >>> pairs(10, 3)  # 3 + 3 + 3 + 1
        7
    """
    whole = (columns - 1) // group
    return whole * -(-group // 2) + -(-(columns - whole * group) // 2)


def _refuse_places(m: RealMatrix) -> None:
    assert m.index is not None
    if len(m.index) % TILE or int(m.index.min()) < 0 or int(m.index.max()) >= m.columns:
        raise ValueError(
            f"n of {m.group} need columns below {m.columns} and a multiple of {TILE} of them, got {len(m.index)}"
        )


def _refuse_blocks(m: RealMatrix) -> None:
    assert m.index is not None
    assert m.start is not None
    count = len(m.index)
    ordered = m.start[0] == 0 and m.start[-1] == count and bool((np.diff(m.start) >= 0).all())
    inside = count == 0 or (int(m.index.min()) >= 0 and int(m.index.max()) < m.groups)
    if not ordered or not inside:
        raise ValueError(
            f"blocks need pointers that rise from 0 to {count} and columns below {m.groups}. The tensors are damaged"
        )
