"""Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv:2202.01169."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoloss.laws.law import Array, Law, Published, positive, real

_TABLE = "arXiv:2202.01169, table 3: fit of {} to runs of 15M to 1.3B dense size and 1 to 512 experts"
_NAMES = ("a", "b", "c", "d", "E_start", "E_max")


def _printed(router: str, values: tuple[float, ...]) -> Published:
    return Published(dict(zip(_NAMES, values, strict=True)), _TABLE.format(router))


def saturation(experts: Any, start: Any, most: Any) -> Any:
    r"""Saturated experts over their value at one expert, :math:`\hat E(E) / E_{\mathrm{start}}`.

    The paper's :math:`1/\hat E = 1/(E - 1 + (1/E_{start} - 1/E_{max})^{-1}) + 1/E_{max}`, with both sides divided
    so that it is exactly 1 at one expert:

    .. math:: \frac{\hat E}{E_{start}} = \frac{1 + (E-1) (E_{max} - E_{start})/(E_{start} E_{max})}{1 + (E-1)
        (E_{max} - E_{start})/E_{max}^2}

    Args:
        experts: E, at least 1.
        start, most: E_start and E_max.

    Returns:
        Between 1 and ``most/start``; NaN below one expert, or where ``most`` is below ``start``.

    Example:
        >>> saturation(np.array([1.0, 8.0, 512.0]), 1.847, 314.478).round(2).tolist()
        [1.0, 4.66, 105.55]
    """
    gap = (most - start) / most
    ratio = (1.0 + (experts - 1.0) * gap / start) / (1.0 + (experts - 1.0) * gap / most)
    return np.where((experts >= 1.0) & (most >= start), ratio, np.nan)


def saturation_ranges(experts: Array) -> dict[str, tuple[float, float]]:
    """Ranges of E_start and E_max that do not overlap: they part at the root of the most experts in the table.

    Example:
        >>> saturation_ranges(np.array([1, 4, 256]))
        {'E_start': (0.05, 16.0), 'E_max': (16.0, 256000.0)}
    """
    top = float(np.max(experts))
    middle = max(5.0, math.sqrt(top))
    return {"E_start": (0.05, middle), "E_max": (middle, 1e3 * max(middle, top))}


def cutoff(b: Array | float, c: Array | float) -> Array:
    r""":math:`N_{\mathrm{cutoff}} = 10^{-b/c}`: where the slope of log loss in log experts, ``b + c log10 N``, is 0.

    Args:
        b, c: of :class:`Clark`; of :class:`isoloss.laws.parts.routed.Routed`, whose slope is that of a size and not
            of a loss, ``-b_E`` and ``-c_E``.

    Returns:
        The size beyond which more experts raise the loss; infinite where there is none (c at or below 0). With its
        interval: :func:`isoloss.fitting.derived.cutoff` of a fit.

    Example:
        >>> cutoff(-0.108, [0.009, 0.0]).tolist()
        [1000000000000.0, inf]
    """
    b, c = np.broadcast_arrays(np.asarray(b, dtype=float), np.asarray(c, dtype=float))
    with np.errstate(over="ignore"):
        return np.where(c > 0, 10.0 ** (-b / np.where(c > 0, c, 1.0)), np.inf)


class Clark(Law):
    r"""Loss of a model that routes each token to one of E experts, from its dense size and E.

    .. math::
        \log_{10} L = a \log_{10} N + b \log_{10} \hat E + c \log_{10} N \log_{10} \hat E + d,\quad
        \frac{1}{\hat E} = \frac{1}{E - 1 + (1/E_{start} - 1/E_{max})^{-1}} + \frac{1}{E_{max}}

    The saturated count is E_start at one expert (a dense model) and E_max at endlessly many. With c > 0 the gain
    shrinks with size and ends at ``N_cutoff = 10^(-b/c)``, beyond which more experts raise the loss
    (:func:`isoloss.laws.clark.cutoff`). That is a claim of the law, and not an error.

    Inputs:
        params_active: N, the parameters that one token sees: the size of the dense model with the same layers
            [count]. experts: E, per routed layer, 1 for a dense model [count].
    Returns:
        Loss [nats/token].
    Valid for:
        One number of training tokens, the same in all runs (130e9 in the paper): the law has no axis of data. It
        has no floor either, and N_cutoff rests on that: with one (``henighan(params_active) * routed``) the paper's
        runs put it far beyond any model.
        One expert per token, every second layer routed, 15M to 1.3B dense size, up to 512 experts. E_max is
        weakly identified: ask for its interval.
    Source:
        Eq. 1 with the saturation of E; constants of table 3. They have two or three digits, and N_cutoff is not
        reproduced by them: 1.0e12, 3.2e10 and 2.2e11 of the rounded b and c, 937e9, 85e9 and 83e9 printed.
    Example:
        >>> law = Clark()
        >>> theta = law.theta("s-base-2022")
        >>> law.evaluate(theta, params_active=1.3e9, experts=[1, 512]).round(4).tolist()
        [2.2374, 1.9823]
    """

    axes = ("params_active", "experts")
    formula = "10^(a log N + b log E^ + c log N log E^ + d), E^ from E_start at E = 1 to E_max"
    paper = "Clark et al. 2022, arXiv:2202.01169, eq. 1"
    parameters = (
        real("a", -1.0, 0.5, "slope in log size at E^ = 1"),
        real("b", -3.0, 3.0, "slope in log experts at N = 1"),
        real("c", -0.5, 0.5, "change of either slope with the other: above 0, the gain shrinks with size"),
        real("d", -5.0, 10.0, "log10 of the loss at N = E^ = 1"),
        positive("E_start", 0.05, 1e3, "experts that a dense model counts as"),
        positive("E_max", 1.0, 1e6, "experts that endlessly many count as"),
    )
    published = {
        "s-base-2022": _printed("S-BASE", (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478)),
        "rl-r-2022": _printed("RL-R", (-0.083, -0.126, 0.012, 1.111, 1.880, 469.982)),
        "hash-2022": _printed("HASH", (-0.087, -0.136, 0.012, 1.157, 4.175, 477.741)),
    }

    def ranges(self, x: Mapping[str, Array], y: Array) -> dict[str, tuple[float, float]]:
        """Where saturation begins and ends: :func:`saturation_ranges`."""
        return saturation_ranges(x["experts"])

    def accepts(self, x: Mapping[str, Array]) -> tuple[Array, str]:
        """A dense model is one expert."""
        return x["experts"] >= 1, "experts at or above 1"

    def value(self, theta: Sequence[Any], x: Mapping[str, Any]) -> Any:
        """See :meth:`isoloss.laws.law.Law.value`; NaN where E_max is below E_start."""
        a, b, c, d, start, most = theta
        size = np.log10(x["params_active"])
        experts = np.log10(start * saturation(x["experts"], start, most))
        return np.exp(math.log(10) * (a * size + b * experts + c * size * experts + d))
