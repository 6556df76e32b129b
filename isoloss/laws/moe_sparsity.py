"""Abnar et al. 2025, Parameters vs FLOPs: Scaling Laws for Optimal Sparsity for Mixture-of-Experts, arXiv:2501.12370."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Array, Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class MoeSparsity(PowerSum):
    r"""Loss of a mixture of experts from its total size, its tokens and the share of experts at rest.

    .. math:: L(N, D, S) = e + \frac{a}{N^{\alpha}} + \frac{b}{D^{\beta}} + \frac{c}{(1-S)^{\lambda}} +
        \frac{d}{(1-S)^{\delta} N^{\gamma}}

    S is the sparsity, the share of experts that a token does not use; the column holds 1 - S. In the published fit
    lambda is below 0: of two models of one total size the sparser one loses in the last term and gains in the one
    before, so a larger density is not always better, even at one number of tokens.

    Inputs:
        params: N, total parameters, those of all experts [count]. tokens: D [count]. expert_density: 1 - S, active
            over all experts, 1 for a dense model [share].
    Returns:
        Loss [nats/token].
    Valid for:
        S of 0 to 0.98: at S = 1 the law is singular, so bound the density at 0.02. Budgets of 3e19 to 1e21 FLOP, one
        family, context of 2,048 tokens. R2 is 99 % on the fitted runs and 68 % on the held-out S = 0.98. Ten
        parameters: few tables tell them all. Compute is about 6 N_active D; 1 - S is a share of experts, and not
        N_active/N, once attention and shared parts count.
    Source:
        Eq. 6; constants of table 3.
    Example:
        >>> law = MoeSparsity()
        >>> theta = law.theta("abnar-2025")
        >>> law.evaluate(theta, params=[1e9, 1e10], tokens=2e10, expert_density=[1, 0.1]).round(4).tolist()
        [2.5657, 2.3669]
    """

    axes = ("params", "tokens", "expert_density")
    formula = "e + a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma)"
    paper = "Abnar et al. 2025, arXiv:2501.12370, eq. 6"
    parameters = (
        positive("e", 1e-4, 1e4, "irreducible loss"),
        positive("a", 1e-8, 1e30, "size of the parameter term"),
        positive("b", 1e-8, 1e30, "size of the data term"),
        positive("c", 1e-8, 1e30, "size of the sparsity term"),
        positive("d", 1e-8, 1e30, "size of the term of sparsity and parameters"),
        real("alpha", 0.0, 2.5, "exponent of parameters"),
        real("beta", 0.0, 2.5, "exponent of tokens"),
        real("lambda", -2.5, 2.5, "exponent of density: below 0, the term falls with sparsity"),
        real("delta", -2.5, 2.5, "exponent of density in the joint term"),
        real("gamma", 0.0, 2.5, "exponent of parameters in the joint term"),
    )
    published = {
        "abnar-2025": Published(
            {
                "e": 0.94, "a": 16612.5, "b": 5455.67, "c": 0.4598, "d": 17.26,
                "alpha": 0.5962, "beta": 0.3954, "lambda": -0.1666, "delta": 0.1603, "gamma": 0.1595,
            },
            "arXiv:2501.12370, table 3: S of 0 to 0.95 on RedPajama",
        ),
    }  # fmt: skip

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """A dense model has a density of 1."""
        return x["expert_density"] <= 1, "expert_density at or below 1, active over all experts"

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The floor, parameters, data, sparsity, and sparsity with parameters."""
        n, d, sparse = log["params"], log["tokens"], -log["expert_density"]
        return [
            term("e"),
            term("a", {"alpha": -n}),
            term("b", {"beta": -d}),
            term("c", {"lambda": sparse}),
            term("d", {"delta": sparse, "gamma": -n}),
        ]
