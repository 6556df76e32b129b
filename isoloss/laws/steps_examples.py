"""McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive


@dataclass(frozen=True)
class StepsExamples(Law):
    r"""The trade between steps and examples to a target loss.

    .. math:: S(B) = S_{min} (1 + B_{crit}/B),
        \quad \left(\frac{S}{S_{min}} - 1\right)\left(\frac{E}{E_{min}} - 1\right) = 1

    with :math:`E = B S` and :math:`E_{min} = B_{crit} S_{min}`. At B_crit steps and examples are twice their least.

    Inputs:
        axis: the batch, batch_tokens unless said: ``steps-examples(batch_sequences)``.
    Returns:
        steps: optimiser steps until the target loss is reached [count].
    Valid for:
        As ``critical-batch``, whose a is S_min and whose b is E_min.
    Source:
        The steps-examples hyperbola.
    Example:
        >>> law = StepsExamples()
        >>> law.evaluate([100.0, 1e5], batch_tokens=[1e5, 1e6]).round(6).tolist()
        [200.0, 110.0]
    """

    axis: str = "batch_tokens"

    target = "steps"
    formula = "S_min (1 + B_crit/B)"
    paper = "McCandlish et al. 2018, arXiv:1812.06162"
    alias_of = "critical-batch"
    parameters = (
        positive("S_min", 1e-6, 1e15, "steps at a batch without end"),
        positive("B_crit", 1e-9, 1e20, "batch of twice the steps and twice the examples"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The batch."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The steps follow the target, the critical batch the batches."""
        batch = x[self.axis]
        return {
            "S_min": (1e-4 * float(np.min(y)), 3 * float(np.max(y))),
            "B_crit": (1e-4 * float(np.min(batch)), 1e4 * float(np.max(batch))),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        least, crit = theta
        return least * (1.0 + crit / x[self.axis])

    def critical_batch(self, theta: Any, overhead: float = 1.0, reference: float = 0.0) -> Array:
        """As :meth:`isoloss.laws.CriticalBatch.critical_batch`; at overhead 1 it is B_crit itself.

        Args:
            theta: shape (..., 2).
            overhead: the extra examples accepted.
            reference: the batch from which steps scale perfectly; 0 for the limit of small batches.

        Raises:
            ValueError: overhead is not positive, or reference is negative.
        """
        if not (overhead > 0 and reference >= 0):
            raise ValueError(
                f"needed overhead above 0 and reference at or above 0, got {overhead}, {reference}"
            )
        return np.asarray(overhead * np.asarray(theta, dtype=float)[..., 1] + (1 + overhead) * reference)
