"""Packed weights that are multiplied with float32 activations, nothing rounded: how each kind lies in its tensors.

16-bit numbers, floats of up to 8 bits and whole numbers with scales, tables above four bits, vector codes, and the sparse
patterns n-of-m and blocks. What is stored is read as it is; :mod:`isoloss.native.reals` multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from isoloss.compress.formats import E4M3
from isoloss.compress.formats.packing import pack, unpack
from isoloss.native.reals import RealMatrix, Type, pairs
from isoloss.native.runs import TILE

if TYPE_CHECKING:
    from isoloss.deploy.packing import Packed

Wanted = dict[str, tuple[tuple[torch.dtype, ...], tuple[int, ...]]]
"""Tensor -> its dtypes and shape."""

MOST_SMALL_BITS, MOST_EXPONENT, MOST_TABLE_BITS = 8, 5, 8
_BYTE, _F32, _I32 = (torch.uint8,), (torch.float32,), (torch.int32,)
_HALVES = (torch.float16, torch.bfloat16, torch.int16)
_VALUES = (torch.float32, torch.float16, torch.bfloat16)
_TYPES: dict[torch.dtype, Type] = {
    torch.float32: "float",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int16: "int16",
}


class Kind(Protocol):
    """What a kind of packed weights can do."""

    def layout(self, packed: Packed) -> Wanted:
        """Its tensors.

        Raises:
            ValueError: settings that no such weight has.
        """
        ...

    def decode(self, packed: Packed) -> Tensor:
        """The matrix, float32."""
        ...

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        """The tensors of some rows."""
        ...

    def matrix(self, packed: Packed) -> RealMatrix:
        """For the native kernels."""
        ...


class Half:
    """Rows of 16-bit numbers: fp16, bf16 or whole ones, perhaps with a float32 scale per row and group."""

    def layout(self, packed: Packed) -> Wanted:
        _need(packed.bits == 16, "16 bits", packed)
        wanted: Wanted = {"weight": (_HALVES, packed.shape)}
        if "scale" in packed.tensors:
            wanted["scale"] = (_F32, (packed.shape[0], packed.groups))
        return wanted

    def decode(self, packed: Packed) -> Tensor:
        weight = packed.tensors["weight"].float()
        return weight * packed.spread(packed.tensors["scale"]) if "scale" in packed.tensors else weight

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        return {name: one[index] for name, one in packed.own.items()}

    def matrix(self, packed: Packed) -> RealMatrix:
        weight = packed.tensors["weight"]
        return RealMatrix(
            "half", *packed.shape, packed.group, value=_array(weight), type=_TYPES[weight.dtype],
            scale=_maybe(packed, "scale"),
        )  # fmt: skip


class SmallFloat:
    """Codes of 1 to 8 bits in tiles of 16 rows, with a scale per row and group.

    ``times`` above 0: floats of so many exponent bits, ``offset`` is their bias. ``times`` -1 or -2: whole numbers,
    -times * code + offset - zero. With a tensor ``table``: places in it.
    """

    def layout(self, packed: Packed) -> Wanted:
        (rows, columns), bits, have = packed.shape, packed.bits, packed.tensors
        exponent = self._exponent(packed)
        most = 4 if exponent < 0 else MOST_SMALL_BITS
        _need(1 <= bits <= most, f"1 to {most} bits", packed)
        _need(
            exponent < 1 or (exponent < bits and abs(packed.offset) <= 64),
            "an exponent within its bits",
            packed,
        )
        tiles = -(-rows // TILE)
        per = (tiles, packed.groups, TILE)
        wanted: Wanted = {"codes": (_BYTE, (tiles, pairs(columns, packed.group) * 4 * bits))}
        if "scale" in have:
            wanted["scale"] = ((torch.float16, torch.float32, torch.uint8), per)
        elif "power" in have:
            wanted["power"] = (_BYTE, per)
        if "unit" in have:
            wanted["unit"] = (_F32, (tiles * TILE,))
        if "zero" in have and exponent == 0:
            wanted["zero"] = (_BYTE, per)
        if exponent < 0:
            wanted["table"] = (_F32, (TILE,))
        return wanted

    def decode(self, packed: Packed) -> Tensor:
        rows, have = packed.shape[0], packed.tensors
        codes, exponent = self._codes(packed), self._exponent(packed)
        if exponent > 0:
            value = arranged(packed.bits, exponent, packed.offset).to(codes.device)[codes.long()]
        elif exponent < 0:
            value = have["table"][codes.long()]
        else:
            zero = in_rows(have["zero"].float(), rows) if "zero" in have else None
            value = codes.float() * -packed.times + packed.offset
            value = value if zero is None else value - packed.spread(zero)
        scale = self._scale(have)
        if scale is not None:
            scale = in_rows(scale, rows)
            return value * packed.spread(scale * have["unit"][:rows, None] if "unit" in have else scale)
        return value * have["unit"][:rows, None] if "unit" in have else value

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        tile, lane = index // TILE, index % TILE
        bits, have = packed.bits, packed.own
        count = have["codes"].shape[1] * 8 // bits
        taken = unpack(have["codes"][tile], bits, count).view(len(index), -1, TILE)
        codes = taken[torch.arange(len(index), device=index.device), :, lane]
        kept = {"codes": packed_tiles(codes, bits)}
        for name, one in have.items():
            if name in ("scale", "power", "zero"):
                kept[name] = tiled(one.movedim(-1, 1)[tile, lane])
            elif name == "unit":
                kept[name] = tiled(one[index][:, None]).reshape(-1)
            elif name == "table":
                kept[name] = one
        return kept

    def matrix(self, packed: Packed) -> RealMatrix:
        have, exponent = packed.tensors, self._exponent(packed)
        scale, kind = _maybe(packed, "scale"), "float"
        if "power" in have:
            scale, kind = _array(have["power"]), "power"
        elif "scale" in have:
            kind = {torch.float32: "float", torch.float16: "fp16", torch.uint8: "e4m3"}[have["scale"].dtype]
        return RealMatrix(
            "small-float", *packed.shape, packed.group, packed.bits, _maybe(packed, "table"), code=_array(have["codes"]),
            scale=scale, scale_type=kind,  # type: ignore[arg-type]
            unit=_maybe(packed, "unit"), zero=_maybe(packed, "zero"), exponent=exponent, bias=packed.offset,
            n=-packed.times if exponent == 0 else 1,
        )  # fmt: skip

    @staticmethod
    def _exponent(packed: Packed) -> int:
        if "table" in packed.tensors:
            return -1
        _need(
            packed.times in (-1, -2) or 1 <= packed.times <= MOST_EXPONENT,
            f"1 to {MOST_EXPONENT} exponent bits, or a factor of 1 or 2",
            packed,
        )
        return max(packed.times, 0)

    @staticmethod
    def _scale(have: Mapping[str, Tensor]) -> Tensor | None:
        if "power" in have:
            return ((have["power"].int() << 23).clamp(min=1 << 22)).view(torch.float32)
        if "scale" not in have:
            return None
        scale = have["scale"]
        return _e4m3().to(scale.device)[scale.long()] if scale.dtype == torch.uint8 else scale.float()

    @staticmethod
    def _codes(packed: Packed) -> Tensor:
        """In order, uint8."""
        data, bits, (rows, columns) = packed.tensors["codes"], packed.bits, packed.shape
        lanes = unpack(data, bits, data.shape[1] * 8 // bits).view(len(data), -1, TILE)
        padded = lanes.movedim(-1, 1).flatten(0, 1)[:rows]
        group = packed.group
        if group % 2 == 0 or group >= columns:
            return padded[:, :columns]
        starts = torch.arange(columns, device=padded.device)
        return padded[:, starts // group * (group + 1) + starts % group]


class WideTable:
    """Codes of 5 to 8 bits, a table of fp16 numbers per row and group, or per group for all rows."""

    def layout(self, packed: Packed) -> Wanted:
        rows, bits = packed.shape[0], packed.bits
        _need(5 <= bits <= MOST_TABLE_BITS, f"5 to {MOST_TABLE_BITS} bits", packed)
        table = packed.tensors.get("table")
        own = 1 if table is not None and table.ndim == 3 and table.shape[0] == 1 else rows
        width = sum(-(-one // 8) for one in packed.widths) * bits
        return {
            "codes": (_BYTE, (rows, width)),
            "table": ((torch.float16,), (own, packed.groups, 1 << bits)),
        }

    def decode(self, packed: Packed) -> Tensor:
        rows, bits = packed.shape[0], packed.bits
        parts, first = [], 0
        table = packed.tensors["table"].float().expand(rows, -1, -1)
        for g, width in enumerate(packed.widths):
            size = -(-width // 8) * bits
            data = packed.tensors["codes"][:, first : first + size]
            parts.append(table[:, g].gather(1, unpack(data, bits, -(-width // 8) * 8)[:, :width].long()))
            first += size
        return torch.cat(parts, dim=1)

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        table = packed.tensors["table"]
        return {
            "codes": packed.tensors["codes"][index],
            "table": table if len(table) == 1 else table[index],
        }

    def matrix(self, packed: Packed) -> RealMatrix:
        return RealMatrix(
            "wide-table", *packed.shape, packed.group, packed.bits, _array(packed.tensors["table"]), "fp16",
            _array(packed.tensors["codes"]),
        )  # fmt: skip


class VectorCodes:
    """A code for every ``group`` columns of a row; of 16 rows they lie side by side. One codebook of fp16 vectors."""

    def layout(self, packed: Packed) -> Wanted:
        _need(1 <= packed.bits <= 16, "1 to 16 bits", packed)
        tiles = -(-packed.shape[0] // TILE)
        return {
            "codes": (_BYTE, (packed.groups, tiles * 2 * packed.bits)),
            "codebook": ((torch.float16,), (1 << packed.bits, packed.group)),
        }

    def decode(self, packed: Packed) -> Tensor:
        rows, columns = packed.shape
        codes = unpack(packed.tensors["codes"], packed.bits, -(-rows // TILE) * TILE)
        found = packed.tensors["codebook"].float()[codes.T[:rows].int()]
        return found.reshape(rows, -1)[:, :columns]

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        data, bits = packed.tensors["codes"], packed.bits
        tiles = data.view(len(data), -1, 2 * bits)[:, index // TILE]
        codes = unpack(tiles.reshape(-1, 2 * bits), bits, TILE).view(len(data), len(index), TILE)
        own = codes[:, torch.arange(len(index), device=index.device), index % TILE]
        return {
            "codes": pack(filled(own.T, TILE).T, bits),
            "codebook": packed.tensors["codebook"],
        }

    def matrix(self, packed: Packed) -> RealMatrix:
        return RealMatrix(
            "vectors", *packed.shape, packed.group, packed.bits, _array(packed.tensors["codebook"]), "fp16",
            _array(packed.tensors["codes"]),
        )  # fmt: skip


class NofM:
    """``times`` of every ``group`` columns of a row: the numbers, filled up to 16, and their places in the group."""

    def layout(self, packed: Packed) -> Wanted:
        rows, bits = packed.shape[0], packed.bits
        _need(1 <= packed.times <= packed.group <= 256, "1 to 256 columns of which so many are kept", packed)
        _need(bits == place_bits(packed.group), "the bits of a place", packed)
        kept = self._kept(packed)
        return {"values": (_VALUES, (rows, kept)), "places": (_BYTE, (rows, kept * bits // 8))}

    def decode(self, packed: Packed) -> Tensor:
        rows, columns = packed.shape
        place = unpack(packed.tensors["places"], packed.bits, self._kept(packed)).long()
        at = (self._first(packed) + place).clamp(max=columns - 1)
        values = packed.tensors["values"].float()
        return values.new_zeros(rows, columns).scatter_add_(1, at, values)

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        return {name: one[index] for name, one in packed.own.items()}

    def matrix(self, packed: Packed) -> RealMatrix:
        values = packed.tensors["values"]
        return RealMatrix(
            "n-of-m", *packed.shape, packed.group, packed.bits, _array(values), _TYPES[values.dtype],
            _array(packed.tensors["places"]), index=self._first(packed).int().numpy(), n=packed.times,
        )  # fmt: skip

    @staticmethod
    def _kept(packed: Packed) -> int:
        return -(-packed.groups * packed.times // TILE) * TILE

    def _first(self, packed: Packed) -> Tensor:
        """First column of the group of each."""
        each = torch.arange(self._kept(packed), device=packed.device)
        group = (each // packed.times).clamp(max=packed.groups - 1)
        return group * packed.group


class Blocks:
    """Blocks of 16 rows and ``group`` columns, those that are kept, row of blocks after row of blocks."""

    def layout(self, packed: Packed) -> Wanted:
        columns = packed.tensors.get("columns")
        count = len(columns) if columns is not None and columns.ndim == 1 else 0
        return {
            "values": (_VALUES, (count, packed.group, TILE)),
            "columns": (_I32, (count,)),
            "tiles": (_I32, (-(-packed.shape[0] // TILE) + 1,)),
        }

    def decode(self, packed: Packed) -> Tensor:
        (rows, columns), have = packed.shape, packed.tensors
        tiles = len(have["tiles"]) - 1
        tile = torch.arange(tiles, device=packed.device).repeat_interleave(have["tiles"].diff().long())
        out = torch.zeros(tiles, packed.groups, packed.group, TILE, device=packed.device)
        out.index_put_((tile, have["columns"].long()), have["values"].float(), accumulate=True)
        return out.permute(0, 3, 1, 2).reshape(tiles * TILE, -1)[:rows, :columns]

    def part(self, packed: Packed, index: Tensor) -> dict[str, Tensor]:
        return in_blocks(self.decode(packed)[index].to(packed.tensors["values"].dtype), packed.group)

    def matrix(self, packed: Packed) -> RealMatrix:
        have = packed.tensors
        return RealMatrix(
            "blocks", *packed.shape, packed.group, value=_array(have["values"]), type=_TYPES[have["values"].dtype],
            index=_array(have["columns"]), start=_array(have["tiles"]),
        )  # fmt: skip


KINDS: Mapping[str, Kind] = {
    "half": Half(),
    "small-float": SmallFloat(),
    "wide-table": WideTable(),
    "vectors": VectorCodes(),
    "n-of-m": NofM(),
    "blocks": Blocks(),
}


def place_bits(group: int) -> int:
    """Bits of a place among so many columns."""
    return max(1, (group - 1).bit_length())


def arranged(bits: int, exponent: int, bias: int) -> Tensor:
    """What the kernels make of each code of a small float: float32, as if all codes stood for numbers.

    Example:
        >>> arranged(4, 2, 1)[:8].tolist()  # fp4-e2m1
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    code, mantissa = torch.arange(1 << bits), bits - 1 - exponent
    size = (code & ((1 << (bits - 1)) - 1)) << (10 - mantissa)
    half = (size | (code >> (bits - 1)) << 15).to(torch.uint16).view(torch.float16)
    return half.float() * 2.0 ** (15 - bias)


def _e4m3() -> Tensor:
    """Scales of E4M3 by their code, whose sign does not count."""
    found = arranged(E4M3.bits, E4M3.exponent, E4M3.offset).abs()
    return torch.cat([found[:128], found[:128]])


def _need(holds: bool, what: str, packed: Packed) -> None:
    if not holds:
        raise ValueError(f"a packed weight of kind {packed.kind} needs {what}, got {packed.settings}")


def _array(tensor: Tensor):  # type: ignore[no-untyped-def]  # NDArray of any type
    own = tensor.detach()
    return (own.view(torch.uint16) if own.dtype in _HALVES else own).numpy()


def _maybe(packed: Packed, name: str):  # type: ignore[no-untyped-def]
    return _array(packed.tensors[name]) if name in packed.tensors else None


def in_rows(tiles: Tensor, rows: int) -> Tensor:
    """(tiles, groups, 16) -> (rows, groups)."""
    return tiles.movedim(-1, 1).flatten(0, 1)[:rows]


def filled(rows: Tensor, multiple: int) -> Tensor:
    """Rows of zeros behind, up to a multiple."""
    more = -len(rows) % multiple
    return torch.cat([rows, rows.new_zeros(more, *rows.shape[1:])]) if more else rows


def tiled(rows: Tensor) -> Tensor:
    """(rows, groups) -> (tiles, groups, 16)."""
    full = filled(rows, TILE)
    return full.view(-1, TILE, full.shape[1]).movedim(1, -1).contiguous()


def packed_tiles(codes: Tensor, bits: int) -> Tensor:
    """(rows, even columns) codes -> (tiles, bytes)."""
    full = filled(codes, TILE)
    return pack(full.view(-1, TILE, full.shape[1]).movedim(1, -1).flatten(1).contiguous(), bits)


def in_blocks(weight: Tensor, group: int, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The blocks of a matrix that hold anything, or anything that is marked."""
    rows, columns = weight.shape
    groups, tiles = -(-columns // group), -(-rows // TILE)

    def cut(one: Tensor) -> Tensor:
        full = one.new_zeros(tiles * TILE, groups * group)
        full[:rows, :columns] = one
        return full.view(tiles, TILE, groups, group).permute(0, 2, 3, 1)

    blocks = cut(weight)
    kept = cut(weight != 0 if mask is None else mask).flatten(2).any(-1)
    pointers = torch.zeros(tiles + 1, dtype=torch.int32, device=weight.device)
    pointers[1:] = kept.sum(1).cumsum(0)
    return {
        "values": blocks[kept].contiguous(),
        "columns": kept.nonzero()[:, 1].int().contiguous(),
        "tiles": pointers,
    }
