"""Luo et al. 2025, A Multi-Power Law for Loss Curve Prediction Across Learning Rate Schedules, arXiv:2503.12811."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.laws.law import Published, positive, real
from isoloss.laws.schedules.schedule_law import KernelSlopes, ScheduleLaw

Array = np.ndarray[Any, np.dtype[Any]]

_SOURCE = (
    "Luo et al. 2025, arXiv:2503.12811, updated table of its repository, three digits; warm-up of 2,160 steps in "
    "S1 and in LD, peak 3e-4"
)


class MultiPower(ScheduleLaw):
    r"""A power of the summed rate, less a saturating power for every lowering of the rate.

    .. math:: L(t) = L_0 + A\,S_1(t)^{-\alpha} - B \sum_{k \le t} (\eta_{k-1} - \eta_k)\,
        G\big(\eta_k^{-\gamma} S_k(t)\big), \quad G(x) = 1 - (1 + C x)^{-\beta}, \quad
        S_k(t) = \sum_{\tau=k}^{t} \eta_\tau

    The warm-up is in :math:`S_1` and, as a rise, in the sum with its negative sign, as in the published constants.

    Inputs:
        A schedule: rates of every step, raw.
    Returns:
        Loss [nats/token].
    Valid for:
        The batch, optimiser and peak rate of the curves. A lowering to a small rate brings its gain slowly, and at
        most ``B`` times the rate given up, so the gain of annealing is bounded.
    Source:
        Equation of the abstract and the increments as in its published code: the change at step k with
        :math:`\eta_k^{-\gamma}` and :math:`S_k(t) = S_1(t) - S_1(k-1)`.
    Example:
        >>> from isoloss.laws.schedules.schedule import Schedule
        >>> falling = Schedule.two_stage(steps=6, peak=2.0, end=1.0, at=3)
        >>> MultiPower().value([1.0, 2.0, 1.0, 0.1, 1.0, 1.0, 0.5], falling, [2, 4]).round(6).tolist()
        [1.5, 1.266667]
    """

    parameters = (
        real("L0", 0.0, 20.0, "loss at the end of time, before annealing"),
        positive("A", 1e-6, 1e3, "size of the power of the summed rate"),
        real("alpha", 0.01, 3.0, "exponent of the summed rate"),
        positive("B", 1e-3, 1e6, "most that one unit of rate given up can bring"),
        positive("C", 1e-4, 1e4, "speed of the gain"),
        real("beta", 0.01, 3.0, "exponent of the gain"),
        real("gamma", 0.0, 2.0, "exponent of the rate in the gain"),
    )
    formula = "L0 + A S1^-alpha - B sum_k (eta_(k-1) - eta_k) (1 - (1 + C eta_k^-gamma S_k)^-beta)"
    paper = "Luo et al. 2025, arXiv:2503.12811"
    published = {
        "luo-2025-25m": Published(
            {"L0": 3.040, "A": 0.525, "alpha": 0.508, "B": 363.8, "C": 2.066, "beta": 0.583, "gamma": 0.641},
            f"{_SOURCE}; 25M",
        ),
        "luo-2025-100m": Published(
            {"L0": 2.651, "A": 0.601, "alpha": 0.453, "B": 437.9, "C": 2.132, "beta": 0.598, "gamma": 0.655},
            f"{_SOURCE}; 100M",
        ),
        "luo-2025-400m": Published(
            {"L0": 2.375, "A": 0.654, "alpha": 0.429, "B": 523.4, "C": 2.025, "beta": 0.594, "gamma": 0.635},
            f"{_SOURCE}; 400M",
        ),
    }

    def kernel(self, theta: Array, ages: Array, gaps: Array, log_rates: Array) -> Array:
        """``B G``, see :meth:`ScheduleLaw.kernel`."""
        size, speed, beta, gamma = theta[3:]
        reach = 1.0 + speed * gaps * np.exp(-gamma * log_rates)
        return np.asarray(size - size * np.exp(-beta * np.log(reach)))

    def kernel_slopes(self, theta: Array, ages: Array, gaps: Array, log_rates: Array) -> KernelSlopes:
        """See :meth:`ScheduleLaw.kernel_slopes`."""
        size, speed, beta, gamma = theta[3:]
        scale = speed * np.exp(-gamma * log_rates)
        reach = 1.0 + scale * gaps
        log = np.log(reach)
        left = np.exp(-beta * log)  # 1 - G
        per_gap = size * beta * left * scale / reach
        along = per_gap * gaps
        in_theta = (1.0 - left, along / speed, size * log * left, -along * log_rates)
        return KernelSlopes(size - size * left, in_theta, per_gap, -gamma * along)
