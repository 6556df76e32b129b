"""A stored weight rearranged as the kernels read it: takes an ``Encoded``, gives a ``Packed`` of about the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from isoloss.compress.formats import (
    NF4,
    Coded,
    Encoded,
    Fixed,
    Float,
    Integer,
    NormalFloat,
    Table,
    WithLowRank,
    WithOutliers,
)
from isoloss.compress.formats.encoded import below, joined, rows_columns
from isoloss.deploy.planes import PLANES, from_bytes, split, to_bytes
from isoloss.deploy.real_packing import codes_of, exact_scale, group_of, reals_of, slices
from isoloss.deploy.reals import KINDS, Wanted, in_rows
from isoloss.native.products import GroupMatrix, SparseMatrix, TableMatrix, Weight
from isoloss.native.reals import RealKind, RealMatrix
from isoloss.native.runs import BLOCK, PLANE, TILE, Runs, group_runs, table_runs

Activations = Literal["int8", "int16", "float"]
Kind = Literal["table", "float-table", "levels", "dense", RealKind]
MOST_TABLE_BITS = 6
MOST_FLOAT_TABLE_BITS = 4
MOST_ROWS, MOST_COLUMNS = (1 << 31) - 1, 1 << 20
MOST_FILLED = 1.5
"""Columns of levels, filled up, for each column of the weight; with more (groups of 16) they are packed otherwise."""
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight as the kernels read it.

    Kinds: ``table`` (a table of bytes per row and group, with a step and a lowest value), ``float-table`` (of fp16
    numbers), ``levels`` (whole numbers with a scale per row and group, 16 rows to a tile), those of
    :data:`isoloss.deploy.reals.KINDS`, which take activations as they are, and ``dense`` (float32).

    Args:
        kind: one of these.
        shape: rows and columns of the matrix.
        bits: of a code; 32 where dense.
        group: columns that share a table, a scale, a code or a pattern.
        tensors: by name; what they are follows from the rest. ``outliers.*`` lie beside any kind, ``left.*`` and ``right.*``
            are packed weights whose product does.
        times: of levels: 1, or 2 (bipolar); of others a number that their kind explains.
        offset: of levels, added to a code; of others the same.
        factors: settings of ``left`` and ``right``, where they are.

    Raises:
        ValueError: a tensor is missing, unknown, of another dtype or shape, or holds places outside the matrix.
    """

    kind: Kind
    shape: tuple[int, int]
    bits: int
    group: int
    tensors: Mapping[str, Tensor]
    times: int = 1
    offset: int = 0
    factors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"a packed weight is {', '.join(get_args(Kind))}, got {self.kind!r}")
        known = self.times in (1, 2) or self.kind in KINDS
        if min(*self.shape, self.group) < 1 or not known or abs(self.offset) > 256:
            raise ValueError(
                f"a packed weight needs rows, columns and groups of at least 1, got {self.settings}"
            )
        if self.shape[0] > MOST_ROWS or self.shape[1] > MOST_COLUMNS:
            raise ValueError(
                f"a packed weight has up to {MOST_ROWS} rows and {MOST_COLUMNS} columns, got {self.settings}"
            )
        wanted = _layout(self)
        for name, (dtypes, shape) in wanted.items():
            part = self.tensors.get(name)
            if part is None:
                raise ValueError(f"a packed weight of this kind has {', '.join(wanted)}; {name} is missing")
            if part.dtype not in dtypes or tuple(part.shape) != shape or not part.is_contiguous():
                raise ValueError(
                    f"{name} needs {' or '.join(map(str, dtypes))} of shape {shape}, contiguous, "
                    f"got {part.dtype} of shape {tuple(part.shape)}. The packed weight is damaged"
                )
        thin = {name for name in self.tensors if self.factors and name.startswith(("left.", "right."))}
        if unknown := set(self.tensors) - set(wanted) - thin:
            raise ValueError(f"a packed weight of this kind has no {', '.join(sorted(unknown))}")
        devices = {part.device for part in self.tensors.values()}
        if len(devices) > 1:
            raise ValueError(
                f"a packed weight lies on one device, got {', '.join(sorted(map(str, devices)))}. Move all of it"
            )
        if self.device.type == "cpu":
            _ = self.matrix, self.sparse  # they look at the numbers
        elif not self._inside():
            raise ValueError(f"a packed weight has places outside the matrix: {self.settings}. It is damaged")
        _ = self.thin

    @property
    def settings(self) -> str:
        """What is not in the tensors, as words that :func:`from_settings` reads."""
        numbers = [*self.shape, self.bits, self.group, self.times, self.offset]
        return json.dumps([self.kind, *numbers, sorted(self.tensors), *self.factors])

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(part.numel() * part.element_size() for part in self.tensors.values())

    @cached_property
    def runs(self) -> Runs:
        """How its columns are cut."""
        cut = group_runs if self.kind == "levels" else table_runs
        return cut(self.shape[1], min(self.group, self.shape[1]))

    @cached_property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return next(iter(self.tensors.values())).device

    @cached_property
    def on_cpu(self) -> bool:
        """Whether that is the CPU."""
        return self.device.type == "cpu"

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return replace(self, tensors={name: one.to(device) for name, one in self.tensors.items()})

    def _inside(self) -> bool:
        """Whether outliers lie in the matrix, looked at where they are: kernels of a GPU take that on trust."""
        if "outliers.rows" not in self.tensors or self.device.type == "meta":
            return True
        start, column = self.tensors["outliers.rows"], self.tensors["outliers.columns"].long()
        rising = (start[0] == 0) & (start[-1] == len(column)) & (start.diff() >= 0).all()
        return bool(rising & ((column >= 0) & (column < self.shape[1])).all())

    @property
    def own(self) -> dict[str, Tensor]:
        """The tensors of its kind, without what lies beside."""
        return {name: one for name, one in self.tensors.items() if "." not in name}

    @property
    def groups(self) -> int:
        """Of columns."""
        return -(-self.shape[1] // self.group)

    @property
    def widths(self) -> list[int]:
        """Columns of each group."""
        whole = self.shape[1] // self.group
        return [self.group] * whole + [self.shape[1] - whole * self.group] * (whole < self.groups)

    def spread(self, per_group: Tensor) -> Tensor:
        """(rows, groups) -> (rows, columns): what each group has at each of its columns."""
        if self.groups == 1:
            return per_group
        return per_group[:, self._group]

    @property
    def _group(self) -> Tensor:
        """Of each column."""
        return torch.arange(self.shape[1], device=self.device) // self.group

    @cached_property
    def matrix(self) -> TableMatrix | GroupMatrix | RealMatrix | None:
        """For the native kernels; None where dense."""
        if self.kind == "dense":
            return None
        if self.kind in KINDS:
            return KINDS[self.kind].matrix(self)
        part = {name: one.detach().numpy() for name, one in self.own.items()}
        if self.kind == "levels":
            return GroupMatrix(
                self.runs, self.bits, self.shape[0], part["codes"], part["scale"], part.get("zero"),
                part.get("table"), self.times, self.offset,
            )  # fmt: skip
        return TableMatrix(
            self.runs, self.bits, part["codes"], part["table"], part.get("step"), part.get("low")
        )

    @cached_property
    def sparse(self) -> SparseMatrix | None:
        """What lies beside, for the native kernels."""
        if "outliers.values" not in self.tensors:
            return None
        part = {
            name: one.detach().numpy() for name, one in self.tensors.items() if name.startswith("outliers")
        }
        return SparseMatrix(
            self.shape[1], part["outliers.values"], part["outliers.columns"], part["outliers.rows"]
        )

    @cached_property
    def thin(self) -> tuple[Packed, Packed] | None:
        """Two packed weights whose product lies beside: (rows, rank) and (rank, columns)."""
        if not self.factors:
            return None
        if len(self.factors) != 2:
            raise ValueError(f"a product beside has two factors, got {len(self.factors)}")
        left, right = (
            from_settings(words, below(name, self.tensors))
            for words, name in zip(self.factors, ("left", "right"), strict=True)
        )
        if left.shape[0] != self.shape[0] or right.shape != (left.shape[1], self.shape[1]):
            raise ValueError(
                f"factors need the shapes ({self.shape[0]}, r) and (r, {self.shape[1]}), got {left.shape} and {right.shape}"
            )
        return left, right

    @cached_property
    def ready(self) -> Weight:
        """Matrix and outliers for native products."""
        return Weight(self.matrix, self.sparse)

    def decode(self) -> Tensor:
        """The matrix that the packed tensors stand for, float32, with all that lies beside in it."""
        matrix = self.without_factors()
        return matrix if self.thin is None else matrix + self.thin[0].decode() @ self.thin[1].decode()

    def without_factors(self) -> Tensor:
        """The same, of what lies beside the outliers alone."""
        matrix = self.dense_part()
        if "outliers.values" in self.tensors:
            counts = self.tensors["outliers.rows"].diff().long()
            row = torch.arange(self.shape[0], device=self.device).repeat_interleave(counts)
            matrix = matrix.clone() if self.kind == "dense" else matrix
            matrix[row, self.tensors["outliers.columns"].long()] += self.tensors["outliers.values"].float()
        return matrix

    def dense_part(self) -> Tensor:
        """The same without what lies beside."""
        if self.kind == "dense":
            return self.tensors["weight"]
        if self.kind in KINDS:
            return KINDS[self.kind].decode(self)
        group, codes = self._group, self.codes()
        if self.kind == "levels":
            level = self._levels(codes)
            scale = in_rows(self.tensors["scale"].float(), self.shape[0])
            return level.float() * scale[:, group]
        table = self.tensors["table"].float()
        if self.kind == "table":
            table = self.tensors["low"][..., None] + self.tensors["step"][..., None] * table
        flat = group * (1 << self.bits) + codes.long()
        return table.flatten(1).gather(1, flat)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows decoded, (n, columns): what an embedding looks up."""
        return self.part(index).decode()

    def part(self, index: Tensor) -> Packed:
        """Some rows as a packed weight of their own."""
        kept: dict[str, Tensor] = dict(KINDS[self.kind].part(self, index)) if self.kind in KINDS else {}
        for name, one in () if self.kind in KINDS else self.own.items():
            if name == "table" and self.kind == "levels":
                continue
            if self.kind == "levels":
                tile, lane = index // TILE, index % TILE
                codes = name == "codes"
                lanes = split(one, -1, (TILE, 4)).movedim(-2, 1) if codes else one.movedim(-1, 1)
                kept[name] = _tiles(lanes[tile, lane], codes)
            else:
                kept[name] = one[index].contiguous()
        if "table" in self.tensors and self.kind == "levels":
            kept["table"] = self.tensors["table"]
        if "outliers.values" in self.tensors:
            first = self.tensors["outliers.rows"][:-1].long()[index]
            counts = self.tensors["outliers.rows"].diff().long()[index]
            pointers = torch.zeros(len(index) + 1, dtype=torch.int32, device=self.device)
            pointers[1:] = counts.cumsum(0)
            places = torch.arange(int(counts.sum()), device=self.device)
            places += (first - pointers[:-1]).repeat_interleave(counts)
            kept |= {
                "outliers.values": self.tensors["outliers.values"][places],
                "outliers.columns": self.tensors["outliers.columns"].int()[places].to(
                    self.tensors["outliers.columns"].dtype
                ),
                "outliers.rows": pointers,
            }  # fmt: skip
        factors = self.factors
        if self.thin is not None:
            left = self.thin[0].part(index)
            kept |= joined({"left": left.tensors, "right": self.thin[1].tensors})
            factors = left.settings, factors[1]
        return Packed(
            self.kind,
            (len(index), self.shape[1]),
            self.bits,
            self.group,
            kept,
            self.times,
            self.offset,
            factors,
        )

    def codes(self) -> Tensor:
        """The codes in order, uint8, (rows, columns)."""
        runs, (rows, columns) = self.runs, self.shape
        data = self.tensors["codes"]
        out = torch.empty(rows, columns, dtype=torch.uint8, device=data.device)
        if self.kind == "levels":
            lanes = split(from_bytes(data, self.bits), -1, (TILE, 4))  # tile, block, plane, row, column
            padded = lanes.permute(0, 3, 1, 2, 4).reshape(-1, runs.width)[:rows]
            for start, count, place in zip(runs.start, runs.count, runs.place, strict=True):
                out[:, start : start + count] = padded[:, place : place + count]
            return out
        first = 0
        for start, count, wide in zip(runs.start, runs.count, runs.wide, strict=True):
            block = split(data[:, first : first + self.bits * wide], 1, (self.bits, int(wide)))
            out[:, start : start + count] = from_bytes(block, self.bits).flatten(1)[:, :count]
            first += self.bits * wide
        return out

    def _levels(self, codes: Tensor) -> Tensor:
        value = codes.int()
        if "table" in self.tensors:
            value = self.tensors["table"].int()[value.long()]
        value = value * self.times + self.offset
        if "zero" in self.tensors:
            value = value - in_rows(self.tensors["zero"].int(), self.shape[0])[:, self._group]
        return value


def from_settings(settings: str, tensors: Mapping[str, Tensor]) -> Packed:
    """What :attr:`Packed.settings` and the tensors of a packed weight were.

    Raises:
        ValueError: words that are no settings, or tensors of another weight.
    """
    try:
        kind, rows, columns, bits, group, times, offset, names, *factors = json.loads(settings)
        rows, columns, bits, group, times, offset = (
            int(one) for one in (rows, columns, bits, group, times, offset)
        )
        factors = tuple(str(one) for one in factors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"these are no settings of a packed weight: {settings!r}") from error
    if names != sorted(tensors):
        raise ValueError(f"this packed weight has the tensors {names}, got {', '.join(sorted(tensors))}")
    return Packed(kind, (rows, columns), bits, group, tensors, times, offset, factors)


def pack_weight(encoded: Encoded, activations: Activations = "int8") -> Packed:
    """A stored weight rearranged for the kernels.

    Tables of up to six bits per row or group of columns become tables of bytes: an entry is off by at most half of the
    255th part of its table's range. Integers, fixed point, NF4 and floats of up to four bits become whole-number levels
    with a scale, exactly, but for NF4 (at most 1/254 of the scale). All other formats, and with ``float`` activations all,
    are multiplied with activations as they are, and nothing is rounded.

    Args:
        encoded: any shape; a convolution becomes a matrix.
        activations: what the products are with.

    Raises:
        ValueError: activations of another name.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
        >>> encoded = formats.get("int4/g128").encode(weight)
        >>> packed = pack_weight(encoded)
        >>> packed.kind, packed.bytes == encoded.bits // 8, torch.equal(packed.decode(), encoded.decode())
        ('levels', True, True)
    """
    if activations not in get_args(Activations):
        raise ValueError(f"activations are {', '.join(get_args(Activations))}, got {activations!r}")
    shape = rows_columns(encoded.shape)
    format, parts = encoded.format, encoded.parts
    if isinstance(format, (WithOutliers, WithLowRank)):
        inner = pack_weight(Encoded(format.dense, encoded.shape, below("dense", parts)), activations)
        if isinstance(format, WithOutliers) and "outliers.rows" not in inner.tensors:
            beside = {name: part.contiguous() for name, part in parts.items() if name.startswith("outliers")}
            return replace(inner, tensors={**inner.tensors, **beside})
        if isinstance(format, WithLowRank) and not inner.factors:
            left, right = (
                pack_weight(Encoded(format.factors, size, below(name, parts)), activations)
                for name, size in format.factor_shapes(encoded.shape).items()
            )
            tensors = {**inner.tensors, **joined({"left": left.tensors, "right": right.tensors})}
            return replace(inner, tensors=tensors, factors=(left.settings, right.settings))
        return _dense(encoded, shape)
    if isinstance(format, Coded):
        group = group_of(format, shape[1])
        if isinstance(format, Table) and format.group != "tensor":
            if format.bits <= (MOST_FLOAT_TABLE_BITS if activations == "float" else MOST_TABLE_BITS):
                return _tables(encoded, shape, group, floats=activations == "float")
        elif (
            activations != "float"
            and group_runs(shape[1], group).width <= MOST_FILLED * shape[1]
            and (meant := _meaning(format, encoded)) is not None
        ):
            return _levels(encoded, shape, group, meant)
    made = reals_of(encoded)
    if made is None:
        return _dense(encoded, shape)
    return Packed(made.kind, shape, made.bits, made.group, made.tensors, made.times, made.offset)


def _dense(encoded: Encoded, shape: tuple[int, int]) -> Packed:
    weight = encoded.decode().reshape(shape).contiguous()
    return Packed("dense", shape, 32, shape[1], {"weight": weight})


@dataclass(frozen=True)
class _Meaning:
    """Levels: ``times * (table of) code + offset - zero``, times ``unit`` times the stored scale."""

    scale: Tensor
    zero: Tensor | None = None
    table: Tensor | None = None
    times: int = 1
    offset: int = 0


def _meaning(format: Coded, encoded: Encoded) -> _Meaning | None:
    """Levels and scales of a format that has them, (rows or 1, groups)."""
    if isinstance(format, Fixed):
        if format.bits > 8:
            return None
        return _Meaning(torch.tensor([[2.0**-format.fraction]]), offset=-(1 << (format.bits - 1)))
    grid = encoded.grid()
    if isinstance(format, Integer):
        scale = encoded.parts["scale"] if format.scales == "fp16" else grid.scale
        zero = None if grid.zero is None else grid.zero.to(torch.uint8)
        return _Meaning(scale, zero, times=2 if format.zero == "bipolar" else 1, offset=format.lowest)
    if isinstance(format, Table):
        return _looked_up(grid.table[0, 0], torch.ones(1, 1)) if format.bits <= 4 else None
    if isinstance(format, NormalFloat):
        return _looked_up(torch.tensor(NF4), grid.scale)
    if isinstance(format, Float) and format.bits <= 4:
        values = format.type.values().float()
        if bool(torch.isfinite(values).all()):
            return _looked_up(values, torch.ones(1, 1) if format.scales is None else grid.scale)
    return None


def _looked_up(values: Tensor, scale: Tensor) -> _Meaning:
    """One table for all: exact where a power of two makes its entries whole, else in 255 steps."""
    unit = float(values.abs().max()) / 127
    for power in range(8):
        if (
            bool((values * 2**power == (values * 2**power).round()).all())
            and values.abs().max() * 2**power <= 127
        ):
            unit = 2.0**-power
            break
    unit = unit if unit >= _TINY else 1.0
    entries = ((values / unit).round() + 128).to(torch.uint8)
    return _Meaning(
        scale.float() * unit, table=entries.repeat(PLANE // len(entries)).contiguous(), offset=-128
    )


def _levels(encoded: Encoded, shape: tuple[int, int], group: int, meant: _Meaning) -> Packed:
    rows, columns = shape
    runs, bits, parts = group_runs(columns, group), encoded.format.bits, []  # type: ignore[attr-defined]
    for some in slices(rows, columns):
        codes = codes_of(encoded, some)
        padded = torch.zeros(len(codes), runs.width, dtype=torch.uint8)
        for start, count, place in zip(runs.start, runs.count, runs.place, strict=True):
            padded[:, place : place + count] = codes[:, start : start + count]
        own = to_bytes(split(padded, 1, (-1, PLANES, BLOCK // PLANES)), bits)  # row, block, bit, four columns
        parts.append(_tiles(own, True))
    scale = exact_scale(meant.scale)  # powers of two, say, take half the bytes
    tensors = {"codes": torch.cat(parts), "scale": _tiles(scale.expand(rows, runs.segments), False)}
    if meant.zero is not None:
        tensors["zero"] = _tiles(meant.zero.expand(rows, runs.segments), False)
    if meant.table is not None:
        tensors["table"] = meant.table
    return Packed("levels", shape, bits, group, tensors, meant.times, meant.offset)


def _tables(encoded: Encoded, shape: tuple[int, int], group: int, floats: bool) -> Packed:
    runs, bits, parts = table_runs(shape[1], group), encoded.format.bits, []  # type: ignore[attr-defined]
    for some in slices(*shape):
        codes, blocks = codes_of(encoded, some), []
        for start, count, wide in zip(runs.start, runs.count, runs.wide, strict=True):
            block = torch.zeros(len(codes), PLANES * int(wide), dtype=torch.uint8)
            block[:, :count] = codes[:, start : start + count]
            blocks.append(to_bytes(split(block, 1, (PLANES, int(wide))), bits).flatten(1))
        parts.append(torch.cat(blocks, dim=1))
    tensors = {"codes": torch.cat(parts)}
    stored = encoded.grid().table.half().contiguous()
    if floats:
        return Packed("float-table", shape, bits, group, {**tensors, "table": stored})
    table = stored.float()
    low, high = table.amin(-1), table.amax(-1)
    step = (high - low) / 255
    step = torch.where(step >= _TINY, step, 0)
    entries = ((table - low[..., None]) / torch.where(step > 0, step, 1)[..., None]).round().clamp(0, 255)
    tensors |= {"table": entries.to(torch.uint8).contiguous(), "step": step, "low": low}
    return Packed("table", shape, bits, group, tensors)


def _tiles(rows: Tensor, codes: bool) -> Tensor:
    """(rows, ...) -> (tiles, ..., 16): the last tile filled with zeros; of codes the last is (16 rows, 4 columns)."""
    tiles = -(-rows.shape[0] // TILE)
    full = rows.new_zeros(tiles * TILE, *rows.shape[1:])
    full[: rows.shape[0]] = rows
    made = split(full, 0, (tiles, TILE))
    if codes:
        return made.movedim(1, -2).flatten(-2).contiguous()
    return made.movedim(1, -1).contiguous()


def _layout(packed: Packed) -> Wanted:
    """Tensor -> its dtypes and shape."""
    rows, columns = packed.shape
    wanted: Wanted = {}
    byte, f32 = (torch.uint8,), (torch.float32,)
    known = {"table": MOST_TABLE_BITS, "float-table": MOST_FLOAT_TABLE_BITS, "levels": 8}
    most = known.get(packed.kind, 32)
    if not 1 <= packed.bits <= most:
        raise ValueError(f"a packed weight of this kind needs 1 to {most} bits, got {packed.bits}")
    if packed.kind in KINDS:
        wanted |= KINDS[packed.kind].layout(packed)
    elif packed.kind == "dense":
        wanted["weight"] = (f32, (rows, columns))
    elif packed.kind == "levels":
        runs, tiles = packed.runs, -(-rows // TILE)
        wanted["codes"] = (byte, (tiles, runs.width // BLOCK, packed.bits, PLANE))
        wanted["scale"] = ((torch.float16, torch.float32), (tiles, runs.segments, TILE))
        if "zero" in packed.tensors:
            wanted["zero"] = (byte, (tiles, runs.segments, TILE))
        if "table" in packed.tensors:
            wanted["table"] = (byte, (PLANE,))
    else:
        runs = packed.runs
        wanted["codes"] = (byte, (rows, packed.bits * runs.planes_bytes))
        per = (rows, runs.segments)
        wanted["table"] = (byte if packed.kind == "table" else (torch.float16,), (*per, 1 << packed.bits))
        if packed.kind == "table":
            wanted["step"] = wanted["low"] = (f32, per)
    if any(name.startswith("outliers") for name in packed.tensors):
        values = packed.tensors.get("outliers.values")
        count = len(values) if values is not None and values.ndim == 1 else 0
        wanted["outliers.values"] = ((torch.float16,), (count,))
        wanted["outliers.columns"] = ((torch.uint8, torch.uint16, torch.int32), (count,))
        wanted["outliers.rows"] = ((torch.int32,), (rows + 1,))
    return wanted
