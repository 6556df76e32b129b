"""Gadre et al. 2024, Language models scale reliably with over-training, arXiv:2403.08540."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class GadreUntied(PowerSum):
    r"""The over-training form with its two exponents untied: the same hypothesis as ``hoffmann``.

    .. math:: L(C, M) = E + a (C/M)^{-\eta_1} + b (C M)^{-\eta_2},\quad C = 6ND,\ M = D/N

    alpha = 2 eta_1, beta = 2 eta_2: the test of whether tying (``gadre``) is allowed.

    Inputs:
        params: N, all parameters [count]. tokens: D, training tokens [count].
    Returns:
        Loss [nats/token].
    Valid for:
        As ``hoffmann``.
    Source:
        The over-training law before the exponents are set equal.
    Example:
        >>> law = GadreUntied()
        >>> float(law.evaluate([2.0, 6.0, 6.0, 0.5, 0.5], params=6, tokens=6).round(6))
        2.816497
    """

    axes = ("params", "tokens")
    formula = "E + a (C/M)^-eta_1 + b (C M)^-eta_2, C = 6ND, M = D/N"
    paper = "Gadre et al. 2024, arXiv:2403.08540"
    alias_of = "hoffmann"
    parameters = (
        positive("E", 1e-4, 1e4, "irreducible loss"),
        positive("a", 1e-8, 1e30, "size of the parameter term"),
        positive("b", 1e-8, 1e30, "size of the data term"),
        real("eta_1", 0.0, 1.25, "half the exponent of parameters"),
        real("eta_2", 0.0, 1.25, "half the exponent of tokens"),
    )

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """C/M is 6 N^2 and C M is 6 D^2."""
        return [
            term("E"),
            term("a", {"eta_1": -2.0 * log["params"] - math.log(6.0)}),
            term("b", {"eta_2": -2.0 * log["tokens"] - math.log(6.0)}),
        ]
