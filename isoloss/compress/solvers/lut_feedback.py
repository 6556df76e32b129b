"""Exact tables with error feedback: a table for every row, errors fed on, then tables and codes improved in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isoloss.compress.formats import Encoded, Format, WithOutliers
from isoloss.compress.solvers.feeding import Refinement, Weights, solve_columns
from isoloss.compress.solvers.moments import Order, needed, refuse_damping
from isoloss.compress.solvers.solver import Solver
from isoloss.compress.solvers.tables import exact_start, table_of
from isoloss.compress.statistics import Statistics


@dataclass(frozen=True)
class LutFeedback(Solver):
    r"""Look-up tables for the output error: exact k-means, error feedback, least squares and coordinate descent.

    1. Per row (or group) the best table for :math:`\sum_j H_{jj} (w_j - t_{k(j)})^2`: exact weighted k-means on a line.
    2. GPTQ's column loop (:class:`~isoloss.compress.solvers.Gptq`) with the nearest entry of the row's table.
    3. In rounds: given the codes, the best table is linear least squares,
       :math:`\min_t (w - C t)^\top H (w - C t)` with C one row of zeros and a one per weight; given the table, sweeps of
       coordinate descent over the codes with the whole H. Neither raises the error.

    With outliers in the format (``table3+0.2%``), the weights that cost most are left out first and take the value that
    the others would like best.

    Args:
        damp: lambda over the mean diagonal of H; more than GPTQ's, as a harder search fits more of H's noise.
        order: of the columns, see :class:`~isoloss.compress.solvers.Gptq`.
        weights: of step 1 and of the choice of outliers. ``conditional`` takes :math:`U_{jj}^{-2}`, what an error at column
            j costs once the columns behind it have made up for what they can: a few per cent less error of the layer's
            output, and on a language model more divergence of the whole.
        rounds: of step 3, at most; none unless named, as they lower the layer's error and were not seen to help the whole
            model. The first wins most; each takes about as long as all that comes before.
        sweeps: over the codes in each round.
        steps: of conjugate gradients for the tables in each round.
        tolerance: a round that wins less of the error is the last.

    Source:
        The project's own. Step 1: H. Wang, M. Song, Ckmeans.1d.dp, 2011, and S. Kim et al., SqueezeLLM, 2023, arXiv
        2306.07629; step 2: E. Frantar et al., GPTQ, 2022, arXiv 2210.17323.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats, solvers
        >>> _ = torch.manual_seed(0)
        >>> x, weight = torch.randn(64, 16) @ torch.randn(16, 16), torch.randn(8, 16)
        >>> statistics = Statistics("layer", 64, (x.T @ x / 64)[None])
        >>> def error(solver):
        ...     found = solvers.get(solver).solve(weight, formats.get("table2"), statistics)
        ...     return solvers.output_error(weight, found.decode(), statistics.second)
        >>> error("lut-feedback(rounds=1)") < error("lut-feedback") < error("kmeans")
        True
    """

    damp: float = 0.1
    order: Order = "activation"
    weights: Weights = "diagonal"
    rounds: int = 0
    sweeps: int = 2
    steps: int = 3
    tolerance: float = 0.002

    name: ClassVar[str] = "lut-feedback"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_damping(self.damp)
        Refinement(self.rounds, self.sweeps, self.steps, self.tolerance)

    @property
    def needs(self) -> frozenset[str]:
        """Second moments of the inputs."""
        return frozenset({"second"})

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        table_of(format.dense if isinstance(format, WithOutliers) else format, self.name)
        second = needed(statistics, self.name, "second")
        refinement = Refinement(self.rounds, self.sweeps, self.steps, self.tolerance)
        return solve_columns(
            weight, format, second, self.name, self.damp, self.order, exact_start, False, refinement,
            self.weights,
        )  # fmt: skip
