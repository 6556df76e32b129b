r"""A matrix G whose rows are gradients, most often those of single examples, known by what can be asked of it.

Rows of a model's own gradients are kept as factors (:mod:`isoloss.measure.factors`) where that is smaller than the
gradients; the products and the Gram matrix are exact either way. What is kept is checked on a few examples against the
library's own gradients: one example's by its norm, their sum number by number.

Sources: as :mod:`isoloss.measure.factors`; the Gram form Dangel, Tatzel, Hennig 2022, arXiv:2106.02624.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from isoloss.measure import ghost
from isoloss.measure.criteria import Criterion
from isoloss.measure.factors import ROWS, Factors, Formed, Lookup, Part, add_inner, paired_inner
from isoloss.measure.products import known_criterion, unflatten, weights
from isoloss.measure.subject import Batch, Subject, chunks, examples_of

FEW = 8  # examples that the rows are checked on
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CLOSE = 1e-3  # how near the sum of the rows must come to the batch's gradient, relative, in 32 bits or more

Stack = dict[str, list[Part]]
"""By parameter: one part for each use of it. All parts are of the same examples."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """G: m gradients over d parameters.

    Attributes:
        like: the parameters, name -> tensor.
        stacks: the rows, in groups, in order.
        how: how they were made, in a few words.

    Example:
        >>> g = Gradients.of_rows(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), {"w": torch.zeros(2)})
        >>> g.gram().tolist(), g.combine(torch.tensor([1.0, 1.0])).tolist()
        ([[1.0, 1.0], [1.0, 5.0]], [2.0, 2.0])
    """

    like: Mapping[str, Tensor]
    stacks: Sequence[Stack]
    how: str = "given rows"

    @classmethod
    def of_rows(cls, rows: Tensor, like: Mapping[str, Tensor]) -> Gradients:
        """From a matrix (m, d) that is there, without a copy.

        Raises:
            ValueError: its width is not the number of parameters.
        """
        sizes = [p.numel() for p in like.values()]
        if rows.ndim != 2 or rows.shape[1] != sum(sizes):
            raise ValueError(f"needed gradients (m, {sum(sizes)}), got {tuple(rows.shape)}")
        parts = torch.split(rows, sizes, dim=1)
        return cls(like, [{name: [Formed(part)] for name, part in zip(like, parts, strict=True)}])

    @property
    def count(self) -> int:
        """m."""
        return sum(_count(stack) for stack in self.stacks)

    @property
    def size(self) -> int:
        """d."""
        return sum(p.numel() for p in self.like.values())

    @property
    def bytes(self) -> int:
        """Memory that the rows take; a tensor that several layers share counts once."""
        kept = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for _, _, part in self._parts()
            for tensor in part.tensors
        }
        return sum(kept.values())

    def gram(self, other: Gradients | None = None) -> Tensor:
        """Inner products :math:`G G'^T`, (m, m') in float64; of G with itself where no other is given.

        Raises:
            ValueError: the other is over other parameters.
        """
        if other is not None and _shapes(self.like) != _shapes(other.like):
            raise ValueError(
                "needed gradients over the same parameters, got others. Do: take both of one model"
            )
        right = self if other is None else other
        total = torch.zeros(self.count, right.count, dtype=torch.float64)
        for (i, a), (j, b) in itertools.product(self._offsets(), right._offsets()):
            if other is None and j < i:
                continue
            for name in a.keys() & b.keys():
                for p, q in itertools.product(a[name], b[name]):
                    here = total[i : i + p.count, j : j + q.count]
                    add_inner(here, p, q, *_matrix(self.like[name]))
        if other is None:
            for i in range(0, self.count, ROWS):  # in blocks: a copy of the whole is not needed
                total[i:, i : i + ROWS] = total[i : i + ROWS, i:].triu().mT.clone()
                total[i : i + ROWS, i : i + ROWS] += total[i : i + ROWS, i : i + ROWS].tril(-1).mT
        return total

    def times(self, v: Tensor) -> Tensor:
        """G v, (m,) in float64, of a flat v (d,)."""
        w = unflatten(v.double(), self.like)
        total = torch.zeros(self.count, dtype=torch.float64)
        for at, name, part in self._parts():
            matrix = w[name].reshape(_matrix(w[name]))
            for start, some in part.blocks():
                total[at + start : at + start + some.count] += some.times(matrix)
        return total

    def combine(self, u: Tensor) -> Tensor:
        """:math:`G^T u`, (d,) in float64, of u (m,)."""
        total = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in self.like.items()}
        for at, name, part in self._parts():
            for start, some in part.blocks():
                total[name] += some.combine(u[at + start : at + start + some.count].double())
        return torch.cat(list(total.values()))

    def columns(self, index: Tensor) -> Tensor:
        """Columns of G at flat indices, (m, len(index)) in float64."""
        total = torch.zeros(self.count, len(index), dtype=torch.float64)
        begins = itertools.accumulate((p.numel() for p in self.like.values()), initial=0)
        begin_of = dict(zip(self.like, begins, strict=False))  # the last is the end
        for at, name, part in self._parts():
            begin = begin_of[name]
            here = ((index >= begin) & (index < begin + self.like[name].numel())).nonzero()[:, 0]
            if len(here):
                total[at : at + part.count, here] += part.columns(index[here] - begin)
        return total

    def dense(self) -> Tensor:
        """G itself, (m, d) in float64: for small models."""
        return self.columns(torch.arange(self.size))

    def squared_norms(self) -> Tensor:
        """Of every row, (m,) in float64."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for at, stack in self._offsets():
            for name, parts in stack.items():
                for i, p in enumerate(parts):
                    for q in parts[: i + 1]:
                        once = paired_inner(p, q, *_matrix(self.like[name]))
                        total[at : at + p.count] += once if p is q else 2 * once
        return total

    def _offsets(self) -> Iterator[tuple[int, Stack]]:
        at = 0
        for stack in self.stacks:
            yield at, stack
            at += _count(stack)

    def _parts(self) -> Iterator[tuple[int, str, Part]]:
        for at, stack in self._offsets():
            for name, parts in stack.items():
                for part in parts:
                    yield at, name, part


def loss_gradients(subject: Subject) -> Gradients:
    r"""The gradient of every example's loss; their mean is the gradient of the subject's loss.

    An example's loss is its share of the mean, :math:`L = \frac1m \sum_i \ell_i`: where examples count different
    numbers of rows (tokens), those with more weigh more. A model with a layer that is not known here is
    differentiated one example at a time; ``how`` says so.

    Raises:
        TypeError: the examples' gradients do not add up to the batch's: layers or criterion mix examples.

    Example:
        >>> from isoloss.measure.criteria import SquaredError
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> subject = Subject(torch.nn.Linear(2, 1), [(x, torch.zeros(2, 1))], SquaredError())
        >>> g = loss_gradients(subject)
        >>> g.count, g.size, g.how
        (2, 3, 'per-example gradients, kept as factors')
    """
    total = subject.examples
    shares = weights(subject)
    stacks: list[Stack] = []
    for name, module in subject.model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            raise TypeError(
                f"needed batch norm with running statistics, got {name} without: it mixes examples"
            )
    with subject.measuring():
        try:
            alike = _checked(subject)
            for batch, share in shares:
                stacks += _factored(subject, batch, _of_loss(subject, batch, share * total), alike)
        except TypeError as error:
            why = str(error)
        else:
            return Gradients(subject.parameters(), _joined(stacks), "per-example gradients, kept as factors")
        rows = torch.cat([_one_by_one(subject, batch, share * total) for batch, share in shares])
    out = Gradients.of_rows(rows, subject.parameters())
    return Gradients(out.like, out.stacks, f"per-example gradients, one backward pass each ({why})")


def fisher_gradients(subject: Subject, draws: int | None = 1, seed: int = 0) -> Gradients:
    r"""Rows whose mean outer product is the Gauss-Newton matrix (the Fisher matrix of these losses).

    :math:`g_i = \sqrt{m/n}\, J_i^T S_i r_i` with :math:`S_i S_i^T = H_{z_i}`, random signs r, m examples of n rows
    of outputs: the expectation of the mean of :math:`g g^T` over the signs is G. With ``draws=None`` every column
    of S_i is a row of its own, for every row of an example's outputs (token) by itself, and the mean outer product
    is G.

    Args:
        subject: with a criterion of known curvature.
        draws: rows for each example; None: as many as its outputs have numbers, exact.
        seed: of the signs.

    Raises:
        TypeError: a criterion or a layer of an unknown kind.
    """
    criterion = known_criterion(subject)
    generator = torch.Generator().manual_seed(seed)
    total = subject.examples
    stacks: list[Stack] = []

    def roots(z: Tensor, batch: Batch, scale: float) -> list[Tensor]:
        targets = batch[1]
        if draws is not None:
            return [criterion.root(z, targets, _signs(z, generator)) * scale for _ in range(draws)]
        columns = list(ghost.by_row(criterion.columns(z, targets), examples_of(batch)))
        return [column * (scale * math.sqrt(len(columns))) for column in columns]

    with subject.measuring():
        alike = _checked(subject)
        for batch, share in weights(subject):
            scale = math.sqrt(share * total / criterion.rows(batch[1]))
            stacks += _factored(subject, batch, partial(roots, batch=batch, scale=scale), alike)
    how = "one for each number of the outputs, exact" if draws is None else f"{draws} random signs an example"
    return Gradients(subject.parameters(), _joined(stacks), f"Gauss-Newton rows, {how}")


Cotangents = Callable[[Tensor], Sequence[Tensor]]  # outputs -> what is pulled back, one after the other


def _of_loss(subject: Subject, batch: Batch, scale: float) -> Cotangents:
    def cotangents(z: Tensor) -> Sequence[Tensor]:
        with torch.enable_grad():
            held = z.clone().requires_grad_()
            return torch.autograd.grad(subject.criterion(held, batch[1]) * scale, held)

    return cotangents


def _signs(z: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, z.shape, generator=generator, dtype=torch.int8).to(z) * 2 - 1


def _factored(subject: Subject, batch: Batch, cotangents: Cotangents, alike: Collection[str]) -> list[Stack]:
    """One stack for each cotangent; ``alike`` as ``shared`` of :func:`isoloss.measure.ghost.recording`."""
    like = subject.parameters()
    with ghost.recording(subject.model, examples_of(batch), alike) as tape:
        z = subject.predict(batch[0])
    with torch.no_grad():
        pulled = cotangents(z.detach())
    stacks = []
    for i, back in enumerate(pulled):
        found = ghost.pieces(tape, z, back, keep=i < len(pulled) - 1)
        with torch.no_grad():
            stacks.append({name: _kept(pieces, like[name]) for name, pieces in found.items()})
    return stacks


def _checked(subject: Subject) -> Collection[str]:
    """The rows of a few examples against the library's own gradient: what no hook sees would be missing.

    Returns:
        Modules whose input is the same for all examples, as position embeddings have it.

    Raises:
        TypeError: they differ; it names the parameter.
    """
    alike = ghost.verify(subject).shared
    few = next(iter(chunks(subject.batches[0], FEW)))
    like = subject.parameters()

    def pulled(z: Tensor) -> Sequence[Tensor]:
        return [torch.arange(z.numel(), dtype=z.dtype).cos().view_as(z)]

    rows = Gradients(like, _factored(subject, few, pulled, alike))
    z = subject.predict(few[0])
    true = torch.autograd.grad(z, list(like.values()), pulled(z)[0], allow_unused=True)
    _compare(rows, dict(zip(like, true, strict=True)))
    return alike


def _compare(rows: Gradients, true: Mapping[str, Tensor | None]) -> None:
    total = unflatten(rows.combine(torch.ones(rows.count)), rows.like)
    size = math.sqrt(float(rows.squared_norms().sum()))
    for name, ours in total.items():
        gradient = true[name]
        rest = ours if gradient is None else ours - gradient
        if float(rest.norm()) > _close(gradient) * (size + float(ours.norm())):
            raise TypeError(
                f"the gradient of {name} is not what the calls of its own module give: it is used elsewhere too, "
                "or a layer mixes examples"
            )


def _kept(pieces: Sequence[ghost.Plain | ghost.Outer | ghost.Rows], parameter: Tensor) -> list[Part]:
    """Factors where they are smaller than the gradient."""
    parts: list[Part] = []
    for piece in pieces:
        if isinstance(piece, ghost.Plain):
            parts.append(Formed(piece.value.flatten(1)))
        elif isinstance(piece, ghost.Rows):
            parts.append(Lookup(piece.index, piece.delta, parameter.shape[0]))
        else:
            x, delta = piece.call.matrix(), piece.delta
            (_, t, k), m = x.shape, delta.shape[2]
            parts.append(Factors(x, delta) if t * (k + m) < k * m else Formed((delta.mT @ x).flatten(1)))
    formed = [part.rows for part in parts if isinstance(part, Formed)]
    if len(formed) > 1:
        parts = [part for part in parts if not isinstance(part, Formed)]
        parts.append(Formed(torch.stack(formed).sum(0)))
    return parts


def _joined(stacks: Sequence[Stack]) -> list[Stack]:
    """Stacks in order, those that fit together as one: fewer and larger products."""
    groups: list[list[Stack]] = []
    for stack in stacks:
        if groups and _fit(groups[-1][0], stack):
            groups[-1].append(stack)
        else:
            groups.append([stack])
    return [group[0] if len(group) == 1 else _one(group) for group in groups]


def _fit(a: Stack, b: Stack) -> bool:
    return a.keys() == b.keys() and all(
        len(a[name]) == len(b[name]) and all(p.fits(q) for p, q in zip(a[name], b[name], strict=True))
        for name in a
    )


def _one(group: Sequence[Stack]) -> Stack:
    joined: Stack = {}
    for name, parts in group[0].items():
        joined[name] = [
            part.of(
                [
                    torch.cat(tensors)
                    for tensors in zip(*(each[name][i].tensors for each in group), strict=True)
                ]
            )
            for i, part in enumerate(parts)
        ]
    return joined


def _one_by_one(subject: Subject, batch: Batch, scale: float) -> Tensor:
    """One backward pass for each example: (examples, d)."""
    held = list(subject.parameters().values())
    criterion, rows = subject.criterion, []
    for one in chunks(batch, 1):
        share = 1 / examples_of(batch)
        if isinstance(criterion, Criterion):
            share = criterion.rows(one[1]) / criterion.rows(batch[1])
        loss = subject.loss(one) * (scale * share) if share else None  # a mean over no rows is no number
        rows.append(_gradient(loss, held))
    true = _gradient(subject.loss(batch) * scale, held).double()
    rest, square = -true, 0.0
    for row in rows:
        rest += row
        square += float(torch.linalg.vector_norm(row, dtype=torch.float64)) ** 2
    if float(rest.norm()) > _close(rows[0]) * (math.sqrt(square) + float(true.norm())):
        raise TypeError(
            "the gradients of single examples do not add up to the batch's: a layer or the criterion mixes "
            "examples, the outputs are random in eval mode too, or the criterion is no mean over examples"
        )
    return torch.stack(rows)


def _close(gradient: Tensor | None) -> float:
    """How near two ways to one gradient must come, relative: some roundings of its precision."""
    return CLOSE if gradient is None else max(CLOSE, 8 * torch.finfo(gradient.dtype).eps)


def _gradient(loss: Tensor | None, held: Sequence[Tensor]) -> Tensor:
    if loss is None:
        return torch.zeros(sum(p.numel() for p in held), dtype=held[0].dtype)
    found = torch.autograd.grad(loss, held, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(held, found, strict=True)]
    return torch.cat([part.reshape(-1) for part in parts])


def _count(stack: Stack) -> int:
    return next(iter(stack.values()))[0].count


def _matrix(tensor: Tensor) -> tuple[int, int]:
    """(out, into): a tensor seen as a matrix."""
    out = tensor.shape[0] if tensor.ndim else 1
    return out, tensor.numel() // out


def _shapes(like: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in like.items()}
