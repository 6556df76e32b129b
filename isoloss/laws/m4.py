"""Alabdulmohsin et al. 2022, Revisiting Neural Scaling Laws in Language and Vision, arXiv:2209.06640."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.dual import Dual
from isoloss.laws.law import Array, Law, positive, real

STEPS = 100  # of Newton at most; 5 to 20 are used
CLOSE = 1e-8  # a step this small leaves an error of its square


@dataclass(frozen=True)
class M4(Law):
    r"""A sigmoid in log x, from the value of an untrained model down to a floor: estimator M4.

    .. math:: \frac{L - e_\infty}{(e_0 - L)^{\alpha}} = b x^{-c}

    L is the one root between e_inf and e_0. With alpha = 0 it is ``hestness`` exactly.

    Inputs:
        axis: any positive column, tokens unless said: ``m4(params)``, ``m4(flops)``.
    Returns:
        Loss [nats/token] or error, as the target column.
    Valid for:
        Curves whose first points are near the untrained value: without them e_0, alpha and b trade. Needs
        e_inf < e_0. The exponent c is not that of ``power`` or ``hestness``: never compare c across families.
    Source:
        Function class M4 (there ``beta x^c`` with c < 0).
    Example:
        >>> M4().evaluate([1.0, 5.0, 1.0, 1.0, 1.0], tokens=[1.0, 3.0]).round(6).tolist()
        [3.0, 2.0]
    """

    axis: str = "tokens"

    formula = "root of (loss - e_inf)/(e_0 - loss)^alpha = b x^-c"
    paper = "Alabdulmohsin et al. 2022, arXiv:2209.06640, M4"
    parameters = (
        positive("e_inf", 1e-6, 1e4, "irreducible loss"),
        positive("e_0", 1e-6, 1e5, "loss of an untrained model"),
        real("alpha", 0.0, 10.0, "weight of the flat start"),
        positive("b", 1e-40, 1e60, "size of the right-hand side at x = 1"),
        real("c", 0.0, 2.5, "exponent"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The floor lies below all rows, the untrained value above them; the size follows both."""
        first, last = float(np.min(x[self.axis])), float(np.max(x[self.axis]))
        low, high = float(np.min(y)), float(np.max(y))
        ceiling = 30 * high
        # b = (L - e_inf)/(e_0 - L)^alpha x^c at the ends of alpha and c.
        left = 1e-3 * low * min(1.0, 1 / ceiling) ** 10 * min(1.0, first) ** 2.5
        right = 10 * high * max(1.0, 10 / high) ** 10 * max(1.0, last) ** 2.5
        return {"e_inf": (1e-6 * low, low), "e_0": (1.0001 * high, ceiling), "b": (left, right)}

    def floor(self, theta: Array) -> Array:
        """See :meth:`isoloss.laws.law.Law.floor`."""
        return theta[..., 0]

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`.

        With ``t = (L - e_inf)/(e_0 - e_inf) = 1/(1 + exp(-s))`` the equation is ``G(s) = k``,
        ``G(s) = log t - alpha log(1 - t)``, ``k = log b - c log x - (1 - alpha) log(e_0 - e_inf)``. It is solved
        on plain numbers; one more Newton step, with the derivatives carried along, gives those of s exactly
        (implicit function theorem).
        """
        floor, top, alpha, b, c = theta
        log_right = np.log(b) - c * np.log(x[self.axis])
        # alpha = 0 has a closed form, in which L may pass e_0, where G has no root: not asked of the solver.
        bends = _plain(alpha) > 0
        weight = np.where(bends, alpha, 1.0)
        k = log_right - (1.0 - weight) * np.log(top - floor)
        s = _root(_plain(weight), _plain(k))
        share = np.exp(-np.logaddexp(0.0, -s))
        slope = (1.0 - share) + _plain(weight) * share
        s = s - (weight * np.logaddexp(0.0, s) - np.logaddexp(0.0, -s) - k) / slope
        span = top - floor
        near_floor, near_top = np.exp(-np.logaddexp(0.0, -s)), np.exp(-np.logaddexp(0.0, s))
        bent = np.where(s < 0, floor + span * near_floor, top - span * near_top)
        if np.all(bends):
            return bent
        # The second factor is 1; it is there for the derivative in alpha.
        straight = np.exp(log_right)
        gap = np.maximum(top - floor - straight, 1e-12 * top)
        return np.where(bends, bent, floor + straight * np.exp(np.where(bends, 0.0, alpha) * np.log(gap)))


def _plain(number: Any) -> Any:
    return number.value if isinstance(number, Dual) else np.asarray(number)


def _root(alpha: Array, k: Array) -> Array:
    """``s`` with ``alpha softplus(s) - softplus(-s) = k``, for alpha > 0, by Newton.

    The left side rises from the line s to the line alpha s and its curvature has one sign: from where the
    lines reach k, every step goes the same way, so that Newton cannot overshoot.
    """
    s = np.where(k < 0, k, k / alpha)
    alpha, k, s = np.broadcast_arrays(alpha, k, s)
    s = s.copy()
    for _ in range(STEPS):
        tail = np.log1p(np.exp(-np.abs(s)))
        share = np.exp(np.minimum(s, 0.0) - tail)
        step = (alpha * (np.maximum(s, 0.0) + tail) - (np.maximum(-s, 0.0) + tail) - k) / (
            (1.0 - share) + alpha * share
        )
        s -= step
        if not np.any(np.abs(step) > CLOSE * (1.0 + np.abs(s))):
            break
    return s
