"""Bi et al. 2024, DeepSeek LLM: Scaling Open-Source Language Models, arXiv:2401.02954: the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class DeepseekBatch(PowerSum):
    r"""The best batch against compute alone, along compute-optimal runs.

    .. math:: B^* = c\,C^{b}

    Inputs:
        flops: C, training FLOPs without embeddings: non-embedding FLOPs per token (attention included) times
            tokens [FLOP].
    Returns:
        batch_tokens: tokens per optimiser step [count], not sequences; the rate at its best (``deepseek``).
    Valid for:
        As ``deepseek``: runs near the compute-optimal balance of size and tokens, 1e17 to 2e19 FLOPs.
    Source:
        Eq. 1.
    Example:
        >>> law = DeepseekBatch()
        >>> law.evaluate(law.theta("deepseek-2024"), flops=[1e17, 1e20]).round(-3).tolist()
        [106000.0, 1017000.0]
    """

    axes = ("flops",)
    target = "batch_tokens"
    formula = "c C^b"
    paper = "Bi et al. 2024, arXiv:2401.02954, eq. 1"
    parameters = (
        positive("c", 1e-30, 1e30, "batch at one FLOP"),
        real("b", -2.0, 2.0, "exponent of compute"),
    )
    published = {
        "deepseek-2024": Published(
            {"c": 0.2920, "b": 0.3271},
            "arXiv:2401.02954, eq. 1: batch in tokens, C without embeddings, the rate at its best",
        ),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("c", {"b": log["flops"]})]
