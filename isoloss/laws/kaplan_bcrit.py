"""Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Published, positive, real


class KaplanBcrit(Law):
    r"""The critical batch as a function of the loss alone.

    .. math:: B_{crit}(L) = B_*/L^{1/\alpha_B}

    Inputs:
        loss: L [nats/token].
    Returns:
        critical_batch: the batch of twice the least steps and twice the least tokens to that loss [tokens].
    Valid for:
        The losses of the runs. That it depends on the loss alone is disputed: Zhang et al. 2025
        (``critical-batch-growth``) find that it grows with the data, at any size.
    Source:
        Eq. 1.4 (5.3), WebText2.
    Example:
        >>> law = KaplanBcrit()
        >>> float(law.evaluate(law.theta("kaplan-2020"), loss=3.0).round(-3))
        1069000.0
    """

    axes = ("loss",)
    target = "critical_batch"
    formula = "B_star/L^(1/alpha_B)"
    paper = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.4"
    parameters = (
        positive("B_star", 1e-6, 1e30, "critical batch at a loss of 1"),
        real("alpha_B", 0.02, 5.0, "inverse exponent of the loss"),
    )
    published = {
        "kaplan-2020": Published({"B_star": 2e8, "alpha_B": 0.21}, "arXiv:2001.08361, eq. 1.4: WebText2"),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The batch at a loss of 1 may lie far outside, by the steepest power allowed near the data."""
        top = max(1.0, float(np.max(x["loss"]))) ** 15
        bottom = min(1.0, float(np.min(x["loss"]))) ** 15
        return {"B_star": (0.1 * float(np.min(y)) * bottom, 10 * float(np.max(y)) * top)}

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        star, alpha = theta
        return np.exp(np.log(star) - np.log(x["loss"]) / alpha)
