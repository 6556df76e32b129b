"""Products with compressed matrices in native code: arrays checked, then handed over."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.native.kmeans import check
from isoloss.native.library import library, status
from isoloss.native.runs import BLOCK, PLANE, RUN, TILE, Runs

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
MOST_COLUMNS = 1 << 20


@dataclass(frozen=True, eq=False)
class Rounded:
    """Activations in 8 bits, or in 16 as two tokens of 8.

    Attributes:
        codes: (tokens * parts, width).
        scale: (tokens * parts, runs).
        sum: (tokens * parts, runs), of the codes.
        segment_sum: (tokens * parts, segments), of scale times sum.
    """

    codes: NDArray[np.int8]
    scale: Floats
    sum: NDArray[np.int32]
    segment_sum: Floats


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

    @cached_property
    def _held(self) -> tuple[int, ...]:
        """Addresses, taken once: looking them up takes longer than a small product."""
        parts = [self.codes, self.table, *([] if self.step is None else [self.step, self.low])]
        return tuple(_at(part) for part in (*parts, self.runs.wide, self.runs.segment) if part is not None)

    def product(
        self, x: Rounded, out: Floats, first: int, last: int, instructions: str | None = None
    ) -> None:
        """Rows ``first`` to ``last`` of the product with rounded activations, written to ``out`` (tokens, rows)."""
        tokens, runs = _rounded_fits(x, self.runs, out, self.rows, first, last), self.runs
        codes, table, step, low, wide, segment = self._held
        _done(_library().isoloss_table_product(
            codes, self.bits, self.codes.shape[1], table, step, low, wide, segment, len(runs.count), runs.segments,
            _at(x.codes), _at(x.scale), _at(x.segment_sum), tokens, first, last,
            _at(out), self.rows, _place(instructions),
        ))  # fmt: skip

    def float_product(
        self, x: Floats, out: Floats, first: int, last: int, instructions: str | None = None
    ) -> None:
        """The same with float32 activations, arranged by :func:`arranged`, and fp16 tables."""
        tokens, runs = out.shape[0], self.runs
        check("x", x, ((tokens, runs.width),), ("f4",))
        _out_fits(out, tokens, self.rows, first, last)
        codes, table, wide, segment = self._held
        _done(_library().isoloss_table_floats(
            codes, self.bits, self.codes.shape[1], table, wide, segment, len(runs.count), runs.segments, _at(x),
            tokens, first, last, _at(out), self.rows, _place(instructions),
        ))  # fmt: skip


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

    @cached_property
    def _held(self) -> tuple[int | None, ...]:
        parts = (self.codes, self.table, self.scale, self.zero, self.runs.blocks, self.runs.segment)
        return tuple(None if part is None else _at(part) for part in parts)

    def product(
        self, x: Rounded, out: Floats, first: int, last: int, instructions: str | None = None
    ) -> None:
        """Rows ``first`` (a multiple of 16) to ``last`` of the product, written to ``out`` (tokens, rows)."""
        tokens, runs = _rounded_fits(x, self.runs, out, self.rows, first, last), self.runs
        codes, table, scale, zero, blocks, group = self._held
        _done(_library().isoloss_group_product(
            codes, self.bits, table, scale, self.scale.itemsize == 2, zero, self.times, self.offset, blocks, group,
            len(runs.count), runs.segments, _at(x.codes), _at(x.scale), _at(x.sum), tokens,
            self.rows, first, last, _at(out), self.rows, _place(instructions),
        ))  # fmt: skip


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

    @cached_property
    def _held(self) -> tuple[int, ...]:
        return tuple(_at(part) for part in (self.value, self.column, self.row))

    def add(self, x: Floats, out: Floats, first: int, last: int, instructions: str | None = None) -> None:
        """Rows ``first`` to ``last`` of the product with ``x`` (tokens, columns), added to ``out`` (tokens, rows)."""
        tokens, rows = x.shape[0], len(self.row) - 1
        check("x", x, ((tokens, self.columns),), ("f4",))
        _out_fits(out, tokens, rows, first, last)
        value, column, row = self._held
        _done(_library().isoloss_sparse_add(
            value, column, self.column.itemsize, row, _at(x), tokens, self.columns, first, last,
            _at(out), rows, _place(instructions),
        ))  # fmt: skip


def rounded(x: Floats, runs: Runs, parts: int, instructions: str | None = None) -> Rounded:
    """Activations (tokens, columns) in 8 bits, or with two parts in 16.

    Raises:
        RuntimeError: there is no native code.
        ValueError: shapes, types or layouts other than these.
    """
    tokens = x.shape[0]
    check("x", x, ((tokens, runs.columns),), ("f4",))
    made = Rounded(
        np.empty((tokens * parts, runs.width), np.int8),
        np.empty((tokens * parts, len(runs.count)), np.float32),
        np.empty((tokens * parts, len(runs.count)), np.int32),
        np.empty((tokens * parts, runs.segments), np.float32),
    )
    start, count, wide, place, segment = runs.addresses
    _done(_library().isoloss_activations(
        _at(x), tokens, runs.columns, start, count, wide, runs.stride, place, segment, len(runs.count), runs.segments, runs.width,
        parts, _at(made.codes), _at(made.scale), _at(made.sum), _at(made.segment_sum),
        _place(instructions),
    ))  # fmt: skip
    return made


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
    _done(_library().isoloss_plane_product(
        _at(a), a.shape[1], first, last, _at(b), b.shape[1], b.shape[0], b.shape[2], _at(out),
        _place(instructions),
    ))  # fmt: skip


def read_bytes(memory: Bytes, instructions: str | None = None) -> int:
    """Read an array and do nothing with it: what the bandwidth of memory is measured with.

    Raises:
        RuntimeError: there is no native code.
        ValueError: another type or layout.
    """
    check("memory", memory, (memory.shape,), ("u1",))
    return int(_library().isoloss_read_bytes(_at(memory), memory.size, _place(instructions)))


def arranged(x: Floats, runs: Runs) -> Floats:
    """Float activations (tokens, columns) as :meth:`TableMatrix.float_product` reads them."""
    padded = np.zeros((x.shape[0], len(runs.count), RUN // PLANE, PLANE), np.float32)
    for b, (start, count, wide) in enumerate(zip(runs.start, runs.count, runs.wide, strict=True)):
        planes = -(-count // wide)
        full = np.zeros((x.shape[0], planes * wide), np.float32)
        full[:, :count] = x[:, start : start + count]
        padded[:, b, :planes, :wide] = full.reshape(x.shape[0], planes, wide)
    lanes = padded.reshape(*padded.shape[:3], TILE, 4).swapaxes(3, 4)
    return np.ascontiguousarray(lanes).reshape(x.shape[0], -1)


def _at(array: NDArray[Any]) -> int:
    """Its address; ``array.ctypes`` takes three times as long, which shows in small products."""
    return int(array.__array_interface__["data"][0])


def _library() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError(f"native code was asked for, but there is none: {status().reason}")
    return found


def _place(instructions: str | None) -> int:
    return 0 if instructions is None else status().sets.index(instructions)


def _done(answer: int) -> None:
    if answer:
        raise ValueError(
            "native products take sizes below 2^31 and rows in their range. Give what packing made"
        )


def _rounded_fits(x: Rounded, runs: Runs, out: Floats, rows: int, first: int, last: int) -> int:
    tokens = len(out)
    check("activations", x.codes, ((tokens, runs.width),), ("i1",))
    check("scale", x.scale, ((tokens, len(runs.count)),), ("f4",))
    check("sum", x.sum, ((tokens, len(runs.count)),), ("i4",))
    check("segment_sum", x.segment_sum, ((tokens, runs.segments),), ("f4",))
    _out_fits(out, tokens, rows, first, last)
    return tokens


def _out_fits(out: Floats, tokens: int, rows: int, first: int, last: int) -> None:
    check("out", out, ((tokens, rows),), ("f4",))
    if not 0 <= first <= last <= rows:
        raise ValueError(f"rows need to lie in 0 to {rows}, got {first} to {last}")
