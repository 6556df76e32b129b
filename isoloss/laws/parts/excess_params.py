"""Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264: excess parameters as a factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Parameter, Published, positive
from isoloss.laws.parts.part import Factor


class ExcessParams(Factor):
    r"""Parameters beyond those that the distinct tokens want count for less and less.

    .. math::
        \frac{N_{\mathrm{eff}}}{N} = \frac{U_N}{N}\left(1 + R_N \left(1 - e^{-(N/U_N - 1)/R_N}\right)\right),\quad
        U_N = \min\left(N, \left(\frac{\alpha A}{\beta B}\, U^{\beta}\right)^{1/\alpha}\right),\quad U = \min(U_D, D)

    U_N is the compute-optimal size for one pass over U tokens, by A, B, alpha and beta of the base. With
    ``data-constrained`` and the base ``hoffmann`` this is the law ``muennighoff``.

    Inputs:
        tokens_unique: U_D, distinct tokens at hand [count]; absent: data are not limited, the factor is 1. For
            one pass over limited data write the tokens seen. params: N, tokens: D [count], of the base.
    Returns:
        N_eff / N; 1 up to U_N.
    Valid for:
        Falling loss: runs in which more parameters raised it were left out of the published fit.
    Source:
        The effective parameters of the parametric fit of repeated data; its constant from the authors' code.
    Example:
        >>> import numpy as np
        >>> part = ExcessParams()
        >>> base = {"A": 520.825, "B": 1487.716, "alpha": 0.3526596, "beta": 0.3526596}
        >>> theta = {**base, **part.published["muennighoff-2023"].values}
        >>> x = {"params": np.array([5e7, 5e8, 5e9]), "tokens": np.full(3, 1e9), "tokens_unique": np.full(3, 1e9)}
        >>> part.value(theta, x).round(3).tolist()
        [1.0, 0.54, 0.064]
    """

    columns = ("tokens_unique",)
    shared = ("A", "B", "alpha", "beta")
    reference = "tokens_unique absent, or N not above the compute-optimal size for the distinct tokens"
    together = ("hoffmann", "data-constrained")
    within = ("muennighoff",)
    formula = (
        "(U_N/N) (1 + R_N (1 - exp(-(N/U_N - 1)/R_N))), U_N = min(N, (alpha A U^beta / (beta B))^(1/alpha))"
    )
    paper = "Muennighoff et al. 2023, arXiv:2305.16264"
    scales = "params"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One: how many times U_N counts."""
        return (positive("R_N", 1e-2, 1e4, "excess parameters that count"),)

    @property
    def published(self) -> Mapping[str, Published]:
        """The fit on C4."""
        return {
            "muennighoff-2023": Published({"R_N": 5.309743}, "arXiv:2305.16264 and its code: C4, 182 runs")
        }

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        a, b, alpha, beta, r = (theta[name] for name in (*self.shared, "R_N"))
        unique = np.minimum(x["tokens_unique"], x["tokens"])
        # alpha A N^-alpha = beta B U^-beta: the size that one pass over the distinct tokens would want.
        best = np.exp((np.log(alpha * a) - np.log(beta * b) + beta * np.log(unique)) / alpha)
        excess = np.maximum(x["params"] / best, 1.0)
        return (1.0 + r * (1.0 - np.exp((1.0 - excess) / r))) / excess
