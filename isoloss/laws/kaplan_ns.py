"""Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Published, positive, real


class KaplanNs(Law):
    r"""Learning curves of all sizes, with steps as at a batch without end; no floor.

    .. math:: L(N, S_{min}) = (N_c/N)^{\alpha_N} + (S_c/S_{min})^{\alpha_S}

    Inputs:
        params_nonembedding: N, parameters without embeddings [count].
        steps_min: S_min = S / (1 + B_crit(L)/B), the steps that a batch far above B_crit would have taken [count].
    Returns:
        Loss [nats/token].
    Valid for:
        Data not repeated, learning rate constant after warm-up, past the first steps. Annealing is not in it.
    Source:
        Eq. 1.6 (5.6); constants of table 3. From steps at another batch: ``su-unraveling``.
    Example:
        >>> law = KaplanNs()
        >>> theta = law.theta("kaplan-2020")
        >>> float(law.evaluate(theta, params_nonembedding=1e8, steps_min=1e4).round(4))
        3.1082
    """

    axes = ("params_nonembedding", "steps_min")
    formula = "(N_c/N)^alpha_N + (S_c/S_min)^alpha_S"
    paper = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.6"
    parameters = (
        positive("N_c", 1e-12, 1e40, "scale of parameters"),
        positive("S_c", 1e-12, 1e30, "scale of steps"),
        real("alpha_N", 0.005, 2.5, "exponent of parameters"),
        real("alpha_S", 0.005, 3.0, "exponent of steps"),
    )
    published = {
        "kaplan-2020": Published(
            {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76},
            "arXiv:2001.08361, table 3: WebText2",
        ),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The scales follow the axes."""
        names = {"N_c": "params_nonembedding", "S_c": "steps_min"}
        return {
            name: (1e-9 * float(x[axis].min()), 1e15 * float(x[axis].max())) for name, axis in names.items()
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; powers in logs."""
        n_c, s_c, alpha_n, alpha_s = theta
        size = alpha_n * (np.log(n_c) - np.log(x["params_nonembedding"]))
        steps = alpha_s * (np.log(s_c) - np.log(x["steps_min"]))
        return np.exp(size) + np.exp(steps)
