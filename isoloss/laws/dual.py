"""Forward-mode derivatives: a law written once in plain NumPy gives exact gradients.

A :class:`Dual` carries a value and its sparse partial derivatives through NumPy's own functions, so
that ``value(theta, x)`` of a law needs no second version. Every rule below is the textbook derivative;
the tests hold them against complex-step differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Dual:
    """A value and its partial derivatives ``{index: d value / d variable[index]}``.

    Absent indices are zero, so a term that reads two of five parameters costs two products, not five.

    Example:
        >>> x = Dual(np.array(3.0), {0: np.array(1.0)})
        >>> y = 2 * x**2 + np.exp(-x)
        >>> float(y.partials[0].round(6)), round(4 * 3 - np.exp(-3), 6)
        (11.950213, np.float64(11.950213))
    """

    __slots__ = ("partials", "value")
    __array_priority__ = 1000

    def __init__(self, value: Array | float, partials: Mapping[int, Array]) -> None:
        self.value = np.asarray(value)
        self.partials = dict(partials)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        name, rule = ufunc.__name__, _RULES.get(ufunc.__name__)
        # Comparisons look at values only, so that np.where(x > 1, ...) reads as in plain NumPy.
        if name in _COMPARISONS and method == "__call__" and not kwargs:
            return ufunc(*(_lift(entry).value for entry in inputs))
        if method != "__call__" or kwargs or rule is None:
            what = name if method == "__call__" else f"{name}.{method}"
            options = f" with {', '.join(kwargs)}=" if kwargs else ""
            raise TypeError(
                f"a law's value() used np.{what}{options}, which has no derivative rule here. "
                f"Use np.where or one of: {', '.join(sorted(_RULES))}"
            )
        return rule(*(entry if isinstance(entry, Dual) else Dual(entry, {}) for entry in inputs))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Dual:
        if func is np.where and not kwargs and len(args) == 3:
            return _where(*args)
        raise TypeError(
            f"a law's value() used np.{func.__name__}, which has no derivative rule here. "
            f"Use np.where or one of: {', '.join(sorted(_RULES))}"
        )

    def __add__(self, other: Any) -> Dual:
        return _add(self, _lift(other))

    def __radd__(self, other: Any) -> Dual:
        return _add(_lift(other), self)

    def __sub__(self, other: Any) -> Dual:
        return _add(self, -_lift(other))

    def __rsub__(self, other: Any) -> Dual:
        return _add(_lift(other), -self)

    def __neg__(self) -> Dual:
        return Dual(-self.value, {k: -d for k, d in self.partials.items()})

    def __pos__(self) -> Dual:
        return self

    def __mul__(self, other: Any) -> Dual:
        return _multiply(self, _lift(other))

    def __rmul__(self, other: Any) -> Dual:
        return _multiply(_lift(other), self)

    def __truediv__(self, other: Any) -> Dual:
        return _divide(self, _lift(other))

    def __rtruediv__(self, other: Any) -> Dual:
        return _divide(_lift(other), self)

    def __pow__(self, other: Any) -> Dual:
        return _power(self, _lift(other))

    def __rpow__(self, other: Any) -> Dual:
        return _power(_lift(other), self)

    def __lt__(self, other: Any) -> Any:
        return self.value < _lift(other).value

    def __le__(self, other: Any) -> Any:
        return self.value <= _lift(other).value

    def __gt__(self, other: Any) -> Any:
        return self.value > _lift(other).value

    def __ge__(self, other: Any) -> Any:
        return self.value >= _lift(other).value

    def __eq__(self, other: object) -> Any:
        return self.value == _lift(other).value

    def __ne__(self, other: object) -> Any:
        return self.value != _lift(other).value

    __hash__ = None  # type: ignore[assignment]

    def __abs__(self) -> Dual:
        return _RULES["absolute"](self)

    def __bool__(self) -> bool:
        raise TypeError("a law's value() works on arrays: use np.where(condition, a, b), not if")


_ONE = 1.0  # by identity: sums hand their partials on uncopied; nothing ever writes into a partial


def _lift(entry: Any) -> Dual:
    return entry if isinstance(entry, Dual) else Dual(entry, {})


def _chain(value: Array, *parts: tuple[Dual, Array | float]) -> Dual:
    """``value`` with partials ``sum_j slope_j * d input_j``."""
    partials: dict[int, Array] = {}
    for source, slope in parts:
        for index, partial in source.partials.items():
            change = partial if slope is _ONE else slope * partial
            partials[index] = partials[index] + change if index in partials else change
    return Dual(value, partials)


def _add(a: Dual, b: Dual) -> Dual:
    return _chain(a.value + b.value, (a, _ONE), (b, _ONE))


def _multiply(a: Dual, b: Dual) -> Dual:
    return _chain(a.value * b.value, (a, b.value), (b, a.value))


def _divide(a: Dual, b: Dual) -> Dual:
    ratio = a.value / b.value
    parts = []
    if a.partials:
        parts.append((a, 1.0 / b.value))
    if b.partials:
        parts.append((b, -ratio / b.value))
    return _chain(ratio, *parts)


def _power(a: Dual, b: Dual) -> Dual:
    value = np.power(a.value, b.value)
    parts = []
    if a.partials:
        parts.append((a, b.value * np.power(a.value, b.value - 1.0)))
    if b.partials:
        parts.append((b, value * np.log(a.value)))
    return _chain(value, *parts)


def _select(value: Array, pick: Array, a: Dual, b: Dual) -> Dual:
    # Not a product with a 0/1 mask: the side not taken may have an infinite slope.
    partials = {
        index: np.where(pick, a.partials.get(index, 0.0), b.partials.get(index, 0.0))
        for index in {**a.partials, **b.partials}
    }
    return Dual(value, partials)


def _where(condition: Any, a: Any, b: Any) -> Dual:
    pick, left, right = np.asarray(condition, dtype=bool), _lift(a), _lift(b)
    return _select(np.where(pick, left.value, right.value), pick, left, right)


def _logaddexp(a: Dual, b: Dual) -> Dual:
    value = np.logaddexp(a.value, b.value)
    return _chain(value, (a, np.exp(a.value - value)), (b, np.exp(b.value - value)))


def _elementwise(
    function: Callable[[Array], Array], slope: Callable[[Array, Array], Array]
) -> Callable[[Dual], Dual]:
    def rule(a: Dual) -> Dual:
        value = function(a.value)
        return _chain(value, (a, slope(a.value, value)))

    return rule


_COMPARISONS = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}

_RULES: dict[str, Callable[..., Dual]] = {
    "add": _add,
    "subtract": lambda a, b: _add(a, -b),
    "multiply": _multiply,
    "divide": _divide,
    "power": _power,
    "float_power": _power,
    "negative": lambda a: -a,
    "positive": lambda a: a,
    "logaddexp": _logaddexp,
    "maximum": lambda a, b: _select(np.maximum(a.value, b.value), a.value >= b.value, a, b),
    "minimum": lambda a, b: _select(np.minimum(a.value, b.value), a.value <= b.value, a, b),
    "absolute": _elementwise(np.abs, lambda x, _: np.sign(x)),
    "exp": _elementwise(np.exp, lambda _, y: y),
    "exp2": _elementwise(np.exp2, lambda _, y: y * np.log(2.0)),
    "expm1": _elementwise(np.expm1, lambda _, y: y + 1.0),
    "log": _elementwise(np.log, lambda x, _: 1.0 / x),
    "log2": _elementwise(np.log2, lambda x, _: 1.0 / (x * np.log(2.0))),
    "log10": _elementwise(np.log10, lambda x, _: 1.0 / (x * np.log(10.0))),
    "log1p": _elementwise(np.log1p, lambda x, _: 1.0 / (1.0 + x)),
    "sqrt": _elementwise(np.sqrt, lambda _, y: 0.5 / y),
    "square": _elementwise(np.square, lambda x, _: 2.0 * x),
    "reciprocal": _elementwise(np.reciprocal, lambda _, y: -y * y),
    "tanh": _elementwise(np.tanh, lambda _, y: 1.0 - y * y),
}
