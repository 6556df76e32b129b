"""Exact tables, every weight to the nearest entry: the best that tables do without error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isoloss.compress.formats import Encoded, Format
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.solvers.moments import importance_of, needed
from isoloss.compress.solvers.solver import Solver
from isoloss.compress.solvers.tables import exact_grid, table_of
from isoloss.compress.statistics import Statistics

Weights = Literal["inputs", "fisher", "equal"]


@dataclass(frozen=True)
class Kmeans(Solver):
    r"""Tables by exact weighted k-means on a line: :math:`\min \sum_{ij} m_{ij} (w_{ij} - t_{i k(i,j)})^2`.

    Args:
        weights: m: ``inputs``, the mean square of the input :math:`H_{jj}` (of an embedding how often the row is looked
            up); ``fisher``, the mean squared gradient of each weight; ``equal``.

    Source:
        H. Wang, M. Song, Ckmeans.1d.dp, 2011; :func:`isoloss.compress.kmeans.kmeans_rows`.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.0, 1.0, 5.0, 6.0]])
        >>> Kmeans("equal").solve(weight, formats.get("table1"), None).decode().tolist()
        [[0.5, 0.5, 5.5, 5.5]]
    """

    weights: Weights = "inputs"

    name: ClassVar[str] = "kmeans"

    @property
    def needs(self) -> frozenset[str]:
        """Second moments or squared gradients."""
        return frozenset({"inputs": ("second",), "fisher": ("fisher",), "equal": ()}[self.weights])

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        table = table_of(format, self.name)
        matrix = as_matrix(weight).float()
        importance: Tensor | None = torch.ones_like(matrix)
        if self.weights == "fisher":
            importance = needed(statistics, self.name, "fisher").reshape(matrix.shape)
        elif self.weights == "inputs":
            importance = importance_of(weight, statistics)
            if importance is None:
                importance = needed(statistics, self.name, "second")
        assert importance is not None
        grid = exact_grid(table, matrix, importance)
        return grid.encoded(grid.encode(matrix), tuple(weight.shape))
