"""Alabdulmohsin et al. 2022, Revisiting Neural Scaling Laws in Language and Vision, arXiv:2209.06640."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoloss.laws.law import positive, real
from isoloss.laws.power_sum import PowerSum, Term, term


@dataclass(frozen=True)
class Power(PowerSum):
    r"""Loss is a pure power of one axis, with no floor: estimator M1.

    .. math:: L(x) = b x^{-c}

    Inputs:
        axis: any positive column, tokens unless said: ``power(params)``, ``power(flops)``.
    Returns:
        Loss [nats/token], or whatever the target column holds.
    Valid for:
        Short ranges far above the irreducible loss: an extrapolation falls to zero.
    Source:
        Function class M1 (there ``beta x^c`` with c < 0).
    Example:
        >>> Power("flops").evaluate([10.0, 0.5], flops=[1, 4, 16]).tolist()
        [10.0, 5.0, 2.5]
    """

    axis: str = "tokens"

    formula = "b/x^c"
    paper = "Alabdulmohsin et al. 2022, arXiv:2209.06640, M1"
    parameters = (
        positive("b", 1e-8, 1e30, "size at x = 1"),
        real("c", -1.0, 2.5, "exponent"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        return [term("b", {"c": -log[self.axis]})]
