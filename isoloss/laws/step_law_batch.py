"""Li et al. 2025, Predictable Scale: Part I, Step Law, arXiv:2503.04715: the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class StepLawBatch(PowerSum):
    r"""The best batch grows with the tokens of the run and not with the size of the model.

    .. math:: B^* = c\,D^{d}

    ``step-law-batch-nd`` asks the rows whether size matters after all.

    Inputs:
        tokens: D, training tokens [count].
    Returns:
        batch_tokens: tokens per optimiser step of the least loss [count], the learning rate at its best
        (``step-law``). Not sequences: divide by the sequence length, 2,048 in the paper.
    Valid for:
        One number of tokens for every batch: steps fall as the batch grows. This is the batch of the least loss
        at given tokens, not the batch from which more of it wastes tokens (``critical-batch``). AdamW, cosine to
        a fixed final rate of 1e-5.
    Source:
        The printed law; it is the mean of fits to resamples of the best cells of grids of rate and batch.
    Example:
        >>> law = StepLawBatch()
        >>> law.evaluate(law.theta("li-2025"), tokens=[1e11, 1.4e12]).round(-3).tolist()
        [1108000.0, 4999000.0]
    """

    axes = ("tokens",)
    target = "batch_tokens"
    formula = "c D^d"
    paper = "Li et al. 2025, arXiv:2503.04715"
    parameters = (
        positive("c", 1e-30, 1e30, "batch at D = 1"),
        real("d", -2.0, 2.0, "exponent of tokens"),
    )
    published = {
        "li-2025": Published(
            {"c": 0.58, "d": 0.571},
            "arXiv:2503.04715, printed law: batch in tokens, the rate at its best, final rate 1e-5",
        ),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("c", {"d": log["tokens"]})]
