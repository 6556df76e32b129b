"""The range that a group's codes cover: all of its numbers, or the part that loses least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import Parts
from isoloss.compress.formats.grid import Values
from isoloss.compress.formats.groups import Group, Groups, Piece
from isoloss.compress.formats.rounding import Rounding

_BLOCK = 1 << 16  # weights tried at once


@dataclass(frozen=True)
class RangeSearch:
    r"""Shrink the range of each group and keep what loses least.

    For :math:`p = 1, 1 - 1/g, \dots` both ends are shrunk by :math:`p`; kept is the smallest
    :math:`\sum_i m_i |x_i - \hat x_i|^q`, with the scale as it will be stored, and the larger :math:`p` of two that are
    equal. :math:`m` is the importance, 1 without it.

    Args:
        power: :math:`q`.
        grid: :math:`g`, steps that the whole range is divided into.
        shrink: how far down; 0.8 ends at p = 0.21.

    Source:
        The released code of E. Frantar et al., GPTQ, 2022, arXiv 2210.17323: grid 100, shrink 0.8, power 2.4.

    Example:
        >>> RangeSearch().shares[-1], len(RangeSearch().shares)
        (0.21, 80)
    """

    power: float = 2.4
    grid: int = 100
    shrink: float = 0.8

    def __post_init__(self) -> None:
        if not (self.power > 0 and self.grid >= 1 and 0 < self.shrink <= 1):
            raise ValueError(
                f"a range search needs power > 0, grid >= 1 and 0 < shrink <= 1, "
                f"got {self.power}, {self.grid}, {self.shrink}"
            )

    @property
    def word(self) -> str:
        """``mse``, or with a power of its own ``mse2``."""
        plain = RangeSearch(power=self.power)
        if self != plain:
            return f"mse{self.power:g}-{self.grid}-{self.shrink:g}"
        return "mse" if self == RangeSearch() else f"mse{self.power:g}"

    @property
    def shares(self) -> tuple[float, ...]:
        """The p that are tried, from 1 down."""
        return tuple((self.grid - k) / self.grid for k in range(max(1, int(self.shrink * self.grid))))


class Ranged(Protocol):
    """A format whose parts follow from the range of each group."""

    @property
    def group(self) -> Group: ...

    def at(self, low: Tensor, high: Tensor, held: Parts) -> Parts:
        """Parts of groups from ``low`` to ``high``, with the shared ones among them."""
        ...

    def mean(self, parts: Parts) -> Values: ...

    def codes(
        self, x: Tensor, values: Values, rounding: Rounding, generator: torch.Generator | None
    ) -> Tensor: ...

    def numbers(self, codes: Tensor, values: Values, dtype: torch.dtype) -> Tensor: ...


def ends(matrix: Tensor, groups: Groups, group: Group) -> tuple[Tensor, Tensor]:
    """Least and largest number of each group, (rows, groups); of the whole tensor, (1, 1)."""
    if group == "tensor":
        low, high = torch.aminmax(matrix)
        return low.reshape(1, 1), high.reshape(1, 1)
    pairs = [torch.aminmax(piece.of(matrix), dim=2) for piece in groups.pieces()]
    return torch.cat([pair.min for pair in pairs], dim=1), torch.cat([pair.max for pair in pairs], dim=1)


def shrunk(
    format: Ranged,
    matrix: Tensor,
    groups: Groups,
    importance: Tensor | None,
    low: Tensor,
    high: Tensor,
    held: Parts,
    search: RangeSearch,
) -> tuple[Tensor, Tensor]:
    """The ends that lose least; see :class:`RangeSearch`."""
    shares = torch.tensor(search.shares, dtype=matrix.dtype, device=matrix.device)
    whole = low.shape[0] == 1
    step = max(1, _BLOCK // matrix.shape[1])
    total = torch.zeros(len(shares), 1, 1, dtype=matrix.dtype, device=matrix.device)
    chosen = []
    for start in range(0, matrix.shape[0], step):
        rows = slice(start, start + step)
        here = slice(None) if whole else rows
        known = {name: part if part.shape[0] == 1 else part[rows] for name, part in held.items()}
        weights = None if importance is None else importance.expand_as(matrix)[rows]
        errors = []
        for share in search.shares:
            parts = format.at(low[here] * share, high[here] * share, known)
            values = format.mean(parts)
            found = [
                _error(format, piece, matrix[rows], weights, values, search.power)
                for piece in groups.pieces()
            ]
            errors.append(torch.cat(found, dim=1))
        loss = torch.stack(errors)
        if whole and format.group == "tensor":
            total += loss.sum(dim=1, keepdim=True)
        else:
            chosen.append(loss.argmin(dim=0))
    best = shares[torch.cat(chosen) if chosen else total.argmin(dim=0)]
    return low * best, high * best


def _error(
    format: Ranged, piece: Piece, block: Tensor, weights: Tensor | None, values: Values, power: float
) -> Tensor:
    """What each group of a block of rows loses, (rows, groups)."""
    x, known = piece.of(block), values.at(slice(None), piece, block.dtype)
    gap = format.numbers(format.codes(x, known, "nearest", None), known, block.dtype).sub_(x).abs_()
    gap = gap.square_() if power == 2 else gap.pow_(power)
    return (gap if weights is None else gap.mul_(piece.of(weights))).sum(dim=2)
