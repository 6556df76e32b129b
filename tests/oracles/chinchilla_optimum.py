"""Optima in closed form, and by brute force over a fine grid of sizes: never what the package does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def hoffmann(
    E: float, A: float, B: float, alpha: float, beta: float, flops: float
) -> tuple[float, float, float]:
    """N, D and L at the optimum of ``E + A/N^alpha + B/D^beta`` under ``6ND = flops``."""
    total = alpha + beta
    g = (alpha * A / (beta * B)) ** (1 / total)
    n, d = g * (flops / 6) ** (beta / total), (flops / 6) ** (alpha / total) / g
    loss = E + (A * g**-alpha + B * g**beta) * (flops / 6) ** (-alpha * beta / total)
    return n, d, loss


def gadre(E: float, a: float, b: float, eta: float, flops: float) -> tuple[float, float, float]:
    """The same for the over-training form: the best ratio is one number, ``M = (b/a)^(1/(2 eta))``."""
    ratio = (b / a) ** (1 / (2 * eta))
    n = np.sqrt(flops / (6 * ratio))
    return n, ratio * n, E + 2 * np.sqrt(a * b) * flops**-eta


def scan(
    loss: Callable[[Array, Array], Array], most_tokens: Callable[[Array], Array], low: float, high: float
) -> tuple[float, float]:
    """N and loss of the best of 400,001 sizes from ``low`` to ``high``, all allowed tokens spent."""
    n = np.geomspace(low, high, 400_001)
    d = most_tokens(n)
    levels = np.where(d >= 1, loss(n, np.maximum(d, 1)), np.inf)
    best = int(np.argmin(levels))
    return float(n[best]), float(levels[best])
