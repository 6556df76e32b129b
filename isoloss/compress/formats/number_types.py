"""Floats of any split and fixed point: takes numbers, gives the nearest that such a type has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isoloss.compress.formats.rounding import Rounding, check_rounding, round_whole

Specials = Literal["ieee", "fn", "finite"]
Overflow = Literal["saturate", "ieee"]
_BLOCK = 1 << 16  # numbers worked on at once: what is computed in between stays in the cache


@dataclass(frozen=True)
class FloatType:
    r"""A sign, ``exponent`` bits and ``mantissa`` bits.

    With bias :math:`\beta` the codes of exponent field :math:`f` and mantissa :math:`m` are
    :math:`\pm 2^{f-\beta} (1 + m 2^{-M})`, and :math:`\pm 2^{1-\beta} m 2^{-M}` for :math:`f = 0` (subnormals).

    Args:
        exponent: bits, 1 to 8.
        mantissa: stored bits, 0 to 23.
        specials: ``ieee`` keeps the last exponent for inf and NaN; ``fn`` has no inf and one NaN per sign, the last code
            (OCP E4M3); ``finite`` has neither.
        bias: default :math:`2^{E-1} - 1`.

    Raises:
        ValueError: no such split.

    Source:
        IEEE 754; OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0.

    Example:
        >>> E4M3.maximum, E4M3.smallest_normal == 2**-6, E4M3.smallest == 2**-9
        (448.0, True, True)
        >>> FloatType(2, 1, "finite").values()[:8].tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """

    exponent: int
    mantissa: int
    specials: Specials = "ieee"
    bias: int | None = None

    def __post_init__(self) -> None:
        if not (1 <= self.exponent <= 8 and 0 <= self.mantissa <= 23):
            raise ValueError(
                f"a float type needs 1 to 8 exponent and 0 to 23 mantissa bits, got E{self.exponent}M{self.mantissa}"
            )
        if self.specials not in ("ieee", "fn", "finite"):
            raise ValueError(f"specials are ieee, fn or finite, got {self.specials!r}")
        if (self.specials == "ieee" and self.exponent == 1) or (self.specials == "fn" and self.mantissa == 0):
            raise ValueError(
                f"E{self.exponent}M{self.mantissa} has no code to spare for {self.specials} specials"
            )
        if not (self.low >= -126 and self.high <= 127):
            raise ValueError(f"a float type needs exponents within float32, got {self.low} to {self.high}")

    @property
    def bits(self) -> int:
        """Per code, with the sign."""
        return 1 + self.exponent + self.mantissa

    @property
    def offset(self) -> int:
        """The bias in force."""
        return 2 ** (self.exponent - 1) - 1 if self.bias is None else self.bias

    @property
    def low(self) -> int:
        """Exponent of the smallest normal number, and of all subnormals."""
        return 1 - self.offset

    @property
    def high(self) -> int:
        """Exponent of the largest finite number."""
        return (1 << self.exponent) - 1 - (self.specials == "ieee") - self.offset

    @property
    def maximum(self) -> float:
        """Largest finite number."""
        last = 2 - 2.0**-self.mantissa * (1 + (self.specials == "fn"))
        return float(last * 2.0**self.high)

    @property
    def smallest_normal(self) -> float:
        """Smallest number with a full mantissa."""
        return 2.0**self.low

    @property
    def smallest(self) -> float:
        """Smallest number above 0."""
        return 2.0 ** (self.low - self.mantissa)

    def values(self) -> Tensor:
        """What each code stands for, float64, inf and NaN included.

        Raises:
            ValueError: more than 16 bits.
        """
        if self.bits > 16:
            raise ValueError(f"a table of values needs at most 16 bits, got {self.bits}")
        code = torch.arange(2 ** (self.bits - 1))
        field, mantissa = code >> self.mantissa, code & (2**self.mantissa - 1)
        whole = mantissa + torch.where(field > 0, 2**self.mantissa, 0)
        value = whole.double() * 2.0 ** (field.clamp(min=1) - self.offset - self.mantissa).double()
        if self.specials == "ieee":
            value[field == 2**self.exponent - 1] = torch.nan
            value[(2**self.exponent - 1) << self.mantissa] = torch.inf
        elif self.specials == "fn":
            value[-1] = torch.nan
        return torch.cat([value, -value])


FP16 = FloatType(5, 10)
BF16 = FloatType(8, 7)
E4M3 = FloatType(4, 3, "fn")
E5M2 = FloatType(5, 2)
E3M2 = FloatType(3, 2, "finite")
E2M3 = FloatType(2, 3, "finite")
E2M1 = FloatType(2, 1, "finite")


def round_float(
    x: Tensor,
    type: FloatType,
    *,
    mode: Rounding = "nearest",
    overflow: Overflow = "saturate",
    subnormals: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Each number as the type would hold it, in the dtype of ``x``.

    With :math:`e = \max(\lfloor \log_2 |x| \rfloor, e_\min)` and :math:`u = 2^{e-M}` it is
    :math:`u \cdot \text{round}(x/u)`, exact in every step: float32 is computed in float32 or, for types of a wide range,
    in float64; float64 is rounded once.

    Args:
        x: any float dtype. NaN stays NaN, the sign of zero is kept.
        type: the float type.
        mode: one of six; directed ones act on the signed value.
        overflow: ``saturate`` ends at the largest finite number, also for inf; ``ieee`` goes, after rounding, where the
            mode says: inf, or the largest number for modes that round towards it. A type without inf has NaN there.
        subnormals: False makes what is below the smallest normal number *after rounding* a zero of its sign.
        generator: of the random modes.

    Raises:
        ValueError: ``ieee`` overflow of a type without inf and NaN; an unknown mode.

    Source:
        E. Carson and X. Chen, Pychop, 2025, arXiv 2504.07835; N. Higham and S. Pranesh, chop, 2019.

    Example:
        >>> import torch
        >>> round_float(torch.tensor([0.3, 464.0, 465.0]), E4M3).tolist()
        [0.3125, 448.0, 448.0]
        >>> round_float(torch.tensor([464.0, 465.0]), E4M3, overflow="ieee").tolist()
        [448.0, nan]
    """
    check_rounding(mode, generator)
    if overflow not in ("saturate", "ieee"):
        raise ValueError(f"overflow is 'saturate' or 'ieee', got {overflow!r}")
    if overflow == "ieee" and type.specials == "finite":
        raise ValueError(
            f"E{type.exponent}M{type.mantissa} has no inf and no NaN to overflow to. Use 'saturate'"
        )
    flat, out = x.detach().reshape(-1), torch.empty_like(x, memory_format=torch.contiguous_format)
    for piece, target in zip(torch.split(flat, _BLOCK), torch.split(out.view(-1), _BLOCK), strict=True):
        work = _working(piece, type)
        quotient, _, unit = _cells(work, type)
        y = torch.copysign(round_whole(quotient, mode, generator).mul_(unit), work)
        if overflow == "saturate":
            y.clamp_(-type.maximum, type.maximum)
        else:
            y = _overflown(y, work, type, mode)
        if not subnormals:
            y = torch.where(y.abs() < type.smallest_normal, torch.copysign(torch.zeros_like(y), y), y)
        target.copy_(y)
    return out


def codes_of_floats(
    x: Tensor, type: FloatType, mode: Rounding = "nearest", generator: torch.Generator | None = None
) -> Tensor:
    """The codes of numbers, saturating: sign, exponent and mantissa bits, int32. ``x`` must be finite."""
    work = _working(x, type).clamp(-type.maximum, type.maximum)
    quotient, exponent, _ = _cells(work, type)
    code = round_whole(quotient, mode, generator).abs_().to(torch.int32)
    code += (exponent - type.low) << type.mantissa
    return code | (torch.signbit(work).to(torch.int32) << (type.bits - 1))


def round_fixed(
    x: Tensor,
    integer: int,
    fraction: int,
    *,
    mode: Rounding = "nearest",
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fixed point :math:`\langle I, F \rangle`: whole multiples of :math:`2^{-F}` in :math:`[-2^{I-1}, 2^{I-1} - 2^{-F}]`.

    Args:
        x: any float dtype; what lies outside ends at the nearer end.
        integer: bits before the point, the sign counted.
        fraction: bits behind it.
        mode: one of six.
        generator: of the random modes.

    Raises:
        ValueError: less than one bit, an unknown mode.

    Example:
        >>> import torch
        >>> round_fixed(torch.tensor([0.3, -3.0, 9.0]), 3, 2).tolist()
        [0.25, -3.0, 3.75]
    """
    if integer + fraction < 1:
        raise ValueError(f"fixed point needs at least one bit, got {integer} + {fraction}")
    work = x if x.dtype == torch.float64 else x.float()
    top = 2.0 ** (integer - 1)
    y = round_whole(work * 2.0**fraction, mode, generator) * 2.0**-fraction
    return y.clamp_(-top, top - 2.0**-fraction).to(x.dtype)


def _working(x: Tensor, type: FloatType) -> Tensor:
    """The dtype in which every scaling by a power of two is exact: x / u would leave float32 for wide types."""
    if not x.is_floating_point():
        raise TypeError(f"rounding needs floats, got {x.dtype}")
    narrow = type.low - type.mantissa >= -100 and type.high <= 100
    return x.float() if narrow and x.dtype != torch.float64 else x.double()


def _cells(x: Tensor, type: FloatType) -> tuple[Tensor, Tensor, Tensor]:
    """x in units of the last place, the exponent of its cell, the unit. The exponent is read from the bits of x."""
    integers, bits, bias = (torch.int32, 23, 127) if x.dtype == torch.float32 else (torch.int64, 52, 1023)
    exponent = (x.view(integers) >> bits) & (2 * bias + 1)
    exponent = exponent.sub_(bias).clamp_(type.low, type.high)
    unit = ((exponent + (bias - type.mantissa)) << bits).view(x.dtype)
    inverse = ((bias + type.mantissa - exponent) << bits).view(x.dtype)
    return inverse.mul_(x), exponent.to(torch.int32), unit


def _overflown(y: Tensor, x: Tensor, type: FloatType, mode: Rounding) -> Tensor:
    """What IEEE 754 makes of finite numbers that rounding took past the largest one; inf itself stays."""
    past = torch.inf if type.specials == "ieee" else torch.nan
    over = y.abs() > type.maximum
    if mode in ("zero", "up", "down"):
        kept = {"zero": over, "up": over & (x < 0), "down": over & (x > 0)}[mode] & ~x.isinf()
        y = torch.where(kept, torch.copysign(torch.full_like(y, type.maximum), x), y)
        over &= ~kept
    return torch.where(over, torch.copysign(torch.full_like(y, past), x), y)
