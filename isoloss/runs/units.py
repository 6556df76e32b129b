"""takes numbers as people write them, gives counts, bytes and losses in this package's units.

Counts are plain floats, losses are nats (per token, byte, character or word: the unit says which).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["convert", "format_count", "is_loss_unit", "parse_bytes", "parse_count"]

Floats = npt.NDArray[np.float64]

PF_DAY = 8.64e19
"""FLOPs in one petaflop/s-day."""

_EXPONENT = {"": 0, "k": 3, "m": 6, "b": 9, "g": 9, "t": 12, "p": 15, "e": 18}
_COUNT = re.compile(r"([+-]?(?:\d+(?:_\d+)*\.?\d*|\.\d+))(e[+-]?\d+)?\s*([kmbgtpe]?)", re.IGNORECASE)
_BYTES = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?\s*(?:([kmgtp]?)(i?)b|b?)", re.IGNORECASE)
_SUFFIXES = "K 1e3, M 1e6, B or G 1e9, T 1e12, P 1e15, E 1e18"


def parse_count(text: str) -> float:
    """A count written with a suffix: ``70B`` is 7e10.

    Suffixes, in either case: K 1e3, M 1e6, B or G 1e9, T 1e12, P 1e15, E 1e18. Scientific notation
    and underscores work; a size in bytes (``8GB``) is not a count.

    Args:
        text: the count as text.

    Returns:
        The count, finite and not negative.

    Raises:
        ValueError: the text is not a count.

    Example:
        >>> parse_count("70B"), parse_count("1.4T"), parse_count("1e21"), parse_count("1_000")
        (70000000000.0, 1400000000000.0, 1e+21, 1000.0)
    """
    text = text.strip()
    if re.search(r"\d\s*[kmgtpe]i?b$", text, re.IGNORECASE):
        raise ValueError(f"needed a count, got {text!r}, a size in bytes. Do: write it like 7B, 350M or 1.4T")
    match = _COUNT.fullmatch(text)
    if match is None:
        raise ValueError(f"needed a count, got {text!r}. Do: write it like {_example(text)} ({_SUFFIXES})")
    number, exponent, suffix = match[1], match[2] or "e0", match[3].lower()
    # one decimal literal, so that 1.4T is the float nearest to 1.4e12 and not 1.4 * 1e12
    value = float(f"{number}e{int(exponent[1:]) + _EXPONENT[suffix]}")
    if not 0 <= value < math.inf:
        raise ValueError(
            f"needed a finite count of at least 0, got {text!r}. Do: write it like 7B, 350M or 1.4T"
        )
    return value


def _example(text: str) -> str:
    plain = re.sub(r"(?<=\d)[,'\s](?=\d{3}\b)", "", text)
    if plain != text and _COUNT.fullmatch(plain):
        return f"{plain}, without separators"
    if re.fullmatch(r"[+-]?\d+,\d+\s*[kmbgtpe]?", text, re.IGNORECASE):
        return f"{text.replace(',', '.')}, with a decimal point"
    return "7B, 350M, 1.4T or 1e21"


def format_count(value: float) -> str:
    """A count in three significant digits, with the suffix K, M, B or T; powers of ten from 1e15 on.

    Example:
        >>> format_count(7e10), format_count(6_738_000_000), format_count(1.92e19), format_count(12)
        ('70B', '6.74B', '1.92e19', '12')
    """
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.3g}")  # first, so that 999,999 is 1M and not 1000K
    if abs(rounded) >= 1e15 or 0 < abs(rounded) < 1e-3:
        mantissa, exponent = f"{rounded:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{suffix}"
    return f"{rounded:.3g}"


def parse_bytes(text: str) -> float:
    """A size in bytes: ``8GB`` is 8e9, ``8GiB`` is 2**33, a plain number is bytes.

    Raises:
        ValueError: the text is not a size. ``8G`` is refused: say ``8GB`` or ``8GiB``.

    Example:
        >>> parse_bytes("8GB"), parse_bytes("16 MiB"), parse_bytes("2500000")
        (8000000000.0, 16777216.0, 2500000.0)
    """
    text = text.strip()
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueError(f"needed a size in bytes, got {text!r}. Do: write it like 8GB, 16MiB or 2500000")
    power = "kmgtp".index(match[3].lower()) + 1 if match[3] else 0
    return float(match[1] + (match[2] or "")) * (1024.0 if match[4] else 1000.0) ** power


_PER = {"token": "token", "byte": "byte", "char": "char", "character": "char", "word": "word"}
_SHORT = {
    "nats": "nats/token",
    "nat": "nats/token",
    "ppl": "perplexity/token",
    "perplexity": "perplexity/token",
    "bpb": "bits/byte",
    "bpc": "bits/char",
}
_TO_NATS: dict[str, Callable[[Floats], Floats]] = {
    "nats": lambda x: x,
    "bits": lambda x: x * math.log(2),
    "perplexity": np.log,
}
_SCALE = {
    **{"count": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18},
    **{"z": 1e21, "y": 1e24, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12},
}


def _loss_unit(unit: str) -> tuple[str, str] | None:
    """(kind, per what) of a loss unit, or None where it is none."""
    name = re.sub(r"\s+per\s+", "/", unit.strip().lower())
    name = _SHORT.get(name, name)
    kind, _, per = name.partition("/")
    kind = {"ppl": "perplexity", "bit": "bits", "nat": "nats"}.get(kind, kind)
    if kind not in _TO_NATS:
        return None
    if per.rstrip("s") not in _PER:
        raise ValueError(
            f"needed what the loss is counted per, got unit {unit!r}. Do: write {kind}/token or {kind}/byte"
        )
    return kind, _PER[per.rstrip("s")]


def is_loss_unit(unit: str) -> bool:
    """Whether a stored unit is that of a loss: ``nats/…``.

    Example:
        >>> is_loss_unit("nats/byte"), is_loss_unit("count")
        (True, False)
    """
    return unit.startswith("nats/")


def _scale(unit: str) -> float | None:
    name = unit.strip().lower()
    if re.fullmatch(r"p(eta)?f(lops?/?s?)?[- ]?days?", name):
        return PF_DAY
    name = re.sub(r"[- ]?(flops?|params|parameters|tokens)$", "", name) or "count"
    if name in _SCALE or (name := name.rstrip("s")) in _SCALE:
        return _SCALE[name]
    try:
        factor = float(name)
    except ValueError:
        return None
    return factor if 0 < factor < math.inf else None


def convert(values: Floats, unit: str, plain: str = "count") -> tuple[Floats, str]:
    """Values in a stated unit, as plain counts or nats, with the unit they then have.

    Losses: ``nats``, ``bits`` or ``perplexity`` per ``token``, ``byte``, ``char`` or ``word``
        (``bpb`` is
    bits/byte; ``perplexity`` alone is per token). Counts: ``thousands``, ``millions``,
    ``billions``, ``trillions``, a suffix (``B``), a factor (``1e21``), ``PFLOP``, ``PF-days``
    (8.64e19 FLOP).

    Args:
        values: any shape, in ``unit``.
        unit: as written by the user.
        plain: the unit that a scaled count then has.

    Raises:
        ValueError: the unit is unknown or does not say per what.

    Example:
        >>> convert(np.array([1.0]), "bits/byte")
        (array([0.69314718]), 'nats/byte')
        >>> convert(np.array([7.0, 13.0]), "billions")
        (array([7.0e+09, 1.3e+10]), 'count')
    """
    loss = _loss_unit(unit)
    if loss is not None:
        kind, per = loss
        return _TO_NATS[kind](values), f"nats/{per}"
    scale = _scale(unit)
    if scale is None:
        raise ValueError(
            f"unknown unit {unit!r}. Do: for a loss nats/token, bits/token, nats/byte, bits/byte or"
            " perplexity; for a count thousands, millions, billions, trillions, a factor like"
            " 1e21, or PF-days"
        )
    scaled = values * scale
    # 6.738 billions is a whole number of parameters: undo the last bit of the product
    whole = np.rint(scaled)
    close = (
        np.isfinite(scaled) & (np.abs(scaled - whole) <= 4e-16 * np.abs(scaled)) & (np.abs(scaled) < 2.0**53)
    )
    return np.where(close, whole, scaled), plain
