"""What a law of schedules is: a power of the summed rate, less what each change of the rate has brought by now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoloss.laws.law import Parameter, Published, slug_of
from isoloss.laws.schedules.course import MERGE, TINY, Course, course
from isoloss.laws.schedules.schedule import Schedule

if TYPE_CHECKING:
    from isoloss.laws.schedules.on import OnSchedules

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class KernelSlopes:
    """A kernel at M changes with its derivatives.

    Attributes:
        value: ``g``, (M,).
        theta: derivative in each parameter after alpha, each (M,).
        gap: derivative in ``S_1(t) - S_1(k-1)``, (M,).
        log_rate: derivative in ``log eta_k``, (M,).
    """

    value: Array
    theta: tuple[Array, ...]
    gap: Array
    log_rate: Array


class ScheduleLaw(ABC):
    r"""The loss at step t of a run under any learning-rate schedule.

    .. math:: L(t) = L_0 + A\,S_1(t)^{-\alpha} - \sum_{k \le t} (\eta_{k-1} - \eta_k)\, g(k, t)

    with :math:`S_1(t) = \sum_{\tau=1}^{t} \eta_\tau`. A subclass gives ``g`` and its derivatives. The first three
    parameters are L0, A and alpha.

    Class attributes:
        parameters: the entries of theta, in order.
        counts_warmup: whether the rise of the warm-up is among the changes.
        gains_at_rest: whether a lowered rate goes on bringing its gain whatever the rate then is, even near 0.
        axes, target: columns of a table of curves, for listings.
        formula: one line for tables.
        paper: one line: who, when, arXiv.
        published: named thetas of the literature.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    counts_warmup: ClassVar[bool] = True
    gains_at_rest: ClassVar[bool] = False
    axes: ClassVar[tuple[str, ...]] = ("step", "lr")
    target: ClassVar[str] = "loss"
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    published: ClassVar[Mapping[str, Published]] = {}

    @abstractmethod
    def kernel(self, theta: Array, ages: Array, gaps: Array, log_rates: Array) -> Array:
        """``g``: what one unit of rate given up has brought.

        Args:
            theta: one theta, (P,).
            ages: ``t - k + 1``, (M,).
            gaps: ``S_1(t) - S_1(k-1)``, (M,).
            log_rates: ``log eta_k``, (M,).
        """

    @abstractmethod
    def kernel_slopes(self, theta: Array, ages: Array, gaps: Array, log_rates: Array) -> KernelSlopes:
        """``g`` with its exact derivatives, same arguments."""

    @property
    def slug(self) -> str:
        """The law's name on the command line and in files."""
        return slug_of(type(self).__name__)

    @property
    def spec(self) -> str:
        """The same: a law of schedules has no parts."""
        return self.slug

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of theta."""
        return tuple(parameter.name for parameter in self.parameters)

    def theta(self, values: Mapping[str, float] | str) -> Array:
        """Theta of shape (P,) from a mapping, or from the name of a published fit.

        Raises:
            ValueError: a parameter is missing or unknown, or there is no such fit.
        """
        if isinstance(values, str):
            if values not in self.published:
                known = ", ".join(self.published) or "none"
                raise ValueError(f"{self.slug} has no published fit {values!r}. Known: {known}")
            values = self.published[values].values
        if set(values) != set(self.names):
            raise ValueError(f"{self.slug} needs parameters {list(self.names)}, got {list(values)}")
        return np.array([float(values[name]) for name in self.names])

    def value(self, theta: Any, schedule: Schedule, steps: Any = None, *, merge: float = MERGE) -> Array:
        """The loss for every theta at every step.

        Args:
            theta: shape (..., P).
            schedule: T steps.
            steps: whole numbers from 1 to T, (n,); default the last.
            merge: see :class:`~isoloss.laws.schedules.course.Course`; 0 sums every change by itself.

        Returns:
            Shape (..., n), nats per token.

        Raises:
            ValueError: theta of another length, or a step outside the schedule.
        """
        return self.at(theta, self.course(schedule, schedule.steps if steps is None else steps, merge))

    def course(self, schedule: Schedule, steps: Any, merge: float = MERGE) -> Course:
        """The schedule as this law sees it from ``steps``."""
        return course(schedule, steps, merge, self.counts_warmup)

    def at(self, theta: Any, seen: Course) -> Array:
        """The same for a schedule already seen from its steps."""
        array = np.asarray(theta, dtype=float)
        if array.ndim == 0 or array.shape[-1] != len(self.parameters):
            raise ValueError(
                f"{self.slug} needs theta of shape (..., {len(self.parameters)}): {', '.join(self.names)}; "
                f"got shape {array.shape}"
            )
        flat = array.reshape(-1, array.shape[-1])
        out = np.stack([self._one(theta, seen) for theta in flat])
        return out.reshape((*array.shape[:-1], len(seen.steps)))

    def _one(self, theta: Array, seen: Course) -> Array:
        """One theta: its arrays stay in the cache, which is faster than all thetas at once."""
        slow = theta[0] + theta[1] * np.exp(-theta[2] * np.log(seen.sums))
        gained = seen.total(seen.drops * self.kernel(theta, seen.ages, seen.gaps, seen.log_rates))
        return np.asarray(slow - gained)

    def slopes(self, theta: Array, seen: Course) -> tuple[Array, Array]:
        """The loss at every step for one theta (P,), and its derivative in every parameter: (n,) and (P, n)."""
        logs = np.log(seen.sums)
        power = np.exp(-theta[2] * logs)
        found = self.kernel_slopes(theta, seen.ages, seen.gaps, seen.log_rates)
        rows = [found.value, *found.theta]
        gained, *parts = (seen.total(seen.drops * row) for row in rows)
        slow = [np.ones_like(power), power, -theta[1] * logs * power]
        return theta[0] + theta[1] * power - gained, np.stack([*slow, *(-part for part in parts)])

    def on(self, schedules: Sequence[Schedule]) -> OnSchedules:
        """This law on given schedules: a law of (curve, step), curve from 1."""
        from isoloss.laws.schedules.on import OnSchedules

        return OnSchedules(self, tuple(schedules))

    def ranges(self, sums: Array, y: Array) -> dict[str, tuple[float, float]]:
        """Bounds of parameters that follow from the data: the summed rate and the loss of each row, (n,)."""
        lowest, spread = float(np.min(y)), float(np.ptp(y))
        middle = float(np.exp(np.mean(np.log(sums))))
        return {
            "L0": (0.0, lowest),
            "A": (
                1e-3 * max(spread, 1e-6) * min(1.0, middle) ** 3,
                1e2 * float(np.max(y)) * max(1.0, middle) ** 3,
            ),
        }

    def slope(self, theta: Array, schedule: Schedule) -> tuple[float, Array]:
        r"""The loss at the last step T, and its derivative in every rate, exact.

        .. math:: \frac{\partial L}{\partial \eta_j} = -\alpha A S_1^{-\alpha-1} + g_j - g_{j+1}
            - \frac{\Delta_j}{\eta_j} \frac{\partial g_j}{\partial \log \eta_j}
            - \sum_{k \le j} \Delta_k \frac{\partial g_k}{\partial s_k}

        with :math:`\Delta_k = \eta_{k-1} - \eta_k`, :math:`s_k = \sum_{\tau=k}^{T} \eta_\tau`, :math:`g_{T+1} = 0`.

        Args:
            theta: shape (P,).
            schedule: T steps.

        Returns:
            The loss, and the derivative in the rates of steps 1 to T, (T,).
        """
        rates, sums, steps = schedule.rates, schedule.sums, schedule.steps
        floor = np.maximum(rates[1:], TINY)
        g = self.kernel_slopes(theta, np.arange(steps, 0.0, -1.0), sums[-1] - sums[:-1], np.log(floor))
        drops = rates[:-1] - rates[1:]
        live = np.ones(steps)
        if not self.counts_warmup:
            live[: schedule.warmup] = 0.0
        value, drops = live * g.value, live * drops
        level, size, exponent = (float(part) for part in theta[:3])
        reach = float(sums[-1])
        loss = level + size * reach**-exponent - float(np.sum(drops * value))
        gain = np.append(value[1:], 0.0) - value + np.cumsum(drops * g.gap) + drops * g.log_rate / floor
        return loss, -exponent * size * reach ** (-exponent - 1.0) - gain
