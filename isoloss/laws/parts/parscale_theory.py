"""Chen et al. 2025, Parallel Scaling Law for Language Models, arXiv:2505.10475: streams by their correlation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Parameter, real
from isoloss.laws.parts.part import Factor


class ParscaleTheory(Factor):
    r"""Parallel streams by the correlation of their errors: what the paper derives before it fits ``parscale``.

    .. math:: N_{\mathrm{eff}} / N = \left(\frac{P}{(P-1)\rho + 1}\right)^{1/\alpha}

    The mean of P predictions whose relative errors correlate by rho has the reducible loss
    :math:`(A/N)^\alpha ((P-1)\rho + 1)/P`. At rho = 1 streams gain nothing, at rho = 0 the reducible loss falls as
    1/P, and however many there are it stays above a share rho. Held to be constant, rho fits the paper's runs worse
    than ``parscale``.

    Inputs:
        streams: P, parallel streams [count]; absent, or 1: none. alpha, the exponent of the base, is read too.
    Returns:
        N_eff / N; exactly 1 at P = 1; NaN below it.
    Valid for:
        A base with one power of the size, as ``henighan``: there the factor is what is derived. The constants of the
        paper's fit are not among the published ones.
    Source:
        Eq. 4 (proposition 1), :math:`P^{1/\alpha}` times the paper's DIVERSITY.
    Example:
        >>> import numpy as np
        >>> part = ParscaleTheory()
        >>> part.value({"rho": 0.9, "alpha": 0.5}, {"streams": np.array([1.0, 2.0, 8.0])}).round(3).tolist()
        [1.0, 1.108, 1.201]
    """

    columns = ("streams",)
    shared = ("alpha",)
    reference = "streams absent or 1"
    together = ("henighan", "hestness")
    formula = "(P/((P - 1) rho + 1))^(1/alpha)"
    paper = "Chen et al. 2025, arXiv:2505.10475, eq. 4"
    scales = "params"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """One."""
        return (real("rho", 0.0, 1.0, "correlation of the relative errors of two streams"),)

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """One stream is the plain model."""
        return x["streams"] >= 1, "streams at or above 1"

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        streams = np.where(x["streams"] >= 1.0, x["streams"], np.nan)
        gain = np.log(streams) - np.log1p((streams - 1.0) * theta["rho"])
        return np.exp(gain / theta["alpha"])
