"""Chen et al. 2021, Evaluating Large Language Models Trained on Code, arXiv:2107.03374: pass@k without bias."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.observing.measured import Measured
from isoloss.special import beta_quantile

Array = np.ndarray[Any, np.dtype[Any]]

RESAMPLES = 2000


def at_least_one(samples: Any, correct: Any, k: int) -> Array:
    r"""Share of the k-subsets of the samples that hold a correct one: unbiased for :math:`1 - (1-p)^k`.

    .. math:: 1 - \binom{n-c}{k} / \binom{n}{k} = 1 - \prod_{i=n-c+1}^{n} (1 - k/i)

    Args:
        samples: n, per problem.
        correct: c of them.
        k: tries, at most the least n.

    Returns:
        One value per problem, of the broadcast shape.

    Raises:
        ValueError: counts that are not whole, k above n, or c outside 0 to n.

    Example:
        >>> at_least_one(10, [0, 1, 5, 10], 3).round(4).tolist()
        [0.0, 0.3, 0.9167, 1.0]
    """
    n, c = _counts(samples, correct)
    if not 1 <= k <= n.min() or k != int(k):
        raise ValueError(
            f"needed a whole k from 1 to the samples, got k = {k} and {n.min()} samples. Sample more, or lower k"
        )
    k = int(k)
    i = np.arange(int(n.max()) + 1)
    # log C(m, k) up to a constant that cancels: sums of log(1 - k/i) from k+1 on; -inf below k
    logs = np.full(len(i), -np.inf)
    logs[k:] = np.concatenate([[0.0], np.cumsum(-np.log1p(-k / i[k + 1 :]))])
    out: Array = 1.0 - np.exp(logs[n - c] - logs[n])
    return out


def pass_at_k(samples: Any, correct: Any, k: int, *, coverage: float = 0.9, seed: int = 0) -> Measured:
    """pass@k with its interval: of one problem, or the mean over problems.

    Args:
        samples, correct: numbers, or one entry per problem.
        k: tries.
        coverage: of the interval. One problem: exact, Clopper and Pearson's for p carried through
            ``1 - (1-p)^k``. Several: a bootstrap over the problems, so it is for a benchmark of such problems; where
            all have 0, or all 1, which no bootstrap sees beyond, the end of :func:`unseen`.
        seed: of the bootstrap.

    Raises:
        ValueError: counts that are not whole, k above n, or c outside 0 to n.

    Example:
        >>> print(pass_at_k(20, 3, 5))
        0.6009 (90% interval 0.1938 to 0.8782; unbiased; exact interval)
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    values = at_least_one(samples, correct, k)
    below, above = (1 - coverage) / 2, (1 + coverage) / 2
    if values.size == 1:
        n, c = (int(entry.reshape(-1)[0]) for entry in _counts(samples, correct))
        rates = (
            beta_quantile(below, c, n - c + 1) if c else 0.0,
            beta_quantile(above, c + 1, n - c) if c < n else 1.0,
        )
        low, high = (1 - (1 - p) ** k for p in rates)
        return Measured(float(values.reshape(-1)[0]), low, high, coverage, "unbiased; exact interval")
    flat = values.reshape(-1)
    rng = np.random.default_rng(seed)
    means = np.array([flat[rng.integers(0, flat.size, flat.size)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [below, above])
    if flat.max() == 0.0:
        high = unseen(flat.size, coverage)
    elif flat.min() == 1.0:
        low = 1.0 - unseen(flat.size, coverage)
    how = f"unbiased; bootstrap over {flat.size} problems"
    return Measured(float(flat.mean()), float(low), float(high), coverage, how)


def unseen(problems: int, coverage: float) -> float:
    r"""The upper end for the mean of shares of which ``problems`` were seen, all 0.

    A share with mean m is 0 with a probability of at most 1 - m, so n of them with at most :math:`(1-m)^n`:

    .. math:: 1 - \left(\tfrac{1 - \mathrm{coverage}}{2}\right)^{1/n}

    Example:
        >>> round(unseen(30, 0.9), 4)
        0.095
    """
    return float(1.0 - ((1.0 - coverage) / 2) ** (1.0 / problems))


def _counts(samples: Any, correct: Any) -> tuple[Array, Array]:
    try:
        n, c = np.broadcast_arrays(np.asarray(samples, dtype=float), np.asarray(correct, dtype=float))
    except (TypeError, ValueError):
        raise ValueError(
            f"needed counts of samples and of correct ones, one each per problem, got {samples!r} and {correct!r}"
        ) from None
    if n.size == 0:
        raise ValueError("needed at least one problem, got none")
    if not (np.all(np.isfinite(n)) and np.all(n == np.round(n)) and np.all(c == np.round(c))):
        raise ValueError("needed whole numbers of samples and correct ones. Give counts, not rates")
    if np.any(c < 0) or np.any(c > n):
        raise ValueError("needed 0 <= correct <= samples for every problem")
    return n.astype(int), c.astype(int)
