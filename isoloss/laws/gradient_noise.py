"""McCandlish et al. 2018, An Empirical Model of Large-Batch Training, arXiv:1812.06162."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive, real


@dataclass(frozen=True)
class GradientNoise(Law):
    r"""The best learning rate against the batch: it rises until the gradient is mostly signal, then is flat.

    .. math:: \epsilon_{opt}(B) = \frac{\epsilon_{max}}{(1 + B_{noise}/B)^{a}}

    Inputs:
        axis: the batch, batch_tokens unless said: ``gradient-noise(batch_sequences)``.
    Returns:
        lr: the learning rate of the least loss.
    Valid for:
        One model at one stage of training: the noise scale grows as the loss falls. Batches on both sides of
        B_noise; on one side only B_noise, eps_max and a trade.
    Source:
        The optimal step size; a is 1 for SGD, where it is derived for a quadratic loss, and smaller for Adam.
    Example:
        >>> law = GradientNoise()
        >>> law.evaluate([1e-3, 1e5, 1.0], batch_tokens=[1e5, 3e5, 1e9]).round(6).tolist()
        [0.0005, 0.00075, 0.001]
    """

    axis: str = "batch_tokens"

    target = "lr"
    formula = "eps_max/(1 + B_noise/B)^a"
    paper = "McCandlish et al. 2018, arXiv:1812.06162"
    parameters = (
        positive("eps_max", 1e-12, 1e6, "best rate at a batch without noise"),
        positive("B_noise", 1e-9, 1e20, "noise scale"),
        real("a", 0.05, 2.0, "power: 1 for SGD"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The batch."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The largest rate lies at or above those seen, the noise scale around the batches."""
        batch = x[self.axis]
        return {
            "eps_max": (0.1 * float(np.min(y)), 1e6 * float(np.max(y))),
            "B_noise": (1e-4 * float(np.min(batch)), 1e4 * float(np.max(batch))),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        top, noise, a = theta
        return np.exp(np.log(top) - a * np.logaddexp(0.0, np.log(noise) - np.log(x[self.axis])))
