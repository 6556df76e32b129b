r"""Which settings serve most tokens a second: a search that measures a quarter of what a map of the whole grid would take.

Throughput over batch, threads and cache has ridges and cliffs (memory, paging, shared cores), and every measurement is noisy.
The logarithm of what was measured is modelled by a Gaussian process over the places on the grid,

.. math:: y(x) = f(x) + \varepsilon, \quad k(x, x') = s^2 \prod_a e^{-|x_a - x'_a| / \ell_a}

whose paths may bend sharply; the next trial is where the expected improvement over the best posterior mean is largest, and the
last ones measure the leaders anew, so that luck does not win. Settings that fail (out of memory, out of time) are no zeros: they
are kept out of the model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import NoAnswer

Array = NDArray[np.float64]
Settings = dict[str, Any]
FIRST = 0.3  # share of the trials that are spread before anything is modelled
LAST = 0.2  # share that measure the leaders anew
LEADERS = 3
LENGTHS = (0.15, 0.4, 1.0, 2.5)  # of an axis, in its whole range
NOISES = (0.003, 0.01, 0.03)  # variance of a trial over that of the map
AGAIN = 6  # trials between two choices of lengths


@dataclass(frozen=True)
class Trial:
    """One measurement.

    Attributes:
        settings: axis -> value.
        value: measured; None where it failed.
    """

    settings: Mapping[str, Any]
    value: float | None


@dataclass(frozen=True)
class Peak:
    """The settings that were found.

    Attributes:
        settings: axis -> value.
        value: mean of the trials of these settings that were made after they were chosen; free of the luck that they were
            chosen for.
        se: its standard error; NaN of a single one.
        trials: all, in order.
        grid: places on the grid.
    """

    settings: Mapping[str, Any]
    value: float
    se: float
    trials: tuple[Trial, ...]
    grid: int


def search(
    axes: Mapping[str, Sequence[Any]],
    measure: Callable[[Settings], float | None],
    trials: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Peak:
    """Find the settings with the largest throughput.

    Args:
        axes: name -> values, in an order in which neighbours are alike: 1, 2, 4, 8.
        measure: settings -> throughput, above 0; None where they fail.
        trials: measurements; three quarters of the grid's places unless given: a quarter of a map with three
            measurements at every place.
        seed: of the first places.
        progress: (trials done, of).

    Raises:
        ValueError: an axis without values, fewer than eight trials, a throughput that is not above 0.
        NoAnswer: all that was tried failed.

    Source:
        The task: M. Martinez, 2024, arXiv 2408.01050. Expected improvement: D. Jones, M. Schonlau, W. Welch, Efficient Global
        Optimization, 1998.

    Example:
        >>> found = search(
        ...     {"batch": [1, 2, 4, 8, 16, 32], "threads": [1, 2, 3, 4]},
        ...     lambda s: s["batch"] / (1 + 0.2 * s["batch"]) * min(s["threads"], 3) / (1 + 0.3 * s["threads"]),
        ... )
        >>> found.settings, len(found.trials)
        ({'batch': 32, 'threads': 3}, 18)
    """
    if not axes or any(not len(values) for values in axes.values()):
        raise ValueError(f"needed axes with values, got {', '.join(axes) or 'none'}")
    places = list(itertools.product(*(range(len(values)) for values in axes.values())))
    total = max(8, round(0.75 * len(places))) if trials is None else trials
    if total < 8:
        raise ValueError(f"needed at least eight trials, got {total}")
    work = _Search(axes, places, measure, np.random.default_rng(seed))
    first = max(4, round(FIRST * total))
    last = max(LEADERS + 1, round(LAST * total))
    for at in range(total):
        if len(work.failed) == len(places):
            break
        if progress is not None:
            progress(at, total)
        if at < first:
            work.spread()
        elif at < total - last:
            work.improve(at % AGAIN == 0)
        else:
            work.confirm()
    return work.peak()


class _Search:
    def __init__(
        self,
        axes: Mapping[str, Sequence[Any]],
        places: list[tuple[int, ...]],
        measure: Callable[[Settings], float | None],
        rng: np.random.Generator,
    ) -> None:
        self.axes, self.places, self.measure, self.rng = axes, places, measure, rng
        span = np.array([max(1, len(values) - 1) for values in axes.values()], dtype=float)
        self.x = np.array(places, dtype=float) / span
        self.trials: list[Trial] = []
        self.at: list[int] = []  # place of each trial that did not fail
        self.y: list[float] = []  # its log
        self.failed: set[int] = set()
        self.leaders: list[int] = []
        self.waiting: list[int] = []  # leaders that are to be measured once more
        self.first: int | None = None  # the one that led after that
        self.fresh: list[float] = []  # what was measured of it since
        self.lengths = np.full(len(axes), LENGTHS[1])
        self.noise = NOISES[1]

    def try_at(self, place: int) -> float | None:
        settings = {
            name: values[i] for (name, values), i in zip(self.axes.items(), self.places[place], strict=True)
        }
        value = self.measure(dict(settings))
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"needed a throughput above 0 or None, got {value} for {settings}")
        self.trials.append(Trial(settings, value))
        if value is None:
            self.failed.add(place)
        else:
            self.at.append(place)
            self.y.append(math.log(value))
        return value

    def free(self) -> NDArray[np.int64]:
        return np.array([i for i in range(len(self.places)) if i not in self.failed], dtype=np.int64)

    def spread(self) -> None:
        """At the place farthest from all tried ones; of several one by chance."""
        tried = sorted({*self.at, *self.failed})
        left = np.array([i for i in self.free() if i not in set(self.at)] or self.free())
        if not tried:
            self.try_at(int(self.rng.choice(left)))
            return
        apart = np.abs(self.x[left][:, None] - self.x[tried][None]).sum(2).min(1)
        best = left[apart >= apart.max() - 1e-12]
        self.try_at(int(self.rng.choice(best)))

    def improve(self, anew: bool) -> None:
        """Where the expected improvement over the best mean is largest."""
        free = self.free()
        if not len(free) or not self.y:
            self.spread()
            return
        if anew:
            self._choose()
        mean, sd = self._posterior(free)
        best = mean.max()
        z = (mean - best) / np.maximum(sd, 1e-12)
        normal = NormalDist()
        gain = (mean - best) * np.array([normal.cdf(v) for v in z]) + sd * np.exp(-0.5 * z**2) / math.sqrt(
            2 * math.pi
        )
        self.try_at(int(free[int(np.argmax(gain))]))

    def confirm(self) -> None:
        """Each leader once more; then, again and again, the one that leads after that."""
        free = self.free()
        if not len(free) or not self.y:
            self.spread()
            return
        if not self.leaders:
            self.leaders = [int(i) for i in free[np.argsort(-self._posterior(free)[0])[:LEADERS]]]
            self.waiting = list(self.leaders)
        if self.waiting:
            self.try_at(self.waiting.pop())
            return
        if self.first is None or self.first in self.failed:
            self.first, self.fresh = self._leader(self.leaders), []
        value = self.try_at(self.first)
        if value is not None:
            self.fresh.append(value)

    def _leader(self, among: Sequence[int]) -> int:
        left = np.array([i for i in among if i not in self.failed] or self.free())
        return int(left[int(np.argmax(self._posterior(left)[0]))])

    def peak(self) -> Peak:
        if not self.y:
            raise NoAnswer("all settings that were tried failed", "smaller ones in the grid")
        place, fresh = self.first, self.fresh
        if place is None or place in self.failed:
            place, fresh = self._leader(self.leaders or list(self.free())), []
        values = fresh or [math.exp(y) for i, y in zip(self.at, self.y, strict=True) if i == place]
        se = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else math.nan
        settings = {
            name: own[i] for (name, own), i in zip(self.axes.items(), self.places[place], strict=True)
        }
        return Peak(settings, float(np.mean(values)), se, tuple(self.trials), len(self.places))

    def _kernel(self, a: Array, b: Array, lengths: Array) -> Array:
        k: Array = np.exp(-(np.abs(a[:, None] - b[None]) / lengths).sum(2))
        return k

    def _choose(self) -> None:
        """Lengths and noise of the largest likelihood, one axis after another."""
        y = np.array(self.y)
        y = (y - y.mean()) / (y.std() or 1.0)
        x = self.x[self.at]

        def fits(lengths: Array, noise: float) -> float:
            k = self._kernel(x, x, lengths) + noise * np.eye(len(x))
            root = np.linalg.cholesky(k)
            z = np.linalg.solve(root, y)
            scale = float(z @ z) / len(y)  # the best one
            return -0.5 * len(y) * math.log(max(scale, 1e-12)) - float(np.log(np.diag(root)).sum())

        for axis in range(len(self.lengths)):

            def of(length: float, axis: int = axis) -> Array:
                own = self.lengths.copy()
                own[axis] = length
                return own

            self.lengths = of(max(LENGTHS, key=lambda length: fits(of(length), self.noise)))
        self.noise = max(NOISES, key=lambda noise: fits(self.lengths, noise))

    def _posterior(self, places: NDArray[np.int64]) -> tuple[Array, Array]:
        y = np.array(self.y)
        centre, spread = y.mean(), y.std() or 1.0
        x = self.x[self.at]
        k = self._kernel(x, x, self.lengths) + self.noise * np.eye(len(x))
        root = np.linalg.cholesky(k)
        across = np.linalg.solve(root, self._kernel(x, self.x[places], self.lengths))
        mean = across.T @ np.linalg.solve(root, (y - centre) / spread)
        variance = np.maximum(1 - (across**2).sum(0), 0.0)
        return centre + spread * mean, spread * np.sqrt(variance)
