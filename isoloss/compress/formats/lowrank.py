"""A dense format plus a product of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import (
    Encoded,
    Format,
    Layout,
    Parts,
    Shape,
    as_matrix,
    below,
    joined,
    prefixed,
    rows_columns,
)
from isoloss.compress.formats.floats import Native
from isoloss.compress.formats.rounding import Rounding


@dataclass(frozen=True)
class WithLowRank:
    r"""A dense format and a correction of low rank: :math:`\hat W = \hat W_{\mathrm{dense}} + A B`.

    ``encode`` takes the best :math:`AB` for the squared error that the dense part leaves: with the singular value
    decomposition :math:`W - \hat W_{\mathrm{dense}} = U \Sigma V^\top`, :math:`A = U_r \Sigma_r^{1/2}`,
    :math:`B = \Sigma_r^{1/2} V_r^\top`.

    Args:
        dense: the format beside.
        rank: r; a matrix with fewer rows or columns takes as many.
        factors: the format of A (rows, r) and of B (r, columns).

    Raises:
        ValueError: a rank below 1, factors in a format that itself has something beside.

    Source:
        Z. Yao et al., ZeroQuant-V2 (LoRC), 2023, arXiv 2303.08302.

    Example:
        >>> from isoloss.compress import formats
        >>> formats.get("fp4-e2m1/g256+lr8").size((1024, 1024)) / 1024**2  # 4 + 16/256 + 16 * 8 * 2048 / 1024^2
        4.3125
    """

    dense: Format
    rank: int
    factors: Format = field(default_factory=Native)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"a low-rank part needs a rank of at least 1, got {self.rank}")
        if "+" in self.factors.spec:
            raise ValueError(f"factors need a format with nothing beside it, got {self.factors.spec}")

    @property
    def spec(self) -> str:
        """``fp4-e2m1/g256+lr8`` or, with factors in another format, ``...+lr8:int8``."""
        factors = "" if self.factors == Native() else f":{self.factors.spec}"
        return f"{self.dense.spec}+lr{self.rank}{factors}"

    def encode(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        rounding: Rounding = "nearest",
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """The weight in this format; see :class:`Format`. The importance is for the dense part."""
        dense = self.dense.encode(weight, importance, rounding=rounding, generator=generator)
        matrix = as_matrix(weight)
        gap = matrix - dense.decode(matrix.dtype).reshape(matrix.shape)
        u, sigma, v = torch.linalg.svd(gap, full_matrices=False)
        rank = self._rank(tuple(weight.shape))
        root = sigma[:rank].sqrt()
        return add_low_rank(dense, u[:, :rank] * root, root[:, None] * v[:rank], self.factors)

    def decode(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Dense plus product."""
        (left, right), size = self.factor_shapes(shape).values(), rows_columns(shape)
        a = self.factors.decode(below("left", parts), left, dtype)
        b = self.factors.decode(below("right", parts), right, dtype)
        return self.dense.decode(below("dense", parts), shape, dtype).reshape(size) + a @ b

    def layout(self, shape: Shape) -> Layout:
        """The dense part and two factors."""
        left, right = self.factor_shapes(shape).values()
        return {
            **prefixed("dense", self.dense.layout(shape)),
            **prefixed("left", self.factors.layout(left)),
            **prefixed("right", self.factors.layout(right)),
        }

    def size(self, shape: Shape) -> int:
        """Stored bits."""
        left, right = self.factor_shapes(shape).values()
        return self.dense.size(shape) + self.factors.size(left) + self.factors.size(right)

    def _rank(self, shape: Shape) -> int:
        return min(self.rank, *rows_columns(shape))

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        """Shapes of A, ``left``, and of B, ``right``."""
        rows, columns = rows_columns(shape)
        return {"left": (rows, self._rank(shape)), "right": (self._rank(shape), columns)}


def add_low_rank(dense: Encoded, left: Tensor, right: Tensor, factors: Format | None = None) -> Encoded:
    """An encoded weight plus a product of your choice.

    Args:
        dense: the weight as a solver encoded it.
        left: (rows, r).
        right: (r, columns).
        factors: their format; default fp16.

    Raises:
        ValueError: factors of other shapes.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.eye(3)
        >>> dense = formats.get("int4").encode(torch.zeros(3, 3))
        >>> formats.add_low_rank(dense, torch.eye(3), torch.eye(3)).decode().diagonal().tolist()
        [1.0, 1.0, 1.0]
    """
    rows, columns = rows_columns(dense.shape)
    rank = left.shape[-1]
    if (
        tuple(left.shape) != (rows, rank)
        or tuple(right.shape) != (rank, columns)
        or rank > min(rows, columns)
    ):
        raise ValueError(
            f"factors need the shapes ({rows}, r) and (r, {columns}) with r up to {min(rows, columns)}, "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    kind = Native() if factors is None else factors
    parts = {"dense": dense.parts, "left": kind.encode(left).parts, "right": kind.encode(right).parts}
    return Encoded(WithLowRank(dense.format, rank, kind), dense.shape, joined(parts))
