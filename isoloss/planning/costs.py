"""What a run costs, as sums of products of its axes: exact units, and closed forms both ways.

A new cost is one more function here. The functions are of a dense model of one stream; :func:`with_axes` puts further
axes of a law (streams, experts, bits) into their terms.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isoloss.runs.units import format_count

Array = np.ndarray[Any, np.dtype[Any]]

TRAIN_FLOPS = 6.0  # per parameter and token: forward 2, backward 4; attention scores not counted
SERVE_FLOPS = 2.0  # per parameter and token read or written
SECONDS_PER_HOUR = 3600.0

Term = tuple[float, tuple[str, ...]]  # a coefficient and the axes it is multiplied by


@dataclass(frozen=True)
class Cost:
    r"""A sum of products of axes, :math:`c(x) = \sum_k c_k \prod_{j \in k} x_j`, all positive.

    In logs it is a log-sum-exp of affine functions, as most laws are, so budgets keep plans convex.

    Attributes:
        name: as in ``Budget`` and in JSON.
        unit: of the value.
        terms: pairs of a coefficient and the axes it is multiplied by.
        what: the cost in words, for a sentence: "training FLOPs".

    Example:
        >>> cost = total_flops(serve_tokens=1e12)
        >>> cost.value({"params": 1e9, "tokens": 2e10})
        2.12e+21
        >>> float(cost.solve("tokens", 2.12e21, {"params": 1e9}))
        20000000000.0
    """

    name: str
    unit: str
    terms: tuple[Term, ...]
    what: str

    def value(self, x: Mapping[str, Any]) -> Any:
        """The cost at ``x``, in ``unit``."""
        return _sum(self.terms, x)

    def elasticity(self, axis: str, x: Mapping[str, Any]) -> Any:
        """``d ln cost / d ln axis`` at ``x``: the share of the terms that hold the axis."""
        return _sum([term for term in self.terms if axis in term[1]], x) / self.value(x)

    def solve(self, axis: str, limit: Any, x: Mapping[str, Any]) -> Any:
        """The largest value of ``axis`` within ``limit``, the other axes as in ``x``.

        Infinite where the cost does not depend on the axis and is within the limit, 0 where the other
        axes alone exceed it.
        """
        # affine in the axis: rest + slope * axis
        rest = _sum([term for term in self.terms if axis not in term[1]], x)
        slope = _sum([term for term in self.terms if axis in term[1]], {**x, axis: 1.0})
        left = np.asarray(limit - rest, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(left > 0, left / np.asarray(slope, dtype=float), 0.0)

    def text(self, value: float) -> str:
        """The value as people write it: 1e+21 FLOP is ``1e21``, 8e9 byte ``8GB``, 7e9 parameters ``7B``."""
        if self.unit == "count":
            return format_count(value)
        if self.unit == "byte" and value < 1e15:
            short = format_count(value)  # 8 billion bytes are 8 GB
            return (short.removesuffix("B") + "G" if short.endswith("B") else short) + "B"
        return f"{value:.3g}".replace("e+", "e")

    def bounds(self, axis: str) -> bool:
        """Whether a limit on this cost bounds the axis."""
        return any(axis in axes for _, axes in self.terms)


def _sum(terms: Sequence[Term], x: Mapping[str, Any]) -> Any:
    total: Any = 0.0
    for coefficient, axes in terms:
        part: Any = coefficient
        for axis in axes:
            part = part * x[axis]
        total = total + part
    return total


COMPUTED = ("streams", "expert_density")
"""Axes that FLOPs per token are proportional to, with ``params`` counting all experts."""

TRAINED_BITS = ("bits_weights", "bits_activations", "bits_kv")
FLOAT_BITS = ("exponent_bits", "mantissa_bits")
FULL_BITS = 16.0
FROZEN = (
    4.0 / 6.0
)  # of the FLOPs of training: forward, and the gradient of the input; the rest is a weight's own gradient


def with_axes(cost: Cost, axes: Collection[str], bits: bool = False) -> Cost:
    r"""The cost of a model that has these axes too.

    FLOPs and all that follows from them (device-hours, money): times ``streams``, each of which computes the whole
    model, and times ``expert_density``, the share of the parameters that one token passes through. Of
    ``params_trainable`` alone is the gradient of a weight computed: training takes :math:`(4 N + 2 N_{trainable}) D`.
    Stored bytes: all parameters, at ``bits_post`` where the law reads it, else at ``bits_weights``, else in the
    floating-point format that it reads (a sign, ``exponent_bits``, ``mantissa_bits``); streams share their weights.

    Args:
        cost: of a dense model of one stream, in 16 bits.
        axes: of the law.
        bits: count the FLOPs of training in 16-bit units, :math:`6ND \cdot P/16` (Kumar et al. 2024,
            arXiv:2411.04330), P the mean of the bits in training that the law reads.

    Example:
        >>> cost = with_axes(train_flops(), ["params", "tokens", "streams"])
        >>> cost.value({"params": 1e9, "tokens": 2e10, "streams": 4})
        4.8e+20
        >>> with_axes(stored_bytes(), ["bits_post"]).value({"params": 8e9, "bits_post": 4})
        4000000000.0
    """
    if cost.name in ("params", "tokens"):
        return cost
    if cost.name == "bytes":
        stored = stored_bits(axes)
        return replace(cost, terms=_times((1 / 8.0, ("params",)), stored)) if stored else cost
    more = tuple(axis for axis in COMPUTED if axis in axes)
    trained = trained_bits(axes) if bits else ()
    terms: list[Term] = []
    for coefficient, own in cost.terms:
        parts: list[Term] = [(coefficient, (*own, *more))]
        if "tokens" in own and "params_trainable" in axes:
            rest = tuple("params_trainable" if axis == "params" else axis for axis in own)
            parts = [(coefficient * FROZEN, (*own, *more)), (coefficient * (1.0 - FROZEN), (*rest, *more))]
        if "tokens" in own and trained:
            terms += [part for each in parts for part in _times(each, trained, 1.0 / FULL_BITS)]
        else:
            terms += parts
    return replace(cost, terms=tuple(terms))


def stored_bits(axes: Collection[str]) -> tuple[Term, ...]:
    """Bits of a stored parameter by the axes of a law, as a sum of products; empty where it reads none."""
    post = next((axis for axis in ("bits_post", "bits_weights") if axis in axes), None)
    return ((1.0, (post,)),) if post else _float_bits(axes)


def trained_bits(axes: Collection[str]) -> tuple[Term, ...]:
    """Mean of the bits in training that a law of these axes reads, as a sum of products; empty where it reads none."""
    kinds: list[tuple[Term, ...]] = [((1.0, (axis,)),) for axis in TRAINED_BITS if axis in axes]
    kinds += [whole] if (whole := _float_bits(axes)) else []
    return tuple((part / len(kinds), own) for kind in kinds for part, own in kind)


def _float_bits(axes: Collection[str]) -> tuple[Term, ...]:
    """Bits of a floating-point format: its sign, exponent and mantissa."""
    if not all(axis in axes for axis in FLOAT_BITS):
        return ()
    return ((1.0, ()), *((1.0, (axis,)) for axis in FLOAT_BITS))


def _times(term: Term, terms: Sequence[Term], factor: float = 1.0) -> tuple[Term, ...]:
    coefficient, own = term
    return tuple((factor * coefficient * part, (*own, *more)) for part, more in terms)


def params() -> Cost:
    """N, parameters as the law counts them [count]."""
    return Cost("params", "count", ((1.0, ("params",)),), "parameters")


def tokens() -> Cost:
    """D, training tokens [count]."""
    return Cost("tokens", "count", ((1.0, ("tokens",)),), "training tokens")


def train_flops() -> Cost:
    r""":math:`6ND` [FLOP]: forward 2, backward 4 per parameter and token, no attention scores."""
    return Cost("train_flops", "FLOP", ((TRAIN_FLOPS, ("params", "tokens")),), "training FLOPs")


def serve_flops(serve_tokens: float) -> Cost:
    r""":math:`2 N D_{serve}` [FLOP] for prompt and generated tokens together [count]."""
    return Cost("serve_flops", "FLOP", ((SERVE_FLOPS * serve_tokens, ("params",)),), "serving FLOPs")


def total_flops(serve_tokens: float = 0.0) -> Cost:
    r""":math:`6ND + 2 N D_{serve}` [FLOP] (Sardana et al. 2024, arXiv:2401.00448)."""
    serve = serve_flops(serve_tokens).terms if serve_tokens else ()
    return Cost("total_flops", "FLOP", train_flops().terms + serve, "training and serving FLOPs")


def stored_bytes(bits: float = 16.0) -> Cost:
    r""":math:`N \cdot bits / 8` [byte]: the weights as stored at serving, no cache or activations."""
    return Cost("bytes", "byte", ((bits / 8.0, ("params",)),), "bytes at serving")


def device_hours(peak: float, utilisation: float) -> Cost:
    r""":math:`6ND / (peak \cdot utilisation \cdot 3600)` [device-hour] of training.

    Args:
        peak: of one device, FLOP/s at the precision of training.
        utilisation: share of it that 6ND per second reaches, 0 to 1.
    """
    rate = TRAIN_FLOPS / (peak * utilisation * SECONDS_PER_HOUR)
    return Cost("device_hours", "device-hour", ((rate, ("params", "tokens")),), "device-hours of training")


def money(
    price: float,
    peak: float,
    utilisation: float,
    serve_tokens: float = 0.0,
    serve_utilisation: float | None = None,
) -> Cost:
    r"""Price of training and serving, :math:`p\,(6ND/m_{tr} + 2ND_{serve}/m_{sv}) / (3600 \cdot peak)`.

    Args:
        price: of one device-hour, in any currency; the cost is in the same.
        peak: of one device, FLOP/s.
        utilisation: of training, 0 to 1.
        serve_tokens: prompt and generated tokens served in all [count].
        serve_utilisation: of serving, 0 to 1; that of training if not given.
    """
    hour = price / (peak * SECONDS_PER_HOUR)
    terms: tuple[Term, ...] = ((TRAIN_FLOPS * hour / utilisation, ("params", "tokens")),)
    if serve_tokens:
        rate = SERVE_FLOPS * serve_tokens * hour / (serve_utilisation or utilisation)
        terms = (*terms, (rate, ("params",)))
    return Cost("money", "currency", terms, "money")
