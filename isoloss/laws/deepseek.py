"""Bi et al. 2024, DeepSeek LLM: Scaling Open-Source Language Models, arXiv:2401.02954: the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class Deepseek(PowerSum):
    r"""The best peak learning rate against compute alone, along compute-optimal runs.

    .. math:: \eta^* = c\,C^{-a}

    Inputs:
        flops: C, training FLOPs without embeddings: non-embedding FLOPs per token (attention included) times
            tokens [FLOP].
    Returns:
        lr: peak learning rate, the batch at its best (``deepseek-batch``).
    Valid for:
        Runs near the compute-optimal balance of size and tokens: compute alone does not tell the two apart.
        AdamW, a schedule in steps: 31.6 % of the peak after 80 % of the tokens, 10 % after 90 %. Fitted on 1e17
        to 2e19 FLOPs, to settings within 0.25 % of the least loss.
    Source:
        Eq. 1.
    Example:
        >>> law = Deepseek()
        >>> law.evaluate(law.theta("deepseek-2024"), flops=[1e17, 1e20, 1e23]).round(6).tolist()
        [0.002338, 0.000986, 0.000416]
    """

    axes = ("flops",)
    target = "lr"
    formula = "c/C^a"
    paper = "Bi et al. 2024, arXiv:2401.02954, eq. 1"
    parameters = (
        positive("c", 1e-30, 1e30, "rate at one FLOP"),
        real("a", -2.0, 2.0, "exponent of compute"),
    )
    published = {
        "deepseek-2024": Published(
            {"c": 0.3118, "a": 0.1250},
            "arXiv:2401.02954, eq. 1: C without embeddings, the batch free, decay in steps to 10 % of the peak",
        ),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("c", {"a": -log["flops"]})]
