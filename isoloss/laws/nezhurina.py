"""Nezhurina et al. 2025, Scaling Laws for Robust Comparison of Open Foundation Models, arXiv:2506.04598."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive, real


@dataclass(frozen=True)
class Nezhurina(Law):
    r"""Error of the best model at a compute, with a flat start near chance and a floor.

    .. math:: L(C) = A (C + B)^{-\alpha} + E

    Below B the curve is flat, far above it is the power law with floor ``hestness(flops)``.

    Inputs:
        axis: training FLOP unless said, flops: ``nezhurina(tokens)``, ``nezhurina(params)``.
    Returns:
        The target column: a loss, or an error rate read as one (``columns="loss=error"``).
    Valid for:
        The best runs at each compute only. Choosing them among noisy runs makes them look better than they
        are, and a bootstrap of the chosen does not show it.
    Source:
        The fitted form; there with alpha < 0 and C in GFLOP, which changes A and B.
    Example:
        >>> Nezhurina().evaluate([8.0, 1.0, 0.5, 2.0], flops=[3, 15]).round(6).tolist()
        [6.0, 4.0]
    """

    axis: str = "flops"

    formula = "A (C + B)^-alpha + E"
    paper = "Nezhurina et al. 2025, arXiv:2506.04598"
    parameters = (
        positive("A", 1e-8, 1e70, "size of the reducible part at C + B = 1"),
        positive("B", 1e-12, 1e30, "compute below which the curve is flat"),
        real("alpha", 0.0, 2.5, "exponent"),
        positive("E", 1e-6, 1e4, "irreducible part"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The flat start lies from far below the first point to the last; sizes follow the target."""
        first, last = float(np.min(x[self.axis])), float(np.max(x[self.axis]))
        low, high = float(np.min(y)), float(np.max(y))
        # A = (y - E) (C + B)^alpha: the reach of the steepest exponent, either side of C = 1.
        size = (1e-3 * low * min(1.0, first) ** 2.5, 1e2 * high * max(1.0, 2 * last) ** 2.5)
        return {"A": size, "B": (1e-6 * first, last), "E": (1e-6 * high, 1.2 * high)}

    def floor(self, theta: Array) -> Array:
        """See :meth:`isoloss.laws.law.Law.floor`."""
        return theta[..., 3]

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; in logs, because A and the power overflow."""
        a, b, alpha, floor = theta
        return np.exp(np.log(a) - alpha * np.logaddexp(np.log(x[self.axis]), np.log(b))) + floor
