"""Hu et al. 2023, Predicting Emergent Abilities with Infinite Resolution Evaluation, arXiv:2310.03262."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Law, positive, real


class TaskLaw(Law):
    r"""Pass rate of one task, or of one instance, by size: a task passes if all its tokens are right.

    .. math:: -\log \mathrm{PU}(N) = c N^{-\alpha}

    A pass rate of 1e-5 lies on the same line of ``log(-log PU)`` over ``log N`` as one of 0.5, so a task
    that seems to emerge can be foretold, if enough samples are taken of the small models. For many instances
    at once, and for those that never pass, :func:`isoloss.observing.fit_instances`.

    Inputs:
        params: N [count].
    Returns:
        pass_rate: share of samples that pass [0 to 1].
    Valid for:
        One instance, or instances alike: a mean of such curves is not such a curve. Rates of
        :func:`isoloss.observing.pass_until`, above zero: fitted by their logarithms, whose noise is about
        1/sqrt(passes) at any rate. A rate of zero has no logarithm and is refused; leaving it out makes the
        small models look better than they are, so sample on, or fit the counts.
    Source:
        The task scaling law; each token's loss is taken to fall as a power of N.
    Example:
        >>> TaskLaw().evaluate([400.0, 0.25], params=[1e8, 1.6e9]).round(6).tolist()
        [0.018316, 0.135335]
    """

    axes = ("params",)
    target = "pass_rate"
    formula = "exp(-c N^-alpha)"
    paper = "Hu et al. 2023, arXiv:2310.03262"
    parameters = (
        positive("c", 1e-6, 1e30, "minus log pass rate at N = 1"),
        real("alpha", 0.0, 2.5, "exponent"),
    )

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; in logs, because c and the power overflow."""
        c, alpha = theta
        return np.exp(-np.exp(np.log(c) - alpha * np.log(x["params"])))
