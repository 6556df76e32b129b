"""Takes numbers, gives them as people read them: in tables, sentences and pages."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """A number to read: ``digits`` significant digits, an exponent only where it helps.

    Example:
        >>> number(0.34721), number(2143.4), number(1.5e8), number(float("nan"))
        ('0.3472', '2143', '1.500e+08', '—')
    """
    if value is None or math.isnan(value):
        return "—"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if value == 0 or 1e-3 <= abs(value) < 10**digits:
        return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value) or 1)), 0)}f}"
    return f"{value:.{digits - 1}e}" if abs(value) >= 1e6 or abs(value) < 1e-3 else f"{value:.0f}"


def amount(value: float | None, digits: int = 4) -> str:
    """A number that may be a count: whole ones up to seven digits in full, others as :func:`number` has them.

    Example:
        >>> amount(9610.0), amount(0.0), amount(2.5), amount(1.5e9)
        ('9610', '0', '2.500', '1.500e+09')
    """
    if value is not None and abs(value) < 1e7 and float(value).is_integer():
        return str(int(value))
    return number(value, digits)


def interval(low: float, high: float, digits: int = 4) -> str:
    """``low to high``.

    Example:
        >>> interval(1.776, 1.861)
        '1.776 to 1.861'
    """
    return f"{number(low, digits)} to {number(high, digits)}"


def listed(parts: Sequence[str], last: str = "and") -> str:
    """Words joined as in a sentence.

    Example:
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return f" {last} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else list(parts))


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "run"), plural(3, "run")
        ('1 run', '3 runs')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"
