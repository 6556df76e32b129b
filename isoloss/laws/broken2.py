"""Caballero et al. 2023, Broken Neural Scaling Laws, arXiv:2210.14891."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive, real


@dataclass(frozen=True)
class Broken2(Law):
    r"""Power laws joined by two breaks.

    .. math:: L(x) = a + b x^{-c_0} \prod_{i=1}^{2} \left(1 + (x/d_i)^{1/f_i}\right)^{-c_i f_i}

    Inputs:
        axis: tokens unless said: ``broken2(params)``, ``broken2(flops)``.
    Returns:
        Loss [nats/token] or error, as the target column.
    Valid for:
        At least three points on each side of a break; a break beyond the data cannot be seen.
    Source:
        Eq. 1 with n = 2; evaluated in logs because (x/d)^(1/f) overflows.
    Example:
        >>> Broken2().evaluate([0.0, 1.0, 0.0, 1.0, 10.0, 0.1, -1.0, 100.0, 0.1], tokens=[1, 1e4]).round(4).tolist()
        [1.0, 0.1]
    """

    axis: str = "tokens"

    formula = "a + b x^-c_0 prod_i (1 + (x/d_i)^(1/f_i))^(-c_i f_i), i = 1, 2"
    paper = "Caballero et al. 2023, arXiv:2210.14891, eq. 1"
    parameters = (
        positive("a", 1e-9, 1e4, "limit"),
        positive("b", 1e-8, 1e12, "size at x = 1 before the break"),
        real("c_0", -2.0, 3.0, "slope before the break"),
        real("c_1", -10.0, 20.0, "change of slope at break 1"),
        positive("d_1", 1e-12, 1e30, "place of break 1"),
        positive("f_1", 1e-2, 3.0, "softness of break 1: small is sharp"),
        real("c_2", -10.0, 20.0, "change of slope at break 2"),
        positive("d_2", 1e-12, 1e30, "place of break 2"),
        positive("f_2", 1e-2, 3.0, "softness of break 2: small is sharp"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """Breaks lie among the data; limit and size follow the target."""
        values, top = x[self.axis], float(np.max(y))
        place = (float(np.min(values)) / 3, float(np.max(values)) * 3)
        # b is the value at x = 1, wherever the data are: leave room for the steepest first slope.
        size = (1e-3 * top * min(1.0, place[0]) ** 3, 1e3 * top * max(1.0, place[1]) ** 3)
        return {"a": (1e-6 * top, 1.2 * top), "b": size, **dict.fromkeys(["d_1", "d_2"], place)}

    def floor(self, theta: Array) -> Array:
        """The limit a, where the last slope falls; else the curve rises without end."""
        return np.asarray(np.where(theta[..., 2] + theta[..., 3] + theta[..., 6] > 0, theta[..., 0], np.inf))

    def canonical(self, theta: Array) -> Array:
        """Break 1 is the one at the smaller x."""
        swapped = theta[..., [0, 1, 2, 6, 7, 8, 3, 4, 5]]
        return np.asarray(np.where(theta[..., 4:5] <= theta[..., 7:8], theta, swapped))

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        a, b, c_0, c_1, d_1, f_1, c_2, d_2, f_2 = theta
        log_x = np.log(x[self.axis])
        out = np.log(b) - c_0 * log_x
        out = out - c_1 * f_1 * np.logaddexp(0.0, (log_x - np.log(d_1)) / f_1)
        out = out - c_2 * f_2 * np.logaddexp(0.0, (log_x - np.log(d_2)) / f_2)
        return a + np.exp(out)
