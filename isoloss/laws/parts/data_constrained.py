"""Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264: repeated tokens as a factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Parameter, Published, positive
from isoloss.laws.parts.part import Factor


class DataConstrained(Factor):
    r"""Tokens seen again count for less and less: the first repeats nearly as new, later ones hardly.

    .. math::
        \frac{D_{\mathrm{eff}}}{D} = \frac{U}{D}\left(1 + R_D \left(1 - e^{-(D/U - 1)/R_D}\right)\right),\quad
        U = \min(U_D, D)

    With ``excess-params`` and the base ``hoffmann`` this is the law ``muennighoff``.

    Inputs:
        tokens_unique: U_D, distinct tokens at hand [count]; absent, or not below the tokens seen: nothing is
            repeated, the factor is 1. tokens: D, tokens seen [count], of the base.
    Returns:
        D_eff / D.
    Valid for:
        Falling loss: runs in which more epochs raised it were left out of the published fit. Whole epochs over
        one data set; by its authors up to 4 epochs are nearly as good as new data.
    Source:
        The effective data of the parametric fit of repeated data; its constant from the authors' code.
    Example:
        >>> import numpy as np
        >>> part = DataConstrained()
        >>> theta = part.published["muennighoff-2023"].values
        >>> seen = 1e9 * np.array([1, 4, 44])
        >>> (part.value(theta, {"tokens": seen, "tokens_unique": 1e9}) * seen / 1e9).round(2).tolist()
        [1.0, 3.73, 15.45]
    """

    columns = ("tokens_unique",)
    reference = "tokens_unique absent, or not below the tokens seen: nothing is repeated"
    together = ("hoffmann", "excess-params")
    within = ("muennighoff",)
    formula = "(U/D) (1 + R_D (1 - exp(-(D/U - 1)/R_D))), U = min(U_D, D)"
    paper = "Muennighoff et al. 2023, arXiv:2305.16264"
    scales = "tokens"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One: how many repeats count."""
        return (positive("R_D", 1e-2, 1e4, "repetitions that count"),)

    @property
    def published(self) -> Mapping[str, Published]:
        """The fit on C4."""
        return {
            "muennighoff-2023": Published({"R_D": 15.387756}, "arXiv:2305.16264 and its code: C4, 182 runs")
        }

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        epochs = np.maximum(x["tokens"] / x["tokens_unique"], 1.0)
        return (1.0 + theta["R_D"] * (1.0 - np.exp((1.0 - epochs) / theta["R_D"]))) / epochs
