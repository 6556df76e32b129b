"""Sun et al. 2025, Scaling Laws for Floating Point Quantization Training, arXiv:2501.02423: as a term of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Parameter, Published, positive, real
from isoloss.laws.parts.part import LossTerm


class FloatQuantisation(LossTerm):
    r"""Training in few bits of floating point costs loss: the more the more tokens, the less the larger the model.

    .. math::
        \delta = \frac{D^{\beta}}{N^{\alpha}}
        \frac{\log_2 B}{\gamma \left(E + \tfrac12\right)^{\delta} \left(M + \tfrac12\right)^{\nu}}

    alpha and beta are those of the base. A format of P bits has a sign, E exponent and M mantissa bits.

    Inputs:
        exponent_bits: E, mantissa_bits: M, in training [bit]. scale_block: B, elements that share one scale
            [count]. All three, or none: not quantised, the term is 0. So it is at B = 1.
    Returns:
        What is added to the loss [nats/token].
    Valid for:
        Models of 41M to 679M parameters on 10 to 100 billion tokens. How scales per tensor or channel map to B is
        left open here: give the number of elements that share one scale.
    Source:
        The unified law with the joint term of size, data and format, and its printed constants.
    Example:
        >>> import numpy as np
        >>> part = FloatQuantisation()
        >>> theta = {"alpha": 0.2368, "beta": 0.5162, **part.published["sun-2025"].values}
        >>> formats = {"exponent_bits": np.array([2, 4]), "mantissa_bits": np.array([1, 3]), "scale_block": 128}
        >>> part.value(theta, {"params": 1e9, "tokens": 1e11, **formats}).round(5).tolist()
        [0.03524, 0.00044]
    """

    columns = ("exponent_bits", "mantissa_bits", "scale_block")
    needed = columns
    shared = ("alpha", "beta")
    may_be_zero = ("exponent_bits", "mantissa_bits")
    tokens_power = "beta"
    reference = "all three absent (not quantised in training), or scale_block = 1"
    together = ("hoffmann",)
    formula = "(D^beta / N^alpha) log2(B) / (gamma (E + 1/2)^delta (M + 1/2)^nu)"
    paper = "Sun et al. 2025, arXiv:2501.02423"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Size, and the exponents of the two kinds of bits."""
        return (
            positive("gamma", 1e-12, 1e30, "size: the larger, the less is lost"),
            real("delta", 0.0, 12.0, "exponent of the exponent's bits"),
            real("nu", 0.0, 12.0, "exponent of the mantissa's bits"),
        )

    @property
    def published(self) -> Mapping[str, Published]:
        """The printed constants."""
        values = {"gamma": 11334.5197, "delta": 3.1926, "nu": 2.9543}
        return {"sun-2025": Published(values, "arXiv:2501.02423, fitted constants of the unified law")}

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The size follows the axes: at the middle of the rows, the term is e^-14 to e^2 of the target."""
        n, d = (float(np.mean(np.log(x[axis]))) for axis in ("params", "tokens"))
        spread = float(np.median(np.log(np.maximum(np.log2(x["scale_block"]), 1e-3))))
        bits = [float(np.mean(np.log(x[name] + 0.5))) for name in ("exponent_bits", "mantissa_bits")]
        # alpha and beta below 1: beyond, no law of loss has been seen.
        ends = (min(d, 0.0) - max(n, 0.0), max(d, 0.0) - min(n, 0.0))
        middle = math.log(float(np.median(y)))
        low = ends[0] + spread - middle - 2 - 12 * max(sum(bits), 0.0)
        high = ends[1] + spread - middle + 14
        return {"gamma": (math.exp(max(low, -650)), math.exp(min(high, 650)))}

    def value(self, theta: Mapping[str, Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.parts.part.Part.value`."""
        power = theta["beta"] * np.log(x["tokens"]) - theta["alpha"] * np.log(x["params"])
        power = power - theta["delta"] * np.log(x["exponent_bits"] + 0.5)
        power = power - theta["nu"] * np.log(x["mantissa_bits"] + 0.5)
        return np.exp(power) * (np.log2(x["scale_block"]) / theta["gamma"])


@dataclass(frozen=True, eq=False)
class Layout:
    """How to divide the bits of a floating-point format.

    Attributes:
        exponent, mantissa: where the term is least, real numbers.
        exponent_bits, mantissa_bits: the best whole ones, each at least 1.
    """

    exponent: Array
    mantissa: Array
    exponent_bits: Array
    mantissa_bits: Array


def best_layout(bits: Any, delta: Any, nu: Any) -> Layout:
    r"""The division of ``bits`` (with the sign) into exponent and mantissa that costs the least loss.

    .. math:: E^* = \frac{\delta P}{\delta + \nu} - \tfrac12,\quad M^* = \frac{\nu P}{\delta + \nu} - \tfrac12

    Args:
        bits: P, whole numbers of at least 3. delta, nu: of :class:`FloatQuantisation`, draws for instance.
            All broadcast together.

    Raises:
        ValueError: bits that leave no bit for one of the two.

    Source:
        Sun et al. 2025, arXiv:2501.02423: the optimal layout.

    Example:
        >>> found = best_layout([4, 8, 16], 3.1926, 2.9543)
        >>> found.mantissa.round(2).tolist(), found.exponent_bits.tolist(), found.mantissa_bits.tolist()
        ([1.42, 3.34, 7.19], [2, 4, 8], [1, 3, 7])
    """
    bits, delta, nu = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in (bits, delta, nu)))
    if not ((bits >= 3) & (bits == np.rint(bits))).all():
        raise ValueError(
            f"best_layout needs whole bits of at least 3 (sign, exponent, mantissa), got {bits.ravel()[0]:g}"
        )
    exponent, mantissa = (bits * own / (delta + nu) - 0.5 for own in (delta, nu))
    # delta log(E + 1/2) + nu log(M + 1/2) is concave along E + M = P - 1: a neighbour of the top is best.
    below = np.clip(np.floor(mantissa), 1, bits - 2)
    above = np.clip(np.ceil(mantissa), 1, bits - 2)

    def gain(whole: Array) -> Array:
        return np.asarray(delta * np.log(bits - 1 - whole + 0.5) + nu * np.log(whole + 0.5))

    whole = np.where(gain(above) > gain(below), above, below).astype(int)
    return Layout(exponent, mantissa, bits.astype(int) - 1 - whole, whole)
