"""Every weight to the nearest value of its grid; ranges are searched where the format says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isoloss.compress.formats import Encoded, Float, Format, Grid, Integer, NormalFloat
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.solvers.moments import importance_of
from isoloss.compress.solvers.refine import PLAIN_SCALES
from isoloss.compress.solvers.solver import Solver
from isoloss.compress.statistics import Statistics


@dataclass(frozen=True)
class Nearest(Solver):
    r"""Round to nearest: :math:`q_{ij} = \arg\min_{v} |w_{ij} - v|` over the values of the grid.

    With a format that searches its range (``int4/mse``), the range that loses least is kept. With ``weighted``,
    errors in that search (and in the tables of a table format) count by the mean square of their input,
    :math:`\sum_{ij} H_{jj} |w_{ij} - q_{ij}|^p`, where statistics are at hand.

    Args:
        weighted: weigh errors by the inputs.
        shrink: all scales times this, above 0: weights beyond the smaller range end at its ends. Of formats with plain
            scales (:func:`isoloss.compress.scales.weight_scales` finds the best for what the model predicts).

    Source:
        The range search: the released code of E. Frantar et al., GPTQ, 2022, arXiv 2210.17323.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> weight = torch.tensor([[0.1, -0.5, 0.7, 0.24]])
        >>> Nearest().solve(weight, formats.get("int4"), None).codes().tolist()
        [[9, 3, 15, 10]]
    """

    weighted: bool = False
    shrink: float = 1.0

    name: ClassVar[str] = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrink <= 0:
            raise ValueError(f"nearest(shrink) needs a factor above 0, got {self.shrink}")

    @property
    def needs(self) -> frozenset[str]:
        """The second moments if errors are weighed."""
        return frozenset({"second"}) if self.weighted else frozenset()

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        importance = importance_of(weight, statistics) if self.weighted else None
        if self.shrink == 1:
            return format.encode(weight, importance)
        matrix = as_matrix(weight)
        grid = _shrunk(format, matrix, importance, self.shrink)
        return grid.encoded(grid.encode(matrix), tuple(weight.shape))


def _shrunk(format: Format, matrix: Tensor, importance: Tensor | None, factor: float) -> Grid:
    """The grid with all scales times a factor."""
    if not isinstance(format, (Integer, Float, NormalFloat)) or format.scales not in PLAIN_SCALES:
        raise TypeError(f"nearest(shrink) needs a format with plain scales, got {format.spec}")
    grid = format.grid(matrix, importance)
    size = (grid.rows, grid.columns)
    if isinstance(format, Integer):
        return format.given(size, grid.scale * factor, grid.zero)
    return format.given(size, grid.scale * factor)
