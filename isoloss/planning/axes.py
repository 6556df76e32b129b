"""The further axes of a law (bits, experts, streams): each is held, chosen from values, searched, or left out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from isoloss.laws.law import Law
from isoloss.planning.surface import SIZES, tuned_without

Array = np.ndarray[Any, np.dtype[Any]]
Tied = tuple[str, ...]  # axes that share one value

PLANE = (*SIZES, "tokens", "tokens_unique")
MOST = 5000  # combinations


def _refuse(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"needed a positive finite number for {name}, got {value!r}")


@dataclass(frozen=True)
class Span:
    """A stretch of an axis that is searched continuously, on a log scale.

    Example:
        >>> Span(0.02, 1)
        Span(low=0.02, high=1)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _refuse("the ends of a span", self.low)
        _refuse("the ends of a span", self.high)
        if not self.low < self.high:
            raise ValueError(f"a span needs low < high, got {self.low:g}:{self.high:g}")

    def ends_at(self, value: float) -> bool:
        """Whether the value is an end, as far as a search can tell."""
        return min(abs(math.log(value / self.low)), abs(math.log(value / self.high))) < 1e-5


_BITS = (3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)

DEFAULTS: Mapping[str, tuple[float, ...] | Span] = {
    "bits_weights": _BITS,
    "bits_activations": _BITS,
    "bits_kv": _BITS,
    "bits_post": _BITS,
    "streams": (1.0, 2.0, 4.0, 8.0),
    "experts": tuple(2.0**k for k in range(10)),
    "expert_density": Span(0.02, 1.0),
}
"""What an axis is chosen from when nothing is said about it."""


@dataclass(frozen=True)
class Settled:
    """How each further axis of a law is dealt with.

    Attributes:
        held: axis -> its value.
        options: tied axes -> the values they are chosen from, in order.
        spans: tied axes -> the stretch that is searched.
        left_out: axes that are absent, at the reference of their part.
        by_default: axes of ``options`` and ``spans`` that nothing was said about.
    """

    held: Mapping[str, float]
    options: Mapping[Tied, tuple[float, ...]]
    spans: Mapping[Tied, Span]
    left_out: tuple[str, ...]
    by_default: tuple[str, ...]

    @property
    def any(self) -> bool:
        """Whether there are further axes at all."""
        return bool(self.held or self.options or self.spans or self.left_out)

    def combinations(self) -> Array:
        """Every combination of the options, (C, number of options); C is 1 where there are none."""
        table = list(itertools.product(*self.options.values()))
        return np.array(table, dtype=float).reshape(len(table), len(self.options))

    def others(self, combination: Array) -> dict[str, Any]:
        """The further axes but those of spans, at combinations (R, number of options): numbers, or (R, 1)."""
        out: dict[str, Any] = dict(self.held)
        for j, tied in enumerate(self.options):
            out |= dict.fromkeys(tied, combination[:, j, None])
        return out


def settle(
    law: Law,
    hold: Mapping[str, float] | None,
    choose: Mapping[str | Tied, Sequence[float] | Span] | None,
) -> Settled:
    """How each further axis of the law is dealt with.

    Args:
        law: of a size and tokens, and further axes.
        hold: axis -> the value it is held at.
        choose: axis -> values to choose from, or a :class:`Span`; a tuple of axes shares one value.

    Raises:
        ValueError: an axis that the law does not have, or that is named twice; values that are none; an axis
            that nothing is said about and that has no default; too many combinations.

    Example:
        >>> from isoloss.laws import get
        >>> found = settle(get("hoffmann * precision(bits_weights, bits_kv)"), {"bits_kv": 8}, {"bits_weights": [4, 8]})
        >>> found.held, found.options
        ({'bits_kv': 8.0}, {('bits_weights',): (4.0, 8.0)})
    """
    further = [axis for axis in law.axes if axis not in PLANE]
    held = {axis: float(value) for axis, value in (hold or {}).items() if _known(axis, law, further, value)}
    options: dict[Tied, tuple[float, ...]] = {}
    spans: dict[Tied, Span] = {}
    for name, values in (choose or {}).items():
        tied = (name,) if isinstance(name, str) else tuple(name)
        for axis in tied:
            _known(axis, law, further, None)
        if isinstance(values, Span):
            spans[tied] = values
        else:
            options[tied] = _values(tied, values)
    named = [*held, *(axis for tied in (*options, *spans) for axis in tied)]
    twice = next((axis for axis in named if named.count(axis) > 1), None)
    if twice:
        raise ValueError(f"{twice} is held or chosen twice: keep one")
    left_out = tuned_without(law, [axis for axis in further if axis not in named])
    by_default = [axis for axis in further if axis not in (*named, *left_out)]
    for axis in by_default:
        default = DEFAULTS.get(axis)
        if default is None:
            raise ValueError(
                f"{law.spec} reads {axis}, of which nothing is said: hold it (hold={{'{axis}': VALUE}}, --hold "
                f"{axis}=VALUE) or choose it (choose={{'{axis}': [VALUE, VALUE]}}, --choose {axis}=VALUE,VALUE, or "
                f"LOW:HIGH to search)"
            )
        if isinstance(default, Span):
            spans[axis,] = default
        else:
            options[axis,] = default
    count = math.prod(len(values) for values in options.values())
    if count > MOST:
        each = ", ".join(f"{'='.join(tied)} {len(values)}" for tied, values in options.items())
        raise ValueError(
            f"needed at most {MOST} combinations of choices, got {count} ({each}). Hold an axis, or name fewer values"
        )
    if len(spans) > 2:
        raise ValueError(
            f"needed at most two axes to search, got {', '.join('='.join(tied) for tied in spans)}. Choose one "
            "from values"
        )
    return Settled(held, options, spans, left_out, tuple(by_default))


def parse_hold(texts: Sequence[str]) -> dict[str, float]:
    """``["bits_weights=8"]`` -> ``{"bits_weights": 8.0}``."""
    out: dict[str, float] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals):
            raise ValueError(f"--hold needs AXIS=VALUE (bits_weights=8), got {text!r}")
        if name in out:
            raise ValueError(f"--hold {name} is given twice: keep one")
        out[name] = _number(value, f"--hold {name}")
    return out


def parse_choose(texts: Sequence[str]) -> dict[str | Tied, Sequence[float] | Span]:
    """``["bits_post=3,4,8", "expert_density=0.02:1", "bits_weights=bits_kv=4,8"]`` as :func:`settle` takes it.

    Example:
        >>> parse_choose(["bits_weights=bits_kv=4,8"])
        {('bits_weights', 'bits_kv'): (4.0, 8.0)}
    """
    out: dict[str | Tied, Sequence[float] | Span] = {}
    for text in texts:
        *names, values = (part.strip() for part in text.split("="))
        if not names or not all(names) or not values:
            raise ValueError(f"--choose needs AXIS=VALUE,VALUE or AXIS=LOW:HIGH, got {text!r}")
        option, tied = f"--choose {'='.join(names)}", tuple(names)
        ends = values.split(":")
        if tied in out:
            raise ValueError(f"{option} is given twice: keep one")
        if len(ends) == 2:
            out[tied] = Span(_number(ends[0], option), _number(ends[1], option))
        else:
            out[tied] = tuple(_number(value, option) for value in values.split(","))
    return out


def _known(axis: str, law: Law, further: list[str], value: object) -> bool:
    if axis in PLANE:
        raise ValueError(f"{axis} is what the plan finds: limit it in the budget instead")
    if axis not in further:
        others = f"its further axes are {', '.join(further)}" if further else "it has no further axes"
        raise ValueError(f"{law.spec} does not read {axis}: {others}. Leave it out")
    if value is not None:
        _refuse(axis, value)
    return True


def _values(tied: Tied, values: Sequence[float]) -> tuple[float, ...]:
    name = "=".join(tied)
    if isinstance(values, (str, Real)) or not len(values):
        raise ValueError(f"{name} needs values to choose from, got {values!r}. Write [4, 8], or hold it")
    for value in values:
        _refuse(name, value)
    out = tuple(sorted(float(value) for value in values))
    if len(set(out)) < len(out):
        raise ValueError(f"{name} is to be chosen from {list(values)}, where a value stands twice")
    return out


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{option} needs numbers, got {text!r}") from None
