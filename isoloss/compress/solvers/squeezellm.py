"""SqueezeLLM: tables that follow the loss's own curvature, sensitive weights and outliers kept beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isoloss.compress.formats import Encoded, Format, WithOutliers, add_outliers
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.formats.sparse import largest
from isoloss.compress.solvers.moments import needed
from isoloss.compress.solvers.solver import Solver
from isoloss.compress.solvers.tables import exact_grid, table_of
from isoloss.compress.statistics import Statistics


@dataclass(frozen=True)
class SqueezeLlm(Solver):
    r"""Tables for :math:`\sum_{ij} F_{ij} (w_{ij} - q_{ij})^2`, F the mean squared gradient of each weight.

    The share that the format keeps beside (``table3+0.45%``) is filled with the ``sensitive`` weights, those of the
    largest F in the matrix, then with the outliers, the largest :math:`|w|` of the others. (The paper takes
    :math:`|w| \ge \max(|q_1 - r\,\mathrm{IQR}|, |q_3 + r\,\mathrm{IQR}|)` and tunes r to a wanted share: the same weights.)
    The tables are then exact weighted k-means of the rest, where the paper's are a heuristic's. A format with nothing
    beside has tables alone.

    Args:
        sensitive: percent of the weights, at most what the format keeps beside.
        floor: this share of the mean of F is added, so that weights whose gradient was never seen still count.

    Source:
        S. Kim et al., SqueezeLLM, 2023, arXiv 2306.07629.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.0, 1.0, 5.0, 6.0, 90.0]])
        >>> fisher = torch.tensor([[1.0, 1.0, 3.0, 1.0, 1.0]])
        >>> statistics = Statistics("layer", 1, fisher=fisher)
        >>> found = SqueezeLlm(0, 0).solve(weight, formats.get("table1+20%"), statistics)
        >>> found.decode().tolist()
        [[0.5, 0.5, 5.25, 5.25, 90.0]]
    """

    sensitive: float = 0.05
    floor: float = 0.001

    name: ClassVar[str] = "squeezellm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.sensitive <= 100 and self.floor >= 0):
            raise ValueError(
                f"needed a percentage of sensitive weights and a floor of at least 0, got {self.sensitive}, {self.floor}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Squared gradients of the weights."""
        return frozenset({"fisher"})

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        table = table_of(format.dense if isinstance(format, WithOutliers) else format, self.name)
        matrix = as_matrix(weight).float()
        fisher = needed(statistics, self.name, "fisher").reshape(matrix.shape).float()
        fisher = fisher + self.floor * fisher.mean()
        count = format.count(tuple(weight.shape)) if isinstance(format, WithOutliers) else 0
        if count == 0:
            grid = exact_grid(table, matrix, fisher)
            return grid.encoded(grid.encode(matrix), tuple(weight.shape))
        kept = largest(fisher, min(count, round(self.sensitive / 100 * matrix.numel())))
        kept |= largest(matrix.masked_fill(kept, 0), count - int(kept.sum()))
        rest = matrix.masked_fill(kept, 0)
        grid = exact_grid(table, rest, fisher.masked_fill(kept, 0))
        return add_outliers(grid.encoded(grid.encode(rest), tuple(weight.shape)), weight, kept)
