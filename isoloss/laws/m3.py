"""Alabdulmohsin et al. 2022, Revisiting Neural Scaling Laws in Language and Vision, arXiv:2209.06640."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive, real


@dataclass(frozen=True)
class M3(Law):
    r"""A power of one axis that saturates: estimator M3.

    .. math:: L(x) = b (1/x + g)^{c}

    Far below x = 1/g it is the power law ``power``, far above the constant :math:`b g^c`.

    Inputs:
        axis: any positive column, tokens unless said: ``m3(params)``, ``m3(flops)``.
    Returns:
        Loss [nats/token] or error, as the target column.
    Valid for:
        Curves that bend to their floor faster than ``hestness``. The exponent c is not that of ``power`` or
        ``hestness``: never compare c across families.
    Source:
        Function class M3 (there ``beta (x^-1 + gamma)^-c`` with c < 0).
    Example:
        >>> M3().evaluate([8.0, 1.0, 0.5], tokens=[1 / 3, 1 / 15]).round(6).tolist()
        [16.0, 32.0]
    """

    axis: str = "tokens"

    formula = "b (1/x + g)^c"
    paper = "Alabdulmohsin et al. 2022, arXiv:2209.06640, M3"
    parameters = (
        positive("b", 1e-8, 1e30, "size where 1/x + g is 1"),
        positive("g", 1e-30, 1e12, "inverse of the place where the curve turns flat"),
        real("c", 0.0, 2.5, "exponent"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The turn lies between the first point and far beyond the last; the size follows it."""
        first, last = float(np.min(x[self.axis])), float(np.max(x[self.axis]))
        low, high = float(np.min(y)), float(np.max(y))
        # b = y (1/x + g)^-c: the reach of the steepest exponent, either side of 1/x + g = 1.
        size = (1e-2 * low * min(1.0, first / 2) ** 2.5, 1e2 * high * max(1.0, last) ** 2.5)
        return {"g": (1e-6 / last, 1.0 / first), "b": size}

    def floor(self, theta: Array) -> Array:
        """See :meth:`isoloss.laws.law.Law.floor`."""
        return np.asarray(np.exp(np.log(theta[..., 0]) + theta[..., 2] * np.log(theta[..., 1])))

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; in logs, because b and the power overflow."""
        b, g, c = theta
        return np.exp(np.log(b) + c * np.logaddexp(-np.log(x[self.axis]), np.log(g)))
