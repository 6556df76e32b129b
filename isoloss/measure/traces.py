r"""Traces of curvature per parameter tensor, with standard errors: what they cost depends on the network.

The trace of the Gauss-Newton matrix is a sum of squared norms of per-example gradients,
:math:`\operatorname{tr} G = \frac1n \sum_i \sum_c \|J_i^T s_{ic}\|^2` with :math:`S_i S_i^T = H_{z_i}`, so it
needs no product with G: one backward pass per column c gives it exactly, one with a random sign per column and
example estimates it without bias (:mod:`isoloss.measure.ghost`). In a piecewise linear network the blocks of the
Hessian on the diagonal are those of G (:mod:`isoloss.measure.linearity`). Elsewhere the rest, :math:`R = H - G`,
is estimated by Hutchinson's :math:`v_l^T (Rv)_l` for every tensor l from the same products.

Sources: Hutchinson 1990; Dangel, Kunstner, Hennig 2020, arXiv:1912.10985 (columns and samples); Dong et al. 2019,
arXiv:1911.03852 (the trace per layer as its sensitivity).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isoloss.measure import ghost
from isoloss.measure.criteria import Criterion
from isoloss.measure.estimates import PILOT, drawn, mean_and_se, needed, scatter_at_most, signs
from isoloss.measure.linearity import bent
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.pieces import Piece, in_pieces
from isoloss.measure.products import (
    gradient_seconds,
    hessian,
    known_criterion,
    rest,
    switched,
    weights,
)
from isoloss.measure.subject import Subject, chunks, resized

NUMBERS = 1 << 22  # outputs and patches of a piece of a batch, about: what stays near the processor
SMALL = 0.01  # of the total: tensors with less trace than this share are held to the accuracy of this share


@dataclass(frozen=True, eq=False)
class Traces:
    """Traces per parameter tensor.

    Attributes:
        values: name -> trace of the diagonal block of that tensor.
        errors: name -> standard error; 0 where exact.
        total, total_error: of the whole.
        draws: random vectors used; 0 where exact.
        passes: backward passes that were made, each over all batches.
        how: the method in a few words.
        reached: whether the accuracy asked for was reached; true where none was asked.
        freedom: degrees of freedom of the errors, at most: few of them know themselves badly.
    """

    values: Mapping[str, float]
    errors: Mapping[str, float]
    total: float
    total_error: float
    draws: int
    passes: int
    how: str = ""
    reached: bool = True
    freedom: int = 0

    @property
    def margin(self) -> float:
        """By how much the true errors may exceed the stated ones (:func:`isoloss.measure.estimates.scatter_at_most`)."""
        return scatter_at_most(1.0, self.freedom + 1) if self.freedom else 1.0


def layer_traces(subject: Subject, accuracy: float | None = None, most: int = 512, seed: int = 0) -> Traces:
    """Trace of the Hessian's diagonal block of every parameter tensor.

    Where the outputs are piecewise linear in every tensor, these are traces of the Gauss-Newton matrix: exact
    where no accuracy is given, at one backward pass per column of the outputs. Elsewhere, and where the layers
    are of unknown kinds, they are estimated.

    Args:
        subject: what is measured.
        accuracy: relative standard error at which to stop, of the total and of every tensor; a tensor with less
            than 1 % of the total is held to that accuracy of 1 %. Default: exact, or 0.05 where that cannot be.
        most: products at which to give up; then ``reached`` is false.
        seed: of the random vectors.

    Example:
        >>> from torch import nn
        >>> from isoloss.measure.criteria import SquaredError
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> subject = Subject(nn.Linear(2, 1), [(x, torch.zeros(2, 1))], SquaredError())
        >>> traces = layer_traces(subject)
        >>> traces.values, traces.errors, traces.how
        ({'weight': 7.0, 'bias': 1.0}, {'weight': 0.0, 'bias': 0.0}, 'exact (piecewise linear), one pass per column')
    """
    why = not_gauss_newton(subject)
    if why is None:
        if accuracy is None:
            exact = gauss_newton_traces(subject, None)
            return replace(exact, how="exact (piecewise linear), one pass per column")
        found = _drawn(subject, accuracy, most, seed)
        return replace(found, how=f"Gauss-Newton (piecewise linear), {drawn(found.draws)} a column")
    return _estimated(subject, why, accuracy or 0.05, most, seed)


def not_gauss_newton(subject: Subject) -> str | None:
    """Why the Hessian's diagonal blocks are not known to be Gauss-Newton's, or are not to be had without products.

    None where they are, and layers and criterion are of known kinds.
    """
    if not isinstance(subject.criterion, Criterion):
        return "a criterion of unknown curvature"
    with subject.measuring(), torch.enable_grad():
        z = subject.predict(resized(subject.batches[0], 2)[0])
    operation = bent(z, subject.parameters())
    if operation is not None:
        return f"not piecewise linear: {operation}"
    try:
        ghost.verify(subject)
    except TypeError as error:
        return str(error)
    return None


def gauss_newton_traces(subject: Subject, draws: int | None = 1, seed: int = 0) -> Traces:
    r"""Trace of the Gauss-Newton matrix, per parameter tensor and whole.

    Args:
        subject: with a criterion of known curvature.
        draws: passes with one random sign per output column of every row; None: exact, one pass per column, for
            every row (token) of an example by itself.
        seed: of the signs.

    Returns:
        Standard errors are over the random signs. With one draw they cannot be told from the scatter among
        examples and are an upper bound: the scatter of the examples' values, which holds both.

    Raises:
        TypeError: a criterion, or a layer, of an unknown kind; layers that mix examples.
    """
    criterion = known_criterion(subject)
    seen = ghost.verify(subject)
    generator = torch.Generator().manual_seed(seed)
    sums = _Sums(draws or 0)
    with subject.measuring(), torch.enable_grad():
        for whole, share in weights(subject):
            scale = share / criterion.rows(whole[1])
            for batch in chunks(whole, max(1, ghost.TRIED * NUMBERS // max(seen.numbers, 1))):
                _chunk(subject, batch, criterion, seen, scale, generator, sums)
    return sums.traces()


def _chunk(
    subject: Subject,
    batch: tuple[object, Tensor],
    criterion: Criterion,
    seen: ghost.Tape,
    scale: float,
    generator: torch.Generator,
    sums: _Sums,
) -> None:
    """Add some examples of a batch."""
    count = len(batch[1])
    with ghost.recording(subject.model, count, seen.shared) as tape:
        z = subject.predict(batch[0])
    with torch.no_grad():
        pulled = list(_pulled(criterion, z.detach(), batch[1], count, sums.draws, generator))
    tape.plan(len(pulled))
    for i, cotangent in enumerate(pulled):
        norms = ghost.squared_norms(tape, z, cotangent, keep=i < len(pulled) - 1)
        sums.add(norms, scale)
    sums.close(len(pulled))


def _pulled(
    criterion: Criterion, z: Tensor, targets: Tensor, examples: int, draws: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """What is pulled back: roots times random signs, or every column of the roots."""
    for _ in range(draws):
        v = torch.randint(0, 2, z.shape, generator=generator, dtype=torch.int8)
        yield criterion.root(z, targets, v.to(z) * 2 - 1)
    if not draws:
        yield from ghost.by_row(criterion.columns(z, targets), examples)


@dataclass
class _Sums:
    """What is kept of the examples' values, in float64; ``draws`` = 0: exact."""

    draws: int
    passes: int = 0
    value: dict[str, float] = field(default_factory=dict)
    within: dict[str, float] = field(default_factory=dict)  # variance of the value over the draws
    first: dict[str, float] = field(default_factory=dict)  # of single draws: sums over examples
    second: dict[str, float] = field(default_factory=dict)
    examples: int = 0
    open: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, norms: Mapping[str, Tensor], scale: float) -> None:
        """One backward pass over some examples."""
        each = {name: value.double() * scale for name, value in norms.items()}
        each[""] = torch.stack(list(each.values())).sum(0)
        if self.draws or not self.open:
            self.open.append(each)
        else:
            for name, value in each.items():
                self.open[0][name] += value

    def close(self, passes: int) -> None:
        """The examples are done."""
        self.passes = max(self.passes, passes)
        for name in self.open[0]:
            x = torch.stack([each[name] for each in self.open])
            self._to(self.value, name, float(x.mean(0).sum()))
            if self.draws > 1:
                self._to(self.within, name, float(x.var(0, unbiased=True).sum()) / self.draws)
            elif self.draws:
                self._to(self.first, name, float(x.sum()))
                self._to(self.second, name, float(x.square().sum()))
        self.examples += len(self.open[0][""])
        self.open = []

    @staticmethod
    def _to(sums: dict[str, float], name: str, value: float) -> None:
        sums[name] = sums.get(name, 0.0) + value

    def _error(self, name: str) -> float:
        if not self.draws:
            return 0.0
        if self.draws > 1:
            return math.sqrt(self.within[name])
        n = self.examples
        if n < 2:
            return math.nan
        return math.sqrt(max(self.second[name] - self.first[name] ** 2 / n, 0.0) * n / (n - 1))

    def traces(self) -> Traces:
        names = [name for name in self.value if name]
        return Traces(
            {name: self.value[name] for name in names},
            {name: self._error(name) for name in names},
            self.value[""],
            self._error(""),
            self.draws,
            self.passes,
            f"Gauss-Newton, {drawn(self.draws)} a column" if self.draws else "Gauss-Newton, exact",
            freedom=max(self.examples - 1 if self.draws == 1 else self.examples * (self.draws - 1), 0),
        )


def pooled(a: Traces, b: Traces) -> Traces:
    """Two independent estimates as one, weighed by their draws."""
    total = a.draws + b.draws
    p, q = a.draws / total, b.draws / total

    def error(x: float, y: float) -> float:
        return math.hypot(p * x, q * y)

    return Traces(
        {name: p * a.values[name] + q * b.values[name] for name in a.values},
        {name: error(a.errors[name], b.errors[name]) for name in a.values},
        p * a.total + q * b.total,
        error(a.total_error, b.total_error),
        total,
        a.passes + b.passes,
        a.how,
        freedom=a.freedom + b.freedom,
    )


def _drawn(subject: Subject, accuracy: float, most: int, seed: int) -> Traces:
    """Gauss-Newton traces to an accuracy: one draw first, whose error is an upper bound, then as many as it takes."""
    found = gauss_newton_traces(subject, 1, seed)
    draws = 0
    while not enough(found, accuracy) and found.draws < most:
        draws = min(max(2, draws * 2), most)
        more = gauss_newton_traces(subject, draws, seed + 7919 * draws)
        found = more if found.draws == 1 else pooled(found, more)
    return replace(found, reached=enough(found, accuracy))


def wanted(values: Mapping[str, float], total: float, accuracy: float) -> dict[str, float]:
    """The standard errors asked for; of the total under the empty name."""
    size = sum(abs(value) for value in values.values())
    out = {name: accuracy * max(abs(value), SMALL * size) for name, value in values.items()}
    out[""] = accuracy * max(abs(total), SMALL * size)
    return out


def enough(traces: Traces, accuracy: float) -> bool:
    """Whether the errors, taken at their upper bounds, are as small as asked for."""
    return _within(traces, wanted(traces.values, traces.total, accuracy))


def _estimated(subject: Subject, why: str, accuracy: float, most: int, seed: int) -> Traces:
    """Products with random vectors: with what Gauss-Newton leaves, or with the Hessian where G is not to be had."""
    try:
        known = gauss_newton_traces(subject, 2, seed)
    except TypeError:
        known = None
    with in_pieces(subject, rest if known is not None else hessian, known is not None) as pieces:
        forms, values = _Forms(pieces, seed + 1), dict[str, float]()
        goal = min(PILOT, most)
        while True:
            forms.draw(goal)
            values, total = forms.means(known)
            goals = wanted(values, total, accuracy * math.sqrt(0.5 if known is not None else 1.0))
            while known is not None and known.draws < most and not _within(known, goals):
                more = gauss_newton_traces(subject, known.draws, seed + 7919 * known.draws)
                known = pooled(known, more)
                values, total = forms.means(known)
            want = forms.needed(goals)
            if want <= forms.count or forms.count >= most:
                break
            goal = min(want, 2 * forms.count, most)
    errors = forms.errors(known)
    how = f"{forms.count} products with random signs"
    if known is not None:
        how += f" for what Gauss-Newton leaves, {drawn(known.draws)} a column for it"
    return Traces(
        values,
        {name: error for name, error in errors.items() if name},
        total,
        errors[""],
        forms.count,
        forms.count + (0 if known is None else known.passes),
        f"{how} ({why})",
        want <= forms.count and (known is None or _within(known, goals)),
    )


def _within(known: Traces, goals: Mapping[str, float]) -> bool:
    if 0 < known.freedom < PILOT - 1:  # so few signs may agree by luck, and show no scatter at all
        return False
    met = all(known.margin * error <= goals[name] for name, error in known.errors.items())
    return met and known.margin * known.total_error <= goals[""]


class _Forms:
    """Values of v_l' (A v)_l, per tensor, for random signs v of every piece; of v' A v under the empty name."""

    def __init__(self, pieces: Sequence[Piece], seed: int) -> None:
        self._pieces = pieces
        self._generator = torch.Generator().manual_seed(seed)
        self._seen: dict[str, list[float]] = {name: [] for name in ["", *pieces[0].product.like]}

    @property
    def count(self) -> int:
        return len(self._seen[""])

    def draw(self, goal: int) -> None:
        while self.count < goal:
            each = dict.fromkeys(self._pieces[0].product.like, 0.0)
            for piece in self._pieces:
                v = signs(piece.product.like, self._generator)
                av = piece.product(v)
                for name in v:
                    each[name] += piece.share * float((v[name].double() * av[name].double()).sum())
            self._seen[""].append(sum(each.values()))
            for name, value in each.items():
                self._seen[name].append(value)

    def means(self, known: Traces | None) -> tuple[dict[str, float], float]:
        """The traces, and the total."""
        base = {name: mean_and_se(values)[0] for name, values in self._seen.items()}
        total = base.pop("")
        if known is not None:
            base = {name: value + known.values.get(name, 0.0) for name, value in base.items()}
            total += known.total
        return base, total

    def errors(self, known: Traces | None) -> dict[str, float]:
        """Standard errors; of the total under the empty name."""
        out = {name: mean_and_se(values)[1] for name, values in self._seen.items()}
        if known is None:
            return out
        other = {**known.errors, "": known.total_error}
        return {name: math.hypot(error, other.get(name, 0.0)) for name, error in out.items()}

    def needed(self, goals: Mapping[str, float]) -> int:
        """How many vectors the worst of them takes."""
        if self.count < 2:
            return 2
        return max(needed(values, goals[name]) for name, values in self._seen.items())


def probe(subject: Subject, accuracy: float | None = None, seed: int = 0) -> list[Measurement]:
    """:func:`layer_traces` as measurements, one for every tensor."""
    with timed() as watch:
        found = layer_traces(subject, accuracy, seed=seed)
    spent = watch.spent(gradient_seconds(subject))
    changed = switched(subject) if "products" in found.how else ""
    how = found.how + changed + ("" if found.reached else "; stopped before the accuracy asked for")
    return [
        Measurement("hessian_trace", value, found.errors[name], "nats", name, how, spent)
        for name, value in found.values.items()
    ]
