"""Wortsman et al. 2024, Small-scale proxies for large-scale Transformer instabilities, arXiv:2309.14322: the sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.observing.measured import Measured

Array = np.ndarray[Any, np.dtype[Any]]

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""The peak learning rates of the paper, over which the mean goes."""
DRAWS = 2000
SAME = 1e-6  # relative: rates that a file rounds are still the same


def learning_rate_sensitivity(
    lr: Any,
    loss: Any,
    initial_loss: float,
    *,
    rates: Sequence[float] | None = RATES,
    noise: float | None = None,
    coverage: float = 0.9,
    seed: int = 0,
) -> Measured:
    r"""How much a wrong learning rate costs on average over a range of rates.

    .. math:: E_{\eta}\left[\min(\ell(\eta), \ell_0) - \ell^*\right]

    with :math:`\ell_0` the loss at initialisation, :math:`\ell^*` the least of :math:`\min(\ell, \ell_0)` over the
    rates, and the plain mean over them. A run that diverged or gave NaN counts as :math:`\ell_0`. Several runs of
    one rate are seeds: their mean is that rate's loss.

    The interval: seeds drawn anew within each rate, widened for how few there are, where every rate has
    two or more; else normal draws of the stated ``noise``; else NaN, for one run of a rate does not tell its noise.
    The least of noisy losses is low by chance, so a noisy sweep looks a little too sensitive.

    Args:
        lr: peak learning rate of each run.
        loss: its final validation loss; NaN or infinite where it diverged.
        initial_loss: of the untrained model.
        rates: the range; None for all rates in ``lr``.
        noise: standard deviation of the loss of one run, known from elsewhere.
        coverage: of the interval.
        seed: of the draws.

    Raises:
        ValueError: rates outside the range, a rate of the range without a run, or numbers that mean nothing.
        NoAnswer: every run diverged.

    Example:
        >>> learning_rate_sensitivity([0.1, 1, 10], [2.5, 2.0, float("nan")], 5.0, rates=None).value
        1.1666666666666667
    """
    at, values = (np.asarray(entry, dtype=float).ravel() for entry in (lr, loss))
    if len(at) != len(values) or not len(at):
        raise ValueError(f"needed a loss for every rate, got {len(values)} losses and {len(at)} rates")
    if not (np.isfinite(at) & (at > 0)).all():
        raise ValueError("needed learning rates finite and above 0. Leave the other rows out")
    if not (math.isfinite(initial_loss) and 0 < coverage < 1 and (noise is None or 0 <= noise < math.inf)):
        raise ValueError(
            "needed a finite initial loss, coverage between 0 and 1 and noise at or above 0, got "
            f"{initial_loss}, {coverage} and {noise}"
        )
    groups = _groups(at, values, rates)
    capped = [np.where(np.isfinite(group), np.minimum(group, initial_loss), initial_loss) for group in groups]
    means = np.array([group.mean() for group in capped])
    if (means >= initial_loss).all():
        raise NoAnswer("no run ended below the loss at initialisation", "lower learning rates")
    value = float(np.mean(means - means.min()))
    rng = np.random.default_rng(seed)
    if all(len(group) > 1 for group in capped):
        draws = np.array([_redrawn(group, rng) for group in capped])
        how = "seeds drawn anew"
    elif noise is not None:
        trained = np.array([group < initial_loss for group in means])
        wide = noise / np.sqrt([len(group) for group in capped]) * trained
        draws = means[:, None] + wide[:, None] * rng.normal(size=(len(means), DRAWS))
        how = "noise as stated"
    else:
        return Measured(value, math.nan, math.nan, coverage, "not resolved: one run of a rate, noise unknown")
    draws = np.minimum(draws, initial_loss)
    spread = np.mean(draws - draws.min(axis=0), axis=0)
    low, high = np.quantile(spread, [(1 - coverage) / 2, (1 + coverage) / 2])
    return Measured(value, float(low), float(high), coverage, how)


def _groups(at: Array, values: Array, rates: Sequence[float] | None) -> list[Array]:
    """The losses of each rate of the range."""
    wanted = np.unique(at if rates is None else np.asarray(rates, dtype=float))
    if not (len(wanted) and (np.isfinite(wanted) & (wanted > 0)).all()):
        raise ValueError(f"needed rates finite and above 0, got {rates}. Leave rates out for the paper's")
    near = np.abs(np.log(at[:, None]) - np.log(wanted)) < SAME
    strange = at[~near.any(axis=1)]
    if len(strange):
        raise ValueError(
            f"needed the rates {', '.join(f'{r:g}' for r in wanted)}, got also {strange[0]:g}. "
            "Leave those runs out, or take every rate with rates=None"
        )
    absent = wanted[~near.any(axis=0)]
    if len(absent):
        raise ValueError(
            f"needed a run at each of the rates, got none at {', '.join(f'{r:g}' for r in absent)}. "
            "Run them, or name the rates"
        )
    return [values[near[:, j]] for j in range(len(wanted))]


def _redrawn(group: Array, rng: np.random.Generator) -> Array:
    """Means of resamples of the seeds, as far from their mean as the mean of n seeds is from the truth."""
    n = len(group)
    picked = group[rng.integers(0, n, (DRAWS, n))].mean(axis=1)
    return np.asarray(group.mean() + math.sqrt(n / (n - 1)) * (picked - group.mean()))
