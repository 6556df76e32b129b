"""The published way to fit the multi-power law: a first guess by L-BFGS-B on a grid, then AdamW in torch.

Written from the description in Luo et al. 2025, arXiv:2503.12811: starts of ``L0 + A S1^-alpha - B (peak - eta)`` on a
grid of 135, the best refined by AdamW (rates 5e-2 for L0, A, B, C and 5e-3 for the exponents, 200 steps, patience 20),
Huber's loss of delta 1e-3 on log residuals, each logged step a sum over all steps before it. The warm-up is in both
sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DELTA = 1e-3
ADAM_STEPS, PATIENCE = 200, 20


def fit(curves: Sequence[tuple[Array, Array, Array]], peak: float) -> Array:
    """L0, A, alpha, B, C, beta, gamma from curves of (rates of every step from 0, logged steps, losses)."""
    return _refined(_guess(curves, peak), curves)


def _guess(curves: Sequence[tuple[Array, Array, Array]], peak: float) -> Array:
    from scipy.optimize import minimize

    sums = np.concatenate([np.cumsum(rates)[steps] for rates, steps, _ in curves])
    lowered = np.concatenate([peak - rates[steps] for rates, steps, _ in curves])
    loss = np.concatenate([y for *_, y in curves])
    least = float(loss.min())
    slope, level = np.polyfit(np.log(sums), np.log(loss - least + 0.01), 1)
    grid = itertools.product(
        np.linspace(least - 0.2, least + 0.2, 5),
        np.exp(level) + np.linspace(-0.1, 0.1, 3),
        -slope + np.linspace(-0.1, 0.1, 3),
        np.linspace(100, 1000, 3),
    )

    def objective(p: Array) -> float:
        with np.errstate(all="ignore"):
            r = np.abs(np.log(loss) - np.log(p[0] + p[1] * sums ** -p[2] - p[3] * lowered))
        inner = np.minimum(r, DELTA)
        return float(np.nan_to_num(np.sum(inner * (r - 0.5 * inner)), nan=1e9))

    found = [
        minimize(
            objective, start, method="L-BFGS-B", bounds=[(0, None)] * 4, options={"ftol": 1e-9, "gtol": 1e-6}
        )
        for start in grid
    ]
    return np.asarray(min(found, key=lambda result: result.fun).x)


def _refined(guess: Array, curves: Sequence[tuple[Array, Array, Array]]) -> Array:
    import torch

    torch.set_num_threads(1)
    start = [*guess[:3], guess[3], 1.0, 0.5, 0.5]
    p = [torch.tensor(float(value), dtype=torch.float64, requires_grad=True) for value in start]
    sizes, exponents = [p[0], p[1], p[3], p[4]], [p[2], p[5], p[6]]
    optimiser = torch.optim.AdamW([{"params": sizes, "lr": 5e-2}, {"params": exponents, "lr": 5e-3}])
    data = []
    for rates, steps, loss in curves:
        eta = torch.tensor(rates, dtype=torch.float64)
        data.append((eta, torch.cumsum(eta, 0), steps, torch.tensor(np.log(loss))))
    best, lowest, waited = start, float("inf"), 0
    for _ in range(ADAM_STEPS):
        optimiser.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for eta, sums, steps, logs in data:
            drop = eta[:-1] - eta[1:]
            gains = []
            for t in steps.tolist():
                reach = eta[1 : t + 1] ** -p[6] * (sums[t] - sums[:t])
                gains.append(torch.sum(drop[:t] * (1 - (1 + p[4] * reach) ** -p[5])))
            at = sums[torch.tensor(steps)]
            r = torch.abs(logs - torch.log(p[0] + p[1] * at ** -p[2] - p[3] * torch.stack(gains)))
            inner = torch.clamp(r, max=DELTA)
            total = total + torch.sum(inner * (r - 0.5 * inner))
        total.backward()
        value = total.item()
        if value < lowest:
            best, lowest, waited = [v.item() for v in p], value, 0
        else:
            waited += 1
            if waited >= PATIENCE:
                break
        optimiser.step()
    return np.array(best)
