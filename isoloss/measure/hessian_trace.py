r"""The trace of the Hessian of the loss, to a wanted accuracy, at a fraction of Hutchinson's cost.

Hutchinson's estimate averages :math:`v^T H v` over random signs v, each a Hessian-vector product. Here:

- :math:`\operatorname{tr} H = \operatorname{tr} G + \operatorname{tr} R`. The Gauss-Newton part carries most of the
  scatter of :math:`v^T H v` and needs none of it: one random sign per column and example gives its trace far better
  (:mod:`isoloss.measure.traces`).
- A quadratic form needs no product. With the slopes :math:`u = \partial L/\partial z` held fixed,
  :math:`v^T R v \approx \frac{2}{\varepsilon^2}\big(\langle u, z(\theta + \varepsilon v) - z(\theta)\rangle
  - \varepsilon \nabla L \cdot v\big)`: one forward pass. What is cut off is odd in v to first order and averages
  out; what is left of it is measured.
- On a few of the random vectors the exact product is made too, and the mean difference corrects the others (two
  levels).
- Where the network has kinks, differences see those that they cross and the product does not, rarely and much: so
  there products are made for all random vectors. If it is piecewise linear, the trace of R is 0 and no product is
  needed at all.

How often each of the three is drawn is chosen for the least cost, given their scatter.

Sources: Hutchinson 1990; Giles 2008 (levels); Schraudolph 2002 (Gauss-Newton).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.measure.criteria import Criterion
from isoloss.measure.estimates import dot, mean_and_se, scatter_at_most, signs
from isoloss.measure.linearity import kinked
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.products import Product, gradient_seconds, hessian, rest, weights
from isoloss.measure.subject import Subject, resized
from isoloss.measure.traces import Traces, gauss_newton_traces, not_gauss_newton, pooled

PILOT = 4  # random vectors with both forms before anything is concluded
FORMS = 12  # forms by a forward pass before anything is concluded
STEP = 5e-3  # of the root mean square of the parameters
# Nominal costs in gradients: a product, a forward pass, a pass of Gauss-Newton traces. They decide how often each
# is drawn; fixed, so that the same seed gives the same result.
PRODUCT, FORWARD, KNOWN = 2.1, 0.4, 1.0
WORTH = 0.5  # forward passes are used where what they cut off has less than this share of the variance


@dataclass(frozen=True)
class HessianTrace:
    """An estimate of the trace of the Hessian.

    Attributes:
        value, se: of the trace; se is over the random vectors.
        gauss_newton: the part that is the trace of G; NaN where it is not known by itself.
        products: exact products that were made.
        forwards: quadratic forms by one forward pass.
        draws: passes for the trace of G.
        cost: nominal, in gradients.
        reached: whether the accuracy asked for was reached within the cost allowed.
    """

    value: float
    se: float
    gauss_newton: float
    products: int
    forwards: int
    draws: int
    cost: float
    reached: bool


def hessian_trace(
    subject: Subject, accuracy: float = 0.05, most: float = 2000.0, seed: int = 0
) -> HessianTrace:
    """Trace of the Hessian of the loss over all parameters.

    Args:
        subject: what is measured. With a criterion of known curvature and layers of known kinds the Gauss-Newton
            part is taken off; else the same is done with the whole Hessian.
        accuracy: relative standard error at which to stop.
        most: nominal cost in gradients at which to give up; then ``reached`` is false.
        seed: of the random vectors.

    Example:
        >>> import torch
        >>> from isoloss.measure.criteria import SquaredError
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> subject = Subject(torch.nn.Linear(2, 1, bias=False), [(x, torch.zeros(2, 1))], SquaredError())
        >>> round(hessian_trace(subject).value, 4)  # mean of |x|^2; all of it Gauss-Newton's
        7.0
    """
    known = None
    if isinstance(subject.criterion, Criterion):
        try:
            known = gauss_newton_traces(subject, 2, seed)
        except TypeError:
            known = None
    if known is not None and not_gauss_newton(subject) is None:
        return _spend(subject, None, known, accuracy, most, seed)
    with (hessian if known is None else rest)(subject) as product:
        levels = _Levels(subject, product, known is not None, seed + 1)
        return _spend(subject, levels, known, accuracy, most, seed)


def _spend(
    subject: Subject, levels: _Levels | None, known: Traces | None, accuracy: float, most: float, seed: int
) -> HessianTrace:
    """Draw from all there is until the accuracy is reached."""
    while True:
        value, se, bound, cost = 0.0, 0.0, 0.0, 0.0
        if levels is not None:
            value, se, bound = levels.estimate()
            cost += levels.cost
        if known is not None:
            value += known.total
            se, bound = math.hypot(se, known.total_error), math.hypot(bound, known.total_error)
            cost += KNOWN * known.draws
        goal = accuracy * abs(value)
        if bound <= goal or cost >= most:
            return HessianTrace(
                value,
                se,
                math.nan if known is None else known.total,
                0 if levels is None else levels.products,
                0 if levels is None else levels.forwards,
                0 if known is None else known.draws,
                cost,
                bound <= goal,
            )
        scatter = 0.0 if known is None else known.total_error * math.sqrt(known.draws)
        counts = _plan([*(levels.scatters if levels is not None else ()), (scatter, KNOWN)], goal)
        draws = counts.pop()
        if levels is not None:
            cost += levels.draw(counts, most - cost)
        more = 0 if known is None else min(draws - known.draws, 2 * known.draws, int((most - cost) / KNOWN))
        if known is not None and (more > 0 or levels is None):
            found = gauss_newton_traces(subject, max(2, more), seed + 7919 * known.draws)
            known = pooled(known, found)


def _plan(scatters: Sequence[tuple[float, float]], goal: float) -> list[int]:
    """How often to draw each (standard deviation, cost) for the goal at the least cost.

    The sum of s_i^2 / n_i under the cost of n_i c_i is least at n_i ~ s_i / sqrt(c_i).
    """
    pressure = sum(s * math.sqrt(c) for s, c in scatters) / max(goal, 1e-150) ** 2
    return [math.ceil(min(s / math.sqrt(c) * pressure, 1e9)) for s, c in scatters]


class _Levels:
    """Quadratic forms with random signs: exact ones, ones by a forward pass, and both on some vectors."""

    def __init__(self, subject: Subject, product: Product, outputs: bool, seed: int) -> None:
        self._product = product
        self._generator = torch.Generator().manual_seed(seed)
        two = resized(subject.batches[0], 2)
        with subject.measuring(), torch.enable_grad():
            kink = kinked(subject.predict(two[0]) if outputs else subject.loss(two))
        self._form = None if kink is not None else _by_outputs(subject) if outputs else _by_loss(subject)
        self._exact: list[float] = []
        self._both: list[float] = []  # the cheap form on the vectors of the exact ones
        self._cheap: list[float] = []
        for _ in range(PILOT):
            self._one(exact=True)
        if self._form is not None and _sd(self._corrections()) > WORTH**0.5 * _sd(self._exact):
            self._form = None
        for _ in range(FORMS - PILOT):
            self._one(exact=self._form is None)

    @property
    def products(self) -> int:
        return len(self._exact)

    @property
    def forwards(self) -> int:
        return len(self._both) + len(self._cheap)

    @property
    def cost(self) -> float:
        return PRODUCT * self.products + FORWARD * self.forwards

    def _one(self, exact: bool) -> None:
        v = signs(self._product.like, self._generator)
        if exact:
            self._exact.append(dot(v, self._product(v)))
        if self._form is not None:
            (self._both if exact else self._cheap).append(self._form(v))

    def _corrections(self) -> list[float]:
        return [a - b for a, b in zip(self._exact, self._both, strict=True)]

    def _series(self) -> list[list[float]]:
        """What is averaged, to be added: exact forms; or what they add to the cheap ones, and those."""
        if self._form is None:
            return [self._exact]
        return [self._corrections(), [*self._both, *self._cheap]]

    def estimate(self) -> tuple[float, float, float]:
        """The mean of the exact form, its standard error, and an upper bound of that to stop on."""
        parts = [mean_and_se(series) for series in self._series()]
        bounds = [
            s / math.sqrt(len(series)) for (s, _), series in zip(self.scatters, self._series(), strict=True)
        ]
        return sum(mean for mean, _ in parts), math.hypot(*(se for _, se in parts)), math.hypot(*bounds)

    @property
    def scatters(self) -> list[tuple[float, float]]:
        """Upper bounds of the standard deviations of what is averaged, with the costs of one."""
        costs = [PRODUCT] if self._form is None else [PRODUCT + FORWARD, FORWARD]
        return [
            (scatter_at_most(_sd(series), len(series)), cost)
            for series, cost in zip(self._series(), costs, strict=True)
        ]

    def draw(self, counts: Sequence[int], room: float) -> float:
        """Up to so many of each, at most as many again as there are, within a cost; one at least. What it cost."""
        before = self.cost
        exact = max(min(counts[0], 2 * self.products), self.products + (self._form is None))
        while self.products < exact and self.cost - before < room:
            self._one(exact=True)
        if self._form is not None:
            cheap = max(min(counts[1], 4 * self.forwards), self.forwards + 1)
            while self.forwards < cheap and self.cost - before < room:
                self._one(exact=False)
        return self.cost - before


def _sd(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std(unbiased=True))


def _by_outputs(subject: Subject) -> Callable[[Mapping[str, Tensor]], float]:
    """v -> v' R v by one forward pass."""
    criterion = subject.criterion
    assert isinstance(criterion, Criterion)
    shares = weights(subject)
    slopes, centres = [], []
    with subject.measuring(), torch.no_grad():
        for (inputs, targets), share in shares:
            z = subject.predict(inputs)
            slope = criterion.slope(z.double(), targets) * (share / criterion.rows(targets))
            slopes.append(slope)
            centres.append(float((slope * z.double()).sum()))

    def height(moved: Mapping[str, Tensor]) -> float:
        total = 0.0
        for i, ((inputs, _), _) in enumerate(shares):
            total += float((slopes[i] * subject.predict_at(moved, inputs).double()).sum()) - centres[i]
        return total

    return _second_difference(subject, height)


def _by_loss(subject: Subject) -> Callable[[Mapping[str, Tensor]], float]:
    """v -> v' H v by one forward pass."""
    shares = weights(subject)
    criterion = subject.criterion

    def loss(z: object, targets: object) -> float:
        if isinstance(z, Tensor) and isinstance(criterion, Criterion):
            z = z.double()
        return float(criterion(z, targets))

    with subject.measuring(), torch.no_grad():
        centres = [loss(subject.predict(inputs), targets) for (inputs, targets), _ in shares]

    def height(moved: Mapping[str, Tensor]) -> float:
        total = 0.0
        for i, ((inputs, targets), share) in enumerate(shares):
            total += (loss(subject.predict_at(moved, inputs), targets) - centres[i]) * share
        return total

    return _second_difference(subject, height)


def _second_difference(
    subject: Subject, height: Callable[[Mapping[str, Tensor]], float]
) -> Callable[[Mapping[str, Tensor]], float]:
    """v -> 2 (height(theta + step v) - step slope . v) / step^2, height 0 at theta, its slope the loss's."""
    like = {name: p.detach() for name, p in subject.parameters().items()}
    slope = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in like.items()}
    held = list(subject.parameters().values())
    with subject.measuring(), torch.enable_grad():
        for batch, share in weights(subject):
            found = torch.autograd.grad(subject.loss(batch) * share, held, allow_unused=True)
            for name, g in zip(like, found, strict=True):
                if g is not None:
                    slope[name] += g
    count = sum(p.numel() for p in like.values())
    size = math.sqrt(sum(float(p.double().square().sum()) for p in like.values()) / count)
    step = STEP * (size or 1.0)

    @torch.no_grad()
    def form(v: Mapping[str, Tensor]) -> float:
        moved = {name: p + step * v[name] for name, p in like.items()}
        with subject.measuring():
            rise = height(moved)
        # Rounding moved the parameters by a little less or more than the step: by what, is known.
        along = sum(
            float((slope[name] * (moved[name].double() - p.double())).sum()) for name, p in like.items()
        )
        return 2 * (rise - along) / step**2

    return form


def probe(subject: Subject, accuracy: float = 0.05, seed: int = 0) -> list[Measurement]:
    """:func:`hessian_trace` as a measurement."""
    with timed() as watch:
        found = hessian_trace(subject, accuracy, seed=seed)
    parts = [
        f"{found.draws} random signs a column for Gauss-Newton" if found.draws else "",
        f"{found.forwards} forward passes" if found.forwards else "",
        f"{found.products} products, attention in its math form" if found.products else "",
    ]
    how = ", ".join(part for part in parts if part)
    if not found.reached:
        how += f"; stopped before a relative standard error of {accuracy:g}"
    spent = watch.spent(gradient_seconds(subject))
    return [Measurement("hessian_trace", found.value, found.se, "nats", how=how, spent=spent)]
