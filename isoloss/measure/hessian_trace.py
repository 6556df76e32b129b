r"""The trace of the Hessian of the loss, to a wanted accuracy, at a fraction of Hutchinson's cost.

Hutchinson's estimate averages :math:`v^T H v` over random signs v, each a Hessian-vector product. Here:

- :math:`\operatorname{tr} H = \operatorname{tr} G + \operatorname{tr} R`. The Gauss-Newton part carries most of the
  scatter of :math:`v^T H v` and needs none of it: one random sign per column and example gives its trace far better
  (:mod:`isoloss.measure.traces`).
- A quadratic form needs no product. With the slopes :math:`u = \partial L/\partial z` held fixed,
  :math:`v^T R v \approx \frac{2}{\varepsilon^2}\big(\langle u, z(\theta + \varepsilon v) - z(\theta)\rangle
  - \varepsilon \nabla L \cdot v\big)`: one forward pass. What is cut off is odd in v to first order and averages
  out; what is left of it is measured.
- Where the network is smooth the same forward pass gives :math:`v^T H v` too, from the loss in place of u. Where the
  draws for G cost more than they save, that alone is averaged.
- On a few of the random vectors the exact product is made too, and the mean difference corrects the others (two
  levels).
- Every piece of the data has random vectors of its own (:mod:`isoloss.measure.pieces`).
- Where the network has kinks, differences see those that they cross and the product does not, rarely and much: so
  there products are made for all random vectors. If it is piecewise linear, the trace of R is 0 and no product is
  needed at all.

How often each of the three is drawn is chosen for the least cost, given their scatter.

Sources: Hutchinson 1990; Giles 2008 (levels); Schraudolph 2002 (Gauss-Newton).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isoloss.errors import NoAnswer
from isoloss.measure.criteria import Criterion
from isoloss.measure.estimates import dot, drawn, mean_and_se, scatter_at_most, signs
from isoloss.measure.linearity import kinked
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.pieces import Piece, in_pieces, split
from isoloss.measure.products import gradient_seconds, hessian, rest, switched, weights
from isoloss.measure.subject import Subject, resized
from isoloss.measure.traces import Traces, gauss_newton_traces, not_gauss_newton, pooled

PILOT = 4  # random vectors with both forms before anything is concluded
CHOICE = 6  # vectors on which it is chosen what to sample
FORMS = 12  # forms by a forward pass before anything is concluded
FREEDOM = 15  # degrees of freedom of the scatter of draws for G, at the least
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

    Raises:
        NoAnswer: the loss is not finite.

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
            # At least so many that their scatter is known: a few signs may agree by luck.
            known = gauss_newton_traces(subject, 1 + max(1, -(-FREEDOM // subject.examples)), seed)
        except TypeError:
            known = None
    if known is not None and not_gauss_newton(subject) is None:
        return _spend(subject, None, known, accuracy, most, seed)
    cut = known is not None  # layers are known to keep examples apart
    forms: list[tuple[_Form, float]] = []
    if not _kink(subject, outputs=cut):
        step = _step(subject)
        forms = [(_Form(part, step), share) for part, share in split(subject, cut)]
        if known is not None and _whole_is_cheaper(forms, known, seed + 2):
            known = None
    with in_pieces(subject, hessian if known is None else rest, cut) as pieces:
        levels = _Levels(pieces, [form for form, _ in forms], known is None, seed + 1)
        return _spend(subject, levels, known, accuracy, most, seed)


def _kink(subject: Subject, outputs: bool) -> str | None:
    two = resized(subject.batches[0], 2)
    with subject.measuring(), torch.enable_grad():
        return kinked(subject.predict(two[0]) if outputs else subject.loss(two))


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
            se, bound = math.hypot(se, known.total_error), math.hypot(bound, known.margin * known.total_error)
            cost += KNOWN * known.draws
        if not math.isfinite(value):
            raise NoAnswer("quadratic forms are not finite", "weights and data on which the loss is finite")
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
        scatter = 0.0 if known is None else known.margin * known.total_error * math.sqrt(known.draws)
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
    """Quadratic forms with random signs of their own for every piece: exact ones, ones by a forward pass, and both."""

    def __init__(self, pieces: Sequence[Piece], forms: Sequence[_Form], whole: bool, seed: int) -> None:
        self._pieces, self._forms, self._whole = pieces, forms, whole
        self._generator = torch.Generator().manual_seed(seed)
        self._exact: list[float] = []
        self._both: list[float] = []  # the cheap form on the vectors of the exact ones
        self._cheap: list[float] = []
        for _ in range(PILOT):
            self._one(exact=True)
        if self._forms and _sd(self._corrections()) > WORTH**0.5 * _sd(self._exact):
            self._forms = []
        for _ in range(FORMS - PILOT):
            self._one(exact=not self._forms)

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
        product = form = 0.0
        for i, piece in enumerate(self._pieces):
            v = signs(piece.product.like, self._generator)
            if exact:
                product += piece.share * dot(v, piece.product(v))
            if self._forms:
                form += piece.share * self._forms[i](v, self._whole)[0]
        if exact:
            self._exact.append(product)
        if self._forms:
            (self._both if exact else self._cheap).append(form)

    def _corrections(self) -> list[float]:
        return [a - b for a, b in zip(self._exact, self._both, strict=True)]

    def _series(self) -> list[list[float]]:
        """What is averaged, to be added: exact forms; or what they add to the cheap ones, and those."""
        if not self._forms:
            return [self._exact]
        return [self._corrections(), [*self._both, *self._cheap]]

    def estimate(self) -> tuple[float, float, float]:
        """The mean of the exact form, its standard error, and an upper bound of that to stop on."""
        parts = [mean_and_se(series) for series in self._series()]
        bounds = [
            s / math.sqrt(len(series)) for (s, _), series in zip(self.scatters, self._series(), strict=True)
        ]
        square = sum(se**2 for _, se in parts)
        # Corrections and cheap forms share their first vectors.
        together = (
            0.0 if not self._forms else 2 * _covariance(self._corrections(), self._both) / self.forwards
        )
        se = math.sqrt(max(square + together, 0.0))
        return sum(mean for mean, _ in parts), se, math.sqrt(sum(b**2 for b in bounds) + max(together, 0.0))

    @property
    def scatters(self) -> list[tuple[float, float]]:
        """Upper bounds of the standard deviations of what is averaged, with the costs of one."""
        costs = [PRODUCT] if not self._forms else [PRODUCT + FORWARD, FORWARD]
        return [
            (scatter_at_most(_sd(series), len(series)), cost)
            for series, cost in zip(self._series(), costs, strict=True)
        ]

    def draw(self, counts: Sequence[int], room: float) -> float:
        """Up to so many of each, at most as many again as there are, within a cost; one at least. What it cost."""
        before = self.cost
        exact = max(min(counts[0], 2 * self.products), self.products + (not self._forms))
        while self.products < exact and self.cost - before < room:
            self._one(exact=True)
        if self._forms:
            cheap = max(min(counts[1], 4 * self.forwards), self.forwards + 1)
            while self.forwards < cheap and self.cost - before < room:
                self._one(exact=False)
        return self.cost - before


def _sd(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std(unbiased=True))


def _covariance(a: list[float], b: list[float]) -> float:
    return float(torch.tensor([a, b], dtype=torch.float64).cov()[0, 1])


class _Form:
    """Quadratic forms of the whole Hessian and of the rest, each by the same forward pass over a subject's data."""

    def __init__(self, subject: Subject, step: float) -> None:
        self._subject, self._step = subject, step
        self._shares = weights(subject)
        self.like = {name: p.detach() for name, p in subject.parameters().items()}
        self._slope = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in self.like.items()}
        self._slopes: list[Tensor] = []  # of the loss in the outputs
        self._centres: dict[bool, list[float]] = {True: [], False: []}
        held = list(subject.parameters().values())
        criterion = subject.criterion
        with subject.measuring(), torch.enable_grad():
            for i, ((inputs, targets), share) in enumerate(self._shares):
                z = subject.predict(inputs)
                found = torch.autograd.grad(criterion(z, targets) * share, held, allow_unused=True)
                for name, g in zip(self.like, found, strict=True):
                    if g is not None:
                        self._slope[name] += g
                with torch.no_grad():
                    if isinstance(criterion, Criterion):
                        slope = criterion.slope(z.double(), targets) * (share / criterion.rows(targets))
                        self._slopes.append(slope)
                        self._centres[False].append(self._height(i, z, whole=False))
                    self._centres[True].append(self._height(i, z, whole=True))

    def _height(self, i: int, z: Any, whole: bool) -> float:
        (_, targets), share = self._shares[i]
        criterion = self._subject.criterion
        if not whole:
            return float((self._slopes[i] * z.double()).sum())
        if isinstance(criterion, Criterion):
            z = z.double()
        return float(criterion(z, targets)) * share

    @torch.no_grad()
    def __call__(self, v: Mapping[str, Tensor], *kinds: bool) -> list[float]:
        r""":math:`2 (h(\theta + \varepsilon v) - h(\theta) - \varepsilon \nabla L \cdot v) / \varepsilon^2` for each kind.

        h is the loss (True: v' H v) or the outputs along its slopes (False: v' R v); both have the loss's gradient.
        """
        moved = {name: p + self._step * v[name] for name, p in self.like.items()}
        rises = dict.fromkeys(kinds, 0.0)
        with self._subject.measuring():
            for i, ((inputs, _), _) in enumerate(self._shares):
                z = self._subject.predict_at(moved, inputs)
                for kind in kinds:
                    rises[kind] += self._height(i, z, kind) - self._centres[kind][i]
        # Rounding moved the parameters by a little less or more than the step: by what, is known.
        along = sum(
            float((self._slope[name] * (moved[name].double() - p.double())).sum())
            for name, p in self.like.items()
        )
        return [2 * (rises[kind] - along) / self._step**2 for kind in kinds]


def _step(subject: Subject) -> float:
    like = subject.parameters().values()
    count = sum(p.numel() for p in like)
    size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in like) / count)
    return STEP * (size or 1.0)


def _whole_is_cheaper(forms: Sequence[tuple[_Form, float]], known: Traces, seed: int) -> bool:
    """Whether forms of the whole Hessian alone come to the same error sooner than those of the rest with draws of G.

    Judged on a few vectors that are not used again, so that the choice tells nothing of the others.
    """
    generator = torch.Generator().manual_seed(seed)
    seen = []
    for _ in range(CHOICE):
        pair = [0.0, 0.0]
        for form, share in forms:
            found = form(signs(form.like, generator), True, False)
            pair = [a + share * b for a, b in zip(pair, found, strict=True)]
        seen.append(pair)
    whole, rest_alone = (_sd([pair[i] for pair in seen]) * math.sqrt(FORWARD) for i in (0, 1))
    return whole < rest_alone + known.total_error * math.sqrt(known.draws * KNOWN)


def probe(subject: Subject, accuracy: float = 0.05, seed: int = 0) -> list[Measurement]:
    """:func:`hessian_trace` as a measurement."""
    with timed() as watch:
        found = hessian_trace(subject, accuracy, seed=seed)
    parts = [
        f"{drawn(found.draws)} a column for Gauss-Newton" if found.draws else "",
        f"{found.forwards} forward passes" if found.forwards else "",
        f"{found.products} products{switched(subject)}" if found.products else "",
    ]
    how = ", ".join(part for part in parts if part)
    if not found.reached:
        how += f"; stopped before a relative standard error of {accuracy:g}"
    spent = watch.spent(gradient_seconds(subject))
    return [Measurement("hessian_trace", found.value, found.se, "nats", how=how, spent=spent)]
