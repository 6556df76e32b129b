"""Encoded weights as modules that decode them with ONNX operators from what is stored.

A module has the stored tensors as buffers; ``forward`` gives the matrix (out, in) in float32. A buffer whose name ends in
``_int4`` or ``_uint4`` holds four-bit numbers in bytes, as torch has none; they are packed when the file is written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isoloss.compress.formats import (
    Encoded,
    Fixed,
    Grid,
    Integer,
    Native,
    Table,
    Vectors,
    WithLowRank,
    WithOutliers,
    unpack,
)
from isoloss.compress.formats.encoded import below, rows_columns
from isoloss.compress.formats.grid import Coded, Values

NARROW = ("_int4", "_uint4")
INT64 = 7  # of ONNX' data types


def symbol(
    operator: str, inputs: tuple[Tensor, ...], settings: dict[str, Any], dtype: torch.dtype, shape: Any
) -> Tensor:
    """An ONNX operator in the graph; run by torch itself its result means nothing."""
    made: Tensor = torch.onnx.ops.symbolic(operator, inputs, settings, dtype=dtype, shape=shape)
    return made


class Decoder(nn.Module):
    """Decodes one weight.

    Attributes:
        kind: in words: which operators.
        bits: stored, scales counted.
    """

    kind = ""

    def keep(self, name: str, tensor: Tensor) -> None:
        """Have a stored tensor."""
        self.register_buffer(name, tensor.contiguous())

    @property
    def bits(self) -> int:
        total = 0
        for name, own in self.named_buffers():
            total += 8 * own.numel() * own.element_size() // (2 if name.endswith(NARROW) else 1)
        return total


def decoder(encoded: Encoded) -> Decoder:
    """The module that decodes a weight to its own numbers.

    Integers become DequantizeLinear, per tensor, channel or block; everything else is looked up, scaled and added with
    operators of the standard.
    """
    format = encoded.format
    if isinstance(format, WithOutliers):
        return _Outliers(encoded, decoder(_inner(encoded)))
    if isinstance(format, WithLowRank):
        return _LowRank(encoded, decoder(_inner(encoded)))
    if isinstance(format, Native):
        return _Native(encoded.parts["values"])
    if isinstance(format, Vectors):
        return _Vectors(encoded)
    if isinstance(format, Integer | Fixed):
        levels = levels_of(encoded)
        if levels is not None:
            return _Linear(encoded.grid(), *levels)
    if isinstance(format, Table):
        return _Table(encoded.grid(), encoded.codes())
    assert isinstance(format, Coded), format.spec
    return _Looked(encoded.grid(), encoded.codes())


def levels_of(encoded: Encoded) -> tuple[Tensor, Tensor | None, int] | None:
    """Whole numbers and zero-points of integers: ``scale * (number - zero)``; without zero-points the numbers are signed.

    Returns:
        Numbers (int16), zero-points (rows or 1, groups) or None, how many bits hold them: 4 or 8; None where nine would.
    """
    format = encoded.format
    codes = encoded.codes().to(torch.int16)
    if isinstance(format, Fixed):
        numbers, zero = encoded.codes().int() - 2 ** (format.bits - 1), None
        return (numbers.to(torch.int16), zero, 4 if format.bits <= 4 else 8) if format.bits <= 8 else None
    assert isinstance(format, Integer)
    if format.zero == "asym":
        return codes, encoded.grid().zero, 4 if format.bits <= 4 else 8
    if format.zero == "bipolar":
        if format.bits == 8:
            return None
        return 2 * codes + format.lowest, None, 4 if format.bits <= 3 else 8
    return codes + format.lowest, None, 4 if format.bits <= 4 else 8


def scales_of(grid: Grid) -> Tensor:
    """Scales, (rows or 1, groups): in fp16 where that holds them."""
    if isinstance(grid.format, Fixed):
        return torch.tensor([[2.0**-grid.format.fraction]])
    half = grid.scale.half()
    return half if torch.equal(half.float(), grid.scale) else grid.scale


def narrow(name: str, numbers: Tensor, bits: int, signed: bool) -> tuple[str, Tensor]:
    """Name and bytes of a buffer of whole numbers of four or eight bits."""
    kind = "int4" if signed else "uint4"
    return (f"{name}_{kind}" if bits == 4 else name), numbers.to(torch.int8 if signed else torch.uint8)


class _Native(Decoder):
    def __init__(self, values: Tensor):
        super().__init__()
        self.kind = "Cast" if values.dtype != torch.float32 else "float32"
        self.keep("values", values)

    def forward(self) -> Tensor:
        return self.get_buffer("values").float()


class _Linear(Decoder):
    """DequantizeLinear: per tensor, per row, or per block of a row."""

    def __init__(self, grid: Grid, numbers: Tensor, zero: Tensor | None, bits: int):
        super().__init__()
        self.shape = (grid.rows, grid.columns)
        width = grid.groups[0][1]
        scale = scales_of(grid)
        form: tuple[int, ...] = ()
        self.settings: dict[str, int] = {}
        if scale.numel() > 1 and scale.shape[1] == 1:
            form, self.settings = (grid.rows,), {"axis": 0}
        elif scale.numel() > 1:
            form, self.settings = (grid.rows, scale.shape[1]), {"axis": 1, "block_size": width}
            scale = scale.expand(form)
        self.number_name, stored = narrow("numbers", numbers, bits, zero is None)
        self.keep(self.number_name, stored)
        self.keep("scale", scale.reshape(form))
        self.zero_name = ""
        if zero is not None:
            self.zero_name, points = narrow("zero", zero.expand(grid.scale.shape).reshape(form), bits, False)
            self.keep(self.zero_name, points)
        self.kind = f"DequantizeLinear {'' if zero is None else 'u'}int{bits}"

    def forward(self) -> Tensor:
        inputs = [self.get_buffer(self.number_name), self.get_buffer("scale").float()]
        inputs += [self.get_buffer(self.zero_name)] if self.zero_name else []
        return symbol("DequantizeLinear", tuple(inputs), self.settings, torch.float32, self.shape)


class _Codes(Decoder):
    """Codes of up to 16 bits as indices."""

    def keep_codes(self, codes: Tensor, bits: int) -> None:
        self.code_name = "codes_uint4" if bits <= 4 else "codes"
        dtype = torch.uint8 if bits <= 8 else torch.int32
        self.code_bits = 4 if bits <= 4 else 8 * dtype.itemsize
        self.keep(self.code_name, codes.to(dtype))

    def indices(self) -> Tensor:
        own = self.get_buffer(self.code_name)
        return symbol("Cast", (own,), {"to": INT64}, torch.int64, tuple(own.shape))


class _Table(_Codes):
    """A table per row, group or tensor."""

    def __init__(self, grid: Grid, codes: Tensor):
        super().__init__()
        self.entries = grid.table.shape[2]
        self.keep_codes(codes, grid.format.bits)
        self.keep("table", grid.table.half().reshape(grid.table.shape[0], -1))
        self.of_tensor = grid.table.shape[0] == 1 and grid.rows > 1
        self.groups = len(grid.groups)
        if self.groups > 1:
            first = torch.arange(self.groups, dtype=torch.int32) * self.entries
            self.keep("first", grid.spread(first[None, :].float())[:1].int())
        self.kind = (
            f"GatherElements uint{self.code_bits}" if not self.of_tensor else f"Gather uint{self.code_bits}"
        )

    def forward(self) -> Tensor:
        at, table = self.indices(), self.get_buffer("table").float()
        if self.of_tensor:
            return table.reshape(-1)[at]
        if self.groups > 1:
            at = at + self.get_buffer("first")
        return table.gather(1, at)


class _Looked(_Codes):
    """One table for all, times a scale."""

    def __init__(self, grid: Grid, codes: Tensor):
        super().__init__()
        format = grid.format
        every = torch.arange(2**format.bits, dtype=codes.dtype).reshape(1, 1, -1)
        one = torch.ones(1, 1, 1)
        values = format.numbers(every, Values(one, None if grid.zero is None else 0 * one), torch.float32)
        self.keep_codes(codes, format.bits)
        self.keep("values", values.reshape(-1))
        scaled = getattr(format, "scales", "fp16") is not None
        self.groups = len(grid.groups) if scaled else 0
        if scaled:
            self.keep("scale", scales_of(grid))
        if self.groups > 1:
            self.keep("of", grid.spread(torch.arange(self.groups)[None, :].float())[0].int())
        self.kind = f"Gather uint{self.code_bits}"

    def forward(self) -> Tensor:
        found = self.get_buffer("values")[self.indices()]
        if not self.groups:
            return found
        scale = self.get_buffer("scale").float()
        return found * (scale[:, self.get_buffer("of").long()] if self.groups > 1 else scale)


class _Vectors(_Codes):
    """A codebook of vectors."""

    def __init__(self, encoded: Encoded):
        super().__init__()
        format = encoded.format
        assert isinstance(format, Vectors)
        self.shape = rows_columns(encoded.shape)
        codes = unpack(encoded.parts["codes"], format.bits, -(-self.shape[1] // format.length))
        self.keep_codes(codes, format.bits)
        self.keep("codebook", encoded.parts["codebook"])
        self.kind = f"Gather uint{self.code_bits}"

    def forward(self) -> Tensor:
        found = self.get_buffer("codebook").float()[self.indices()]
        return found.reshape(self.shape[0], -1)[:, : self.shape[1]]


class _Outliers(Decoder):
    """What is missing, added at its places."""

    def __init__(self, encoded: Encoded, dense: Decoder):
        super().__init__()
        self.dense, self.shape = dense, rows_columns(encoded.shape)
        counts = encoded.parts["outliers.rows"].diff().long()
        row = torch.arange(self.shape[0]).repeat_interleave(counts)
        self.keep("row", row.int())
        self.keep("column", encoded.parts["outliers.columns"].int())
        self.keep("values", encoded.parts["outliers.values"])
        self.kind = f"{dense.kind}, ScatterND"

    def forward(self) -> Tensor:
        matrix: Tensor = self.dense()
        at = (self.get_buffer("row").long(), self.get_buffer("column").long())
        return matrix.index_put(at, matrix[at] + self.get_buffer("values").float())


class _LowRank(Decoder):
    """A product, added."""

    def __init__(self, encoded: Encoded, dense: Decoder):
        super().__init__()
        format = encoded.format
        assert isinstance(format, WithLowRank)
        (left, right), self.shape = format.factor_shapes(encoded.shape).values(), rows_columns(encoded.shape)
        self.dense = dense
        self.left = decoder(Encoded(format.factors, left, below("left", encoded.parts)))
        self.right = decoder(Encoded(format.factors, right, below("right", encoded.parts)))
        self.kind = f"{dense.kind}, MatMul"

    def forward(self) -> Tensor:
        made: Tensor = self.dense().reshape(self.shape) + self.left() @ self.right()
        return made


def _inner(encoded: Encoded) -> Encoded:
    format = encoded.format
    assert isinstance(format, WithOutliers | WithLowRank)
    return Encoded(format.dense, rows_columns(encoded.shape), below("dense", encoded.parts))
