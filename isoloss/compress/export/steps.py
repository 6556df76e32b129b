r"""Numbers on a power-of-two step, and what becomes of them in sums: how wide an exact accumulator must be.

A tensor whose numbers are whole multiples :math:`n\, 2^{-f}` with :math:`l \le n \le u` fits a fixed-point number of
:math:`b` bits, sign included, of which :math:`f` are behind the point. A sum of products
:math:`\sum_i w_i x_i + c` is a whole multiple of the finest step among the products and the bias; whatever order it is
added in, it never leaves

.. math:: \Big[\sum_i \min(w_i x_l, w_i x_u, 0) + \min(c, 0),\;\; \sum_i \max(w_i x_l, w_i x_u, 0) + \max(c, 0)\Big]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
WIDEST = 62  # bits of numbers that are counted here


@dataclass(frozen=True)
class Steps:
    """Whole multiples of a power of two.

    Attributes:
        fraction: bits behind the point: the step is 2 to minus this.
        low: least number, in steps.
        high: largest number, in steps.

    Example:
        >>> found = Steps(3, -5, 12)  # -0.625 to 1.5 in eighths
        >>> found.bits, found.integer, found.signed
        (5, 2, True)
    """

    fraction: int
    low: int
    high: int

    @property
    def signed(self) -> bool:
        """Whether there are numbers below 0."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """Of the narrowest fixed-point type that holds them, sign included; at least 1."""
        most = max(self.high, 0).bit_length()
        return max(most, (-self.low - 1).bit_length()) + 1 if self.signed else max(most, 1)

    @property
    def integer(self) -> int:
        """Bits before the point, sign included; negative where the first ones behind it are always empty."""
        return self.bits - self.fraction

    def joined(self, other: Steps) -> Steps:
        """What holds the numbers of both."""
        one, two, fraction = self._at(other)
        return Steps(fraction, min(one.low, two.low), max(one.high, two.high))

    def plus(self, other: Steps) -> Steps:
        """What holds sums of a number of each."""
        one, two, fraction = self._at(other)
        return Steps(fraction, one.low + two.low, one.high + two.high)

    def _at(self, other: Steps) -> tuple[Steps, Steps, int]:
        fraction = max(self.fraction, other.fraction)
        return self.finer(fraction), other.finer(fraction), fraction

    def finer(self, fraction: int) -> Steps:
        """The same numbers, counted in a finer step."""
        shift = fraction - self.fraction
        return Steps(fraction, self.low << shift, self.high << shift)


def steps_of(values: Array) -> Steps | None:
    """The coarsest power-of-two step that numbers are whole multiples of, and their ends; None where it takes over 62 bits.

    Args:
        values: finite numbers.

    Example:
        >>> steps_of(np.array([0.75, -2.0, 0.0]))
        Steps(fraction=2, low=-8, high=3)
        >>> steps_of(np.array([1e30, 1e-30])) is None
        True
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    some = flat[flat != 0]
    if not some.size:
        return Steps(0, 0, 0)
    if not np.isfinite(some).all():
        return None
    mantissa, exponent = np.frexp(some)
    whole = (mantissa * 2.0**53).astype(np.int64)
    trailing = np.log2((whole & -whole).astype(np.float64)).astype(np.int64)
    fraction = int((53 - trailing - exponent).max())
    if int(exponent.max()) + fraction > WIDEST:
        return None
    low, high = min(float(flat.min()), 0.0), max(float(flat.max()), 0.0)
    return Steps(fraction, _count(low, fraction), _count(high, fraction))


def power(scale: float) -> int | None:
    """The exponent of a power of two; None for another number.

    Example:
        >>> power(0.125), power(3.0)
        (-3, None)
    """
    mantissa, exponent = math.frexp(scale)
    return exponent - 1 if mantissa == 0.5 else None


def summed(weights: Array, inputs: Steps, bias: Array | None = None) -> Steps | None:
    """Sums of products, one for each row of weights, partial sums in any order included.

    Args:
        weights: (outputs, products of each).
        inputs: what each product takes; 0 may be one of them (padding).
        bias: (outputs,), added.

    Returns:
        Steps that hold all; None where it takes over 62 bits.

    Example:
        >>> summed(np.array([[0.5, -1.0]]), Steps(1, 0, 3), np.array([0.25]))  # 3/2 each
        Steps(fraction=2, low=-6, high=4)
    """
    own = steps_of(weights)
    added = Steps(0, 0, 0) if bias is None else steps_of(bias)
    if own is None or added is None:
        return None
    fraction = max(own.fraction + inputs.fraction, added.fraction)
    low, high = min(inputs.low, 0) * 2.0**-inputs.fraction, max(inputs.high, 0) * 2.0**-inputs.fraction
    wide = np.asarray(weights, dtype=np.float64)
    up, down = np.maximum(wide, 0), np.minimum(wide, 0)
    bottom, top = (up * low + down * high).sum(axis=1), (up * high + down * low).sum(axis=1)
    if bias is not None:
        bottom, top = bottom + np.minimum(bias, 0), top + np.maximum(bias, 0)
    most = max(float(top.max(initial=0)), -float(bottom.min(initial=0)))
    if most and math.frexp(most)[1] + fraction > 53:  # sums above were not exact
        return None
    return Steps(fraction, _count(float(bottom.min()), fraction), _count(float(top.max()), fraction))


def _count(value: float, fraction: int) -> int:
    return int(value * 2.0**fraction)
