r"""The gradients of one tensor for several examples, kept as the factors they are made of.

For a linear layer example i's gradient is :math:`\sum_t \delta_{it} x_{it}^T` over its positions t. Factors take
in + out numbers a position where the gradient takes in × out, and still give exactly

.. math:: \langle g_i, g_j\rangle = \sum_{t,s} (x_{it}\cdot x_{js})(\delta_{it}\cdot\delta_{js}), \quad
    \langle g_i, V\rangle = \sum_t \delta_{it}^T V x_{it}, \quad
    \sum_i u_i g_i = \sum_{i,t} u_i\, \delta_{it} x_{it}^T .

Everything is computed in float64, in blocks, from numbers stored in the model's own precision.

Sources: Goodfellow 2015, arXiv:1510.01799; Li, Tramer, Liang, Hashimoto 2022, arXiv:2110.05679.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 20  # numbers in a temporary, about
ROWS = 512  # rows of a matrix product in blocks of which only half is needed


class Part(ABC):
    """The gradients of one tensor for several examples, from one use of it.

    The tensor is seen as a matrix (out, into): its first length, and the product of the others.
    """

    @property
    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept; the examples along the first dimension."""

    @abstractmethod
    def of(self, tensors: Sequence[Tensor]) -> Part:
        """A part like this one of other tensors."""

    @abstractmethod
    def times(self, w: Tensor) -> Tensor:
        """Inner product of every gradient with w (out, into): (count,)."""

    @abstractmethod
    def combine(self, u: Tensor) -> Tensor:
        """The sum of the gradients times u (count,): flat."""

    @abstractmethod
    def columns(self, index: Tensor) -> Tensor:
        """Entries of every gradient at flat indices: (count, len(index))."""

    @abstractmethod
    def slab(self, start: int, stop: int, into: int) -> Tensor:
        """Rows start to stop of the matrix, of every example: (count, (stop - start) into), in float64."""

    @property
    @abstractmethod
    def positions(self) -> int:
        """Positions of an example; 0 where there are none to be told apart."""

    @property
    @abstractmethod
    def each(self) -> int:
        """Numbers kept for an example, the largest of its tensors: what blocks are sized by."""

    @property
    def count(self) -> int:
        """Examples."""
        return self.tensors[0].shape[0]

    def fits(self, other: Part) -> bool:
        """Whether the examples of the other can be put behind these."""
        return type(self) is type(other) and all(
            a.shape[1:] == b.shape[1:] for a, b in zip(self.tensors, other.tensors, strict=True)
        )

    def some(self, start: int, stop: int) -> Part:
        """The examples from start to stop."""
        return self.of([tensor[start:stop] for tensor in self.tensors])

    def blocks(self, size: int = 0) -> Iterator[tuple[int, Part]]:
        """Where each block of examples starts, and the block."""
        size = size or max(1, BLOCK // self.each)
        for start in range(0, self.count, size):
            yield start, self.some(start, min(start + size, self.count))


@dataclass(frozen=True, eq=False)
class Formed(Part):
    """The gradients themselves, (count, out * into)."""

    rows: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.rows,)

    def of(self, tensors: Sequence[Tensor]) -> Formed:
        return Formed(*tensors)

    def times(self, w: Tensor) -> Tensor:
        return self.rows.double() @ w.reshape(-1)

    def combine(self, u: Tensor) -> Tensor:
        return u @ self.rows.double()

    def columns(self, index: Tensor) -> Tensor:
        return self.rows[:, index].double()

    def slab(self, start: int, stop: int, into: int) -> Tensor:
        return self.rows[:, start * into : stop * into].double()

    @property
    def positions(self) -> int:
        return 0

    @property
    def each(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True, eq=False)
class Factors(Part):
    """Sums of outer products over positions: x (count, T, into), delta (count, T, out)."""

    x: Tensor
    delta: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.x, self.delta

    def of(self, tensors: Sequence[Tensor]) -> Factors:
        return Factors(*tensors)

    def times(self, w: Tensor) -> Tensor:
        return ((self.x.double() @ w.mT) * self.delta).sum((1, 2))

    def combine(self, u: Tensor) -> Tensor:
        weighted = self.delta.double() * u[:, None, None]
        return (weighted.flatten(0, 1).mT @ self.x.double().flatten(0, 1)).reshape(-1)

    def columns(self, index: Tensor) -> Tensor:
        out, into = index // self.x.shape[2], index % self.x.shape[2]
        total = torch.zeros(self.count, len(index), dtype=torch.float64)
        for t in range(self.positions):
            total += self.delta[:, t, out].double() * self.x[:, t, into]
        return total

    def slab(self, start: int, stop: int, into: int) -> Tensor:
        return (self.delta[:, :, start:stop].double().mT @ self.x.double()).flatten(1)

    @property
    def positions(self) -> int:
        return self.x.shape[1]

    @property
    def each(self) -> int:
        return self.positions * max(self.x.shape[2], self.delta.shape[2])


@dataclass(frozen=True, eq=False)
class Lookup(Part):
    """Rows put at indices: index (count, T), delta (count, T, into); ``out`` rows there are."""

    index: Tensor
    delta: Tensor
    out: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.index, self.delta

    def of(self, tensors: Sequence[Tensor]) -> Lookup:
        index, delta = tensors
        return Lookup(index, delta, self.out)

    def times(self, w: Tensor) -> Tensor:
        return (w[self.index] * self.delta).sum((1, 2))

    def combine(self, u: Tensor) -> Tensor:
        total = torch.zeros(self.out, self.delta.shape[2], dtype=torch.float64)
        weighted = self.delta.double() * u[:, None, None]
        return total.index_add_(0, self.index.flatten(), weighted.flatten(0, 1)).reshape(-1)

    def columns(self, index: Tensor) -> Tensor:
        row, into = index // self.delta.shape[2], index % self.delta.shape[2]
        total = torch.zeros(self.count, len(index), dtype=torch.float64)
        for t in range(self.positions):
            total += self.delta[:, t, into].double() * (self.index[:, t, None] == row)
        return total

    def slab(self, start: int, stop: int, into: int) -> Tensor:
        inside = (self.index >= start) & (self.index < stop)
        at = torch.where(inside, self.index - start, stop - start)  # the last row takes what lies outside
        total = torch.zeros(self.count, stop - start + 1, into, dtype=torch.float64)
        total.scatter_add_(1, at[:, :, None].expand_as(self.delta), self.delta.double())
        return total[:, :-1].flatten(1)

    @property
    def positions(self) -> int:
        return self.index.shape[1]

    @property
    def each(self) -> int:
        return self.positions * self.delta.shape[2]


def add_inner(total: Tensor, a: Part, b: Part, out: int, into: int) -> None:
    """Add the inner products of two parts' gradients of one tensor to ``total`` (a.count, b.count).

    With a part and itself only blocks that reach above the diagonal are added: the rest is its mirror image.
    """
    if _direct(a, b, out, into):
        size = max(1, 1024 // max(a.positions, b.positions))
        for i, p in a.blocks(size):
            for j, q in b.blocks(size):
                if a is not b or j >= i:
                    total[i : i + p.count, j : j + q.count] += _over_positions(p, q)
        return
    width = max(1, BLOCK // (max(a.count, b.count) * into))
    for start in range(0, out, width):
        stop = min(start + width, out)
        left = a.slab(start, stop, into)
        right = left if a is b else b.slab(start, stop, into)
        for i in range(0, a.count, ROWS):
            first = i if a is b else 0
            total[i : i + ROWS, first:] += left[i : i + ROWS] @ right[first:].mT


def paired_inner(a: Part, b: Part, out: int, into: int) -> Tensor:
    """Inner product of each example's gradient in one part with the same example's in the other: (count,)."""
    size = max(1, min(BLOCK // max(a.each, b.each, a.positions * b.positions), a.count))
    total = torch.zeros(a.count, dtype=torch.float64)
    if not _direct(a, b, out, into):
        size = max(1, BLOCK // (out * into))
    for start, p in a.blocks(size):
        q = p if a is b else b.some(start, start + p.count)
        if _direct(a, b, out, into):
            value = _products(_tensors(p), _tensors(q)).sum((1, 2))
        else:
            value = (p.slab(0, out, into) * q.slab(0, out, into)).sum(1)
        total[start : start + p.count] = value
    return total


def _direct(a: Part, b: Part, out: int, into: int) -> bool:
    """Whether inner products over pairs of positions cost less than those of the gradients formed."""
    lengths = (out if isinstance(a, Factors) and isinstance(b, Factors) else 0) + into
    pairs = a.positions * b.positions
    return pairs > 0 and pairs * lengths <= out * into


_Sides = tuple[Tensor | None, Tensor | None, Tensor]  # x and delta of factors, or index and delta of rows


def _tensors(part: Part) -> _Sides:
    """(index or None, x or None, delta), each with positions along the dimension before its last."""
    if isinstance(part, Lookup):
        return part.index, None, part.delta.double()
    assert isinstance(part, Factors)
    return None, part.x.double(), part.delta.double()


def _products(a: _Sides, b: _Sides) -> Tensor:
    """Inner products over pairs of positions, (n, P, Q), of sides with n groups of positions."""
    (index, x, delta), (index_b, x_b, delta_b) = a, b
    if x is not None and x_b is not None:
        return (x @ x_b.mT).mul_(delta @ delta_b.mT)
    if index is not None and index_b is not None:
        return (delta @ delta_b.mT).mul_(index[:, :, None] == index_b[:, None, :])
    if index is None:
        return _products(b, a).mT
    assert x_b is not None  # an embedding tied to the head
    at = delta_b.gather(2, index[:, None, :].expand(-1, delta_b.shape[1], -1)).mT
    return (delta @ x_b.mT).mul_(at)


def _over_positions(a: Part, b: Part) -> Tensor:
    """Inner products of all examples of two blocks, (a.count, b.count)."""

    def flat(side: _Sides) -> _Sides:
        index, x, delta = side
        return (
            None if index is None else index.reshape(1, -1),
            None if x is None else x.reshape(1, -1, x.shape[-1]),
            delta.reshape(1, -1, delta.shape[-1]),
        )

    products = _products(flat(_tensors(a)), flat(_tensors(b)))
    return products.reshape(a.count, a.positions, b.count, b.positions).sum((1, 3))
