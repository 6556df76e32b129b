"""Codes of 1 to 8 bits in planes of bytes, as the kernels read them: takes codes, gives bytes, and back.

Eight planes of codes of b bits lie in b bytes per lane. Planes of 1, 2, 4 and 8 bits share a byte in order. Three bits:
planes 0 to 5 in pairs at the low end of bytes 0 to 2; 6 in the upper two bits of byte 0 and bit 6 of byte 2; 7 in those of
byte 1 and bit 7 of byte 2. Five, six and seven bits: the lower four as of four, then the others as of one and two.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLANES = 8
_SPLIT = {5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}


def to_bytes(codes: Tensor, bits: int) -> Tensor:
    """(..., 8, lanes) codes -> (..., bits, lanes) bytes.

    Example:
        >>> codes = torch.arange(8, dtype=torch.uint8)[:, None]
        >>> to_bytes(codes, 3)[:, 0].tolist()  # 10 001 000, 11 011 010, 11 101 100
        [136, 218, 236]
        >>> from_bytes(to_bytes(codes, 3), 3)[:, 0].tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    c = codes.to(torch.uint8)
    if bits == 3:
        u = c.unbind(-2)
        return torch.stack(
            [
                u[0] | u[1] << 3 | (u[6] & 3) << 6,
                u[2] | u[3] << 3 | (u[7] & 3) << 6,
                u[4] | u[5] << 3 | (u[6] >> 2) << 6 | (u[7] >> 2) << 7,
            ],
            dim=-2,
        )
    if bits in _SPLIT:
        parts, shift = [], 0
        for part in _SPLIT[bits]:
            parts.append(to_bytes((c >> shift) & ((1 << part) - 1), part))
            shift += part
        return torch.cat(parts, dim=-2)
    each = PLANES // bits
    shared = split(c, -2, (bits, each)).to(torch.int32)
    shifts = torch.arange(each, dtype=torch.int32)[:, None] * bits
    return (shared << shifts).sum(-2).to(torch.uint8)


def split(x: Tensor, dim: int, sizes: tuple[int, ...]) -> Tensor:
    """One dimension as several; torch's own has no types."""
    whole: Tensor = x.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return whole


def from_bytes(data: Tensor, bits: int) -> Tensor:
    """(..., bits, lanes) bytes -> (..., 8, lanes) codes, uint8."""
    if bits == 3:
        a, b, c = data.unbind(-2)
        return torch.stack(
            [
                a & 7, a >> 3 & 7, b & 7, b >> 3 & 7, c & 7, c >> 3 & 7,
                a >> 6 | (c >> 6 & 1) << 2, b >> 6 | (c >> 7) << 2,
            ],
            dim=-2,
        )  # fmt: skip
    if bits in _SPLIT:
        codes, shift, first = None, 0, 0
        for part in _SPLIT[bits]:
            here = from_bytes(data[..., first : first + part, :], part) << shift
            codes = here if codes is None else codes | here
            first, shift = first + part, shift + part
        assert codes is not None
        return codes
    each = PLANES // bits
    shifts = torch.arange(each, dtype=torch.uint8, device=data.device)[:, None] * bits
    return (data.unsqueeze(-2) >> shifts & ((1 << bits) - 1)).flatten(-3, -2)
