"""Integers of 1 to 8 bits, and fixed point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import Layout, Parts, Shape, rows_columns
from isoloss.compress.formats.grid import Coded, Grid, Values
from isoloss.compress.formats.groups import Group, Groups, check_group, group_word, groups_of
from isoloss.compress.formats.packing import pack, packed_width, unpack
from isoloss.compress.formats.ranges import RangeSearch, ends, shrunk
from isoloss.compress.formats.rounding import Rounding, round_whole
from isoloss.compress.formats.scales import KINDS, ScaleKind, check_scales, given_scales

Zero = Literal["sym", "narrow", "asym", "bipolar"]


@dataclass(frozen=True)
class Integer(Coded):
    r"""Integers with a scale per group.

    With scale :math:`s` and :math:`b` bits:

    - ``sym``: :math:`\hat x = s\, \mathrm{clip}(\mathrm{round}(x/s), -2^{b-1}, 2^{b-1}-1)`,
      :math:`s = \max|x| / (2^{b-1}-1)`;
    - ``narrow``: the same from :math:`-(2^{b-1}-1)`, so that both sides are alike;
    - ``asym``: :math:`\hat x = s\,(\mathrm{clip}(\mathrm{round}(x/s) + z, 0, 2^b-1) - z)`,
      :math:`s = (\max - \min)/(2^b-1)`, :math:`z = \mathrm{round}(-\min/s)`, 0 included in the range so that it is exact;
      z is stored in b bits;
    - ``bipolar``: the odd levels :math:`2u - (2^b-1)`, no zero, :math:`s = \max|x| / (2^b-1)`; of one bit
      :math:`\pm s` with :math:`s` the (weighted) mean of :math:`|x|`, which is the least-squares answer. A value halfway
      between two levels takes the upper one, so that 0 becomes +1.

    A group of zeros has scale 1 (bipolar: 0) and decodes to zeros.

    Args:
        bits: per code, 1 to 8; ``sym`` and ``narrow`` need 2.
        group: ``tensor``, ``channel`` (a row), or how many columns share a scale.
        zero: one of the four.
        scales: how scales are stored, a name in ``scales.KINDS``.
        search: shrink the range to what loses least; default: cover all numbers.

    Raises:
        ValueError: settings outside of these.

    Example:
        >>> import torch
        >>> Integer(3, "tensor").encode(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.5])).decode().tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.5]
        >>> Integer(4, 128, "asym").size((1024, 1024)) / 1024**2  # 4 + (16 + 4) / 128
        4.15625
    """

    bits: int
    group: Group = "channel"
    zero: Zero = "sym"
    scales: str = "fp16"
    search: RangeSearch | None = None

    def __post_init__(self) -> None:
        if self.zero not in ("sym", "narrow", "asym", "bipolar"):
            raise ValueError(f"zero is sym, narrow, asym or bipolar, got {self.zero!r}")
        least = 1 if self.zero in ("asym", "bipolar") else 2
        if not least <= self.bits <= 8:
            raise ValueError(f"integers ({self.zero}) need {least} to 8 bits, got {self.bits}")
        if self.bits == 1 and self.zero == "bipolar" and self.search is not None:
            raise ValueError("one bipolar bit has its best scale in closed form. Leave the search out")
        check_group(self.group)
        check_scales(self.scales)

    @property
    def spec(self) -> str:
        """``int4/g128/asym/mse``."""
        words = [f"int{self.bits}", "" if self.group == "channel" else group_word(self.group)]
        words += ["" if self.zero == "sym" else self.zero, "" if self.search is None else self.search.word]
        return "/".join(filter(None, [*words, "" if self.scales == "fp16" else f"scale-{self.scales}"]))

    @property
    def lowest(self) -> int:
        """Level of code 0."""
        return {"asym": 0, "bipolar": 1 - (1 << self.bits)}.get(self.zero, -(1 << (self.bits - 1)))

    @property
    def top(self) -> int:
        """Level at the end of the range."""
        return (1 << (self.bits - (self.zero in ("sym", "narrow")))) - 1

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts that groups have in common."""
        return self._kind.shared

    @property
    def _kind(self) -> ScaleKind:
        return KINDS[self.scales]

    def kept(self, rows: int, groups: int) -> Layout:
        """Scales, and zero-points in ``bits`` bits each, one stream."""
        layout = self._kind.layout(rows, groups)
        if self.zero == "asym":
            layout["zero"] = (torch.uint8, (packed_width(rows * groups, self.bits),))
        return layout

    def stored(self, parts: Parts) -> Parts:
        """Zero-points packed."""
        if self.zero != "asym":
            return parts
        return {**parts, "zero": pack(parts["zero"].reshape(1, -1), self.bits)[0]}

    def loaded(self, parts: Parts, rows: int, groups: int) -> Parts:
        """Zero-points unpacked."""
        if self.zero != "asym":
            return parts
        zero = unpack(parts["zero"][None, :], self.bits, rows * groups).reshape(rows, groups)
        return {**parts, "zero": zero}

    def given(self, shape: Shape, scale: Tensor, zero: Tensor | None = None) -> Grid:
        """The grid with scales and zero-points of your choice, rounded to what is stored.

        Args:
            shape: of the weight.
            scale: at least 0, (rows or 1, groups); one number per row also as (rows,).
            zero: whole numbers from 0 to 2^bits - 1, same shape; for ``asym`` alone.

        Raises:
            ValueError: another shape, a scale that cannot be stored, a zero-point where there is none or the reverse.
        """
        rows, columns = rows_columns(shape)
        parts = given_scales(self._kind, self.group, rows, groups_of(self.group, columns), scale, self.top)
        if (zero is not None) != (self.zero == "asym"):
            raise ValueError(f"{self.spec} {'needs' if zero is None else 'has no'} zero-points")
        if zero is not None:
            points = zero.reshape(-1, 1) if zero.ndim == 1 else zero
            parts["zero"] = points.expand(parts["scale"].shape).clamp(0, self.top).round().to(torch.uint8)
        return Grid(self, rows, columns, parts)

    def fit(self, matrix: Tensor, groups: Groups, importance: Tensor | None, held: Parts | None) -> Parts:
        """Scales and zero-points for the range of each group, or the searched part of it."""
        low, high = self._ends(matrix, groups, importance)
        held = (
            self._kind.hold(high - low if self.zero == "asym" else high, self.top) if held is None else held
        )
        if self.search is not None:
            low, high = shrunk(self, matrix, groups, importance, low, high, held, self.search)
        return self.at(low, high, held)

    def at(self, low: Tensor, high: Tensor, held: Parts) -> Parts:
        """Scales and zero-points that cover ``low`` to ``high``."""
        reach = high - low if self.zero == "asym" else high
        scale = self._kind.store(reach, self.top, held, 0.0 if self.zero == "bipolar" else 1.0)
        parts = {**held, "scale": scale}
        if self.zero == "asym":
            zero = (-low / self._kind.dense(parts)).round().clamp(0, self.top)
            parts["zero"] = zero.to(torch.uint8)
        return parts

    def mean(self, parts: Parts) -> Values:
        """Scales and zero-points as numbers."""
        zero = parts.get("zero")
        return Values.scaled(self._kind.dense(parts), None if zero is None else zero.float())

    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        """Levels as codes from 0."""
        assert values.divisor is not None
        level = x / values.divisor
        if self.zero == "bipolar":
            level = level.sub_(self.lowest).div_(2)
            code = (
                level.add_(0.5).floor_() if rounding == "nearest" else round_whole(level, rounding, generator)
            )
            return code.clamp_(0, 2**self.bits - 1)
        code = round_whole(level, rounding, generator)
        code += -self.lowest if values.zero is None else values.zero
        return code.clamp_(int(self.zero == "narrow"), 2**self.bits - 1)

    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor:
        """Scale times level; affine in the code."""
        assert values.scale is not None
        level = codes.to(dtype)
        if self.zero == "bipolar":
            return (2 * level + self.lowest) * values.scale
        return (level + self.lowest if values.zero is None else level - values.zero) * values.scale

    def _ends(self, matrix: Tensor, groups: Groups, importance: Tensor | None) -> tuple[Tensor, Tensor]:
        low, high = ends(matrix, groups, self.group)
        if self.zero == "asym":
            return low.clamp(max=0), high.clamp(min=0)
        if self.bits == 1:
            return -(high := _mean_size(matrix, groups, self.group, importance)), high
        high = torch.maximum(-low, high)
        return -high, high


@dataclass(frozen=True)
class Fixed(Coded):
    r"""Fixed point :math:`\langle I, F \rangle`: whole multiples of :math:`2^{-F}`, nothing stored but the codes.

    The range is :math:`[-2^{I-1}, 2^{I-1} - 2^{-F}]`, the sign counted in I; what lies outside ends there.

    Args:
        integer: bits before the point, with the sign.
        fraction: bits behind it.

    Raises:
        ValueError: not 1 to 16 bits together.

    Example:
        >>> import torch
        >>> Fixed(2, 2).encode(torch.tensor([0.3, -5.0, 1.9])).decode().tolist()
        [0.25, -2.0, 1.75]
    """

    integer: int
    fraction: int

    def __post_init__(self) -> None:
        if not 1 <= self.integer + self.fraction <= 16:
            raise ValueError(f"fixed point needs 1 to 16 bits, got {self.integer} + {self.fraction}")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Per code."""
        return self.integer + self.fraction

    @property
    def group(self) -> Group:  # type: ignore[override]
        """All numbers have one step."""
        return "tensor"

    @property
    def spec(self) -> str:
        """``fixed3.5``."""
        return f"fixed{self.integer}.{self.fraction}"

    def kept(self, rows: int, groups: int) -> Layout:
        """Nothing."""
        return {}

    def fit(self, matrix: Tensor, groups: Groups, importance: Tensor | None, held: Parts | None) -> Parts:
        """Nothing to choose."""
        return {}

    def mean(self, parts: Parts) -> Values:
        """The step."""
        return Values(torch.tensor([[2.0**-self.fraction]]))

    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        """Whole multiples of the step, from the lowest."""
        level = round_whole(x * 2.0**self.fraction, rounding, generator)
        return level.add_(2.0 ** (self.bits - 1)).clamp_(0, 2**self.bits - 1)

    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor:
        """The step times the level."""
        return (codes.to(dtype) - 2.0 ** (self.bits - 1)) * 2.0**-self.fraction


def _mean_size(matrix: Tensor, groups: Groups, group: Group, importance: Tensor | None) -> Tensor:
    """Mean of ``|x|`` of each group, weighted; a plain one where all weights are 0."""
    weights = torch.ones_like(matrix) if importance is None else importance.expand_as(matrix)
    pairs = []
    for size in (matrix.abs() * weights, weights, matrix.abs(), torch.ones_like(matrix)):
        sums = torch.cat([piece.of(size).sum(dim=2) for piece in groups.pieces()], dim=1)
        pairs.append(sums.sum(dim=0, keepdim=True) if group == "tensor" else sums)
    total, weight, plain, count = pairs
    return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1), plain / count)
