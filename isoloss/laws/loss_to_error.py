"""Gadre et al. 2024, Language models scale reliably with over-training, arXiv:2403.08540."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Published, positive

_TABLE = "arXiv:2403.08540, fitted coefficients as printed (three digits): mean error of 17 tasks"


class LossToError(Law):
    r"""A link: from loss to the mean error of downstream tasks.

    .. math:: \mathrm{Err}(L) = \epsilon - k e^{-\gamma L}

    Inputs:
        loss: L [nats/token].
    Returns:
        error: share of wrong answers, mean over tasks [0 to 1].
    Valid for:
        The mean over tasks that small models already beat chance on; single tasks are far noisier.
    Source:
        The law from loss to average top-1 error.
    Example:
        >>> law = LossToError()
        >>> float(law.evaluate(law.theta("redpajama-2024"), loss=2.8).round(3))
        0.559
    """

    axes = ("loss",)
    target = "error"
    formula = "epsilon - k exp(-gamma L)"
    paper = "Gadre et al. 2024, arXiv:2403.08540"
    parameters = (
        positive("epsilon", 1e-3, 10.0, "error of a model that knows nothing"),
        positive("k", 1e-8, 1e12, "size of the gain at zero loss"),
        positive("gamma", 1e-3, 20.0, "rate per nat"),
    )
    published = {
        "c4-2024": Published({"epsilon": 0.850, "k": 2.08, "gamma": 0.756}, _TABLE),
        "redpajama-2024": Published({"epsilon": 0.857, "k": 2.21, "gamma": 0.715}, _TABLE),
        "refinedweb-2024": Published({"epsilon": 0.865, "k": 2.21, "gamma": 0.707}, _TABLE),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The ceiling is near the worst error, the rate turns over within the range of losses."""
        span = max(float(np.ptp(x["loss"])), 1e-3)
        top = float(np.max(y))
        return {"epsilon": (top / 10, top * 10), "gamma": (1e-3 / span, 20.0 / span)}

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        ceiling, k, gamma = theta
        return ceiling - k * np.exp(-gamma * x["loss"])
