"""Wortsman et al. 2024, Small-scale proxies for large-scale Transformer instabilities, arXiv:2309.14322."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, positive, real
from isoloss.laws.power_sum import PowerSum, Term, term

MIDDLE = 1e8  # where z is the value: within the sizes of the paper, so that z, b and c trade little
DIVERGED = 1e4


@dataclass(frozen=True)
class LogitGrowth(PowerSum):
    r"""The largest attention logit against size at one learning rate: where will training fail?

    .. math:: \log z_{max}(N) = \log z + b u + c u^2, \quad u = \log(N/10^8)

    Inputs:
        axis: size, params unless said: ``logit-growth(params_nonembedding)``.
    Returns:
        max_attention_logit: the largest query-key product over the root of the head's width, in the first block
        at a fixed step.
    Valid for:
        One learning rate, one step at which all sizes are read, no normalisation of queries and keys. A parabola:
        beyond one more decade of size its ends are free.
    Source:
        The prediction of logit growth: a quadratic in log size for each rate; runs above 1e4 diverged.
    Example:
        >>> law = LogitGrowth()
        >>> law.evaluate([100.0, 0.5, 0.0], params=[1e8, 1e10]).round(6).tolist()
        [100.0, 1000.0]
        >>> float(law.crossing([100.0, 0.5, 0.0]).round(-6))
        1000000000000.0
    """

    axis: str = "params"

    target = "max_attention_logit"
    formula = "z exp(b u + c u^2), u = log(N/1e8)"
    paper = "Wortsman et al. 2024, arXiv:2309.14322"
    parameters = (
        positive("z", 1e-8, 1e30, "logit at 1e8 parameters"),
        real("b", -5.0, 5.0, "slope there"),
        real("c", -2.0, 2.0, "bend"),
    )

    @property
    def axes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one axis."""
        return (self.axis,)

    def terms(self, log: Mapping[str, Any]) -> Sequence[Term]:
        """The one term."""
        u = log[self.axis] - float(np.log(MIDDLE))
        return [term("z", {"b": u, "c": u * u})]

    def crossing(self, theta: Any, limit: float = DIVERGED) -> Array:
        """The size at which the curve rises through ``limit``.

        Args:
            theta: shape (..., 3), draws for instance. limit: 1e4 in the paper.

        Returns:
            Shape (...): the size; inf where the curve never rises so far, 0 where it is above at every size.

        Raises:
            ValueError: limit is not finite and positive.
        """
        if not (np.isfinite(limit) and limit > 0):
            raise ValueError(f"needed a limit finite and above 0, got {limit}")
        z, b, c = np.moveaxis(np.asarray(theta, dtype=float), -1, 0)
        gap = np.log(limit) - np.log(z)  # c u^2 + b u = gap
        inside = b * b + 4 * c * gap
        with np.errstate(divide="ignore", invalid="ignore"):
            root = np.sqrt(np.maximum(inside, 0.0))
            # The root with a rising curve, b + 2 c u = root, in the form that loses no digits.
            u = np.where(b >= 0, 2 * gap / (b + root), (root - b) / (2 * c))
        never = ((inside < 0) & (c < 0)) | ((b <= 0) & (c == 0) & (gap > 0)) | ((inside == 0) & (c < 0))
        always = ((inside < 0) & (c > 0)) | ((b <= 0) & (c == 0) & (gap <= 0))
        with np.errstate(over="ignore"):
            size = MIDDLE * np.exp(np.where(never | always, 0.0, u))
        return np.asarray(np.where(never, np.inf, np.where(always, 0.0, size)))
