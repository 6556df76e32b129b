"""Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv:2202.01169: experts as a factor of the size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.clark import Clark, saturation, saturation_ranges
from isoloss.laws.law import Array, Parameter, Published, positive, real
from isoloss.laws.parts.part import Factor


class Routed(Factor):
    r"""A model that routes each token to one of E experts counts as a larger dense one.

    .. math::
        \frac{N_{\mathrm{eff}}}{N} = \left(\frac{\hat E}{E_{start}}\right)^{b_E + c_E \log_{10} N},\quad
        \frac{1}{\hat E} = \frac{1}{E - 1 + (1/E_{start} - 1/E_{max})^{-1}} + \frac{1}{E_{max}}

    This is the paper's effective parameter count: the size of the dense model of the same loss. With
    ``alpha(x) = a + c log10 x``, equal losses ``alpha(E^) log N + b log E^ = alpha(E_start) log N_eff + b log
    E_start`` give ``log(N_eff/N) = log(E^/E_start) (b + c log10 N) / alpha(E_start)``. So of the law's six numbers
    the factor holds four: E_start, E_max, ``b_E = b/alpha(E_start)`` and ``c_E = c/alpha(E_start)``; the other two
    are the dense law, which is the base's. The signs turn: a gain has b_E > 0, one that shrinks with size c_E < 0,
    and it ends at ``N_cutoff = 10^(-b_E/c_E)``: :func:`isoloss.fitting.derived.cutoff` of a fit. Beyond it the
    factor is below 1, as the paper claims, and not clamped.

    Inputs:
        experts: E, per routed layer [count]; absent, or 1: a dense model. params, raw, of the base: N, what one
            token sees [count]. A table whose params are all the experts' needs the other column for it:
            ``--columns params=params_active``.
    Returns:
        N_eff / N; exactly 1 at E = 1; NaN below it, or where E_max is below E_start.
    Valid for:
        One expert per token, every second layer routed, up to 512 experts; 130e9 training tokens. That the factor
        is the same at other numbers of tokens is an assumption.
    Source:
        Eq. 11; the published values follow from table 3, whose constants have two or three digits.
    Example:
        >>> import numpy as np
        >>> part = Routed()
        >>> theta = part.published["s-base-2022"].values
        >>> x = {"params": np.full(3, 5e6), "experts": np.array([1.0, 8.0, 128.0])}
        >>> part.value(theta, x).round(2).tolist()
        [1.0, 2.52, 10.37]
    """

    columns = ("experts",)
    reference = "experts absent or 1: a dense model"
    within = ("clark", "moe-sparsity")
    together = ("power", "kaplan-n")
    formula = "(E^/E_start)^(b_E + c_E log10 N), E^ from E_start at E = 1 to E_max"
    paper = "Clark et al. 2022, arXiv:2202.01169, eq. 11"
    scales = "params"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Two of the gain, two of its saturation."""
        return (
            real("b_E", -20.0, 20.0, "exponent of the experts at N = 1"),
            real("c_E", -2.0, 2.0, "its change with log10 of the size: below 0, the gain shrinks"),
            positive("E_start", 0.05, 1e3, "experts that a dense model counts as"),
            positive("E_max", 1.0, 1e6, "experts that endlessly many count as"),
        )

    @property
    def published(self) -> Mapping[str, Published]:
        """From the constants of the law."""
        out = {}
        for name, found in Clark.published.items():
            v = found.values
            alpha = v["a"] + v["c"] * math.log10(v["E_start"])
            values = {
                "b_E": v["b"] / alpha,
                "c_E": v["c"] / alpha,
                "E_start": v["E_start"],
                "E_max": v["E_max"],
            }
            out[name] = Published(values, f"{found.source}; b_E and c_E computed from it")
        return out

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """Where saturation begins and ends: :func:`isoloss.laws.clark.saturation_ranges`."""
        return saturation_ranges(x["experts"])

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """A dense model is one expert."""
        return x["experts"] >= 1, "experts at or above 1"

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        power = theta["b_E"] + theta["c_E"] * np.log10(x["params"])
        return np.exp(power * np.log(saturation(x["experts"], theta["E_start"], theta["E_max"])))
