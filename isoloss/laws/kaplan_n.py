"""Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Array, Law, Published, positive, real


class KaplanN(Law):
    r"""Loss against size when neither data nor training time limits.

    .. math:: L(N) = (N_c/N)^{\alpha_N}

    Inputs:
        params_nonembedding: N, parameters without embeddings [count].
    Returns:
        Loss [nats/token].
    Valid for:
        768 to 1.5e9 parameters trained to convergence. No floor: do not extrapolate far.
    Source:
        Eq. 1.1. The same hypothesis as ``power(params_nonembedding)``.
    Example:
        >>> law = KaplanN()
        >>> float(law.evaluate(law.theta("kaplan-2020"), params_nonembedding=1e9).round(4))
        2.3756
    """

    axes = ("params_nonembedding",)
    formula = "(N_c/N)^alpha_N"
    paper = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.1"
    alias_of = "power"
    parameters = (
        positive("N_c", 1e-12, 1e40, "where the law would reach one nat"),
        real("alpha_N", 0.005, 2.5, "exponent"),
    )
    published = {
        "kaplan-2020": Published(
            {"N_c": 8.8e13, "alpha_N": 0.076}, "arXiv:2001.08361, eq. 1.1: WebText2, 50,257 tokens"
        ),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The scale follows the axis."""
        values = x["params_nonembedding"]
        return {"N_c": (1e-12 * float(values.min()), 1e25 * float(values.max()))}

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        scale, alpha = theta
        return (scale / x["params_nonembedding"]) ** alpha
