"""Every weight to the nearest value of its grid; ranges are searched where the format says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isoloss.compress.formats import Encoded, Format
from isoloss.compress.solvers.moments import importance_of
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

    name: ClassVar[str] = "nearest"

    @property
    def needs(self) -> frozenset[str]:
        """The second moments if errors are weighed."""
        return frozenset({"second"}) if self.weighted else frozenset()

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        return format.encode(weight, importance_of(weight, statistics) if self.weighted else None)
