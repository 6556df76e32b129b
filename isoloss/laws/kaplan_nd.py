"""Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Published, positive, real


class KaplanNd(Law):
    r"""Size and data bottleneck each other; no floor.

    .. math:: L(N, D) = \left[(N_c/N)^{\alpha_N/\alpha_D} + D_c/D\right]^{\alpha_D}

    Inputs:
        params_nonembedding: N, parameters without embeddings [count]. tokens: D, tokens [count].
    Returns:
        Loss [nats/token].
    Valid for:
        Early-stopped models with dropout, possibly several epochs. As D grows it tends to a pure power
        of N, which is not ``kaplan-n`` with its own constants.
    Source:
        Eq. 1.5; constants of table 2.
    Example:
        >>> law = KaplanNd()
        >>> theta = law.theta("kaplan-2020")
        >>> float(law.evaluate(theta, params_nonembedding=1e8, tokens=1e10).round(4))
        2.7879
    """

    axes = ("params_nonembedding", "tokens")
    formula = "[(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D"
    paper = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.5"
    parameters = (
        positive("N_c", 1e-12, 1e40, "scale of parameters"),
        positive("D_c", 1e-12, 1e40, "scale of tokens"),
        real("alpha_N", 0.005, 2.5, "exponent of parameters"),
        real("alpha_D", 0.005, 2.5, "exponent of tokens"),
    )
    published = {
        "kaplan-2020": Published(
            {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
            "arXiv:2001.08361, table 2: WebText2",
        ),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The scales follow the axes."""
        names = {"N_c": "params_nonembedding", "D_c": "tokens"}
        return {
            name: (1e-9 * float(x[axis].min()), 1e15 * float(x[axis].max())) for name, axis in names.items()
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; in logs, because the powers overflow."""
        n_c, d_c, alpha_n, alpha_d = theta
        size = (np.log(n_c) - np.log(x["params_nonembedding"])) * (alpha_n / alpha_d)
        data = np.log(d_c) - np.log(x["tokens"])
        return np.exp(alpha_d * np.logaddexp(size, data))
