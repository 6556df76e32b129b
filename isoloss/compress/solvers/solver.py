"""What every solver is, and the error that they make small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from isoloss.compress import settings
from isoloss.compress.formats import Encoded, Format
from isoloss.compress.formats.encoded import rows_columns
from isoloss.compress.statistics import Statistics


class Solver(ABC):
    """A way to choose the codes of a weight in a format: settings, the same for every weight.

    ``name`` is its word in recipes.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        settings.check(self, self.name)

    @property
    def needs(self) -> frozenset[str]:
        """Fields of the statistics that it reads (``second``, ``fisher``); one that needs none takes None for them."""
        return frozenset()

    @abstractmethod
    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """The weight in the format.

        Args:
            weight: any shape; seen as a matrix with one row per output.
            format: how it is to be stored.
            statistics: of the layer's inputs.

        Raises:
            ValueError: a weight that is empty, NaN or infinite, or statistics of another width.
            TypeError: a format that the solver cannot fill.
            NoAnswer: statistics that it needs are missing.
        """

    @property
    def spec(self) -> str:
        """In words, settings other than the usual in brackets; ``solvers.get`` reads them back."""
        given = settings.words(self)
        return f"{self.name}({given})" if given else self.name


def output_error(weight: Tensor, decoded: Tensor, second: Tensor) -> float:
    r"""Mean squared error of a layer's output: :math:`\mathrm{tr}\,(W - Q) H (W - Q)^\top`.

    With :math:`H = \frac1N \sum_n x_n x_n^\top` it is the mean over inputs of the squared error summed over outputs.

    Args:
        weight: W, (out, in) or any shape that is seen so.
        decoded: Q, same shape.
        second: H, (in, in), or (groups, in, in) with the rows in as many equal parts (grouped convolutions).

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> weight, rounded = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.5]])
        >>> output_error(weight, rounded, torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        1.0
    """
    if weight.shape != decoded.shape:
        raise ValueError(
            f"needed two weights of one shape, got {tuple(weight.shape)} and {tuple(decoded.shape)}"
        )
    rows, columns = rows_columns(tuple(weight.shape))
    moments = second if second.ndim == 3 else second[None]
    if moments.shape[1:] != (columns, columns) or rows % moments.shape[0]:
        raise ValueError(
            f"a weight of {rows} rows and {columns} columns needs H of shape ({columns}, {columns}), one or one of each "
            f"part of the rows, got {tuple(second.shape)}"
        )
    gap = (weight.detach() - decoded.detach()).reshape(moments.shape[0], -1, columns).to(moments.dtype)
    return float((torch.bmm(gap, moments) * gap).sum(dtype=torch.float64))
