"""The batch of Li et al. 2025, Step Law, arXiv:2503.04715, with the size of the model let free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class StepLawBatchNd(PowerSum):
    r"""The best batch against tokens and size: ``step-law-batch`` is the case e = 0.

    .. math:: B^* = c\,N^{e} D^{d}

    Rate and batch can be wrong together and cost little: on a valley where both are lower, the loss hardly rises.
    So a law of the batch that cannot follow the size spoils the learning rate's exponent of size too, and both
    extrapolate worse. On the authors' grids e is below 0.

    Inputs:
        params_nonembedding: N, parameters without embeddings [count]. tokens: D, training tokens [count].
    Returns:
        batch_tokens: tokens per optimiser step of the least loss [count], the learning rate at its best. Not
        sequences.
    Valid for:
        As ``step-law-batch``. Needs sizes and tokens that vary apart.
    Source:
        The form is this package's own, the paper finds e = 0 sufficient. No published constants.
    Example:
        >>> StepLawBatchNd().evaluate([100.0, -0.25, 0.6], params_nonembedding=1e8, tokens=1e10).round(0)
        np.float64(1000000.0)
    """

    axes = ("params_nonembedding", "tokens")
    target = "batch_tokens"
    formula = "c N^e D^d"
    paper = "form of Li et al. 2025, arXiv:2503.04715, with the size let free"
    parameters = (
        positive("c", 1e-30, 1e30, "batch at N = D = 1"),
        real("e", -2.0, 2.0, "exponent of parameters"),
        real("d", -2.0, 2.0, "exponent of tokens"),
    )

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("c", {"e": log["params_nonembedding"], "d": log["tokens"]})]
