"""Floats of any split with a scale per group (FP8, FP6, FP4, MX, NVFP4), and whole numbers of the machine."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import (
    Encoded,
    Layout,
    Parts,
    Shape,
    as_matrix,
    layout_bits,
    rows_columns,
)
from isoloss.compress.formats.grid import Coded, Grid, Values
from isoloss.compress.formats.groups import Group, Groups, check_group, group_word, groups_of
from isoloss.compress.formats.number_types import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FP16,
    FloatType,
    codes_of_floats,
    round_float,
)
from isoloss.compress.formats.ranges import RangeSearch, ends, shrunk
from isoloss.compress.formats.rounding import Rounding
from isoloss.compress.formats.scales import KINDS, ScaleKind, check_scales, given_scales

_FP32 = FloatType(8, 23)
_STANDARD = {(t.exponent, t.mantissa): t for t in (E4M3, E5M2, E3M2, E2M3, E2M1, FP16, BF16)}


def standard_type(exponent: int, mantissa: int) -> FloatType:
    """The OCP or IEEE type of that split; any other split with all codes finite, up to 7 exponent bits."""
    if (exponent, mantissa) in _STANDARD:
        return _STANDARD[exponent, mantissa]
    return FloatType(exponent, mantissa, "finite" if exponent < 8 else "ieee")


@dataclass(frozen=True)
class Float(Coded):
    r"""A float type with a scale per group: :math:`\hat x = s \cdot \mathrm{float}(x/s)`, saturating.

    The scale puts the largest number of a group at the largest of the type, :math:`s = \max|x| / \max`, or follows the
    rule of the way it is stored (``scales.KINDS``): powers of two (``m1``, ``m2``, ``mx``), or E4M3 under one float32
    (``nv``). A code is the sign, exponent and mantissa bits.

    Args:
        type: the float type, of at most 16 bits.
        group: ``tensor``, ``channel`` (a row), or how many columns share a scale.
        scales: how scales are stored; None: no scales, a plain cast.
        search: shrink the range to what loses least; default: cover all numbers.

    Raises:
        ValueError: settings outside of these.

    Source:
        OCP Microscaling Formats 1.0 (MX); X. Wu et al., ZeroQuant-FP, 2023, arXiv 2307.09782 (``m1``, ``m2``).

    Example:
        >>> import torch
        >>> mx = Float(E2M1, 32, "mx")
        >>> mx.spec, mx.size((1024, 1024)) / 1024**2  # 4 + 8 / 32
        ('mxfp4', 4.25)
        >>> mx.encode(torch.tensor([0.3, -1.1, 6.9, 3.2])).decode().tolist()
        [0.5, -1.0, 6.0, 3.0]
    """

    type: FloatType
    group: Group = "channel"
    scales: str | None = "fp16"
    search: RangeSearch | None = None

    def __post_init__(self) -> None:
        if self.type.bits > 16:
            raise ValueError(f"stored floats need at most 16 bits, got {self.type.bits}")
        check_group(self.group)
        if self.scales is not None:
            check_scales(self.scales)
        elif self.search is not None or self.group != "tensor":
            raise ValueError("a cast without scales has no groups and no range to search. Set group='tensor'")

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Per code, with the sign."""
        return self.type.bits

    @property
    def spec(self) -> str:
        """``fp4-e2m1/g256/scale-m2``; MX and NVFP4 by their names."""
        from isoloss.compress.formats.names import alias_of

        t = self.type
        base = f"fp{t.bits}-e{t.exponent}m{t.mantissa}"
        base += "" if t.specials == standard_type(t.exponent, t.mantissa).specials else f"-{t.specials}"
        base += "" if t.bias is None else f"-bias{t.bias}"
        if self.scales is None:
            return f"{base}/plain"
        words = [base, "" if self.group == "channel" else group_word(self.group)]
        words += ["" if self.search is None else self.search.word]
        return alias_of(
            "/".join(filter(None, [*words, "" if self.scales == "fp16" else f"scale-{self.scales}"]))
        )

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts that groups have in common."""
        return () if self._kind is None else self._kind.shared

    @property
    def _kind(self) -> ScaleKind | None:
        return None if self.scales is None else KINDS[self.scales]

    @cached_property
    def _numbers(self) -> Tensor:
        return self.type.values()

    def kept(self, rows: int, groups: int) -> Layout:
        """Scales."""
        return {} if self._kind is None else self._kind.layout(rows, groups)

    def given(self, shape: Shape, scale: Tensor) -> Grid:
        """The grid with scales of your choice, rounded to what is stored.

        Args:
            shape: of the weight.
            scale: at least 0, (rows or 1, groups); one number per row also as (rows,).

        Raises:
            ValueError: another shape, a scale that cannot be stored, a format without scales.
        """
        if self._kind is None:
            raise ValueError(f"{self.spec} has no scales")
        rows, columns = rows_columns(shape)
        groups = groups_of(self.group, columns)
        return Grid(
            self,
            rows,
            columns,
            given_scales(self._kind, self.group, rows, groups, scale, self.type.maximum),
        )

    def fit(self, matrix: Tensor, groups: Groups, importance: Tensor | None, held: Parts | None) -> Parts:
        """Scales for the range of each group, or the searched part of it."""
        if self._kind is None:
            return {}
        low, high = ends(matrix, groups, self.group)
        high = torch.maximum(-low, high)
        held = self._kind.hold(high, self.type.maximum) if held is None else held
        if self.search is not None:
            _, high = shrunk(self, matrix, groups, importance, -high, high, held, self.search)
        return self.at(-high, high, held)

    def at(self, low: Tensor, high: Tensor, held: Parts) -> Parts:
        """Scales that cover ``high``."""
        assert self._kind is not None
        return {**held, "scale": self._kind.store(high, self.type.maximum, held, 1.0)}

    def mean(self, parts: Parts) -> Values:
        """Scales as numbers."""
        return Values() if self._kind is None else Values.scaled(self._kind.dense(parts))

    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor:
        """Sign, exponent and mantissa bits."""
        if values.divisor is not None:
            x = x / values.divisor
        return codes_of_floats(x, self.type, rounding, generator)

    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor:
        """Scale times number."""
        found = self._numbers.to(codes.device, dtype)[codes.int()]
        return found if values.scale is None else found * values.scale


@dataclass(frozen=True)
class Native:
    """Numbers as the machine has them: ``fp32``, ``fp16`` or ``bf16``, one tensor, no scale.

    Raises:
        ValueError: another name; on encoding, a number beyond the largest.

    Example:
        >>> import torch
        >>> Native("bf16").encode(torch.tensor([1.0, 1.01])).decode().tolist()
        [1.0, 1.0078125]
    """

    name: Literal["fp32", "fp16", "bf16"] = "fp16"

    def __post_init__(self) -> None:
        if self.name not in ("fp32", "fp16", "bf16"):
            raise ValueError(f"numbers of the machine are fp32, fp16 and bf16, got {self.name!r}")

    @property
    def spec(self) -> str:
        """Its name."""
        return self.name

    @property
    def _types(self) -> tuple[torch.dtype, FloatType]:
        return {
            "fp32": (torch.float32, _FP32),
            "fp16": (torch.float16, FP16),
            "bf16": (torch.bfloat16, BF16),
        }[self.name]

    def encode(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        rounding: Rounding = "nearest",
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """The weight rounded once; see :class:`Format`."""
        matrix = as_matrix(weight)
        dtype, type = self._types
        largest = float(matrix.abs().max())
        if largest > type.maximum:
            raise ValueError(
                f"{self.name} ends at {type.maximum:g}, got {largest:g}. Use fp32 or bf16, or a scale"
            )
        if matrix.dtype != dtype:
            matrix = round_float(matrix, type, mode=rounding, generator=generator).to(dtype)
        return Encoded(self, tuple(weight.shape), {"values": matrix.contiguous()})

    def decode(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """The numbers in ``dtype``."""
        return parts["values"].to(dtype)

    def layout(self, shape: Shape) -> Layout:
        """One tensor, as a matrix."""
        return {"values": (self._types[0], rows_columns(shape))}

    def size(self, shape: Shape) -> int:
        """Stored bits."""
        return layout_bits(self.layout(shape))
