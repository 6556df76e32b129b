"""How the scale of a group is stored: takes the range of each group, gives the number that is kept for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import Layout, Parts
from isoloss.compress.formats.groups import Group, Groups
from isoloss.compress.formats.number_types import E4M3, codes_of_floats

_COARSE = 2.0**7  # an fp16 scale of fewer than so many of its smallest steps is off by more than 0.4 %


class ScaleKind(Protocol):
    """A way to store scales.

    ``reach`` is the range that a group must cover, ``top`` the largest level of its codes: the ideal scale is
    ``reach / top``. Both have the shape (rows or 1, groups).
    """

    @property
    def name(self) -> str:
        """Its word in a spec."""
        ...

    @property
    def shared(self) -> tuple[str, ...]:
        """Parts that the groups have in common, settled before any group."""
        ...

    def hold(self, reach: Tensor, top: float) -> dict[str, Tensor]:
        """The shared parts."""
        ...

    def store(self, reach: Tensor, top: float, held: Parts, empty: float) -> Tensor:
        """The part ``scale``; ``empty`` is the scale of a group whose reach is 0."""
        ...

    def dense(self, parts: Parts) -> Tensor:
        """The scales, float32."""
        ...

    def layout(self, rows: int, groups: int) -> Layout:
        """What is stored."""
        ...


@dataclass(frozen=True)
class Plain:
    """A float per group: ``fp16``, ``bf16`` or ``fp32``."""

    name: Literal["fp16", "bf16", "fp32"] = "fp16"
    shared: ClassVar[tuple[str, ...]] = ()

    @property
    def dtype(self) -> torch.dtype:
        return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[self.name]

    def hold(self, reach: Tensor, top: float) -> dict[str, Tensor]:
        largest, limits = float(reach.max()) / top, torch.finfo(self.dtype)
        low = _COARSE * limits.smallest_normal * limits.eps
        if largest > limits.max or 0 < largest < low:
            raise ValueError(
                f"a scale stored as {self.name} needs {low:.1e} to {limits.max:.1e}, got {largest:.1e}. "
                "Use bf16 or fp32 scales"
            )
        return {}

    def store(self, reach: Tensor, top: float, held: Parts, empty: float) -> Tensor:
        limits = torch.finfo(self.dtype)
        scale = (reach / top).clamp(limits.smallest_normal * limits.eps, limits.max)
        return torch.where(reach > 0, scale, empty).to(self.dtype)

    def dense(self, parts: Parts) -> Tensor:
        return parts["scale"].float()

    def layout(self, rows: int, groups: int) -> Layout:
        return {"scale": (self.dtype, (rows, groups))}


@dataclass(frozen=True)
class PowerOfTwo:
    r"""A power of two per group in one byte (E8M0: exponent plus 127).

    ``m1``: :math:`2^{\lceil \log_2 (\text{reach}/\text{top}) \rceil}`, nothing is clipped (ZeroQuant-FP, arXiv
    2307.09782). ``mx``: :math:`2^{\lfloor \log_2 \text{reach} \rfloor - \lfloor \log_2 \text{top} \rfloor}`, the
    largest numbers may be (OCP Microscaling Formats, version 1.0).
    """

    name: Literal["m1", "mx"] = "mx"
    shared: ClassVar[tuple[str, ...]] = ()

    def hold(self, reach: Tensor, top: float) -> dict[str, Tensor]:
        return {}

    def store(self, reach: Tensor, top: float, held: Parts, empty: float) -> Tensor:
        if self.name == "mx":
            exponent = _floor_log2(reach) - (math.frexp(top)[1] - 1)
        else:
            exponent = _ceil_log2(reach / top)
        exponent = torch.where(reach > 0, exponent, 0 if empty > 0 else -127)
        return (exponent.clamp(-127, 127) + 127).to(torch.uint8)

    def dense(self, parts: Parts) -> Tensor:
        return _power(parts["scale"].int() - 127)

    def layout(self, rows: int, groups: int) -> Layout:
        return {"scale": (torch.uint8, (rows, groups))}


@dataclass(frozen=True)
class RowTimesPower:
    r"""``m2``: one float32 per row and, per group, a power of two in one byte.

    :math:`\hat S_i = S_{\max} / 2^{\lceil \log_2 (S_{\max}/S_i) \rceil}`: the scales of a row differ by shifts alone
    (ZeroQuant-FP, arXiv 2307.09782, second constraint). As :math:`\hat S_i \le S_i`, the largest numbers of a group may
    be clipped.
    """

    name: Literal["m2"] = "m2"
    shared: ClassVar[tuple[str, ...]] = ("row_scale",)

    def hold(self, reach: Tensor, top: float) -> dict[str, Tensor]:
        largest = (reach / top).amax(dim=1, keepdim=True).float()
        return {"row_scale": torch.where(largest > 0, largest, 1.0)}

    def store(self, reach: Tensor, top: float, held: Parts, empty: float) -> Tensor:
        shift = _ceil_log2(held["row_scale"].to(reach) / torch.where(reach > 0, reach / top, 1.0))
        shift = torch.where(reach > 0, shift, 0 if empty > 0 else 127)
        return shift.clamp(-127, 127).to(torch.int8)

    def dense(self, parts: Parts) -> Tensor:
        return parts["row_scale"] * _power(-parts["scale"].int())

    def layout(self, rows: int, groups: int) -> Layout:
        return {"scale": (torch.int8, (rows, groups)), "row_scale": (torch.float32, (rows, 1))}


@dataclass(frozen=True)
class Fp8OfTensor:
    """``nv``: E4M3 per group times one float32 per tensor, which puts the largest scale at 448."""

    name: Literal["nv"] = "nv"
    shared: ClassVar[tuple[str, ...]] = ("tensor_scale",)

    def hold(self, reach: Tensor, top: float) -> dict[str, Tensor]:
        largest = (reach / top).max().reshape(1, 1).float() / E4M3.maximum
        return {"tensor_scale": torch.where(largest > 0, largest, 1.0)}

    def store(self, reach: Tensor, top: float, held: Parts, empty: float) -> Tensor:
        scale = (reach / top / held["tensor_scale"].to(reach)).clamp(E4M3.smallest, E4M3.maximum)
        scale = torch.where(reach > 0, scale, E4M3.smallest if empty == 0 else 1.0)
        return codes_of_floats(scale, E4M3).to(torch.uint8)

    def dense(self, parts: Parts) -> Tensor:
        numbers = E4M3.values().float().to(parts["scale"].device)
        return numbers[parts["scale"].int()] * parts["tensor_scale"]

    def layout(self, rows: int, groups: int) -> Layout:
        return {"scale": (torch.uint8, (rows, groups)), "tensor_scale": (torch.float32, (1, 1))}


KINDS: Mapping[str, ScaleKind] = {
    kind.name: kind
    for kind in (
        Plain("fp16"), Plain("bf16"), Plain("fp32"), PowerOfTwo("m1"), PowerOfTwo("mx"), RowTimesPower(), Fp8OfTensor()
    )
}  # fmt: skip


def _floor_log2(x: Tensor) -> Tensor:
    """Exact, from the exponent; 0 where x is 0."""
    return torch.where(x > 0, torch.frexp(x).exponent - 1, 0)


def _ceil_log2(x: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(x)
    return torch.where(x > 0, exponent - (mantissa == 0.5).int(), 0)


def _power(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones(exponent.shape, device=exponent.device), exponent)


def check_scales(name: str) -> None:
    """Refuse an unknown way to store scales."""
    if name not in KINDS:
        raise ValueError(f"scales are stored as {', '.join(KINDS)}, got {name!r}")


def given_scales(
    kind: ScaleKind, group: Group, rows: int, groups: Groups, scale: Tensor, top: float
) -> dict[str, Tensor]:
    """Scales of someone's choice as parts, rounded to what is stored.

    Raises:
        ValueError: negative, NaN or infinite, of another shape, or not to be stored.
    """
    wanted = (1 if group == "tensor" else rows, groups.count)
    scale = (scale.reshape(-1, 1) if scale.ndim < 2 else scale).detach().double()
    if scale.shape[0] not in (1, wanted[0]) or scale.shape[1] != wanted[1]:
        raise ValueError(f"scales need the shape {wanted}, got {tuple(scale.shape)}")
    if not bool((scale >= 0).all()) or not bool(torch.isfinite(scale).all()):
        raise ValueError("scales need finite numbers of at least 0")
    reach = scale.expand(wanted) * top
    held = kind.hold(reach, top)
    return {**held, "scale": kind.store(reach, top, held, 0.0)}
