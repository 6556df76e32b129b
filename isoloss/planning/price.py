"""What a clean sample costs in noisy ones, at the margin: from a fitted surface of both."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.errors import NoAnswer
from isoloss.fitting.result import Fit
from isoloss.laws.dual import Dual
from isoloss.laws.law import Law
from isoloss.planning.fitted import refuse_unusable
from isoloss.planning.result import Quantity, spread

Array = np.ndarray[Any, np.dtype[Any]]

AXES = ("samples_clean", "samples_noisy")


def noisy_price(
    fit: Fit, *, samples_clean: float, samples_noisy: float, coverage: float | None = None
) -> Quantity:
    r"""Noisy samples that one clean sample is worth, when there are so many of each.

    .. math:: \lambda = \frac{\partial\,\mathrm{err}/\partial n_c}{\partial\,\mathrm{err}/\partial n_n}

    For :class:`~isoloss.laws.ambient.Ambient` it is the price, the same everywhere; another law of the same two axes
    may have it change with the numbers.

    Args:
        fit: of a law of ``samples_clean`` and ``samples_noisy``.
        samples_clean, samples_noisy: where; either may be 0 if the law allows it.
        coverage: of the interval; default the fit's.

    Returns:
        The price; infinite where a noisy sample changes nothing.

    Raises:
        ValueError: the law has other axes, or cannot mean the point.
        NoAnswer: the fit has no draws or too few rows or is not identified, or the surface is flat in both there.

    Source:
        Daras et al. 2024, arXiv:2411.02780: the question.

    Example:
        >>> import isoloss
        >>> clean, noisy = (grid.ravel() for grid in np.meshgrid([0, 100, 400, 1600], [50, 200, 800, 3200]))
        >>> table = {"samples_clean": clean, "samples_noisy": noisy, "error": 0.1 + 5 * (clean + noisy / 4) ** -0.5}
        >>> fit = isoloss.fit("ambient", table, draws=50, sensitivity=False)
        >>> round(noisy_price(fit, samples_clean=100, samples_noisy=1000).value, 3)
        4.0
    """
    law = fit.law
    if set(law.axes) != set(AXES):
        raise ValueError(
            f"noisy_price needs a law of {' and '.join(AXES)}, got {law.spec} of {list(law.axes)}"
        )
    coverage = fit.coverage if coverage is None else coverage
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, got {coverage}")
    refuse_unusable(fit)
    at = law.inputs({"samples_clean": samples_clean, "samples_noisy": samples_noisy})
    if next(iter(at.values())).size != 1:
        raise ValueError(
            f"noisy_price needs one point, got samples_clean {samples_clean} and samples_noisy {samples_noisy}"
        )
    value = float(_ratio(law, fit.theta[None], at)[0])
    if np.isnan(value):
        raise NoAnswer(
            f"the error changes with neither kind of sample at {samples_clean:g} clean and {samples_noisy:g} noisy",
            "a point nearer to the rows",
        )
    return Quantity(value, *spread(_ratio(law, fit.draws, at), coverage))


def _ratio(law: Law, theta: Array, at: dict[str, Array]) -> Array:
    """The ratio of the two slopes per sample (not per cent, which is nothing at 0), (draws,)."""
    duals = {
        axis: Dual(np.atleast_1d(at[axis]).astype(float), {i: np.ones(1)}) for i, axis in enumerate(law.axes)
    }
    out = law.value(tuple(theta[:, p, None] for p in range(theta.shape[1])), duals)
    slopes = {
        axis: np.broadcast_to(out.partials.get(i, np.zeros(1)), out.value.shape)[:, 0]
        for i, axis in enumerate(law.axes)
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(slopes[AXES[0]] / slopes[AXES[1]])
