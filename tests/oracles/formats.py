"""Number formats by enumeration in exact fractions, one number at a time, and streams of bits as Python integers."""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction


def float_numbers(exponent: int, mantissa: int, specials: str, bias: int | None = None) -> list[Fraction]:
    """The finite numbers from 0 up, in the order of their codes."""
    offset = 2 ** (exponent - 1) - 1 if bias is None else bias
    found = []
    for code in range(2 ** (exponent + mantissa)):
        field, m = divmod(code, 2**mantissa)
        last = 2**exponent - 1
        if specials == "ieee" and field == last:
            continue
        if specials == "fn" and field == last and m == 2**mantissa - 1:
            continue
        if field:
            found.append(Fraction(2) ** (field - offset) * (1 + Fraction(m, 2**mantissa)))
        else:
            found.append(Fraction(2) ** (1 - offset) * Fraction(m, 2**mantissa))
    return found


def round_to(x: float, numbers: list[Fraction], mode: str, mantissa: int) -> Fraction:
    """The number that a float becomes, saturating; ``numbers`` ascend from 0.

    Ties go to the even code. Without mantissa bits powers of two are all odd, and IEEE 754 says the larger.
    """
    size, sign = abs(Fraction(x)), -1 if x < 0 else 1
    if size >= numbers[-1]:
        return sign * numbers[-1]
    low = bisect_right(numbers, size) - 1
    if numbers[low] == size:
        return sign * size
    below, above = size - numbers[low], numbers[low + 1] - size
    if mode == "nearest":
        odd = low % 2 == 1 if mantissa else low > 0
        up = below > above or (below == above and odd)
    else:
        up = {"zero": False, "up": sign > 0, "down": sign < 0}[mode]
    return sign * numbers[low + up]


def half_even(x: Fraction) -> int:
    """The nearest whole number, the even one of two."""
    low = math.floor(x)
    gap = x - low
    return low + (gap > Fraction(1, 2) or (gap == Fraction(1, 2) and low % 2 == 1))


def whole(x: Fraction, mode: str) -> int:
    """A fraction to a whole number."""
    return {"nearest": half_even, "up": math.ceil, "down": math.floor, "zero": math.trunc}[mode](x)


def stream(codes: list[int], bits: int) -> bytes:
    """One row of codes, code after code, lowest bit first, as bytes."""
    number = sum(code << (bits * j) for j, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")
