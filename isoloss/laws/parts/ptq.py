"""Kumar et al. 2024, Scaling Laws for Precision, arXiv:2411.04330: post-training quantisation as a term."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Parameter, Published, positive, real
from isoloss.laws.parts.part import LossTerm

_TRAINED = {"bits_weights": "C_w", "bits_activations": "C_a", "bits_kv": "C_kv"}


class Ptq(LossTerm):
    r"""Quantising weights after training costs loss, the more the more tokens a model has seen.

    .. math::
        \delta = C_T \frac{D^{\gamma_D}}{N_{\mathrm{eff}}^{\gamma_N}} e^{-P_{\mathrm{post}}/\gamma_{\mathrm{post}}}
        \prod_{x \in \{w, a, kv\}} \left(1 - e^{-C_x \max(P_x - P_{\mathrm{post}},\, 0)}\right)

    Inputs:
        bits_post: P_post, bits of the weights after training [bit]; absent: not quantised, the term is 0.
        bits_weights: P_w, bits_activations: P_a, bits_kv: P_kv, in training [bit]; absent: not quantised in
            training, the factor is 1.
    Returns:
        What is added to the loss [nats/token]; exactly 0 from P_post = P_w on.
    Valid for:
        GPTQ and round-to-nearest in integers of 3 bits or more; models of 30M to 220M parameters, up to 1,000 tokens per parameter.
    Source:
        The unified law. ``C_x`` are not printed. ``C_T`` is not among the published values here: the paper's table
        holds an offset of the exponent beside it, and how to read that moves ``C_T`` by a factor of 3.
    Example:
        >>> import numpy as np
        >>> part = Ptq(("bits_post",))
        >>> theta = {"C_T": 0.0598, **part.published["kumar-2024"].values}
        >>> x = {"params": 3e7, "tokens": 2.6e10, "bits_post": np.array([3.0, 4.0, 6.0])}
        >>> part.value(theta, x).round(4).tolist()
        [0.1897, 0.0349, 0.0012]
    """

    columns = ("bits_post", *_TRAINED)
    needed = ("bits_post",)
    tokens_power = "gamma_D"
    reference = "bits_post absent (not quantised after training), or bits_weights not above bits_post"
    together = ("hoffmann", "precision")
    formula = "C_T D^gamma_D / N_eff^gamma_N exp(-P_post/gamma_post) prod_x (1 - exp(-C_x (P_x - P_post)))"
    paper = "Kumar et al. 2024, arXiv:2411.04330"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Four, and one for each precision in training."""
        return (
            positive("C_T", 1e-12, 1e12, "size of the loss by quantisation"),
            real("gamma_D", 0.0, 2.0, "exponent of tokens"),
            real("gamma_N", 0.0, 2.0, "exponent of effective parameters"),
            positive("gamma_post", 0.1, 10.0, "bits after training per factor e"),
            *(
                positive(_TRAINED[column], 1e-3, 1e3, f"how fast {column} above bits_post stop helping")
                for column in self.reads[1:]
            ),
        )

    @property
    def published(self) -> Mapping[str, Published]:
        """The exponents."""
        values = {"gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907}
        return {"kumar-2024": Published(values, "arXiv:2411.04330, fitted constants: 465 runs, GPTQ")}

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The size follows the axes: at the middle of the rows, the term is e^-12 to e^2 of the target."""
        n, d, bits = (
            float(np.mean(np.log(x["params"]))),
            float(np.mean(np.log(x["tokens"]))),
            x["bits_post"],
        )
        middle = math.log(float(np.median(y)))
        ends = (2 * min(n, 0.0) - 2 * max(d, 0.0), 2 * max(n, 0.0) - 2 * min(d, 0.0))
        low = middle - 12 + ends[0] + float(np.min(bits)) / 10
        high = middle + 2 + ends[1] + float(np.mean(bits)) / 0.1
        return {"C_T": (math.exp(max(low, -650)), math.exp(min(high, 650)))}

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        post = x["bits_post"]
        power = theta["gamma_D"] * np.log(x["tokens"]) - theta["gamma_N"] * np.log(x["params"])
        out = theta["C_T"] * np.exp(power - post / theta["gamma_post"])
        for column in self.reads[1:]:
            above = np.maximum(x[column] - post, 0.0)
            out = out * (1.0 - np.exp(-theta[_TRAINED[column]] * above))
        return out
