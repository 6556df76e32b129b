"""A dense matrix with a mask as a packed weight: n of every m columns, or blocks."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.formats.packing import pack
from isoloss.deploy.packing import Packed
from isoloss.deploy.reals import in_blocks, place_bits
from isoloss.native.runs import TILE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def pack_sparse(
    weight: Tensor, pattern: str, mask: Tensor | None = None, dtype: torch.dtype | None = None
) -> Packed:
    r"""The kept numbers of a matrix, packed; products with it take activations as they are.

    ``2:4`` keeps up to 2 of every 4 neighbouring columns of a row, any n:m with m up to 256. Stored are n numbers of each m,
    with their places in :math:`\lceil \log_2 m \rceil` bits, filled up to 16 in a row. ``blocks32`` keeps blocks of 16
    rows and 32 columns, or of any other width: their numbers, the place of each and a pointer per 16 rows, 4 bytes each.

    Args:
        weight: any shape, seen as a matrix with a row per output.
        pattern: ``n:m`` or ``blocksN``.
        mask: true where a number is kept, shape of the weight; default: where it is not 0. In blocks all of a block is
            kept that has a kept number.
        dtype: of the stored numbers: float32, float16 or bfloat16; default that of the weight, where nothing is rounded.

    Raises:
        ValueError: another pattern or dtype, a mask of another shape, or more than n kept of some m columns.

    Example:
        >>> weight = torch.tensor([[1.0, 0, 0, 2, 0, 0, 0, 5]])
        >>> packed = pack_sparse(weight, "2:4")
        >>> packed.decode().tolist(), packed.bytes  # 16 numbers and 16 places of 2 bits
        ([[1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 5.0]], 68)
        >>> round(pack_sparse(torch.ones(64, 1024).half(), "blocks32").bytes / (2 * 64 * 1024), 4)
        1.0041
    """
    matrix = as_matrix(weight)
    stored = weight.dtype if dtype is None else dtype
    if stored not in DTYPES:
        raise ValueError(f"kept numbers are float32, float16 or bfloat16, got {stored}. Name a dtype")
    if mask is not None and (mask.dtype != torch.bool or mask.numel() != matrix.numel()):
        raise ValueError(f"a mask needs one bool per weight, got {mask.dtype} of {tuple(mask.shape)}")
    kept = matrix != 0 if mask is None else mask.reshape(matrix.shape)
    own = matrix.masked_fill(~kept, 0).to(stored)
    if match := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern):
        return _n_of_m(own, kept, int(match[1]), int(match[2]))
    if match := re.fullmatch(r"blocks([1-9]\d*)", pattern):
        group = min(int(match[1]), matrix.shape[1])
        return Packed(
            "blocks", (own.shape[0], own.shape[1]), 8 * stored.itemsize, group, in_blocks(own, group, kept)
        )
    raise ValueError(f"patterns are n:m (2:4) and blocksN (blocks32), got {pattern!r}")


def _n_of_m(own: Tensor, kept: Tensor, n: int, m: int) -> Packed:
    (rows, columns), bits = own.shape, place_bits(m)
    if not n <= m <= 256:
        raise ValueError(f"a pattern n:m needs n up to m and m up to 256, got {n}:{m}")
    groups = -(-columns // m)
    count = -(-groups * n // TILE) * TILE
    values = torch.zeros(rows, count, dtype=own.dtype)
    places = torch.zeros(rows, count, dtype=torch.uint8)
    row, column = kept.nonzero(as_tuple=True)
    group = column // m
    # Which of its group a kept number is: the first of a run of equal (row, group) has 0.
    run = row * groups + group
    first = torch.searchsorted(run, run)
    order = torch.arange(len(run)) - first
    if len(order) and int(order.max()) >= n:
        worst = int(order.argmax())
        raise ValueError(
            f"{n}:{m} keeps up to {n} of {m} columns, got more in row {int(row[worst])} from column "
            f"{int(group[worst]) * m} on. Give a mask, or another pattern"
        )
    at = group * n + order
    values[row, at] = own[row, column]
    places[row, at] = (column % m).to(torch.uint8)
    return Packed("n-of-m", (rows, columns), bits, m, {"values": values, "places": pack(places, bits)}, n)
