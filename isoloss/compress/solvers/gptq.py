"""GPTQ: columns rounded one after another, each error fed into the columns behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from isoloss.compress.formats import Coded, Encoded, Format, Grid
from isoloss.compress.solvers.feeding import Refinement, solve_columns
from isoloss.compress.solvers.moments import Order, needed, refuse_damping
from isoloss.compress.solvers.solver import Solver
from isoloss.compress.statistics import Statistics


@dataclass(frozen=True)
class Gptq(Solver):
    r"""Optimal Brain Quantization in one order of columns for all rows, by a Cholesky factor.

    With U upper and :math:`U^\top U = (H + \lambda I)^{-1}`, column j as the errors before it left it becomes
    :math:`q_j`, the nearest value of the grid, and every column k behind gets
    :math:`w_k \mathrel{-}= \frac{w_j - q_j}{U_{jj}} U_{jk}`. What a row loses is then
    :math:`\sum_j ((w_j - q_j) / U_{jj})^2` with :math:`w_j` as it was at its turn. Works with every format that has a
    code per weight, also with outliers beside it: those that cost most are left out of the rounding and take the value
    that their turn would like best.

    ``rounds`` goes beyond the paper: scales by least squares and sweeps of coordinate descent over the codes, with
    which the error cannot rise (:mod:`isoloss.compress.solvers.refine`).

    Args:
        damp: lambda over the mean diagonal of H; raised where H cannot be factored.
        order: of the columns: ``activation`` (largest mean square first), ``inverse`` (those first that others can make
            up for least) or ``natural``.
        static: scales of groups from the weight as it was; with ``natural`` order they are otherwise chosen anew from the
            updated weights as each group's turn comes. Other orders need them static.
        rounds: of refinement, at most; 0 is the paper's method.
        sweeps: over the codes in each round.
        steps: of conjugate gradients for the scales in each round.
        tolerance: a round that wins less is the last.

    Source:
        E. Frantar et al., GPTQ, 2022, arXiv 2210.17323; E. Frantar et al., Optimal Brain Compression (OBQ), 2022, arXiv
        2208.11580.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats
        >>> x = torch.tensor([[1.0, 1.0], [1.0, 0.9], [0.9, 1.0]])
        >>> statistics = Statistics("layer", 3, (x.T @ x / 3)[None])
        >>> weight, grid = torch.tensor([[0.4, 0.4, ]]), formats.get("int2/tensor")
        >>> Gptq(order="natural").solve(weight, grid, statistics).decode().tolist()
        [[0.39990234375, 0.39990234375]]
    """

    damp: float = 0.01
    order: Order = "activation"
    static: bool = False
    rounds: int = 0
    sweeps: int = 2
    steps: int = 3
    tolerance: float = 0.002

    name: ClassVar[str] = "gptq"

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
        second = needed(statistics, self.name, "second")
        refinement = Refinement(self.rounds, self.sweeps, self.steps, self.tolerance)

        def start(dense: Coded, matrix: Tensor, cost: Tensor, kept: Tensor | None) -> Grid:
            importance = second.diagonal(dim1=1, dim2=2).clamp(min=0)
            importance = importance.repeat_interleave(len(matrix) // len(second), dim=0)
            return dense.grid(matrix, importance if kept is None else importance.masked_fill(kept, 0))

        whole = format.dense if hasattr(format, "dense") else format
        refit = self.order == "natural" and not self.static and isinstance(getattr(whole, "group", None), int)
        return solve_columns(
            weight, format, second, self.name, self.damp, self.order, start, refit, refinement, "conditional"
        )
