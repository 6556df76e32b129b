"""A few weights beside a dense format, kept to 16 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.compress.formats.encoded import (
    Encoded,
    Format,
    Layout,
    Parts,
    Shape,
    as_importance,
    as_matrix,
    below,
    joined,
    prefixed,
    rows_columns,
)
from isoloss.compress.formats.rounding import Rounding

_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class WithOutliers:
    r"""A dense format and, in compressed sparse rows, what is missing at a few places.

    Dense code and sparse value of one place are added: what is stored there is

    .. math:: \mathrm{fp16}(w - \hat w_{\mathrm{dense}})

    and not :math:`w`: a place that the dense part was told to leave out still has a code, and that code a value. The
    dense part is fitted with these places at 0 and of no importance.

    Stored are fp16 values, columns in 8, 16 or 32 bits (the fewest that number them), and a row pointer of 32 bits per
    row and one more.

    Args:
        dense: the format beside.
        percent: of the weights, above 0; the largest in size unless ``encode`` is given the places.

    Raises:
        ValueError: a percentage outside 0 to 100.

    Source:
        S. Kim et al., SqueezeLLM, 2023, arXiv 2306.07629.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.05, -0.2, 9.0, 0.2], [0.3, 0.05, 0.0, -0.3]])
        >>> encoded = formats.get("int2/narrow+12.5%").encode(weight)
        >>> [[round(x, 2) for x in row] for row in encoded.decode().tolist()]
        [[0.0, -0.2, 9.0, 0.2], [0.3, 0.0, 0.0, -0.3]]
    """

    dense: Format
    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise ValueError(f"outliers need a percentage above 0 and up to 100, got {self.percent}")

    @property
    def spec(self) -> str:
        """``table3+0.45%``."""
        return f"{self.dense.spec}+{self.percent!r}%"

    def count(self, shape: Shape) -> int:
        """How many weights are kept beside; of a small matrix at least one."""
        return max(1, round(self.percent / 100 * math.prod(rows_columns(shape))))

    def encode(
        self,
        weight: Tensor,
        importance: Tensor | None = None,
        *,
        places: Tensor | None = None,
        rounding: Rounding = "nearest",
        generator: torch.Generator | None = None,
    ) -> Encoded:
        """The weight in this format; see :class:`Format`.

        Args:
            weight: any shape.
            importance: for the dense part.
            places: true where a weight is kept beside, shape of the weight; default: the largest, ``percent`` of all.
            rounding: of the dense codes.
            generator: of the random roundings.
        """
        matrix = as_matrix(weight)
        if places is None:
            places = largest(matrix, self.count(tuple(weight.shape)))
        mask = _mask(places, matrix)
        weights = as_importance(importance, matrix)
        weights = torch.ones_like(matrix) if weights is None else weights.expand_as(matrix)
        rest = self.dense.encode(
            matrix.masked_fill(mask, 0).reshape(weight.shape),
            weights.masked_fill(mask, 0),
            rounding=rounding,
            generator=generator,
        )
        return Encoded(self, tuple(weight.shape), _beside(rest, matrix, mask))

    def decode(self, parts: Parts, shape: Shape, dtype: torch.dtype) -> Tensor:
        """Dense plus sparse."""
        rows, columns = rows_columns(shape)
        matrix = self.dense.decode(below("dense", parts), shape, dtype).reshape(rows, columns)
        counts, at = parts["outliers.rows"].diff().long(), parts["outliers.columns"].long()
        values = parts["outliers.values"].to(dtype)
        if (
            not len(values) == len(at) == int(counts.sum())
            or bool((counts < 0).any())
            or bool((at >= columns).any())
        ):
            raise ValueError(
                f"outliers need as many values and columns below {columns} as the row pointers say "
                f"({int(counts.sum())}), got {len(values)} and {len(at)}. The tensors are damaged"
            )
        row = torch.arange(rows, device=matrix.device).repeat_interleave(counts)
        matrix[row, at] += values
        return matrix

    def layout(self, shape: Shape) -> Layout:
        """The dense part, values, columns and row pointers."""
        rows, columns = rows_columns(shape)
        return {
            **prefixed("dense", self.dense.layout(shape)),
            "outliers.values": (torch.float16, (-1,)),
            "outliers.columns": (_index_dtype(columns), (-1,)),
            "outliers.rows": (torch.int32, (rows + 1,)),
        }

    def size(self, shape: Shape) -> int:
        """Stored bits with ``percent`` of the weights kept beside."""
        rows, columns = rows_columns(shape)
        each = 16 + 8 * _index_dtype(columns).itemsize
        return self.dense.size(shape) + self.count(shape) * each + 32 * (rows + 1)


def add_outliers(dense: Encoded, weight: Tensor, places: Tensor) -> Encoded:
    """An encoded weight and, beside it, what is missing at some places.

    Args:
        dense: the weight as a solver encoded it, with these places left out or not.
        weight: what the numbers should be; read at the places alone.
        places: true where a weight is kept beside, shape of the weight.

    Returns:
        Encoded as :class:`WithOutliers` of the share that the places are, to four digits.

    Raises:
        ValueError: no place, another shape, a difference beyond fp16.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.25, -1.0, 30.0, 0.75]])
        >>> places = weight > 10
        >>> dense = formats.get("int3").encode(weight.masked_fill(places, 0))
        >>> formats.add_outliers(dense, weight, places).format.spec
        'int3+25.0%'
    """
    matrix = as_matrix(weight)
    mask = _mask(places, matrix)
    percent = float(f"{100 * int(mask.sum()) / matrix.numel():.4g}")
    return Encoded(WithOutliers(dense.format, percent), dense.shape, _beside(dense, matrix, mask))


def largest(matrix: Tensor, count: int) -> Tensor:
    """True at the ``count`` numbers largest in size; of equal ones the first."""
    size = matrix.abs().reshape(-1)
    if count < 1:
        return torch.zeros_like(matrix, dtype=torch.bool)
    least = size.topk(count).values[-1]
    mask = size > least
    mask[(size == least).nonzero()[: count - int(mask.sum()), 0]] = True
    return mask.reshape(matrix.shape)


def _beside(dense: Encoded, matrix: Tensor, mask: Tensor) -> dict[str, Tensor]:
    rows, columns = matrix.shape
    row, column = mask.nonzero(as_tuple=True)
    missing = matrix[row, column] - dense.decode(matrix.dtype).reshape(rows, columns)[row, column]
    if missing.numel() and float(missing.abs().max()) > _LARGEST:
        raise ValueError(
            f"outliers are stored in fp16, up to {_LARGEST:g}, got {float(missing.abs().max()):g}"
        )
    pointers = torch.zeros(rows + 1, dtype=torch.int32, device=matrix.device)
    pointers[1:] = mask.sum(dim=1).cumsum(0)
    sparse = {
        "values": missing.to(torch.float16),
        "columns": column.to(_index_dtype(columns)),
        "rows": pointers,
    }
    return joined({"dense": dense.parts, "outliers": sparse})


def _mask(places: Tensor, matrix: Tensor) -> Tensor:
    if places.dtype != torch.bool or places.numel() != matrix.numel():
        raise ValueError(
            f"places need one bool per weight, got {places.dtype} of shape {tuple(places.shape)}"
        )
    if not bool(places.any()):
        raise ValueError("outliers need at least one place, got none. Use the dense format alone")
    return places.reshape(matrix.shape)


def _index_dtype(columns: int) -> torch.dtype:
    """The smallest that numbers the columns."""
    return torch.uint8 if columns <= 1 << 8 else torch.uint16 if columns <= 1 << 16 else torch.int32
