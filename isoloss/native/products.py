"""Products with compressed matrices in native code: arrays checked, then handed over."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.native.kmeans import check
from isoloss.native.library import library, status
from isoloss.native.reals import RealMatrix
from isoloss.native.runs import BLOCK, PLANE, RUN, TILE, Runs

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
MOST_COLUMNS = 1 << 20
MOST_TOKENS = 1 << 20


@dataclass(frozen=True, eq=False)
class TableMatrix:
    """Codes with a table of bytes, or of fp16 numbers, per row and segment.

    Attributes:
        runs: of its columns.
        bits: 1 to 6; with fp16 numbers 1 to 4.
        codes: (rows, bits * sum of ``runs.wide``).
        table: (rows, segments, 2^bits), bytes or fp16.
        step: (rows, segments); of bytes alone.
        low: (rows, segments); of bytes alone.

    Raises:
        ValueError: shapes, types or layouts other than these.
    """

    runs: Runs
    bits: int
    codes: Bytes
    table: Bytes | NDArray[np.float16]
    step: Floats | None = None
    low: Floats | None = None

    def __post_init__(self) -> None:
        most = 6 if self.step is not None else 4
        if not 1 <= self.bits <= most or self.runs.columns > MOST_COLUMNS:
            raise ValueError(
                f"tables need 1 to {most} bits and up to {MOST_COLUMNS} columns, got {self.bits}"
            )
        if self.runs.width != RUN * len(self.runs.count):  # the kernel reads whole runs
            raise ValueError(
                f"tables need the runs of table_runs, got {len(self.runs.count)} of {self.runs.width}"
            )
        rows = self.rows
        check("codes", self.codes, ((rows, self.bits * self.runs.planes_bytes),), ("u1",))
        kinds = ("u1",) if self.step is not None else ("f2",)
        check("table", self.table, ((rows, self.runs.segments, 1 << self.bits),), kinds)
        if self.step is not None and self.low is not None:
            check("step", self.step, ((rows, self.runs.segments),), ("f4",))
            check("low", self.low, ((rows, self.runs.segments),), ("f4",))

    @property
    def rows(self) -> int:
        return len(self.codes)

    @property
    def columns(self) -> int:
        return self.runs.columns


@dataclass(frozen=True, eq=False)
class GroupMatrix:
    """Levels with a scale per row and group: ``times * code + offset - zero``, a code perhaps looked up in one table.

    Attributes:
        runs: of its columns.
        bits: 1 to 8; with a table 1 to 4.
        rows: of the matrix; the last tile of 16 is filled up.
        codes: (tiles, blocks, bits, 64).
        scale: (tiles, groups, 16), fp16 or float32.
        zero: (tiles, groups, 16), or None.
        table: (64,), entries again and again, or None.
        times: 1 or 2.
        offset: -256 to 256.

    Raises:
        ValueError: shapes, types or layouts other than these.
    """

    runs: Runs
    bits: int
    rows: int
    codes: Bytes
    scale: NDArray[np.float16] | Floats
    zero: Bytes | None = None
    table: Bytes | None = None
    times: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        most = 8 if self.table is None else 4
        if not 1 <= self.bits <= most or self.runs.columns > MOST_COLUMNS:
            raise ValueError(
                f"levels need 1 to {most} bits and up to {MOST_COLUMNS} columns, got {self.bits}"
            )
        tiles, blocks = -(-self.rows // TILE), self.runs.width // BLOCK
        check("codes", self.codes, ((tiles, blocks, self.bits, PLANE),), ("u1",))
        check("scale", self.scale, ((tiles, self.runs.segments, TILE),), ("f2", "f4"))
        if self.zero is not None:
            check("zero", self.zero, ((tiles, self.runs.segments, TILE),), ("u1",))
        if self.table is not None:
            check("table", self.table, ((PLANE,),), ("u1",))

    @property
    def columns(self) -> int:
        return self.runs.columns


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A few fp16 numbers in compressed rows.

    Attributes:
        columns: of the matrix.
        value: fp16.
        column: uint8, uint16 or int32 of each.
        row: (rows + 1,), int32: where each row begins.

    Raises:
        ValueError: shapes or types other than these, a column or a row pointer out of order.
    """

    columns: int
    value: NDArray[np.float16]
    column: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int32]
    row: NDArray[np.int32]

    def __post_init__(self) -> None:
        count = self.value.shape[0] if self.value.ndim == 1 else -1
        check("value", self.value, ((count,),), ("f2",))
        check("column", self.column, ((count,),), ("u1", "u2", "i4"))
        check("row", self.row, ((len(self.row),),), ("i4",))
        ordered = (
            len(self.row) > 0
            and self.row[0] == 0
            and self.row[-1] == count
            and bool((np.diff(self.row) >= 0).all())
        )
        inside = count == 0 or (int(self.column.min()) >= 0 and int(self.column.max()) < self.columns)
        if not ordered or not inside:
            raise ValueError(
                f"sparse rows need pointers that rise from 0 to {count} and columns below {self.columns}. "
                "The tensors are damaged"
            )


class WeightFields(ctypes.Structure):
    """``isoloss_weight`` of ``native/isoloss.h``; a test holds this against it."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "kind", "bits", "rows", "columns", "runs", "segments", "width", "stride", "row_bytes"
        )),
        *((name, ctypes.c_void_p) for name in (
            "start", "count", "wide", "segment", "place", "codes", "table", "step", "low", "scale", "zero"
        )),
        *((name, ctypes.c_int64) for name in ("half", "times", "offset", "outlier_bytes")),
        *((name, ctypes.c_void_p) for name in ("outlier", "outlier_column", "outlier_row", "reals")),
    ]  # fmt: skip


_TABLES, _FLOATS, _LEVELS, _REALS, _ADDED = range(5)


class Weight:
    """A compressed matrix made ready once, so that a product is a single call.

    Args:
        matrix: its numbers; None: there are outliers alone, which are added to what lies in ``out``.
        sparse: outliers, added to it; of the same rows and columns.

    Raises:
        RuntimeError: there is no native code.
        ValueError: parts that do not fit each other.

    Attributes:
        shape: rows and columns.
        address: of its structure, good for as long as this lives.
    """

    def __init__(
        self,
        matrix: TableMatrix | GroupMatrix | RealMatrix | None,
        sparse: SparseMatrix | None = None,
    ) -> None:
        beside = None if sparse is None else (len(sparse.row) - 1, sparse.columns)
        shape = beside if matrix is None else (matrix.rows, matrix.columns)
        if shape is None or beside not in (None, shape):
            raise ValueError(f"a matrix and its outliers need the same shape, got {shape} and {beside}")
        self.shape = shape
        fields = WeightFields(kind=_ADDED, rows=shape[0], columns=shape[1])
        if isinstance(matrix, RealMatrix):
            self._reals = matrix.fields()
            fields.kind, fields.reals = _REALS, ctypes.addressof(self._reals)
            fields.row_bytes = matrix.nbytes // matrix.rows
        elif matrix is not None:
            _fill(fields, matrix)
        if sparse is not None:
            fields.outlier, fields.outlier_column = address_of(sparse.value), address_of(sparse.column)
            fields.outlier_row, fields.outlier_bytes = address_of(sparse.row), sparse.column.itemsize
        self._kept = (matrix, sparse, fields)  # what the addresses are of
        self.address = ctypes.addressof(fields)
        found = needed_library()
        self._product = found.isoloss_product
        _done(found.isoloss_weight_fits(self.address))

    def product(
        self, x: int, tokens: int, parts: int, bias: int | None, out: int, threads: int,
        instructions: str | None = None,
    ) -> None:  # fmt: skip
        """The product with activations, written to ``out``. Addresses are taken on trust: looking longer shows in time.

        Args:
            x: where (tokens, columns) float32 lie.
            tokens: how many.
            parts: activations become 8 bits (1) or 16 (2); with fp16 tables they stay as they are (1).
            bias: where (rows,) float32 to add lie, or None.
            out: where (tokens, rows) float32 will lie.
            threads: that share rows at most.
            instructions: one of ``status().sets``; the best by default.

        Raises:
            ValueError: a number out of range.
            MemoryError: no room to work in.
        """
        answer = self._product(self.address, x, tokens, parts, bias, out, threads, place_of(instructions))
        if answer == 1:
            raise MemoryError(f"a product with {tokens} tokens found no memory")
        if answer:
            raise ValueError(
                f"native products take up to {MOST_TOKENS} tokens, and 1 part, or 2 of tables of bytes and levels, "
                f"got {tokens} and {parts}"
            )


def _fill(fields: WeightFields, matrix: TableMatrix | GroupMatrix) -> None:
    runs = matrix.runs
    fields.bits, fields.runs, fields.segments = matrix.bits, len(runs.count), runs.segments
    fields.width, fields.stride = runs.width, runs.stride
    for name in ("start", "count", "wide", "segment", "place"):
        setattr(fields, name, address_of(getattr(runs, name)))
    fields.codes, fields.row_bytes = address_of(matrix.codes), matrix.codes[:1].nbytes
    if matrix.table is not None:
        fields.table = address_of(matrix.table)
    if isinstance(matrix, GroupMatrix):
        fields.kind, fields.times, fields.offset = _LEVELS, matrix.times, matrix.offset
        fields.scale, fields.half = address_of(matrix.scale), matrix.scale.itemsize == 2
        if matrix.zero is not None:
            fields.zero = address_of(matrix.zero)
    elif matrix.step is not None and matrix.low is not None:
        fields.kind, fields.step, fields.low = _TABLES, address_of(matrix.step), address_of(matrix.low)
    else:
        fields.kind = _FLOATS


def plane_product(
    a: NDArray[np.uint64], b: NDArray[np.uint64], out: NDArray[np.int64], first: int, last: int,
    instructions: str | None = None,
) -> None:  # fmt: skip
    """Exact products of unsigned numbers held as planes of bits.

    Args:
        a: (rows, bits, words).
        b: (other rows, bits, words).
        out: (rows, other rows); rows ``first`` to ``last`` are written.
        first: row.
        last: row behind the last.
        instructions: one of ``status().sets``; the best by default.

    Raises:
        RuntimeError: there is no native code.
        ValueError: shapes, types or layouts other than these.
    """
    check("a", a, ((a.shape[0], a.shape[1], b.shape[2]),), ("u8",))
    check("b", b, (b.shape,), ("u8",))
    check("out", out, ((a.shape[0], b.shape[0]),), ("i8",))
    if not 0 <= first <= last <= a.shape[0]:
        raise ValueError(f"rows need to lie in 0 to {a.shape[0]}, got {first} to {last}")
    _done(needed_library().isoloss_plane_product(
        address_of(a), a.shape[1], first, last, address_of(b), b.shape[1], b.shape[0], b.shape[2], address_of(out),
        place_of(instructions),
    ))  # fmt: skip


def read_bytes(memory: Bytes, instructions: str | None = None) -> int:
    """Read an array and do nothing with it: what the bandwidth of memory is measured with.

    Raises:
        RuntimeError: there is no native code.
        ValueError: another type or layout.
    """
    check("memory", memory, (memory.shape,), ("u1",))
    return int(needed_library().isoloss_read_bytes(address_of(memory), memory.size, place_of(instructions)))


def address_of(array: NDArray[Any]) -> int:
    """Its address."""
    return int(array.__array_interface__["data"][0])


def needed_library() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: there is none.
    """
    found = library()
    if found is None:
        raise RuntimeError(f"native code was asked for, but there is none: {status().reason}")
    return found


def place_of(instructions: str | None) -> int:
    """The number of a set of instructions; of the best by default."""
    return 0 if instructions is None else status().sets.index(instructions)


def _done(answer: int) -> None:
    if answer:
        raise ValueError(
            "native products take sizes below 2^31 and rows in their range. Give what packing made"
        )
