"""Laws of schedules as the papers write them: a loop over steps inside a loop over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence


def lr_annealing(theta: Sequence[float], rates: Sequence[float], t: int, warmup: int) -> float:
    """Tissue et al.: ``L0 + A S1^-alpha - C S2``, S2 by its momentum; the rise of the warm-up has no part in it."""
    level, size, exponent, gain, memory = theta
    fading = 1 - 1 / memory
    total, area, momentum = 0.0, 0.0, 0.0
    for i in range(1, t + 1):
        total += rates[i]
        change = rates[i - 1] - rates[i] if i > warmup else 0.0
        momentum = fading * momentum + change
        area += momentum
    return level + size * total**-exponent - gain * area


def multi_power(theta: Sequence[float], rates: Sequence[float], t: int) -> float:
    """Luo et al.: every change at step k with ``eta_k^-gamma`` and the sum of the rates from k to t."""
    level, size, exponent, most, speed, beta, gamma = theta
    drop = 0.0
    for k in range(1, t + 1):
        since = math.fsum(rates[k : t + 1])
        reach = rates[k] ** -gamma * since if since > 0 else 0.0  # a last rate of 0: eta^(1 - gamma) is 0
        drop += (rates[k - 1] - rates[k]) * (1 - (1 + speed * reach) ** -beta)
    return level + size * math.fsum(rates[1 : t + 1]) ** -exponent - most * drop
