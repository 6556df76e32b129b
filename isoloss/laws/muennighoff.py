"""Muennighoff et al. 2023, Scaling Data-Constrained Language Models, arXiv:2305.16264."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Law, Published, positive, real
from isoloss.laws.power_sum import Term, term


class Muennighoff(Law):
    r"""Repeated tokens and excess parameters are worth less and less.

    .. math::
        L = E + A/N'^{\alpha} + B/D'^{\beta},\quad
        D' = U_D + U_D R^*_D (1 - e^{-R_D/R^*_D}),\quad
        N' = U_N + U_N R^*_N (1 - e^{-R_N/R^*_N})

    with R_D = D/U_D - 1 repeats of U_D unique tokens, U_N = min(N, the compute-optimal size for U_D),
    R_N = N/U_N - 1.

    Inputs:
        params: N [count]. tokens: D, tokens seen [count]. tokens_unique: U_D [count], D if not given or above it.
    Returns:
        Loss [nats/token].
    Valid for:
        Falling loss: runs where more epochs or parameters raised it were left out of the published fit.
    Source:
        The parametric fit of repeated data; constants from the authors' code.
    Example:
        >>> law = Muennighoff()
        >>> theta = law.theta("muennighoff-2023")
        >>> law.evaluate(theta, params=1e9, tokens=[1e10, 4e10], tokens_unique=1e10).round(3).tolist()
        [2.666, 2.502]
    """

    axes = ("params", "tokens", "tokens_unique")
    defaults = {"tokens_unique": "tokens"}
    formula = "E + A/N'^alpha + B/D'^beta, N' and D' saturating with repetition"
    paper = "Muennighoff et al. 2023, arXiv:2305.16264"
    parameters = (
        positive("E", 1e-4, 1e4, "irreducible loss"),
        positive("A", 1e-3, 1e12, "size of the parameter term"),
        positive("B", 1e-3, 1e12, "size of the data term"),
        real("alpha", 0.02, 1.5, "exponent of parameters"),
        real("beta", 0.02, 1.5, "exponent of tokens"),
        positive("R_N", 1e-2, 1e4, "excess parameters that count"),
        positive("R_D", 1e-2, 1e4, "repetitions that count"),
    )
    published = {
        "muennighoff-2023": Published(
            {
                "E": 1.8691436784,
                "A": 520.8249516599,
                "B": 1487.7160937829,
                "alpha": 0.3526596,
                "beta": 0.3526596,
                "R_N": 5.309743,
                "R_D": 15.387756,
            },
            "arXiv:2305.16264 and its code: C4; E, A, B are exp of 0.6254804, 6.255414, 7.3049974",
        ),
    }

    def power_terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """See :meth:`isoloss.laws.law.Law.power_terms`: as if nothing were repeated."""
        return [
            term("E"),
            term("A", {"alpha": -log["params"]}),
            term("B", {"beta": -log["tokens"]}),
        ]

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        floor, a, b, alpha, beta, r_n, r_d = theta
        n, d = x["params"], x["tokens"]
        unique = np.minimum(x["tokens_unique"], d)  # no more than were seen: the rest changed nothing
        repeats = np.maximum(d / unique - 1.0, 0.0)
        data = unique * (1.0 + r_d * (1.0 - np.exp(-repeats / r_d)))
        # alpha A N^-alpha = beta B U^-beta: the size that one pass over the unique tokens would want.
        best = np.exp((np.log(alpha * a) - np.log(beta * b) + beta * np.log(unique)) / alpha)
        base = np.minimum(n, best)
        size = base * (1.0 + r_n * (1.0 - np.exp(-(n / base - 1.0) / r_n)))
        return floor + a * size**-alpha + b * data**-beta
