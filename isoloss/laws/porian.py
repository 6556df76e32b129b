"""Porian et al. 2024, Resolving Discrepancies in Compute-Optimal Scaling, arXiv:2406.19146: the learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


class Porian(PowerSum):
    r"""The best learning rate against size alone, each size on the tokens that suit it.

    .. math:: \eta^* = c\,N^{-a}

    Inputs:
        params: N, parameters of the hidden layers and of one output head; other embeddings are not counted
            [count].
    Returns:
        lr: learning rate after warm-up, the batch and AdamW's beta_2 at their best (``porian-batch``).
    Valid for:
        Some 20 tokens per parameter: tokens grow with size and are not told apart from it. A constant rate after
        warm-up (no decay), weight decay independent of the rate, beta_2 of 0.99 or more at small batches. Fitted
        on models of 25M to 108M parameters, used from 5M to 900M.
    Source:
        The constants as the comparison of arXiv:2503.04715 lists them. The rates that the authors' notebook
        (formll/resolving-scaling-law-discrepancies) uses for 16 sizes from 5M to 900M lie within 9 % of them.
    Example:
        >>> law = Porian()
        >>> law.evaluate(law.theta("porian-2024"), params=[1.0846e8, 9.017e8]).round(5).tolist()
        [0.00474, 0.00221]
    """

    axes = ("params",)
    target = "lr"
    formula = "c/N^a"
    paper = "Porian et al. 2024, arXiv:2406.19146"
    parameters = (
        positive("c", 1e-30, 1e30, "rate at N = 1"),
        real("a", -2.0, 2.0, "exponent of parameters"),
    )
    published = {
        "porian-2024": Published(
            {"c": 3.7, "a": 0.36},
            "arXiv:2406.19146, as listed in arXiv:2503.04715: N with one head, the batch free, constant rate",
        ),
    }

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("c", {"a": -log["params"]})]
