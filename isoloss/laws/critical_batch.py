"""Zhang et al. 2025, How Does Critical Batch Size Scale in Pre-training?, arXiv:2410.21676."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive


@dataclass(frozen=True)
class CriticalBatch(Law):
    r"""Steps to a target loss against the batch: a hyperbola, and the batch beyond which tokens are wasted.

    .. math:: S(B) = a + b/B

    Inputs:
        axis: the batch, batch_tokens unless said: ``critical-batch(batch_sequences)``.
    Returns:
        steps: optimiser steps until the target loss is reached [count].
    Valid for:
        One model, one target loss that every batch reaches, the learning rate tuned at each batch. Never
        extrapolated: a critical batch above the largest batch was not measured.
    Source:
        The fit of steps to the target. The paper's own form has a free exponent: ``critical-batch-free``.
    Example:
        >>> law = CriticalBatch("batch_sequences")
        >>> law.evaluate([1000.0, 5e6], batch_sequences=[100, 1000]).tolist()
        [51000.0, 6000.0]
        >>> float(law.critical_batch([1000.0, 5e6]))
        1000.0
    """

    axis: str = "batch_tokens"

    target = "steps"
    formula = "a + b/B"
    paper = "Zhang et al. 2025, arXiv:2410.21676"
    parameters = (
        positive("a", 1e-6, 1e15, "steps at a batch without end"),
        positive("b", 1e-6, 1e25, "batch times steps at a vanishing batch"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The batch."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """Neither part exceeds what was measured, up to noise; either may be invisible."""
        seen = x[self.axis] * y
        return {
            "a": (1e-4 * float(np.min(y)), 3 * float(np.max(y))),
            "b": (1e-4 * float(np.min(seen)), 3 * float(np.max(seen))),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        a, b = theta
        return a + b / x[self.axis]

    def critical_batch(self, theta: Any, overhead: float = 0.2, reference: float = 0.0) -> Array:
        r"""The largest batch whose steps exceed perfect scaling by at most ``overhead``.

        .. math:: B^* = \max\{B : S(B) \le (1+o) S(B_0) B_0/B\} = o\,b/a + (1+o) B_0

        Args:
            theta: shape (..., 2), draws for instance.
            overhead: o, the extra tokens accepted; 0.2 in the paper, 1 gives ``b/a`` (twice the tokens).
            reference: B_0, the batch from which steps scale perfectly; 0 for the limit of small batches.

        Returns:
            Shape (...), in the unit of the axis. A formula: :func:`isoloss.fitting.derived.critical_batch` also
            says whether the batches in a fit reach that far.

        Raises:
            ValueError: overhead is not positive, or reference is negative.
        """
        if not (overhead > 0 and reference >= 0):
            raise ValueError(
                f"needed overhead above 0 and reference at or above 0, got {overhead}, {reference}"
            )
        a, b = np.moveaxis(np.asarray(theta, dtype=float), -1, 0)
        return np.asarray(overhead * b / a + (1 + overhead) * reference)
