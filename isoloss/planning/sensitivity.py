"""Where the variants of a fit put the optimum: the size and tokens each would train at ten times the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.fitting.sensitivity import Variant
from isoloss.laws import get
from isoloss.laws.law import Law
from isoloss.planning.costs import TRAIN_FLOPS, train_flops
from isoloss.planning.fitted import is_level
from isoloss.planning.search import best_loss
from isoloss.planning.surface import EDGE, SIZES, Limit, Limits, Surface

Array = np.ndarray[Any, np.dtype[Any]]

BELOW = 10.0  # the exponent is taken between the compute and so many times less
NEAR_EDGE = 0.01  # in ln: an optimum there is the end of the search, not of the law


@dataclass(frozen=True)
class Optimum:
    """The compute-optimal point of one variant under ``6 N D``.

    Attributes:
        flops: the compute it is at.
        params, tokens: the point; NaN where the law has no optimum inside the search.
        exponent: ``d ln N* / d ln C`` over the last factor of ten below ``flops``.
    """

    flops: float
    params: float
    tokens: float
    exponent: float

    @property
    def tokens_per_param(self) -> float:
        """``D*/N*``."""
        return self.tokens / self.params


def optimum(law: Law, theta: Array, flops: float) -> Optimum:
    """The size and tokens of least loss at a compute.

    Args:
        law: of a size axis and tokens.
        theta: (P,).
        flops: the compute C = 6 N D.

    Example:
        >>> law = get("hoffmann")
        >>> found = optimum(law, law.theta("besiroglu-2024"), 1e21)
        >>> round(found.tokens_per_param, 1), round(found.exponent, 4)
        (21.6, 0.5126)
    """
    surface = Surface(law, np.asarray(theta, dtype=float)[None])
    x, d = _point(surface, flops)
    before, _ = _point(surface, flops / BELOW)
    return Optimum(flops, math.exp(x), math.exp(d), (x - before) / math.log(BELOW))


def _point(surface: Surface, flops: float) -> tuple[float, float]:
    """ln N and ln D; NaN at an end of the search."""
    with np.errstate(all="ignore"):
        found = best_loss(surface, Limits((Limit("flops", train_flops(), flops),)))
    x, d = float(found.x[0]), float(found.d[0])
    top = min(EDGE, math.log(flops / TRAIN_FLOPS))
    inside = NEAR_EDGE < x < top - NEAR_EDGE
    return (x, d) if inside else (math.nan, math.nan)


def optima(fit: Fit) -> tuple[Optimum | None, ...]:
    """The optimum of each variant of ``fit.sensitivity`` at the compute of its reference point.

    None where a variant was not made, or its law trades no size against tokens for a smaller loss.

    Example:
        >>> import isoloss
        >>> n, d = np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8])
        >>> loss = 1.8 + 480 * n**-0.3 + 2000 * d**-0.45
        >>> runs = isoloss.read({"params": n.ravel(), "tokens": d.ravel(), "loss": loss.ravel()})
        >>> round(optima(isoloss.fit("hoffmann", runs, draws=0))[0].exponent, 4)
        0.6
    """
    return tuple(_of(variant, fit) for variant in fit.sensitivity)


def _of(variant: Variant, fit: Fit) -> Optimum | None:
    size = next((axis for axis in variant.at if axis in SIZES), None)
    if not is_level(fit.law):  # a rate or a batch
        return None
    if not variant.values or size is None or not {size, "tokens"} <= set(variant.at) <= _plane(size):
        return None
    law = fit.law if variant.law == fit.law.spec else get(variant.law)
    return optimum(law, variant.theta, TRAIN_FLOPS * variant.at[size] * variant.at["tokens"])


def _plane(size: str) -> set[str]:
    return {size, "tokens", "tokens_unique"}
