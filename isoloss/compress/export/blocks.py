"""Encoded weights as blocks of ggml types, where one holds the same numbers.

A type is taken only if what it decodes to is equal to what the weight decodes to, number for number. Groups of more
columns than a block are repeated: ``int4/g128`` takes Q4_0, whose scales stand for 32 columns each.

| type | block | holds :math:`s\\,(u - z)` with | bits |
| --- | --- | --- | --- |
| TQ2_0 | 256 | levels -1 to 2, or -2 to 1 | 2.0625 |
| Q2_K | 256 | u to 3, z to 15 | 2.625 |
| Q3_K | 256 | levels -4 to 3 | 3.4375 |
| Q4_0 | 32 | levels -8 to 7 | 4.5 |
| Q4_K | 256 | u to 15, z to 63 | 4.5 |
| Q4_1 | 32 | u to 15, s z an fp16 number | 5 |
| Q5_0 | 32 | levels -16 to 15 | 5.5 |
| Q5_K | 256 | u to 31, z to 63 | 5.5 |
| Q5_1 | 32 | u to 31, s z an fp16 number | 6 |
| Q6_K | 256 | levels -32 to 31 | 6.5625 |
| Q8_0 | 32 | levels -128 to 127 | 8.5 |
| MXFP4 | 32 | E2M1, a power of two | 4.25 |

A level is :math:`u - z`. In K-types, whose sub-blocks have scales of their own, all of these are 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isoloss.compress.formats import E2M1, Encoded, Fixed, Float, Grid, Integer, Native
from isoloss.compress.formats.encoded import rows_columns

Array = NDArray[Any]
FLOATS = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight as ggml stores it.

    Attributes:
        type: name of the ggml type.
        data: bytes, (rows, bytes of a row).
        bits: of a weight.
    """

    type: str
    data: NDArray[np.uint8]
    bits: float


@dataclass(frozen=True, eq=False)
class _Numbers:
    """Blocks of integers: what stands at a place is ``scale * (code - zero)``.

    Attributes:
        code: (blocks, width), int16.
        zero, scale: (blocks, 1); int16, float32 with fp16 numbers.
    """

    code: Array
    zero: Array
    scale: Array

    @property
    def level(self) -> Array:
        return self.code - self.zero

    def within(self, low: int, high: int) -> bool:
        """All levels are."""
        return int(self.level.min()) >= low and int(self.level.max()) <= high

    def unsigned(self, top: int, zero: int) -> bool:
        """Codes are 0 to ``top``, zero-points 0 to ``zero``."""
        return (
            int(self.code.min()) >= 0
            and int(self.code.max()) <= top
            and int(self.zero.min()) >= 0
            and int(self.zero.max()) <= zero
        )

    @property
    def half(self) -> Array:
        """The scale as bytes of fp16."""
        return _half(self.scale)


def blocks(encoded: Encoded) -> Blocks:
    """The weight in the smallest ggml type that holds exactly its numbers.

    Raises:
        ValueError: there is none; the message says why and which formats have one.

    Example:
        >>> from isoloss.compress import formats
        >>> weight = torch.linspace(-1, 1, 512).reshape(2, 256)
        >>> [blocks(formats.get(spec).encode(weight)).type for spec in ("int4/g32", "int4/g256/asym", "mxfp4")]
        ['Q4_0', 'Q4_K', 'MXFP4']
    """
    format, columns = encoded.format, rows_columns(encoded.shape)[1]
    if isinstance(format, Native):
        return floats(encoded.parts["values"], format.name)
    if isinstance(format, Float) and format.type == E2M1:
        return _mxfp4(encoded, columns)
    if not isinstance(format, Integer | Fixed):
        what = "anything beside integers" if "+" in format.spec else format.spec.partition("/")[0]
        raise ValueError(_none(encoded, f"no type holds {what}"))
    grid, why = encoded.grid(), ""
    cut: dict[int, _Numbers | str] = {}
    for kind in _KINDS:
        if kind.width not in cut:
            cut[kind.width] = _cut(encoded, grid, kind.width)
        numbers = cut[kind.width]
        if isinstance(numbers, str):
            why = numbers  # of the narrowest blocks in the end
        elif kind.holds(numbers):
            data = kind.pack(numbers).reshape(grid.rows, -1)
            return Blocks(kind.name, data, kind.bits)
        else:
            why = f"no type holds codes of {format.spec.partition('/')[0]} with these zero-points"
    raise ValueError(_none(encoded, why))


def floats(values: torch.Tensor, name: str) -> Blocks:
    """Numbers of the machine."""
    data = values.detach().contiguous().view(torch.uint8).reshape(rows_columns(tuple(values.shape))[0], -1)
    return Blocks(FLOATS[name], data.numpy(), 8.0 * values.element_size())


def smallest_float(values: torch.Tensor) -> str:
    """The first of fp16, bf16 and fp32 that holds all numbers exactly."""
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        if torch.equal(values.to(dtype).to(values.dtype), values):
            return name
    return "fp32"


def _none(encoded: Encoded, why: str) -> str:
    columns = rows_columns(encoded.shape)[1]
    if columns % 32:
        can = "fp16, bf16 and fp32"
    elif columns % 256:
        can = "int4, int5 and int8 in groups of 32 or more (int4/g32, int8/g32), mxfp4, fp16"
    else:
        can = "int2 to int8 in groups of 256 (int3/g256, int4/g256/asym), int4/g32, int8/g32, mxfp4, fp16"
    return f"{encoded.format.spec} of {columns} columns has no GGUF type with the same numbers: {why}. Those do: {can}"


def _cut(encoded: Encoded, grid: Grid, width: int) -> _Numbers | str:
    """Blocks of ``width`` columns, or why they cannot be cut."""
    format = encoded.format
    assert isinstance(format, Integer | Fixed)
    if grid.columns % width:
        return f"its blocks have {width} columns, and {grid.columns} are no multiple"
    if any((stop - start) % width for start, stop in grid.groups):
        return f"blocks of {width} columns do not fit into groups of {grid.groups[0][1]}"
    code = encoded.codes().numpy().astype(np.int32)
    if isinstance(format, Fixed):
        scale, zero = torch.tensor([[2.0**-format.fraction]]), 2 ** (format.bits - 1)
    else:
        scale, zero = grid.scale, -format.lowest
        if format.zero == "bipolar":
            code, zero = 2 * code + format.lowest, 0
    if not torch.equal(scale.half().float(), scale):
        return "its scales are no fp16 numbers"
    points = torch.full(scale.shape, float(zero)) if grid.zero is None else grid.zero

    def of_block(x: torch.Tensor) -> Array:
        return grid.spread(x)[:, ::width].reshape(-1, 1).numpy()

    return _Numbers(
        code.astype(np.int16).reshape(-1, width), of_block(points).astype(np.int16), of_block(scale)
    )


def _mxfp4(encoded: Encoded, columns: int) -> Blocks:
    grid = encoded.grid()
    assert isinstance(encoded.format, Float)
    if encoded.format.scales is None:
        raise ValueError(_none(encoded, "MXFP4 has scales"))
    if columns % 32 or any((stop - start) % 32 for start, stop in grid.groups):
        raise ValueError(_none(encoded, "MXFP4 has blocks of 32 columns"))
    mantissa, exponent = torch.frexp(grid.scale)
    if not bool((mantissa == 0.5).all()) or not bool(((exponent >= -126) & (exponent <= 128)).all()):
        raise ValueError(_none(encoded, "the scales of MXFP4 are powers of two"))
    byte = grid.spread((exponent + 126).float())[:, ::32].reshape(-1, 1).numpy().astype(np.uint8)
    code = encoded.codes().numpy().reshape(-1, 32)
    return Blocks("MXFP4", np.concatenate([byte, _nibbles(code)], axis=1).reshape(grid.rows, -1), 4.25)


def _half(x: Array) -> Array:
    return np.ascontiguousarray(x.astype(np.float16)).view(np.uint8)


def _nibbles(code: Array) -> Array:
    """(n, 32) -> (n, 16): the first half of a block in the low four bits, the second in the high."""
    code = (code & 15).astype(np.uint8)
    return np.asarray(code[:, :16] | (code[:, 16:] << 4))


def _fifth(code: Array) -> Array:
    """(n, 32) -> (n, 4): the fifth bit of each."""
    return np.packbits((code >> 4).astype(np.uint8) & 1, axis=1, bitorder="little")


def _layers(code: Array, bits: int, run: int) -> Array:
    """(n, 256) -> (n, 32 * bits): in every ``run`` of columns, ``8 / bits`` layers lie on one another in a byte."""
    parts = 8 // bits
    whole = code.astype(np.uint8).reshape(len(code), -1, parts, run // parts)
    shifts = (bits * np.arange(parts, dtype=np.uint8)).reshape(1, 1, -1, 1)
    joined = np.bitwise_or.reduce(whole << shifts, axis=2)
    return np.asarray(joined.reshape(len(code), -1))


def _minimum(numbers: _Numbers) -> Array:
    """What code 0 stands for."""
    return np.asarray(-numbers.scale * numbers.zero)


def _has_minimum(numbers: _Numbers, top: int) -> bool:
    low = _minimum(numbers)
    with np.errstate(over="ignore"):
        return numbers.unsigned(top, 255) and bool((low.astype(np.float16).astype(np.float32) == low).all())


def _filled(numbers: _Numbers, width: int, byte: int) -> Array:
    return np.full((len(numbers.code), width), byte, np.uint8)


def _tq2_0(n: _Numbers) -> Array:
    """Levels -1 to 2; those from -2 to 1 under a negative scale."""
    turned = int(n.level.min()) < -1
    code = (1 - n.level) if turned else (n.level + 1)
    return np.concatenate([_layers(code, 2, 128), _half(-n.scale if turned else n.scale)], axis=1)


def _q2_k(n: _Numbers) -> Array:
    scales = np.repeat((1 | (n.zero << 4)).astype(np.uint8), 16, axis=1)
    return np.concatenate([scales, _layers(n.code, 2, 128), n.half, n.half], axis=1)


def _q3_k(n: _Numbers) -> Array:
    code = n.level + 4
    # The scale is 33 - 32: its low four bits in eight bytes, its high two in four.
    scales = np.concatenate([_filled(n, 8, 0x11), _filled(n, 4, 0xAA)], axis=1)
    return np.concatenate([_layers(code >> 2, 1, 256), _layers(code & 3, 2, 128), scales, n.half], axis=1)


def _scales_k(n: _Numbers) -> Array:
    """Eight scales of 1 and eight minima of z, six bits each: the last four are split over two bytes."""
    low = n.zero | ((n.zero >> 4) << 6)
    rest = 1 | ((n.zero & 15) << 4)
    parts = [_filled(n, 4, 1), np.repeat(low, 4, axis=1), np.repeat(rest, 4, axis=1)]
    return np.concatenate([part.astype(np.uint8) for part in parts], axis=1)


def _q4_k(n: _Numbers) -> Array:
    return np.concatenate([n.half, n.half, _scales_k(n), _layers(n.code, 4, 64)], axis=1)


def _q5_k(n: _Numbers) -> Array:
    high, low = _layers(n.code >> 4, 1, 256), _layers(n.code & 15, 4, 64)
    return np.concatenate([n.half, n.half, _scales_k(n), high, low], axis=1)


def _q6_k(n: _Numbers) -> Array:
    code = n.level + 32
    return np.concatenate(
        [_layers(code & 15, 4, 128), _layers(code >> 4, 2, 128), _filled(n, 16, 1), n.half], axis=1
    )


def _q4_0(n: _Numbers) -> Array:
    return np.concatenate([n.half, _nibbles(n.level + 8)], axis=1)


def _q4_1(n: _Numbers) -> Array:
    return np.concatenate([n.half, _half(_minimum(n)), _nibbles(n.code)], axis=1)


def _q5_0(n: _Numbers) -> Array:
    code = n.level + 16
    return np.concatenate([n.half, _fifth(code), _nibbles(code)], axis=1)


def _q5_1(n: _Numbers) -> Array:
    return np.concatenate([n.half, _half(_minimum(n)), _fifth(n.code), _nibbles(n.code)], axis=1)


def _q8_0(n: _Numbers) -> Array:
    return np.concatenate([n.half, n.level.astype(np.int8).view(np.uint8)], axis=1)


@dataclass(frozen=True)
class _Kind:
    name: str
    width: int
    bits: float
    holds: Callable[[_Numbers], bool]
    pack: Callable[[_Numbers], Array]


_KINDS = (
    _Kind("TQ2_0", 256, 2.0625, lambda n: n.within(-1, 2) or n.within(-2, 1), _tq2_0),
    _Kind("Q2_K", 256, 2.625, lambda n: n.unsigned(3, 15), _q2_k),
    _Kind("Q3_K", 256, 3.4375, lambda n: n.within(-4, 3), _q3_k),
    _Kind("Q4_0", 32, 4.5, lambda n: n.within(-8, 7), _q4_0),
    _Kind("Q4_K", 256, 4.5, lambda n: n.unsigned(15, 63), _q4_k),
    _Kind("Q4_1", 32, 5.0, lambda n: _has_minimum(n, 15), _q4_1),
    _Kind("Q5_0", 32, 5.5, lambda n: n.within(-16, 15), _q5_0),
    _Kind("Q5_K", 256, 5.5, lambda n: n.unsigned(31, 63), _q5_k),
    _Kind("Q5_1", 32, 6.0, lambda n: _has_minimum(n, 31), _q5_1),
    _Kind("Q6_K", 256, 6.5625, lambda n: n.within(-32, 31), _q6_k),
    _Kind("Q8_0", 32, 8.5, lambda n: n.within(-128, 127), _q8_0),
)  # fewest bits first
