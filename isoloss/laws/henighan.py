"""Henighan et al. 2020, Scaling Laws for Autoregressive Generative Modeling, arXiv:2010.14701."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.laws.law import Array, Published, positive, real
from isoloss.laws.law import Law as _Law

_TABLE = "arXiv:2010.14701, table 1, as printed (two digits)"


def _printed(floor: float, place: float, exponent: float) -> Published:
    return Published({"L_inf": floor, "x_0": place, "alpha": exponent}, _TABLE)


@dataclass(frozen=True)
class Henighan(_Law):
    r"""Power law plus constant, the scale on the axis: the same hypothesis as ``hestness``.

    .. math:: L(x) = L_\infty + (x_0/x)^{\alpha}

    L_inf estimates the entropy of the data, the rest the divergence from it.

    Inputs:
        axis: non-embedding parameters unless said: ``henighan(tokens)``, ``henighan(flops)``.
    Returns:
        Loss [nats/token].
    Valid for:
        One modality and tokeniser, the other axes not limiting.
    Source:
        Eq. 1.1 and table 1 (fits in N; compute there is in PF-days).
    Example:
        >>> law = Henighan()
        >>> float(law.evaluate(law.theta("image-8x8-2020"), params_nonembedding=1e8).round(3))
        3.154
    """

    axis: str = "params_nonembedding"

    formula = "L_inf + (x_0/x)^alpha"
    paper = "Henighan et al. 2020, arXiv:2010.14701, eq. 1.1"
    alias_of = "hestness"
    parameters = (
        positive("L_inf", 1e-6, 1e4, "irreducible loss"),
        positive("x_0", 1e-12, 1e40, "where the reducible loss is one unit"),
        real("alpha", 0.01, 2.5, "exponent"),
    )
    published = {
        "image-8x8-2020": _printed(3.12, 8.0e1, 0.24),
        "image-16x16-2020": _printed(2.64, 2.8e2, 0.22),
        "image-32x32-2020": _printed(2.20, 6.3e1, 0.13),
        "image-vq-16x16-2020": _printed(3.99, 2.7e4, 0.13),
        "image-vq-32x32-2020": _printed(3.07, 1.9e4, 0.14),
        "video-vq-2020": _printed(1.01, 3.7e4, 0.24),
        "math-extrapolate-2020": _printed(0.28, 1.1e4, 0.16),
    }

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The floor lies below the data; the scale far around them."""
        values, top = x[self.axis], float(y.max())
        return {
            "L_inf": (1e-7 * top, 2 * top),
            "x_0": (1e-12 * float(values.min()), 1e12 * float(values.max())),
        }

    def floor(self, theta: Array) -> Array:
        """See :meth:`isoloss.laws.law.Law.floor`."""
        return theta[..., 0]

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        floor, place, alpha = theta
        return floor + (place / x[self.axis]) ** alpha
