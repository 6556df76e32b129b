"""Daras et al. 2024, How much is a noisy image worth?, arXiv:2411.02780."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, positive, real


class Ambient(Law):
    r"""A noisy sample counts as a part of a clean one.

    .. math:: \mathrm{err} = E + B \left(n_c + n_n/p\right)^{-\beta}

    p is the price of a clean sample in noisy ones. For the mean of a normal variable of variance s^2, samples
    with known noise of variance sigma^2 added, it is exact: E = 0, B = s^2, beta = 1 (squared error),
    p = 1 + sigma^2/s^2.

    Inputs:
        samples_clean: n_c, clean samples [count]. samples_noisy: n_n, samples known at one noise level only
        [count]. Either may be 0, not both.
    Returns:
        Error, FID or another score that falls with data, as the column of the target holds it.
    Valid for:
        One noise level, and numbers of samples like those seen. By the paper's theory a noisy sample is worth less and
        less as samples grow in number, and a few clean ones repair it: then the price found holds near the rows, and
        the rows show it as a trend of the residuals.
    Source:
        The question and what was found. The form is the simplest with a price, chosen here, not a formula of the paper.
    Example:
        >>> law = Ambient()
        >>> law.evaluate([1e-9, 1.0, 1.0, 2.0], samples_clean=[100, 0], samples_noisy=[0, 200]).round(4).tolist()
        [0.01, 0.01]
    """

    axes = ("samples_clean", "samples_noisy")
    target = "error"
    may_be_zero = ("samples_clean", "samples_noisy")
    formula = "E + B (n_c + n_n/price)^-beta"
    paper = "Daras et al. 2024, arXiv:2411.02780"
    parameters = (
        positive("E", 1e-9, 1e6, "irreducible error"),
        positive("B", 1e-12, 1e30, "size of the data term"),
        real("beta", 0.02, 2.5, "exponent of samples"),
        positive("price", 0.1, 1e6, "noisy samples that are worth a clean one"),
    )

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """A run has samples."""
        return x["samples_clean"] + x["samples_noisy"] > 0, "samples_clean + samples_noisy above 0"

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """The data term is 1e-6 to 1e3 of the errors where the rows lie, whatever the unit of the samples."""
        top = float(np.max(y))
        middle = float(np.mean(np.log(x["samples_clean"] + x["samples_noisy"])))
        ends = sorted((0.02 * middle, 2.5 * middle))
        low, high = math.log(1e-6 * top) + ends[0], math.log(1e3 * top) + ends[1]
        return {
            "E": (1e-6 * top, top),
            "B": (math.exp(max(low, -650.0)), math.exp(min(high, 650.0))),
        }

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`."""
        floor, size, beta, price = theta
        effective = x["samples_clean"] + x["samples_noisy"] / price
        return floor + size * np.exp(-beta * np.log(effective))
