"""Gadre et al. 2024, Language models scale reliably with over-training, arXiv:2403.08540."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term

_TABLE = "arXiv:2403.08540, fitted coefficients as printed (three digits): loss on C4"


class Gadre(PowerSum):
    r"""One exponent for size and data: over-trained models fall on parallel lines.

    .. math:: L(C, M) = E + (a M^{\eta} + b M^{-\eta}) C^{-\eta},\quad C = 6ND,\ M = D/N

    Equal to ``hoffmann`` with alpha = beta = 2 eta, A = a 6^-eta, B = b 6^-eta. Tying the exponents is
    what makes five runs enough.

    Inputs:
        params: N, all parameters [count]. tokens: D, training tokens [count].
    Returns:
        Loss [nats/token].
    Valid for:
        One training set, hyper-parameters tuned at one M; M from 5 to 640 in the paper.
    Source:
        The over-training law; the authors fit by least squares on the loss itself: use
        ``LeastSquares(residual="linear")`` to reproduce.
    Example:
        >>> law = Gadre()
        >>> theta = law.theta("redpajama-2024")
        >>> float(law.evaluate(theta, params=1.4e9, tokens=28e9).round(3))
        2.795
    """

    axes = ("params", "tokens")
    formula = "E + (a M^eta + b M^-eta) C^-eta, C = 6ND, M = D/N"
    paper = "Gadre et al. 2024, arXiv:2403.08540"
    parameters = (
        positive("E", 1e-4, 1e4, "irreducible loss"),
        positive("a", 1e-8, 1e30, "size of the parameter term"),
        positive("b", 1e-8, 1e30, "size of the data term"),
        real("eta", 0.0, 1.25, "exponent of compute"),
    )
    published = {
        "c4-2024": Published({"E": 1.51, "a": 141.0, "b": 190.0, "eta": 0.121}, _TABLE),
        "redpajama-2024": Published({"E": 1.84, "a": 212.0, "b": 367.0, "eta": 0.136}, _TABLE),
        "refinedweb-2024": Published({"E": 1.73, "a": 157.0, "b": 246.0, "eta": 0.127}, _TABLE),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """M^eta C^-eta is (6 N^2)^-eta; M^-eta C^-eta is (6 D^2)^-eta."""
        return [
            term("E"),
            term("a", {"eta": -2.0 * log["params"] - math.log(6.0)}),
            term("b", {"eta": -2.0 * log["tokens"] - math.log(6.0)}),
        ]
