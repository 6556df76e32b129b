"""Tissue et al. 2024, Scaling Law with Learning Rate Annealing, arXiv:2408.11029."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.laws.law import positive, real
from isoloss.laws.schedules.schedule_law import KernelSlopes, ScheduleLaw

Array = np.ndarray[Any, np.dtype[Any]]


class LrAnnealing(ScheduleLaw):
    r"""A power of the summed rate, less the annealed area: each lowering of the rate with a fading momentum.

    .. math:: L(t) = L_0 + A\,S_1(t)^{-\alpha} - C\,S_2(t), \quad
        S_2(t) = \sum_{i \le t} m_i, \quad m_i = \lambda m_{i-1} + (\eta_{i-1} - \eta_i)

    so that one lowering by :math:`\Delta` at step k adds :math:`\Delta (1 - \lambda^{t-k+1})/(1 - \lambda)` to
    :math:`S_2`. It is held here as the momentum's memory in steps, ``memory = 1/(1 - lambda)``: the paper's 0.99 to
    0.999 are 100 to 1000. The warm-up is in :math:`S_1` and not in :math:`S_2`.

    Inputs:
        A schedule: rates of every step, raw.
    Returns:
        Loss [nats/token].
    Valid for:
        The batch, optimiser and peak rate of the curves. A lowering gains the same whatever the rate is afterwards,
        up to ``C memory`` times the rate given up, even at a rate of 0, where nothing is learnt: low rates for long
        are predicted too low, and the schedule that minimises the law is one sudden fall, an artefact.
    Source:
        Equation of the abstract; lambda is chosen by hand there, from 0.99 to 0.999; here it may be fitted.
    Example:
        >>> from isoloss.laws.schedules.schedule import Schedule
        >>> falling = Schedule.two_stage(steps=6, peak=2.0, end=1.0, at=3)
        >>> LrAnnealing().value([1.0, 2.0, 1.0, 0.1, 2.0], falling, [2, 4]).round(6).tolist()
        [1.5, 1.183333]
    """

    parameters = (
        real("L0", 0.0, 20.0, "loss at the end of time, before annealing"),
        positive("A", 1e-6, 1e3, "size of the power of the summed rate"),
        real("alpha", 0.01, 3.0, "exponent of the summed rate"),
        positive("C", 1e-6, 1e3, "gain per unit of annealed area"),
        positive("memory", 10.0, 1e5, "steps of the momentum, 1/(1 - lambda)"),
    )
    counts_warmup = False
    gains_at_rest = True
    formula = "L0 + A S1^-alpha - C S2"
    paper = "Tissue et al. 2024, arXiv:2408.11029"

    def kernel(self, theta: Array, ages: Array, gaps: Array, log_rates: Array) -> Array:
        """``C memory (1 - lambda^age)``, see :meth:`ScheduleLaw.kernel`."""
        gain, memory = theta[3], theta[4]
        return np.asarray(-gain * memory * np.expm1(ages * np.log1p(-1.0 / memory)))

    def kernel_slopes(self, theta: Array, ages: Array, gaps: Array, log_rates: Array) -> KernelSlopes:
        """See :meth:`ScheduleLaw.kernel_slopes`."""
        gain, memory = theta[3], theta[4]
        faded = np.expm1(ages * np.log1p(-1.0 / memory))  # lambda^age - 1
        in_memory = -gain * (faded + (1.0 + faded) * ages / (memory - 1.0))
        nothing = np.zeros_like(faded)
        return KernelSlopes(-gain * memory * faded, (-memory * faded, in_memory), nothing, nothing)
