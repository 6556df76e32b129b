"""How many pools of data to train on, the best first: depends on how long the training is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoloss.fitting.result import Fit
from isoloss.laws.data_filtering import DataFiltering
from isoloss.planning.fitted import refuse_unusable
from isoloss.planning.result import Quantity, spread

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PoolChoice:
    """What to train on for one number of samples.

    Attributes:
        samples: samples seen.
        pools: names of the pools of the best union, best pool first.
        error: predicted error with them; the interval is over the draws.
        errors: of the best 1, 2, ... pools.
        chances: part of the draws in which the best 1, 2, ... pools give the least error.
        coverage: of the intervals.
    """

    samples: float
    pools: tuple[str, ...]
    error: Quantity
    errors: tuple[Quantity, ...]
    chances: tuple[float, ...]
    coverage: float


def best_pools(
    fit: Fit,
    sizes: Mapping[str, float],
    samples: Sequence[float],
    *,
    coverage: float | None = None,
) -> tuple[PoolChoice, ...]:
    """For each number of samples the union of pools with the least predicted error.

    Pools are joined in the order of their exponents, the best first, as a filter with a falling threshold does: few
    pools are an aggressive filter, all of them none. Samples are drawn evenly from the union and repeated if they
    outnumber it.

    Args:
        fit: of :class:`~isoloss.laws.data_filtering.DataFiltering` on several pools.
        sizes: pool -> distinct samples that it has.
        samples: numbers of samples to be seen.
        coverage: of the intervals; default the fit's.

    Returns:
        One choice for each number of samples. The order of the pools is that of the best parameters in every draw.

    Raises:
        ValueError: a fit of another law, or of one pool; sizes or samples that are not above 0, or of other pools.
        NoAnswer: the fit has no draws or too few rows, or is not identified.

    Source:
        Goyal et al. 2024, arXiv:2404.07177: mixtures of pools predicted from runs on single pools.

    Example:
        >>> import isoloss
        >>> seen, size = np.tile(np.geomspace(4e6, 2e8, 8), 2), 1e7
        >>> own = np.repeat([True, False], 8)
        >>> x = {"samples": seen, "pool_good": np.where(own, size, 0), "pool_rest": np.where(own, 0, size)}
        >>> law = DataFiltering(("pool_good", "pool_rest"))
        >>> error = law.evaluate([1e6, 0.1, -0.3, 2.0, -0.2, 6.0], **x)
        >>> fit = isoloss.fit(law, {**x, "error": error}, draws=50, sensitivity=False)
        >>> [c.pools for c in best_pools(fit, {"good": 1e7, "rest": 1e7}, [1e7, 1e8])]
        [('good',), ('good', 'rest')]
    """
    law = _checked(fit)
    coverage = fit.coverage if coverage is None else coverage
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    given = [float(sizes[name]) if name in sizes else np.nan for name in law.names_of_pools]
    if set(sizes) != set(law.names_of_pools) or not (np.isfinite(given) & (np.array(given) > 0)).all():
        raise ValueError(
            f"best_pools needs the size of each of {', '.join(law.names_of_pools)}, above 0, got {dict(sizes)}"
        )
    worth = [fit.values[f"b_{name}"] for name in law.names_of_pools]
    order = np.argsort(worth, kind="stable")
    return tuple(_choice(fit, law, order, np.array(given), float(n), coverage) for n in samples)


def _checked(fit: Fit) -> DataFiltering:
    law = fit.law
    if not isinstance(law, DataFiltering) or len(law.pools) < 2:
        raise ValueError(
            f"best_pools needs a fit of data-filtering on several pools, got {law.spec}. Fit "
            "'data-filtering(pool_a, pool_b)' to runs on single pools"
        )
    refuse_unusable(fit)
    return law


def _choice(
    fit: Fit, law: DataFiltering, order: Array, sizes: Array, samples: float, coverage: float
) -> PoolChoice:
    taken = np.zeros((len(order), len(order)))  # union, pool
    for count in range(1, len(order) + 1):
        taken[count - 1, order[:count]] = sizes[order[:count]]
    x = {"samples": samples, **{pool: taken[:, j] for j, pool in enumerate(law.pools)}}
    plug_in = law.evaluate(fit.theta, **x)
    draws = law.evaluate(fit.draws, **x)
    best = int(np.argmin(plug_in))
    errors = tuple(Quantity(float(plug_in[k]), *spread(draws[:, k], coverage)) for k in range(len(order)))
    chosen = np.argmin(draws, axis=1)
    return PoolChoice(
        samples,
        tuple(law.names_of_pools[j] for j in order[: best + 1]),
        errors[best],
        errors,
        tuple(float(np.mean(chosen == k)) for k in range(len(order))),
        coverage,
    )
