"""Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv:2503.04715: the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class StepLaw(PowerSum):
    r"""The best peak learning rate falls with size and rises with tokens, where the batch grows with them.

    .. math:: \eta^* = c\,N^{a} D^{b}

    At a batch that is held fixed the exponent of tokens is another, and mostly negative: ``token-horizon``.

    Inputs:
        params_nonembedding: N, parameters without embeddings [count]. tokens: D, training tokens [count].
    Returns:
        lr: the peak learning rate of the least loss, at the best batch for these tokens (``step-law-batch``).
    Valid for:
        The batch free and at its best; AdamW, warm-up, cosine to a fixed final rate of 1e-5: where the rate
        decays to a share of its peak, the best peak is lower. Grids of 0.2 to 1.1 billion parameters.
    Source:
        The printed law; it is the mean of fits to resamples of the best cells of grids of rate and batch.
    Example:
        >>> law = StepLaw()
        >>> rate = law.evaluate(law.theta("li-2025"), params_nonembedding=[1e9, 7e9], tokens=[1e11, 1.4e12])
        >>> rate.round(6).tolist()
        [0.001632, 0.000917]
    """

    axes = ("params_nonembedding", "tokens")
    target = "lr"
    formula = "c N^a D^b"
    paper = "Li et al. 2025, arXiv:2503.04715"
    parameters = (
        positive("c", 1e-30, 1e30, "rate at N = D = 1"),
        real("a", -2.0, 2.0, "exponent of parameters"),
        real("b", -2.0, 2.0, "exponent of tokens"),
    )
    published = {
        "li-2025": Published(
            {"c": 1.79, "a": -0.713, "b": 0.307},
            "arXiv:2503.04715, printed law: N without embeddings, the batch free and at its best, final rate 1e-5",
        ),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("c", {"a": log["params_nonembedding"], "b": log["tokens"]})]
