"""Kaplan et al. 2020, Scaling Laws for Neural Language Models, arXiv:2001.08361."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Array, Law, Published, positive, real


class KaplanD(Law):
    r"""Loss against data, large models stopped early.

    .. math:: L(D) = (D_c/D)^{\alpha_D}

    Inputs:
        tokens: D, training tokens [count].
    Returns:
        Loss [nats/token].
    Valid for:
        2.2e7 to 2.3e10 tokens. No floor: do not extrapolate far.
    Source:
        Eq. 1.2. The same hypothesis as ``power(tokens)``.
    Example:
        >>> law = KaplanD()
        >>> float(law.evaluate(law.theta("kaplan-2020"), tokens=1e10).round(4))
        2.2624
    """

    axes = ("tokens",)
    formula = "(D_c/D)^alpha_D"
    paper = "Kaplan et al. 2020, arXiv:2001.08361, eq. 1.2"
    alias_of = "power"
    parameters = (
        positive("D_c", 1e-12, 1e40, "where the law would reach one nat"),
        real("alpha_D", 0.005, 2.5, "exponent"),
    )
    published = {
        "kaplan-2020": Published(
            {"D_c": 5.4e13, "alpha_D": 0.095}, "arXiv:2001.08361, eq. 1.2: WebText2, 50,257 tokens"
        ),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The scale follows the axis."""
        values = x["tokens"]
        return {"D_c": (1e-12 * float(values.min()), 1e25 * float(values.max()))}

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        scale, alpha = theta
        return (scale / x["tokens"]) ** alpha
