"""Zhang et al. 2025, How Does Critical Batch Size Scale in Pre-training?, arXiv:2410.21676."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.laws.law import positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


@dataclass(frozen=True)
class CriticalBatchFree(PowerSum):
    r"""Steps to a target loss against the batch, with a free exponent: is it 1?

    .. math:: S(B) = a + b/B^{\alpha}

    Inputs:
        axis: the batch, batch_tokens unless said: ``critical-batch-free(batch_sequences)``.
    Returns:
        steps: optimiser steps until the target loss is reached [count].
    Valid for:
        As ``critical-batch``, which is alpha = 1: there small batches waste no tokens. With another exponent
        tokens grow or fall without end towards small batches, so no critical batch follows without a reference.
    Source:
        The paper's general form.
    Example:
        >>> law = CriticalBatchFree()
        >>> law.evaluate([10.0, 100.0, 0.5], batch_tokens=[4, 100]).tolist()
        [60.0, 20.0]
    """

    axis: str = "batch_tokens"

    target = "steps"
    formula = "a + b/B^alpha"
    paper = "Zhang et al. 2025, arXiv:2410.21676"
    parameters = (
        positive("a", 1e-6, 1e15, "steps at a batch without end"),
        positive("b", 1e-6, 1e40, "size of the falling part at B = 1"),
        real("alpha", 0.05, 3.0, "exponent of the batch"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The batch."""
        return (self.axis,)

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """Limit and falling part."""
        return [term("a"), term("b", {"alpha": -log[self.axis]})]
