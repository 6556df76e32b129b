"""The kernels in PyTorch: the same numbers to the last bit where they are whole, slower; and how far off a product may be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.deploy.packing import Activations, Packed
from isoloss.deploy.planes import PLANES, from_bytes, split
from isoloss.native.runs import BLOCK, PLANE, TILE, Runs

_TINY = torch.finfo(torch.float32).tiny
_ROWS = 16  # worked on at once


@dataclass(frozen=True, eq=False)
class RoundedActivations:
    """Activations in 8 bits, or in 16 as two tokens of 8; shapes as ``isoloss.native.products.Rounded``."""

    codes: Tensor
    scale: Tensor
    sum: Tensor
    segment_sum: Tensor


def rounded(x: Tensor, runs: Runs, parts: int) -> RoundedActivations:
    r"""Each run of a token to whole multiples of its scale :math:`s = \max|x| / L`, ties to even.

    L = 127, or with two parts 32512 = 127 · 256, whose codes are split, code = 256 high + low with low in -128 to 127: two
    tokens of 8 bits, high first. The error of a number is at most s/2. A run with a NaN or infinity has the scale NaN; one
    whose scale would be subnormal counts as zeros.

    Args:
        x: (tokens, columns), float32.
        runs: of the columns.
        parts: 1 or 2.

    Example:
        >>> from isoloss.native.runs import group_runs
        >>> made = rounded(torch.tensor([[1.0, -2.0, 0.5]]), group_runs(3, 3), 1)
        >>> made.codes[0, :3].tolist(), made.sum.tolist()
        ([64, -127, 32], [[-31]])
    """
    tokens = x.shape[0]
    codes = torch.zeros(tokens, parts, runs.width, dtype=torch.int8)
    scale = torch.zeros(tokens, parts, len(runs.count))
    total = torch.zeros(tokens, parts, len(runs.count), dtype=torch.int32)
    segment_sum = torch.zeros(tokens, parts, runs.segments)
    levels = 32512.0 if parts == 2 else 127.0
    for b, (start, count, wide, place, segment) in enumerate(
        zip(
            *(one.tolist() for one in (runs.start, runs.count, runs.wide, runs.place, runs.segment)),
            strict=True,
        )
    ):
        own = x[:, start : start + count]
        bad = ~torch.isfinite(own).all(dim=1)
        unit = own.abs().amax(dim=1) / levels
        unit = torch.where(unit < _TINY, 0, unit)
        divisor = torch.where((unit > 0) & ~bad, unit, 1)[:, None]
        whole = torch.where(((unit > 0) & ~bad)[:, None], (own / divisor).round(), 0).to(torch.int32)
        unit = torch.where(bad, torch.nan, unit)
        low = ((whole + 128) & 255) - 128
        split = [whole] if parts == 1 else [(whole - low) // 256, low]
        column = torch.arange(count)
        at = place + (column // wide) * runs.stride + column % wide
        for part, one in enumerate(split):
            codes[:, part, at] = one.to(torch.int8)
            scale[:, part, b] = 256 * unit if parts == 2 and part == 0 else unit
            total[:, part, b] = one.sum(dim=1)
            segment_sum[:, part, segment] += scale[:, part, b] * total[:, part, b].float()
    return RoundedActivations(*(one.flatten(0, 1) for one in (codes, scale, total, segment_sum)))


def product(packed: Packed, x: Tensor, activations: Activations = "int8") -> Tensor:
    """(tokens, columns) float32 times the matrix, transposed: (tokens, rows).

    Whole-number products are exact, and floats are combined in the order of the kernels, so that both give the same bits;
    with float activations, dense weights and what lies beside sums may differ in the last bits.

    Example:
        >>> from isoloss.compress import formats
        >>> from isoloss.deploy.packing import pack_weight
        >>> encoded = formats.get("int4").encode(torch.eye(3))
        >>> product(pack_weight(encoded), torch.tensor([[1.0, 2.0, 127.0]])).round().tolist()
        [[1.0, 2.0, 127.0]]
    """
    if packed.kind not in ("table", "levels"):
        return x @ packed.decode().T
    parts = 2 if activations == "int16" else 1
    made = rounded(x, packed.runs, parts)
    out = (_levels if packed.kind == "levels" else _tables)(packed, made)
    if parts == 2:
        out = out[0::2] + out[1::2]
    if "outliers.values" in packed.tensors:
        out = out + x @ (packed.without_factors() - packed.dense_part()).T
    if packed.thin is not None:
        left, right = packed.thin
        out = out + product(left, product(right, x, activations), activations)
    return out


def bound(packed: Packed, x: Tensor, activations: Activations = "int8") -> Tensor:
    r"""How far a product may be from that with the stored weights: (tokens, rows).

    Rounded activations: :math:`\sum_j |w_j| s_j/2` with the scale of each run; bytes instead of fp16 in a table:
    :math:`\sum_j |\hat x_j| \cdot` step/2; and float32 sums of n terms, :math:`(n + 8)\,2^{-23} \sum_j |w_j x_j|`, whose
    terms are at most the size of the table's range, and :math:`2^{-126}` each for what is too small for float32. Of two
    factors beside, what the first product is off is multiplied by the second.

    Args:
        packed: the weight.
        x: (tokens, columns).
        activations: as for :func:`product`.
    """
    weight, columns = packed.without_factors().abs(), packed.shape[1]
    half = torch.zeros_like(x)
    if activations != "float" and packed.kind in ("table", "levels"):
        levels = 32512.0 if activations == "int16" else 127.0
        for start, count in zip(packed.runs.start.tolist(), packed.runs.count.tolist(), strict=True):
            own = x[:, start : start + count]
            half[:, start : start + count] = (
                own.abs().amax(dim=1, keepdim=True) / levels / 2 * 1.0001
            ).clamp(min=_TINY * levels)
    size = x.abs() + half
    reach = weight.clone()
    out = half @ weight.T
    if packed.kind == "table":
        group = torch.arange(columns) // packed.group
        step, low = packed.tensors["step"], packed.tensors["low"]
        out = out + size @ (step * 0.5001)[:, group].T
        reach += (low.abs() + 255 * step)[:, group]
    if packed.kind == "levels" and "table" in packed.tensors:
        # The table itself is rounded: half a unit, which is the stored scale.
        scale = packed.tensors["scale"].float().movedim(-1, 1).flatten(0, 1)[: packed.shape[0]]
        group = torch.arange(columns) // packed.group
        out = out + size @ (scale * 0.5001)[:, group].T
    if packed.kind == "levels":
        scale = packed.tensors["scale"].float().movedim(-1, 1).flatten(0, 1)[: packed.shape[0]]
        reach += 256 * scale[:, torch.arange(columns) // packed.group]
    out = out + (columns + 8) * (2.0**-23 * (size @ reach.T) + 2.0**-126)
    if packed.thin is not None:
        left, right = packed.thin
        between, off = x @ right.decode().T, bound(right, x, activations)
        most = between.abs() + off
        out = out + off @ left.decode().abs().T + bound(left, most, activations)
        out = out + 2.0**-22 * (out + most @ left.decode().abs().T + x.abs() @ weight.T)  # the sum of both
    return out


def _tables(packed: Packed, x: RoundedActivations) -> Tensor:
    runs, bits, (rows, _) = packed.runs, packed.bits, packed.shape
    table, step, low = (packed.tensors[name] for name in ("table", "step", "low"))
    acts = split(x.codes, 1, (-1, PLANES, PLANE)).double()
    out = torch.zeros(x.codes.shape[0], rows)
    segments, wides = runs.segment.tolist(), runs.wide.tolist()
    for start in range(0, rows, _ROWS):
        some, data = slice(start, start + _ROWS), packed.tensors["codes"][start : start + _ROWS]
        first, total = 0, None
        for b, (segment, wide) in enumerate(zip(segments, wides, strict=True)):
            codes = from_bytes(split(data[:, first : first + bits * wide], 1, (bits, wide)), bits).long()
            first += bits * wide
            values = split(table[some, segment].gather(1, codes.flatten(1)), 1, (PLANES, wide)).double()
            dots = torch.einsum(
                "rpw,tpw->tr", values, acts[:, b, :, :wide]
            )  # whole numbers below 2^24, exact
            term = dots.float() * x.scale[:, b : b + 1]
            total = torch.zeros_like(term) + term if total is None else total + term
            if b + 1 == len(segments) or segments[b + 1] != segment:
                out[:, some] += (
                    step[some, segment] * total + low[some, segment] * x.segment_sum[:, segment, None]
                )
                total = None
    return out


def _levels(packed: Packed, x: RoundedActivations) -> Tensor:
    runs, (rows, _) = packed.runs, packed.shape
    scale = packed.tensors["scale"].float().movedim(-1, 1).flatten(0, 1)[:rows]
    zero = packed.tensors.get("zero")
    zeros = None if zero is None else zero.movedim(-1, 1).flatten(0, 1)[:rows].double()
    codes = split(from_bytes(packed.tensors["codes"], packed.bits), -1, (TILE, 4))
    padded = codes.permute(0, 3, 1, 2, 4).reshape(-1, runs.width)[:rows]
    if "table" in packed.tensors:
        padded = packed.tensors["table"][padded.long()]
    out = torch.zeros(x.codes.shape[0], rows)
    for b, (place, blocks, group) in enumerate(
        zip(runs.place.tolist(), runs.blocks.tolist(), runs.segment.tolist(), strict=True)
    ):
        some = slice(place, place + BLOCK * blocks)
        dots = x.codes[:, some].double() @ padded[:, some].double().T * packed.times
        offset = packed.offset if zeros is None else packed.offset - zeros[:, group]
        level = dots + offset * x.sum[:, b, None].double()
        out += level.float() * (scale[:, group] * x.scale[:, b, None])
    return out
