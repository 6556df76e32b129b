"""Vector codes: one code for several neighbouring weights of a row, one codebook per matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from isoloss.compress.formats.encoded import (
    Encoded,
    Layout,
    Parts,
    Shape,
    as_importance,
    as_matrix,
    layout_bits,
    rows_columns,
)
from isoloss.compress.formats.packing import code_dtype, pack, packed_width, unpack
from isoloss.compress.formats.rounding import Rounding

_LLOYD = 20
_CELLS = 1 << 22  # distances worked on at once


@dataclass(frozen=True)
class Vectors:
    r"""Vectors of ``length`` columns, each stored as its place in a codebook of ``count`` fp16 vectors.

    The last vector of a row may reach past its end; what lies there has no weight and is not read back. A codebook that
    was learned as a product, :math:`P\,C` with few dimensions of :math:`C` (LR2VQ), is stored multiplied out: its size
    depends on ``length`` and ``count`` alone.

    ``encode`` finds the codebook by Lloyd's algorithm from vectors drawn with a fixed seed (or the generator): a start
    that a solver improves.

    Args:
        length: weights per vector.
        count: vectors in the codebook, 2 to 65536; a code has ceil(log2 count) bits.

    Raises:
        ValueError: settings outside of these; on encoding, numbers beyond fp16.

    Source:
        Z. Zhu et al., 2022, arXiv 2211.11397 (LR2VQ).

    Example:
        >>> vq = Vectors(4, 256)
        >>> vq.spec, vq.size((1024, 1024)) / 1024**2  # 8/4 + 16 * 256 * 4 / 1024^2
        ('vq4-256', 2.015625)
    """

    length: int
    count: int

    def __post_init__(self) -> None:
        if self.length < 1 or not 2 <= self.count <= 65536:
            raise ValueError(
                f"vectors need a length of at least 1 and 2 to 65536 of them, got {self.length} and {self.count}"
            )

    @property
    def spec(self) -> str:
        """``vq4-256``."""
        return f"vq{self.length}-{self.count}"

    @property
    def bits(self) -> int:
        """Per code, that is per vector."""
        return (self.count - 1).bit_length()

    def encode(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        rounding: Rounding = "nearest",
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """The weight in this format; see :class:`Format`."""
        if rounding != "nearest":
            raise ValueError(f"{self.spec} rounds to the nearest alone, got {rounding!r}")
        matrix = as_matrix(weight)
        weights = as_importance(importance, matrix)
        points, counts = self.vectors(matrix), self._weights(matrix, weights)
        codebook = _lloyd(points, counts, self.count, generator or torch.Generator().manual_seed(0))
        stored = _stored_codebook(codebook).to(matrix.dtype)
        codes = nearest(points, counts, stored).reshape(matrix.shape[0], -1)
        return self.encoded(codes, stored, tuple(weight.shape))

    def assign(self, weight: Tensor, codebook: Tensor, importance: Tensor | None = None) -> Tensor:
        """The code of the nearest vector, (rows, ceil(columns / length)), of a codebook (count, length).

        Distances are squared and weighted by the importance.
        """
        matrix = as_matrix(weight)
        counts = self._weights(matrix, as_importance(importance, matrix))
        codes = nearest(self.vectors(matrix), counts, self._checked(codebook).to(matrix))
        return codes.reshape(matrix.shape[0], -1).to(code_dtype(self.bits))

    def encoded(self, codes: Tensor, codebook: Tensor, shape: Shape) -> Encoded:
        """Codes and codebook, stored; the codebook in fp16.

        Args:
            codes: (rows, ceil(columns / length)), whole numbers below ``count``.
            codebook: (count, length).
            shape: of the weight.

        Raises:
            ValueError: other shapes, codes beyond the codebook, numbers beyond fp16.
        """
        rows, columns = rows_columns(shape)
        if tuple(codes.shape) != (rows, -(-columns // self.length)):
            raise ValueError(
                f"{self.spec} needs codes of shape {(rows, -(-columns // self.length))}, got {tuple(codes.shape)}"
            )
        if int(codes.max()) >= self.count or int(codes.min()) < 0:
            raise ValueError(
                f"{self.spec} needs codes of 0 to {self.count - 1}, got {int(codes.min())} to {int(codes.max())}"
            )
        parts = {"codes": pack(codes, self.bits), "codebook": _stored_codebook(self._checked(codebook))}
        return Encoded(self, tuple(shape), parts)

    def codes(self, encoded: Encoded) -> Tensor:
        """The codes of a weight, (rows, ceil(columns / length)), int32."""
        columns = rows_columns(encoded.shape)[1]
        return unpack(encoded.parts["codes"], self.bits, -(-columns // self.length)).int()

    def decode(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Vectors looked up, cut at the end of the row."""
        rows, columns = rows_columns(shape)
        codes = unpack(parts["codes"], self.bits, -(-columns // self.length))
        found = parts["codebook"].to(dtype)[codes.int()]
        return found.reshape(rows, -1)[:, :columns]

    def layout(self, shape: Shape) -> Layout:
        """Codes and one codebook."""
        rows, columns = rows_columns(shape)
        return {
            "codes": (torch.uint8, (rows, packed_width(-(-columns // self.length), self.bits))),
            "codebook": (torch.float16, (self.count, self.length)),
        }

    def size(self, shape: Shape) -> int:
        """Stored bits."""
        return layout_bits(self.layout(shape))

    def vectors(self, matrix: Tensor) -> Tensor:
        """(rows, columns) -> (vectors, length), zeros past the end of a row."""
        return pad(matrix, (0, -matrix.shape[1] % self.length)).reshape(-1, self.length)

    def _weights(self, matrix: Tensor, importance: Tensor | None) -> Tensor | None:
        """Importance of each number of each vector; None where all count alike."""
        if importance is None and matrix.shape[1] % self.length == 0:
            return None
        importance = torch.ones_like(matrix) if importance is None else importance.expand_as(matrix)
        return self.vectors(importance.contiguous())

    def _checked(self, codebook: Tensor) -> Tensor:
        if tuple(codebook.shape) != (self.count, self.length):
            raise ValueError(
                f"{self.spec} needs a codebook of shape {(self.count, self.length)}, got {tuple(codebook.shape)}"
            )
        return codebook.detach()


def nearest(points: Tensor, weights: Tensor | None, codebook: Tensor) -> Tensor:
    """Argmin over k of sum_d w_d (x_d - c_kd)^2; x^2 is the same for all k and left out."""
    found = []
    step = max(1, _CELLS // codebook.shape[0])
    for start in range(0, points.shape[0], step):
        x = points[start : start + step]
        if weights is None:
            distance = codebook.square().sum(dim=1) - 2 * x @ codebook.T
        else:
            w = weights[start : start + step]
            distance = w @ codebook.square().T - 2 * (w * x) @ codebook.T
        found.append(distance.argmin(dim=1))
    return torch.cat(found)


def _lloyd(points: Tensor, weights: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm; a centre without weight moves to a vector that lies far from its own."""
    order = torch.randperm(points.shape[0], generator=generator).to(points.device)
    centres = torch.zeros(count, points.shape[1], dtype=points.dtype, device=points.device)
    centres[: min(count, len(order))] = points[order[:count]]
    full = torch.ones_like(points) if weights is None else weights
    for _ in range(_LLOYD):
        codes = nearest(points, weights, centres)
        total = torch.zeros_like(centres).index_add_(0, codes, full)
        moment = torch.zeros_like(centres).index_add_(0, codes, full * points)
        moved = torch.where(total > 0, moment / torch.where(total > 0, total, 1), centres)
        empty = (total.sum(dim=1) == 0).nonzero()[:, 0]
        if len(empty):
            far = (full * (points - moved[codes]).square()).sum(dim=1).argsort(descending=True)[: len(empty)]
            moved[empty[: len(far)]] = points[far]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _stored_codebook(codebook: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    if not bool((codebook.abs() <= largest).all()):
        raise ValueError(
            f"codebooks are stored in fp16, up to {largest:g}, got {float(codebook.abs().max()):g}"
        )
    return codebook.to(torch.float16)
