"""Bjorck et al. 2025, Scaling Optimal LR Across Token Horizons, arXiv:2409.19913."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term

BETA = 0.32
"""The printed exponent of tokens, of models from 760M parameters on."""


class TokenHorizon(PowerSum):
    r"""At a fixed batch the best peak learning rate falls with size and with the length of the run.

    .. math:: \eta^* = C\,N^{-\alpha} D^{-\beta}

    That is no contradiction to ``step-law``, where the rate rises with tokens: there the batch grows with them.

    Inputs:
        params: N, parameters [count]. tokens: D, training tokens [count].
    Returns:
        lr: the peak learning rate of the least loss at one batch, the same for all runs.
    Valid for:
        The batch fixed in tokens (half a million in the paper) and one finished schedule per horizon. Where that
        batch is far below the best one; near it the rate hardly moves. Of one size, alpha is not in the rows:
        fix it.
    Source:
        The joint law, with beta = 0.32 for 760M parameters and more. No constants are shipped:
        beta alone makes no rate. With a rate at one horizon it is a rule, :meth:`at_horizon`.
    Example:
        >>> law = TokenHorizon()
        >>> law.evaluate([400.0, 0.25, 0.32], params=1e9, tokens=[1e10, 1e11]).round(6).tolist()
        [0.001419, 0.000679]
        >>> float(law.at_horizon(3e-4, 1e11, 1e12).round(6))
        0.000144
    """

    axes = ("params", "tokens")
    target = "lr"
    formula = "C/(N^alpha D^beta)"
    paper = "Bjorck et al. 2025, arXiv:2409.19913"
    parameters = (
        positive("C", 1e-30, 1e30, "rate at N = D = 1"),
        real("alpha", -2.0, 2.0, "exponent of parameters"),
        real("beta", -2.0, 2.0, "exponent of tokens"),
    )

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("C", {"alpha": -log["params"], "beta": -log["tokens"]})]

    def at_horizon(self, lr: float, tokens: float, to: Any, beta: Any = BETA) -> Array:
        r"""The rate for another horizon of the same model at the same batch.

        .. math:: \eta(D_2) = \eta(D_1) (D_1/D_2)^{\beta}

        Args:
            lr: best at ``tokens``. to: the other numbers of tokens. beta: the printed one, or draws of a fit.

        Raises:
            ValueError: rate or tokens not finite and above 0.

        Example:
            >>> TokenHorizon().at_horizon(1.0, 1e9, [2e9, 1e10]).round(3).tolist()
            [0.801, 0.479]
        """
        ends = np.asarray(to, dtype=float)
        numbers = np.append(ends.ravel(), [lr, tokens])
        if not (np.isfinite(numbers) & (numbers > 0)).all():
            raise ValueError(f"needed a rate and tokens finite and above 0, got {lr}, {tokens} and {to}")
        return np.asarray(lr * np.exp(np.asarray(beta, dtype=float) * (math.log(tokens) - np.log(ends))))
