r"""The quantisation nodes of QONNX in NumPy: what each computes, by its definition.

With :math:`y = x / s + z`, limits :math:`[l, u]` of :math:`b` bits and a rounding :math:`\rho`:

- IntQuant: :math:`(\rho(\mathrm{clip}(y, l, u)) - z)\, s`;
- BipolarQuant: :math:`+s` where :math:`x \ge 0`, else :math:`-s`;
- Trunc: :math:`(\rho(\mathrm{clip}(\mathrm{round}(y) / t, l, u)) - z / t)\, s'` with
  :math:`t = 2^{\mathrm{round}(\log_2 s'/s)}`;
- FloatQuant: the nearest float of so many exponent and mantissa bits, times the scale.

A number type is kept as it is given: exact in float64 where scales are powers of two.

Source:
    A. Pappalardo et al., QONNX: Representing Arbitrary-Precision Quantized Neural Networks, 2022, arXiv 2206.07527, and the
    operators' documents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

DOMAIN = "qonnx.custom_op.general"
MODES: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round,
    "HALF_EVEN": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": np.trunc,
    "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
}
"""Rounding modes: ROUND is HALF_EVEN; UP is away from zero, DOWN towards it; HALF_UP and HALF_DOWN say where ties go."""


def rounded(x: Array, mode: str) -> Array:
    """Whole numbers by a rounding mode.

    Raises:
        ValueError: no such mode.

    Example:
        >>> [float(rounded(np.array(-2.5), mode)) for mode in ("ROUND", "CEIL", "UP", "HALF_DOWN")]
        [-2.0, -2.0, -3.0, -2.0]
    """
    if mode.upper() not in MODES:
        raise ValueError(f"needed a rounding mode of {', '.join(MODES)}, got {mode!r}")
    return MODES[mode.upper()](x)


def limits(bitwidth: float, signed: bool, narrow: bool) -> tuple[float, float]:
    """Least and largest whole number of so many bits.

    Example:
        >>> limits(3, True, False), limits(3, True, True), limits(3, False, False), limits(3, False, True)
        ((-4, 3), (-3, 3), (0, 7), (0, 6))
    """
    if signed:
        return -(2 ** (bitwidth - 1)) + int(narrow), 2 ** (bitwidth - 1) - 1
    return 0, 2**bitwidth - 1 - int(narrow)


def int_quant(
    x: Array,
    scale: Array,
    zeropt: Array,
    bitwidth: Array,
    *,
    signed: bool = True,
    narrow: bool = False,
    rounding_mode: str = "ROUND",
) -> Array:
    """IntQuant, once named Quant: clipped first, then rounded. Of one signed bit: plus or minus one, 0 to plus.

    Args:
        x: numbers; nan stays nan.
        scale, zeropt: of shapes that broadcast; scales above 0.
        bitwidth: one number.
        signed, narrow, rounding_mode: attributes.

    Raises:
        ValueError: a scale that is not above 0, no bits, or no such rounding mode.

    Example:
        >>> int_quant(np.array([0.3, -9.0, 0.75]), np.array(0.5), np.array(0.0), np.array(3)).tolist()
        [0.5, -2.0, 1.0]
    """
    bits = _bits(bitwidth)
    _positive(scale)
    y = x / scale + zeropt
    if bits == 1 and signed:
        level = np.where(np.isnan(y), y, np.where(y >= 0, 1.0, -1.0)).astype(y.dtype)
    else:
        level = rounded(np.clip(y, *limits(bits, signed, narrow)), rounding_mode)
    return np.asarray((level - zeropt) * scale)


def bipolar_quant(x: Array, scale: Array) -> Array:
    """BipolarQuant: the scale with the sign of a number; 0 has a plus.

    Example:
        >>> bipolar_quant(np.array([0.1, 0.0, -3.0]), np.array(0.25)).tolist()
        [0.25, 0.25, -0.25]
    """
    return np.asarray(np.where(np.isnan(x), x, np.where(x >= 0, scale, -scale)))


def trunc(
    x: Array,
    scale: Array,
    zeropt: Array,
    out_scale: Array,
    out_bitwidth: Array,
    *,
    signed: bool = True,
    narrow: bool = False,
    rounding_mode: str = "FLOOR",
) -> Array:
    """Trunc of opset 2: whole numbers of one scale as whole numbers of a coarser one, by a shift.

    Args:
        x: whole multiples of the scale (less the zero-point).
        scale, zeropt: of what comes.
        out_scale, out_bitwidth: of what goes.
        signed, narrow, rounding_mode: attributes.

    Raises:
        ValueError: as of :func:`int_quant`.

    Example:
        >>> x, step, coarse = np.array([7.0, -7.0, 100.0]), np.array(1.0), np.array(4.0)
        >>> trunc(x, step, np.array(0.0), coarse, np.array(4)).tolist()
        [4.0, -8.0, 28.0]
    """
    _positive(scale)
    _positive(out_scale)
    shift = 2.0 ** np.round(np.log2(out_scale / scale))
    level = np.clip(np.round(x / scale + zeropt) / shift, *limits(_bits(out_bitwidth), signed, narrow))
    return np.asarray((rounded(level, rounding_mode) - zeropt / shift) * out_scale)


def trunc_1(
    x: Array,
    scale: Array,
    zeropt: Array,
    in_bitwidth: Array,
    out_bitwidth: Array,
    *,
    rounding_mode: str = "FLOOR",
) -> Array:
    """Trunc of opset 1: the scale stays, so that the value shrinks by 2 to the number of bits that are cut.

    Example:
        >>> x, step = np.array([7.0, -7.0]), np.array(1.0)
        >>> trunc_1(x, step, np.array(0.0), np.array(6), np.array(4)).tolist()
        [1.0, -2.0]
    """
    _positive(scale)
    level = np.round(x / scale + zeropt) / 2.0 ** (_bits(in_bitwidth) - _bits(out_bitwidth))
    return np.asarray((rounded(level, rounding_mode) - zeropt) * scale)


def float_quant(
    x: Array,
    scale: Array,
    exponent_bitwidth: Array,
    mantissa_bitwidth: Array,
    exponent_bias: Array,
    max_val: Array,
    *,
    rounding_mode: str = "ROUND",
) -> Array:
    """FloatQuant: rounded to so many mantissa bits, with subnormals; what is larger than the largest ends there.

    Args:
        x, scale: as of :func:`int_quant`.
        exponent_bitwidth, mantissa_bitwidth, exponent_bias: of the float type.
        max_val: its largest number; codes that are lost to inf and nan are so left out.
        rounding_mode: attribute.

    Example:
        >>> e4m3 = [np.array(v) for v in (1.0, 4, 3, 7, 448.0)]
        >>> float_quant(np.array([0.3, 1000.0, 2.0**-10]), *e4m3).tolist()
        [0.3125, 448.0, 0.0]
    """
    _positive(scale)
    mantissa, bias = float(mantissa_bitwidth), float(exponent_bias)
    y = x / scale
    exponent = np.maximum(np.frexp(y)[1] - 1, 1 - bias) - mantissa
    step = np.exp2(exponent).astype(y.dtype)
    most = (2 - 2.0**-mantissa) * 2.0 ** (2.0 ** float(exponent_bitwidth) - 1 - bias)
    most = min(most, float(max_val))
    return np.asarray(np.clip(step * rounded(y / step, rounding_mode), -most, most) * scale)


def _bits(bitwidth: Array) -> float:
    bits = float(np.asarray(bitwidth).reshape(-1)[0])
    if np.asarray(bitwidth).size != 1 or not bits >= 1:
        raise ValueError(f"needed one number of bits of at least 1, got {np.asarray(bitwidth).tolist()}")
    return bits


def _positive(scale: Array) -> None:
    if not bool(np.all(np.asarray(scale) > 0)):
        raise ValueError("needed scales above 0")
