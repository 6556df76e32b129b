"""ZeroQuant-FP: floats of a few bits by GPTQ, scales of powers of two, the rest of the error in a low-rank part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isoloss.compress.formats import Encoded, Format, WithLowRank, add_low_rank
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.solvers.gptq import Gptq
from isoloss.compress.solvers.moments import curvature, needed, refuse_damping, seconds
from isoloss.compress.solvers.solver import Solver
from isoloss.compress.statistics import Statistics


@dataclass(frozen=True)
class ZeroQuantFp(Solver):
    r"""GPTQ, then the best correction of rank r for what is left (LoRC).

    The format says the rest: ``fp4-e2m1/g256/scale-m1`` or ``/scale-m2`` are the paper's constraints on scales, ``+lr8``
    the rank. With :math:`E = W - \hat W` and its singular values :math:`E = P \Sigma V^\top`, the correction is
    :math:`(P_r \Sigma_r^{1/2}) (\Sigma_r^{1/2} V_r^\top)`, best for :math:`\|E - AB\|_F`. With ``weighted`` it is best for
    the output error: of :math:`E L` with :math:`H + \lambda I = L L^\top`, and the right factor times :math:`L^{-1}`.

    Args:
        damp: of GPTQ and of the weighted correction.
        weighted: weigh the correction by the inputs; the paper's is plain.

    Source:
        X. Wu et al., ZeroQuant-FP, 2023, arXiv 2307.09782; LoRC: Z. Yao et al., ZeroQuant-V2, 2023, arXiv 2303.08302.

    Example:
        >>> import torch
        >>> from isoloss.compress import formats, solvers
        >>> _ = torch.manual_seed(0)
        >>> x, weight = torch.randn(64, 32) * torch.logspace(0, 2, 32), torch.randn(16, 32)
        >>> statistics = Statistics("layer", 64, (x.T @ x / 64)[None])
        >>> def error(solver, format):
        ...     found = solvers.get(solver).solve(weight, formats.get(format), statistics)
        ...     return solvers.output_error(weight, found.decode(), statistics.second)
        >>> plain = error("zeroquant-fp", "fp4-e2m1/scale-m2+lr2")
        >>> error("zeroquant-fp(weighted=true)", "fp4-e2m1/scale-m2+lr2") < plain < error("gptq", "fp4-e2m1/scale-m2")
        True
    """

    damp: float = 0.01
    weighted: bool = False

    name: ClassVar[str] = "zeroquant-fp"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_damping(self.damp)

    @property
    def needs(self) -> frozenset[str]:
        """Second moments of the inputs."""
        return frozenset({"second"})

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        second = needed(statistics, self.name, "second")
        gptq = Gptq(damp=self.damp, order="natural")
        if not isinstance(format, WithLowRank):
            return gptq.solve(weight, format, statistics)
        dense = gptq.solve(weight, format.dense, statistics)
        matrix = as_matrix(weight).double()
        gap = matrix - dense.decode(torch.float64).reshape(matrix.shape)
        root = None
        if self.weighted:
            [(_, h), *more] = seconds(weight, second)
            if more:
                raise TypeError(
                    "a weighted low-rank part needs one H for all rows, got a grouped convolution"
                )
            damped = curvature(h, self.damp, "natural").second.double()
            root = torch.linalg.cholesky(damped)
        left, right = low_rank(gap, min(format.rank, *gap.shape), root)
        return add_low_rank(dense, left.float(), right.float(), format.factors)


def low_rank(gap: Tensor, rank: int, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""The factors of rank r nearest to a matrix, the singular values shared out evenly.

    Args:
        gap: E (out, in).
        rank: r.
        root: L (in, in) of :math:`H = L L^\top` to weigh :math:`\|(E - AB) L\|_F` instead.

    Returns:
        A (out, r) and B (r, in).

    Example:
        >>> gap = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> left, right = low_rank(gap, 1)
        >>> (left @ right).abs().round(decimals=4).tolist()
        [[3.0, 0.0], [0.0, 0.0]]
    """
    u, sigma, v = torch.linalg.svd(gap if root is None else gap @ root, full_matrices=False)
    share = sigma[:rank].sqrt()
    right = share[:, None] * v[:rank]
    if root is not None:
        right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return u[:, :rank] * share, right
