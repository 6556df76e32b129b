"""Zhang et al. 2025, How Does Critical Batch Size Scale in Pre-training?, arXiv:2410.21676."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.laws.law import Published, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term

SEQUENCE = 512  # tokens of a sequence in the paper
MILLION = 1e6  # the paper counts parameters in millions


@dataclass(frozen=True)
class CriticalBatchGrowth(PowerSum):
    r"""The critical batch as a power of size or of data.

    .. math:: B^*(x) = b x^{c}

    Inputs:
        axis: params unless said: ``critical-batch-growth(tokens)``.
    Returns:
        critical_batch: the critical batch [tokens].
    Valid for:
        One overhead and one rule for the reference batch throughout. Fit the effect of size with tokens held,
        and of tokens with size held: a ladder of equal tokens per parameter grows both and cannot tell.
    Source:
        The published fits, 20 % overhead, sequences of 512 tokens and millions of parameters turned into tokens
        and parameters. With 20 tokens per parameter the exponent is of size and data together; at a fixed
        number of tokens size hardly matters.
    Example:
        >>> law = CriticalBatchGrowth()
        >>> theta = law.theta("zhang-2024-chinchilla")
        >>> (law.evaluate(theta, params=[151e6, 1.2e9]) / 512).round().tolist()
        [985.0, 2610.0]
    """

    axis: str = "params"

    target = "critical_batch"
    formula = "b x^c"
    paper = "Zhang et al. 2025, arXiv:2410.21676"
    parameters = (
        positive("b", 1e-12, 1e20, "size at x = 1"),
        real("c", -1.0, 2.0, "exponent"),
    )
    published = {
        "zhang-2024-fixed-tokens": Published(
            {"b": SEQUENCE * 621.341 * MILLION**-0.087, "c": 0.087},
            "arXiv:2410.21676: 621.341 N^0.087 sequences of 512, N in millions, 3.072e9 tokens at every size",
        ),
        "zhang-2024-chinchilla": Published(
            {"b": SEQUENCE * 93.20 * MILLION**-0.47, "c": 0.47},
            "arXiv:2410.21676: 93.20 N^0.47 sequences of 512, N in millions, 20 tokens per parameter",
        ),
    }

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("b", {"c": log[self.axis]})]
