"""Kumar et al. 2024, Scaling Laws for Precision, arXiv:2411.04330: bits in training as a factor of the size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Parameter, Published, positive, real
from isoloss.laws.parts.part import Factor

# Column -> the letter of its parameters, in words.
SYMBOLS = {"bits_weights": "w", "bits_activations": "a", "bits_kv": "kv"}
_WORDS = {"w": "weights", "a": "activations", "kv": "the KV cache"}


class Precision(Factor):
    r"""A model trained in few bits counts as a smaller one.

    .. math:: N_{\mathrm{eff}} / N = \prod_{x \in \{w, a, kv\}} \left(1 - e^{\,n_x - P_x/\gamma_x}\right)

    Inputs:
        bits_weights: P_w, bits_activations: P_a, bits_kv: P_kv, in training [bit]. One that is absent is not
            quantised: its factor is 1.
    Returns:
        N_eff / N. NaN where a single factor is at or below 0, at P_x <= n_x gamma_x (of the published
        values 0.8, 3.1 and 2.3 bits): the formula says nothing there, and is not clamped.
    Valid for:
        Integer formats of 3 to 12 bits, models of 30M to 220M parameters without embeddings. By its authors
        the trends carry over, the constants do not.
    Source:
        The effective parameter count; the offsets n_x are of the fitted table alone. Their sign follows from the
        paper's own optimum: at one width for all, ``N_eff/(N P)`` is largest at 7 bits, as printed; with the
        other sign, or without offsets, below 4.
    Example:
        >>> import numpy as np
        >>> part = Precision(("bits_weights",))
        >>> theta = part.published["kumar-2024"].values
        >>> part.value(theta, {"bits_weights": np.array([4.0, 8.0, 16.0])}).round(3).tolist()
        [0.696, 0.932, 0.997]
    """

    columns = tuple(SYMBOLS)
    reference = "any of them absent: not quantised, as in training with 16 bits or more"
    together = ("hoffmann", "ptq")
    formula = "prod_x (1 - exp(n_x - P_x/gamma_x))"
    paper = "Kumar et al. 2024, arXiv:2411.04330"
    scales = "params"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Two of each column."""
        out = []
        for column in self.reads:
            symbol, words = SYMBOLS[column], _WORDS[SYMBOLS[column]]
            out += [
                positive(f"gamma_{symbol}", 0.05, 50.0, f"bits of {words} per factor e of the loss of size"),
                real(f"n_{symbol}", -3.0, 6.0, f"offset of the bits of {words}, in units of gamma"),
            ]
        return tuple(out)

    @property
    def published(self) -> Mapping[str, Published]:
        """The fitted table."""
        values = {
            "gamma_w": 2.6745, "n_w": 0.3037, "gamma_a": 2.2102, "n_a": 1.4072, "gamma_kv": 0.9578, "n_kv": 2.4185,
        }  # fmt: skip
        own = {p.name: values[p.name] for p in self.parameters}
        return {"kumar-2024": Published(own, "arXiv:2411.04330, fitted constants: 465 runs, integer formats")}

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        out: Any = 1.0
        for column in self.reads:
            symbol = SYMBOLS[column]
            left = 1.0 - np.exp(theta[f"n_{symbol}"] - x[column] / theta[f"gamma_{symbol}"])
            out = out * np.where(left > 0, left, np.nan)
        return out
