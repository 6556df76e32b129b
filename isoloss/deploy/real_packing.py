"""Stored weights rearranged for products with float32 activations: takes an ``Encoded``, gives tensors of a kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from isoloss.compress.formats import (
    NF4,
    Coded,
    Encoded,
    Fixed,
    Float,
    FloatType,
    Integer,
    Native,
    NormalFloat,
    Table,
    Vectors,
)
from isoloss.compress.formats.encoded import rows_columns
from isoloss.compress.formats.packing import pack, unpack
from isoloss.deploy.reals import MOST_EXPONENT, MOST_SMALL_BITS, arranged, filled, packed_tiles, tiled
from isoloss.native.reals import RealKind
from isoloss.native.runs import TILE

AT_ONCE = 1 << 20
"""Numbers of a weight that are rearranged at once, so that no second weight is in memory."""


@dataclass(frozen=True, eq=False)
class Made:
    """What :class:`isoloss.deploy.packing.Packed` is made of, but the shape."""

    kind: RealKind
    bits: int
    group: int
    tensors: dict[str, Tensor]
    times: int = 1
    offset: int = 0


def reals_of(encoded: Encoded) -> Made | None:
    """A stored weight for float32 activations; None where it is best kept in float32."""
    format = encoded.format
    if isinstance(format, Native) and format.name != "fp32":
        columns = rows_columns(encoded.shape)[1]
        return Made("half", 16, columns, {"weight": encoded.parts["values"].contiguous()})
    if isinstance(format, Vectors):
        return _vectors(encoded, format)
    if not isinstance(format, Coded):
        return None
    if isinstance(format, Table):
        return _table(encoded, format)
    if isinstance(format, NormalFloat):
        return _small(encoded, 1, 0, {"table": torch.tensor(NF4)})
    if isinstance(format, Integer):
        return _small(encoded, -2 if format.zero == "bipolar" else -1, format.lowest)
    if isinstance(format, Fixed) and format.bits <= MOST_SMALL_BITS:
        return _small(encoded, -1, -(1 << (format.bits - 1)))
    if isinstance(format, Float) and format.bits <= MOST_SMALL_BITS and _fits(format.type, encoded):
        return _small(encoded, format.type.exponent, format.type.offset)
    return _half(encoded, format)


def slices(rows: int, columns: int) -> Iterator[slice]:
    """Rows, in whole tiles, that are rearranged at once."""
    step = max(1, AT_ONCE // (columns * TILE)) * TILE
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def codes_of(encoded: Encoded, rows: slice) -> Tensor:
    """The codes of some rows."""
    columns = rows_columns(encoded.shape)[1]
    return unpack(encoded.parts["codes"][rows], encoded.format.bits, columns)  # type: ignore[attr-defined]


def group_of(format: Coded, columns: int) -> int:
    """How many columns share a scale or a table."""
    return min(format.group, columns) if isinstance(format.group, int) else columns


def exact_scale(scale: Tensor) -> Tensor:
    """fp16 where that is exact, else float32."""
    if scale.dtype == torch.float16:
        return scale
    return scale.half() if torch.equal(scale.half().float(), scale.float()) else scale.float()


def _fits(type: FloatType, encoded: Encoded) -> bool:
    """Whether the kernels make the right number of every code that this weight has."""
    if type.exponent > MOST_EXPONENT or not -64 <= type.offset <= 64:
        return False
    wrong = arranged(type.bits, type.exponent, type.offset).double() != type.values()
    if not bool(wrong.any()):
        return True
    rows, columns = rows_columns(encoded.shape)
    return not any(bool(wrong[codes_of(encoded, some).long()].any()) for some in slices(rows, columns))


def _small(encoded: Encoded, times: int, offset: int, more: dict[str, Tensor] | None = None) -> Made:
    rows, columns = rows_columns(encoded.shape)
    format = encoded.format
    assert isinstance(format, Coded)
    group = group_of(format, columns)
    parts = []
    for some in slices(rows, columns):
        codes = codes_of(encoded, some)
        if columns > group and group % 2:
            cuts = [pad(one, (0, one.shape[1] % 2)) for one in torch.split(codes, group, dim=1)]
            codes = torch.cat(cuts, dim=1)
        parts.append(packed_tiles(pad(codes, (0, codes.shape[1] % 2)), format.bits))
    tensors = {"codes": torch.cat(parts), **(more or {}), **_scales(encoded, format, rows)}
    return Made("small-float", format.bits, group, tensors, times, offset)


def _scales(encoded: Encoded, format: Coded, rows: int) -> dict[str, Tensor]:
    """Scales and zero-points of a weight, in tiles."""
    parts = encoded.parts

    def per_row(one: Tensor) -> Tensor:
        return filled(one.reshape(-1, 1).float().expand(rows, 1).contiguous(), TILE).reshape(-1)

    if isinstance(format, Fixed):
        return {"unit": per_row(torch.tensor(2.0**-format.fraction))}
    if "scale" not in parts:
        return {}
    kind, scale = getattr(format, "scales", "fp16"), parts["scale"]
    out: dict[str, Tensor] = {}
    if kind in ("m1", "mx", "m2"):
        power = (127 - scale.int()).to(torch.uint8) if kind == "m2" else scale
        out["power"] = tiled(power.expand(rows, -1))
        if kind == "m2":
            out["unit"] = per_row(parts["row_scale"])
    elif kind == "nv":
        out["scale"] = tiled(scale.expand(rows, -1))
        out["unit"] = per_row(parts["tensor_scale"])
    else:
        out["scale"] = tiled(exact_scale(scale).expand(rows, -1))
    zero = encoded.grid().zero if isinstance(format, Integer) else None
    if zero is not None:
        out["zero"] = tiled(zero.to(torch.uint8).expand(rows, -1))
    return out


def _table(encoded: Encoded, format: Table) -> Made | None:
    rows, columns = rows_columns(encoded.shape)
    table, group = encoded.grid().table, group_of(format, columns)
    if format.bits <= 4:
        # One for all is looked up in float32; others have kernels of their own.
        entries = table[0, 0].repeat(TILE // table.shape[-1]).contiguous()
        return _small(encoded, 1, 0, {"table": entries}) if format.group == "tensor" else None
    parts = []
    for some in slices(rows, columns):
        cuts = [
            pad(one, (0, -one.shape[1] % 8)) for one in torch.split(codes_of(encoded, some), group, dim=1)
        ]
        parts.append(torch.cat([pack(one, format.bits) for one in cuts], dim=1))
    tensors = {"codes": torch.cat(parts), "table": table.half().contiguous()}
    return Made("wide-table", format.bits, group, tensors)


def _vectors(encoded: Encoded, format: Vectors) -> Made:
    codes = format.codes(encoded)
    book = filled(encoded.parts["codebook"], 1 << format.bits)
    tensors = {"codes": pack(filled(codes, TILE).T.contiguous(), format.bits), "codebook": book.contiguous()}
    return Made("vectors", format.bits, format.length, tensors)


def _half(encoded: Encoded, format: Coded) -> Made | None:
    """Floats of more bits, and whole numbers of up to 16."""
    rows, columns = rows_columns(encoded.shape)
    if isinstance(format, Fixed):
        whole = [codes_of(encoded, some) - (1 << (format.bits - 1)) for some in slices(rows, columns)]
        weight = torch.cat([one.to(torch.int16) for one in whole])
        return Made(
            "half", 16, columns, {"weight": weight, "scale": torch.full((rows, 1), 2.0**-format.fraction)}
        )
    if not isinstance(format, Float):
        return None
    numbers = format.type.values()
    for dtype in (torch.float16, torch.bfloat16):
        small = numbers.to(dtype)
        if bool(((small.double() == numbers) | numbers.isnan()).all()):
            weight = torch.cat([small[codes_of(encoded, some).long()] for some in slices(rows, columns)])
            scaled = format.scales is not None
            scale = {"scale": encoded.grid().scale.expand(rows, -1).contiguous()} if scaled else {}
            return Made("half", 16, group_of(format, columns), {"weight": weight, **scale})
    return None
