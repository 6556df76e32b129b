"""Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, arXiv:2203.15556."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class Hoffmann(PowerSum):
    r"""Loss falls as independent powers of parameters and tokens: the Chinchilla law.

    .. math:: L(N, D) = E + A N^{-\alpha} + B D^{-\beta}

    Inputs:
        params: N, all parameters [count]. tokens: D, training tokens, each seen once [count].
    Returns:
        Loss [nats/token].
    Valid for:
        Finished runs of one family on one data set, D/N varied; one pass over the data.
    Source:
        Eq. 2 (form) and section 3.3 (fit). The published exponents with two decimals are not usable
        (0.28 for 0.2849 moves the data term by 13 % at 1e11 tokens): the entries here are unrounded.
    Example:
        >>> law = Hoffmann()
        >>> theta = law.theta("besiroglu-2024")
        >>> float(law.evaluate(theta, params=70e9, tokens=1.4e12).round(4))
        1.9739
    """

    axes = ("params", "tokens")
    formula = "E + A/N^alpha + B/D^beta"
    paper = "Hoffmann et al. 2022, arXiv:2203.15556, eq. 2"
    parameters = (
        positive("E", 1e-4, 1e4, "irreducible loss"),
        positive("A", 1e-8, 1e30, "size of the parameter term"),
        positive("B", 1e-8, 1e30, "size of the data term"),
        real("alpha", 0.0, 2.5, "exponent of parameters"),
        real("beta", 0.0, 2.5, "exponent of tokens"),
    )
    published = {
        "hoffmann-2022": Published(
            {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
            "arXiv:2203.15556, section 3.3, unrounded exponents; rejected by besiroglu-2024",
        ),
        "muennighoff-2023": Published(
            {
                "E": 1.8691436784,
                "A": 520.8249516599,
                "B": 1487.7160937829,
                "alpha": 0.3526596,
                "beta": 0.3526596,
            },
            "arXiv:2305.16264 and its code: C4, the base of repeated data; tied exponents",
        ),
        "kumar-2024": Published(
            {"E": 2.7648, "A": 4299.0, "B": 18060.0, "alpha": 0.4965, "beta": 0.4965},
            "arXiv:2411.04330, fitted constants: the base of precision; N without embeddings, tied exponents",
        ),
        "sun-2025": Published(
            {"E": 1.9061, "A": 69.2343, "B": 68973.0621, "alpha": 0.2368, "beta": 0.5162},
            "arXiv:2501.02423, fitted constants: the base of floating-point training",
        ),
        "besiroglu-2024": Published(
            {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
            "arXiv:2404.10102: refit of 240 points read off Hoffmann's figure 4",
        ),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """E, the parameter term and the data term."""
        return [
            term("E"),
            term("A", {"alpha": -log["params"]}),
            term("B", {"beta": -log["tokens"]}),
        ]
