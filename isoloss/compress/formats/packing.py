"""Codes of 1 to 16 bits as a dense stream of bits, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_zeros

WIDEST = 16
_BLOCK = 1 << 17  # groups of eight codes worked on at once: their 64-bit words stay in the cache


def packed_width(count: int, bits: int) -> int:
    """Bytes of one row of ``count`` codes."""
    return -(-count * bits // 8)


def code_dtype(bits: int) -> torch.dtype:
    """The dtype of unpacked codes: uint8 up to eight bits, else int32."""
    return torch.uint8 if bits <= 8 else torch.int32


def pack(codes: Tensor, bits: int) -> Tensor:
    r"""Each row of codes as bytes.

    The layout is one little-endian stream of bits a row: bit :math:`i` of code :math:`j` is bit
    :math:`(jb + i) \bmod 8` of byte :math:`\lfloor (jb + i)/8 \rfloor`. Eight codes are exactly ``bits`` bytes, so a
    kernel reads any eight with one unaligned load. A row ends on a byte; the bits left over are zero.

    Args:
        codes: integers from 0 to 2^bits - 1, shape (rows, n).
        bits: per code, 1 to 16.

    Returns:
        uint8 of shape (rows, ceil(n bits / 8)).

    Raises:
        ValueError: other shapes, other widths.

    Example:
        >>> import torch
        >>> pack(torch.tensor([[1, 2, 3, 7]], dtype=torch.uint8), 3).tolist()  # 111 011 010 001, read from the right
        [[209, 14]]
        >>> unpack(pack(torch.tensor([[1, 2, 3, 7]]), 3), 3, 4).tolist()
        [[1, 2, 3, 7]]
    """
    _check(codes, bits)
    rows, count = codes.shape
    if bits == 8:
        return codes.to(torch.uint8, copy=True).contiguous()
    eights = -(-count // 8)
    if count % 8:
        codes = pad_zeros(codes, (0, 8 * eights - count))
    flat = codes.reshape(-1, 8)
    out = torch.empty(flat.shape[0], bits, dtype=torch.uint8, device=codes.device)
    for start in range(0, flat.shape[0], _BLOCK):
        eight = flat[start : start + _BLOCK]
        if bits == 16:
            out[start : start + _BLOCK] = eight.to(torch.int16).view(torch.uint8)
        else:
            words = _words(eight, bits)
            out[start : start + _BLOCK] = words.view(torch.uint8)[:, :bits]
    return out.reshape(rows, eights * bits)[:, : packed_width(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The codes of each row: uint8 up to eight bits, else int32; shape (rows, count).

    Raises:
        ValueError: the rows have not the bytes of ``count`` codes.
    """
    _check(packed, bits)
    rows, width = packed.shape
    if packed.dtype != torch.uint8 or width != packed_width(count, bits):
        raise ValueError(
            f"{count} codes of {bits} bits need rows of {packed_width(count, bits)} bytes (uint8), got rows of {width} "
            f"({packed.dtype}). Give what pack returned"
        )
    if bits == 8:
        return packed.clone()
    eights = -(-count // 8)
    if width < eights * bits:
        packed = pad_zeros(packed, (0, eights * bits - width))
    flat = packed.reshape(-1, bits)
    out = torch.empty(flat.shape[0], 8, dtype=code_dtype(bits), device=packed.device)
    for start in range(0, flat.shape[0], _BLOCK):
        part = flat[start : start + _BLOCK]
        if bits == 16:
            out[start : start + _BLOCK] = part.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
        else:
            _split(part, bits, out[start : start + _BLOCK])
    return out.reshape(rows, 8 * eights)[:, :count].contiguous()


def _words(eight: Tensor, bits: int) -> Tensor:
    """Eight codes a row -> their stream in one 64-bit word, or in two above eight bits."""
    if bits < 8:
        return _squeezed(eight.to(torch.uint8).contiguous().view(torch.int64), 8, bits)
    low, high = _squeezed(eight.to(torch.int16).contiguous().view(torch.int64), 16, bits).T
    return torch.stack([low | (high << (4 * bits)), high >> (64 - 4 * bits)], dim=1)


def _split(part: Tensor, bits: int, out: Tensor) -> None:
    """Bytes of eight codes a row -> the codes, written to ``out``."""
    space = torch.zeros(part.shape[0], 8 if bits < 8 else 16, dtype=torch.uint8, device=part.device)
    space[:, :bits] = part
    words = space.view(torch.int64)
    if bits < 8:
        out[:] = _spread(words, 8, bits).view(torch.uint8)
        return
    rest = 64 - 4 * bits
    low, high = words[:, 0], words[:, 1]
    second = ((low >> (4 * bits)) & ((1 << rest) - 1)) | (high << rest)
    first = low & ((1 << (4 * bits)) - 1)
    out[:] = _spread(torch.stack([first, second], dim=1), 16, bits).view(torch.int16)


def _squeezed(words: Tensor, lane: int, bits: int) -> Tensor:
    """Codes of ``bits`` bits in lanes of 8 or 16 -> moved together at the low end of their 64-bit word.

    Neighbouring lanes are joined, then pairs, then fours: all codes of a word move at once.
    """
    while lane < 64:
        odd = (words >> lane) & _every_other(lane)
        words = (words & _every_other(lane)) | (odd << bits)
        lane, bits = 2 * lane, 2 * bits
    return words


def _spread(words: Tensor, lane: int, bits: int) -> Tensor:
    """The way back: each code into a lane of its own."""
    steps = []
    while lane < 64:
        steps.append((lane, bits))
        lane, bits = 2 * lane, 2 * bits
    for lane, bits in reversed(steps):
        low = _lanes(2 * lane, (1 << bits) - 1)
        words = (words & low) | (((words >> bits) & low) << lane)
    return words


def _every_other(lane: int) -> int:
    return _lanes(2 * lane, (1 << lane) - 1)


def _lanes(width: int, pattern: int) -> int:
    """A 64-bit word with the pattern at the low end of each lane."""
    return sum(pattern << start for start in range(0, 64, width))


def _check(codes: Tensor, bits: int) -> None:
    if not 1 <= bits <= WIDEST:
        raise ValueError(f"codes need 1 to {WIDEST} bits, got {bits}")
    if codes.ndim != 2:
        raise ValueError(f"codes need the shape (rows, n), got {tuple(codes.shape)}")
