"""Look-up tables: NF4, whose table is the same for all, and tables of one's own per row, group or tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from isoloss.compress.formats.encoded import Layout, Parts, Shape, rows_columns
from isoloss.compress.formats.grid import Coded, Grid, Values
from isoloss.compress.formats.groups import Group, Groups, check_group, group_word, groups_of
from isoloss.compress.formats.ranges import RangeSearch, ends, shrunk
from isoloss.compress.formats.rounding import Rounding
from isoloss.compress.formats.scales import KINDS, ScaleKind, check_scales, given_scales

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of the normal distribution, T. Dettmers et al., QLoRA, 2023, arXiv 2305.14314; float32 as released."""

Entries = Literal["fp16", "int8"]

_LARGEST = torch.finfo(torch.float16).max
_MOST_ENTRY = 127  # level of an int8 entry
_FEW = 128  # up to so many entries, counting the midpoints below a value is faster than a binary search
_LLOYD = 50
_BLOCK = 1 << 20


@dataclass(frozen=True)
class NormalFloat(Coded):
    r"""NF4: :math:`\hat x = s \cdot` the nearest of 16 quantiles of a normal distribution, :math:`s = \max|x|`.

    Args:
        group: ``tensor``, ``channel`` (a row), or how many columns share a scale. QLoRA has 64.
        scales: how scales are stored, a name in ``scales.KINDS``. QLoRA has float32, then 8 bits.
        search: shrink the range to what loses least; default: cover all numbers.

    Raises:
        ValueError: settings outside of these.

    Source:
        T. Dettmers et al., QLoRA, 2023, arXiv 2305.14314.

    Example:
        >>> import torch
        >>> NormalFloat(64).encode(torch.tensor([2.0, -1.4, 0.01])).decode().tolist()
        [2.0, -1.3923856019973755, 0.0]
    """

    group: Group = 64
    scales: str = "fp16"
    search: RangeSearch | None = None

    def __post_init__(self) -> None:
        check_group(self.group)
        check_scales(self.scales)

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Per code."""
        return 4

    @property
    def spec(self) -> str:
        """``nf4/g64``."""
        words = ["nf4", group_word(self.group), "" if self.search is None else self.search.word]
        return "/".join(filter(None, [*words, "" if self.scales == "fp16" else f"scale-{self.scales}"]))

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts that groups have in common."""
        return self._kind.shared

    @property
    def _kind(self) -> ScaleKind:
        return KINDS[self.scales]

    def kept(self, rows: int, groups: int) -> Layout:
        """Scales."""
        return self._kind.layout(rows, groups)

    def given(self, shape: Shape, scale: Tensor) -> Grid:
        """The grid with scales of your choice, rounded to what is stored; shape (rows or 1, groups)."""
        rows, columns = rows_columns(shape)
        groups = groups_of(self.group, columns)
        return Grid(self, rows, columns, given_scales(self._kind, self.group, rows, groups, scale, 1.0))

    def fit(self, matrix: Tensor, groups: Groups, importance: Tensor | None, held: Parts | None) -> Parts:
        """Scales for the range of each group, or the searched part of it."""
        low, high = ends(matrix, groups, self.group)
        high = torch.maximum(-low, high)
        held = self._kind.hold(high, 1.0) if held is None else held
        if self.search is not None:
            _, high = shrunk(self, matrix, groups, importance, -high, high, held, self.search)
        return self.at(-high, high, held)

    def at(self, low: Tensor, high: Tensor, held: Parts) -> Parts:
        """Scales that cover ``high``."""
        return {**held, "scale": self._kind.store(high, 1.0, held, 1.0)}

    def mean(self, parts: Parts) -> Values:
        """Scales as numbers."""
        return Values.scaled(self._kind.dense(parts))

    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        """Nearest quantile."""
        _refuse_rounding(self.spec, rounding)
        assert values.divisor is not None
        table = torch.tensor(NF4, dtype=x.dtype, device=x.device)
        return _place(x / values.divisor, ((table[1:] + table[:-1]) / 2)[None, None])

    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor:
        """Scale times quantile."""
        assert values.scale is not None
        return torch.tensor(NF4, dtype=dtype, device=codes.device)[codes.int()] * values.scale


@dataclass(frozen=True)
class Table(Coded):
    r"""A table of :math:`2^b` numbers per row, group or tensor; a code is the place in the ascending table.

    Its entries are fp16, or (``int8``) whole numbers from -127 to 127 times a scale in fp16 of each table, rounded to fp16:
    :math:`8 \cdot 2^b + 16` bits where fp16 takes :math:`16 \cdot 2^b`. An entry is then off by at most 1/254 of the largest.

    ``encode`` finds the tables by Lloyd's algorithm from quantiles, weighted by the importance: a start. Exact tables are
    a solver's, which brings them with :meth:`given`.

    Args:
        bits: per code, 1 to 8.
        group: ``channel`` (a table per row), ``tensor``, or how many columns share a table.
        entries: ``fp16`` or ``int8``.

    Raises:
        ValueError: settings outside of these; on encoding, numbers beyond fp16.

    Example:
        >>> import torch
        >>> Table(3).size((4096, 4096)) / 4096**2  # 3 + 16 * 8 / 4096
        3.03125
        >>> grid = Table(1).given((1, 4), torch.tensor([[3.0, -1.0]]))
        >>> grid.encode(torch.tensor([[-2.0, 0.9, 1.0, 1.1]])).tolist()  # a tie goes to the lower entry
        [[0, 0, 0, 1]]
        >>> Table(3, entries="int8").size((576, 576)) / 576**2  # 3 + (8 * 8 + 16) / 576
        3.138888888888889
    """

    bits: int
    group: Group = "channel"
    entries: Entries = "fp16"

    def __post_init__(self) -> None:
        if self.entries not in ("fp16", "int8"):
            raise ValueError(f"entries of tables are fp16 or int8, got {self.entries!r}")
        if not 1 <= self.bits <= 8:
            raise ValueError(f"tables need 1 to 8 bits, got {self.bits}")
        check_group(self.group)

    @property
    def spec(self) -> str:
        """``table3/g512/int8``."""
        words = "" if self.group == "channel" else f"/{group_word(self.group)}"
        return f"table{self.bits}{words}" + ("" if self.entries == "fp16" else f"/{self.entries}")

    def kept(self, rows: int, groups: int) -> Layout:
        """Tables, or their entries and scales."""
        if self.entries == "int8":
            return {
                "entries": (torch.int8, (rows, groups, 2**self.bits)),
                "scale": (torch.float16, (rows, groups)),
            }
        return {"table": (torch.float16, (rows, groups, 2**self.bits))}

    def given(self, shape: Shape, table: Tensor) -> Grid:
        """The grid with tables of your choice, sorted and rounded to what is stored.

        Args:
            shape: of the weight.
            table: (rows or 1, groups, 2^bits), or (rows or 1, 2^bits) with one group.

        Raises:
            ValueError: another shape, NaN, infinite or beyond fp16.
        """
        rows, columns = rows_columns(shape)
        wanted = (1 if self.group == "tensor" else rows, groups_of(self.group, columns).count, 2**self.bits)
        table = (table[:, None] if table.ndim == 2 else table).detach()
        if table.ndim != 3 or table.shape[0] not in (1, wanted[0]) or tuple(table.shape[1:]) != wanted[1:]:
            raise ValueError(f"tables need the shape {wanted}, got {tuple(table.shape)}")
        return Grid(self, rows, columns, self._kept(table.expand(wanted)))

    def fit(self, matrix: Tensor, groups: Groups, importance: Tensor | None, held: Parts | None) -> Parts:
        """Tables by Lloyd's algorithm."""
        weights = None if importance is None else importance.expand_as(matrix)
        if self.group == "tensor":
            flat = None if weights is None else weights.reshape(1, -1)
            return self._kept(lloyd(matrix.reshape(1, -1), 2**self.bits, flat)[:, None])
        tables = []
        for piece in groups.pieces():
            x = piece.of(matrix)
            w = None if weights is None else piece.of(weights).reshape(-1, x.shape[2])
            found = lloyd(x.reshape(-1, x.shape[2]), 2**self.bits, w)
            tables.append(found.reshape(*x.shape[:2], -1))
        return self._kept(torch.cat(tables, dim=1))

    def mean(self, parts: Parts) -> Values:
        """Tables as numbers."""
        if self.entries == "fp16":
            return Values.looked_up(parts["table"].float())
        table = parts["entries"].float() * parts["scale"].float()[..., None]
        return Values.looked_up(table.clamp(-_LARGEST, _LARGEST).half().float())

    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        """Place of the nearest entry."""
        _refuse_rounding(self.spec, rounding)
        assert values.middle is not None
        return _place(x, values.middle)

    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor:
        """The entry."""
        assert values.table is not None
        table = values.table.expand(codes.shape[0], codes.shape[1], -1)
        return table.gather(2, codes.long())

    def _kept(self, table: Tensor) -> Parts:
        """(rows or 1, groups, entries) as they are stored, ascending."""
        table = _stored_table(table)
        if self.entries == "fp16":
            return {"table": table}
        most = table.float().abs().amax(dim=-1)
        scale = (most / _MOST_ENTRY).half()
        # Rounded down, a scale may leave the largest entry beyond its last level; at 0 nothing is left of the table.
        divisor = torch.where(scale > 0, scale.float(), 1)
        entries = (table.float() / divisor[..., None]).round().clamp(-_MOST_ENTRY, _MOST_ENTRY)
        return {"entries": entries.to(torch.int8), "scale": scale}


def lloyd(x: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """``count`` centres per row by Lloyd's algorithm from quantiles, ascending.

    Each step gives a value to its nearest centre and moves a centre to the weighted mean of what it has; a centre without
    weight stays. The result is a local minimum at best. Sorted values make a step a search for each centre's ends.

    Args:
        x: (problems, n).
        count: centres.
        weights: at least 0, shape of ``x``; a row of zeros counts as equal weights.
    """
    step = max(1, _BLOCK // x.shape[1])
    found = []
    for start in range(0, x.shape[0], step):
        part = x[start : start + step]
        weight = torch.ones_like(part) if weights is None else weights[start : start + step]
        found.append(_lloyd_block(part, count, weight))
    return torch.cat(found)


def _lloyd_block(x: Tensor, count: int, weights: Tensor) -> Tensor:
    ordered, order = x.contiguous().sort(dim=1)
    weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, 1.0).double().gather(1, order)
    total = pad(weights.cumsum(dim=1), (1, 0))
    moment = pad((weights * ordered).cumsum(dim=1), (1, 0))
    places = ((torch.arange(count, device=x.device) + 0.5) / count * x.shape[1]).long()
    centres = ordered[:, places]
    last = torch.full((len(x), 1), x.shape[1], device=x.device)
    for _ in range(_LLOYD):
        middle = (centres[:, 1:] + centres[:, :-1]) / 2
        ends = pad(
            torch.cat([torch.searchsorted(ordered, middle.contiguous(), right=True), last], dim=1), (1, 0)
        )
        weight, mean = total.gather(1, ends).diff(dim=1), moment.gather(1, ends).diff(dim=1)
        moved = torch.where(weight > 0, mean / torch.where(weight > 0, weight, 1), centres.double()).to(
            x.dtype
        )
        moved = moved.sort(dim=1).values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _place(x: Tensor, middle: Tensor) -> Tensor:
    """How many of the ascending ``middle`` lie below each number: the nearest entry, of two the lower.

    Args:
        x: (rows, groups, width).
        middle: (rows or 1, groups or 1, entries - 1).

    Returns:
        uint8 of the shape of ``x``.
    """
    if x.shape[2] == 1 and middle.shape[-1] < 256:
        return (x > middle).sum(dim=2, keepdim=True, dtype=torch.uint8)
    if middle.shape[-1] < _FEW:
        place = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
        for k in range(middle.shape[-1]):
            place += (x > middle[..., k : k + 1]).view(torch.uint8)
        return place
    middle = middle.expand(*x.shape[:2], -1).contiguous()
    return torch.searchsorted(middle, x.contiguous(), out_int32=True).to(torch.uint8)


def _stored_table(table: Tensor) -> Tensor:
    if not bool((table.abs() <= _LARGEST).all()):
        raise ValueError(f"tables are stored in fp16, up to {_LARGEST:g}, got {float(table.abs().max()):g}")
    return table.sort(dim=-1).values.to(torch.float16)


def _refuse_rounding(spec: str, rounding: Rounding) -> None:
    if rounding != "nearest":
        raise ValueError(f"{spec} has uneven values and rounds to the nearest alone, got {rounding!r}")
