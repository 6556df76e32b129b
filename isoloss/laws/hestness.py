"""Hestness et al. 2017, Deep Learning Scaling is Predictable, Empirically, arXiv:1712.00409."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.laws.law import Array, Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


@dataclass(frozen=True)
class Hestness(PowerSum):
    r"""A learning curve: a power law of one axis above an irreducible floor (estimator M2 too).

    .. math:: L(m) = \gamma + \alpha m^{-\beta}

    Inputs:
        axis: training tokens or samples unless said: ``hestness(params)``, ``hestness(flops)``.
    Returns:
        Loss [nats/token] or error, as the target column.
    Valid for:
        The power-law region: beyond the best-guess region of few samples.
    Source:
        The learning-curve form epsilon(m) = alpha m^beta_g + gamma; beta here is -beta_g > 0.
    Example:
        >>> Hestness().evaluate([2.0, 8.0, 0.5], tokens=[1, 16]).tolist()
        [10.0, 4.0]
    """

    axis: str = "tokens"

    formula = "gamma + alpha/m^beta"
    paper = "Hestness et al. 2017, arXiv:1712.00409"
    parameters = (
        positive("gamma", 1e-6, 1e4, "irreducible loss"),
        positive("alpha", 1e-8, 1e30, "size of the reducible part"),
        real("beta", 0.0, 2.5, "exponent"),
    )
    published = {
        "word-lm-2017": Published(
            {"gamma": 0.0, "alpha": 11.9, "beta": 0.066},
            "arXiv:1712.00409: word language models, no floor",
        ),
    }

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def floor(self, theta: Array) -> Array:
        """See :meth:`isoloss.laws.law.Law.floor`."""
        return theta[..., 0]

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """Floor and reducible part."""
        return [term("gamma"), term("alpha", {"beta": -log[self.axis]})]
