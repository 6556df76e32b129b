r"""Inverse Fisher matrices in the two forms of M-FAC that a running procedure needs: blocks, and a sliding window.

.. math:: F = \lambda I + \frac1m \sum_{i=1}^m g_i g_i^T

The whole static matrix is :func:`isoloss.measure.woodbury.inverse_fisher`. Here are

- :class:`BlockFisher`: only blocks of B consecutive parameters, independent of each other: what pruning uses (the
  paper: B = 128). A block is a B × B matrix, summed over the gradients and factored once; the gradients can come in
  parts, and cost no memory then;
- :class:`Window`: the m newest gradients of a training run. To replace the oldest costs O(dm) for its inner
  products with the others, and O(m³) before the next product, which then takes O(dm).

The paper eliminates gradient by gradient (its D is the factor U of an LU decomposition of :math:`S/\lambda + mI`,
S = GGᵀ); S is symmetric and positive, so the same elimination is a Cholesky factorisation, in float64.

Source: Frantar, Kurtic, Alistarh 2021, M-FAC, arXiv:2107.03356.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.errors import NoAnswer
from isoloss.measure.per_example import Gradients
from isoloss.measure.products import Vector, flatten, unflatten

BLOCK = 128  # parameters
GROUP = 64  # blocks at a time
CHUNK = 1 << 20  # numbers of G in float64 at a time


@dataclass(frozen=True, eq=False)
class BlockFisher:
    """The inverse of the Fisher matrix with only its diagonal blocks kept.

    Attributes:
        like: the parameters; blocks run over them in order, flat, the last one shorter.
        damping: lambda.
        factors: Cholesky factors, (blocks, B, B) in float64; the last block is filled up with rows of zero gradients.

    Example:
        >>> g = Gradients.of_rows(torch.tensor([[1.0, 0.0, 3.0], [1.0, 2.0, 1.0]]), {"w": torch.zeros(3)})
        >>> inverse = block_fisher(g, damping=1.0, block=2)  # blocks [[2, 1], [1, 3]] and [6]
        >>> [round(30 * float(entry), 6) for entry in inverse.flat(torch.tensor([1.0, 0.0, 1.0]))]
        [18.0, -6.0, 5.0]
    """

    like: Mapping[str, Tensor]
    damping: float
    factors: Tensor

    def __call__(self, v: Vector) -> dict[str, Tensor]:
        """The product with a vector over the parameters, in its own precision."""
        product = unflatten(self.flat(flatten({name: v[name] for name in self.like})), self.like)
        return {name: part.to(v[name].dtype) for name, part in product.items()}

    def flat(self, v: Tensor) -> Tensor:
        """The product with a flat vector (d,), in float64."""
        blocks, width = self.factors.shape[:2]
        padded = torch.zeros(blocks * width, dtype=torch.float64)
        padded[: len(v)] = v
        return torch.cholesky_solve(padded.view(blocks, width, 1), self.factors).reshape(-1)[: len(v)]

    def diagonal(self) -> Tensor:
        """The diagonal of the inverse, (d,) in float64."""
        size = sum(p.numel() for p in self.like.values())
        parts = [
            torch.cholesky_inverse(some).diagonal(dim1=1, dim2=2) for some in torch.split(self.factors, GROUP)
        ]
        return torch.cat(parts).reshape(-1)[:size].clone()


def block_fisher(
    gradients: Gradients | Iterable[Gradients], damping: float = 1e-5, block: int = BLOCK
) -> BlockFisher:
    """Blocks of the Fisher matrix of some gradients, inverted.

    Args:
        gradients: G, whole or in parts that are made one after the other:
            ``(loss_gradients(Subject(model, [batch], criterion)) for batch in batches)``.
        damping: lambda, above 0.
        block: B, parameters in a block; memory is 8 d B bytes, time O(dmB + dB²).

    Raises:
        ValueError: damping or block is not above 0, or there are no gradients.
        NoAnswer: the damping is lost in rounding, or gradients are not finite.
    """
    if not damping > 0 or block < 1:
        raise ValueError(f"needed damping above 0 and a block of 1 or more, got {damping} and {block}")
    factors, count = torch.zeros(0), 0
    like: Mapping[str, Tensor] = {}
    for part in [gradients] if isinstance(gradients, Gradients) else gradients:
        like, size = part.like, part.size
        width = min(block, size)
        if not count:
            factors = torch.zeros(-(-size // width), width, width, dtype=torch.float64)
        count += part.count
        group = max(1, CHUNK // (part.count * width))
        for start in range(0, len(factors), group):
            index = torch.arange(start * width, min((start + group) * width, size))
            columns = torch.nn.functional.pad(part.columns(index), (0, -len(index) % width))
            each = columns.view(part.count, -1, width).transpose(0, 1)
            factors[start : start + len(each)].baddbmm_(each.mT, each)
    if not count:
        raise ValueError("needed gradients, got none")
    factors /= count
    factors.diagonal(dim1=1, dim2=2).add_(damping)
    for start in range(0, len(factors), GROUP):
        factor, info = torch.linalg.cholesky_ex(factors[start : start + GROUP])
        if info.any():
            raise _no_factor(damping, factors[start : start + GROUP])
        factors[start : start + GROUP] = factor
    return BlockFisher(like, damping, factors)


def _no_factor(damping: float, matrix: Tensor) -> NoAnswer:
    """Why a damped matrix has no Cholesky factor."""
    if not matrix.isfinite().all():
        return NoAnswer("some gradients are not finite", "gradients that are")
    return NoAnswer(f"a damping of {damping:g} is lost in rounding", "a larger damping")


class Window:
    """The inverse Fisher matrix of the newest m gradients: the matrix behind M-FAC's optimiser.

    Until the window is full the mean is over the gradients that are there. (The paper divides by m throughout.)

    Args:
        like: the parameters, name -> tensor.
        size: m, gradients kept.
        damping: lambda, above 0.
        dtype: that the gradients are kept in; all sums are in float64.

    Raises:
        ValueError: size or damping is not above 0.

    Example:
        >>> window = Window({"w": torch.zeros(2)}, size=2, damping=1.0)
        >>> for gradient in ([9.0, 9.0], [1.0, 0.0], [1.0, 2.0]):  # the first is replaced by the third
        ...     window.add({"w": torch.tensor(gradient)})
        >>> [round(5 * float(entry), 6) for entry in window.flat(torch.tensor([1.0, 0.0]))]
        [3.0, -1.0]
    """

    def __init__(
        self, like: Mapping[str, Tensor], size: int, damping: float = 1e-5, dtype: torch.dtype = torch.float32
    ) -> None:
        if size < 1 or not damping > 0:
            raise ValueError(f"needed a size of 1 or more and a damping above 0, got {size} and {damping}")
        self.like, self.damping, self.seen = dict(like), damping, 0
        self.rows = torch.zeros(size, sum(p.numel() for p in like.values()), dtype=dtype)
        self._gram = torch.zeros(size, size, dtype=torch.float64)
        self._factor: Tensor | None = None

    @property
    def count(self) -> int:
        """Gradients there are."""
        return min(self.seen, len(self.rows))

    def add(self, gradient: Vector) -> None:
        """Put a gradient in the place of the oldest: O(dm).

        Raises:
            ValueError: it is not over these parameters, or not finite; the window stays as it was.
        """
        shapes = {name: tuple(gradient[name].shape) for name in self.like if name in gradient}
        if shapes != {name: tuple(p.shape) for name, p in self.like.items()}:
            raise ValueError(
                "needed a gradient over the window's parameters, got others. Do: give one for each name"
            )
        row = flatten({name: gradient[name].detach() for name in self.like}).to(self.rows.dtype)
        if not row.isfinite().all():
            raise ValueError("needed a finite gradient, got inf or NaN. Do: leave that step out")
        at = self.seen % len(self.rows)
        self.rows[at] = row
        self.seen += 1
        products = self._times(self.rows[at])
        self._gram[at, : self.count] = products
        self._gram[: self.count, at] = products
        self._factor = None

    def __call__(self, v: Vector) -> dict[str, Tensor]:
        """The product with a vector over the parameters, in its own precision."""
        product = unflatten(self.flat(flatten({name: v[name] for name in self.like})), self.like)
        return {name: part.to(v[name].dtype) for name, part in product.items()}

    def flat(self, v: Tensor) -> Tensor:
        """The product with a flat vector (d,), in float64: O(dm), and O(m³) after a change.

        Raises:
            NoAnswer: there is no gradient yet, or the damping is lost in rounding.
        """
        factor = self._factored()
        u = torch.cholesky_solve(self._times(v)[:, None], factor)[:, 0]
        out = v.to(torch.float64, copy=True)
        for start, some in self._blocks():
            out.addmv_(some.mT, u[start : start + len(some)], alpha=-1)
        return out.div_(self.damping)

    def _factored(self) -> Tensor:
        if not self.count:
            raise NoAnswer("an empty window has no Fisher matrix", "at least one gradient")
        if self._factor is None:
            gram = self._gram[: self.count, : self.count].clone()
            gram.diagonal().add_(self.count * self.damping)
            factor, info = torch.linalg.cholesky_ex(gram)
            if int(info):
                raise _no_factor(self.damping, gram)
            self._factor = factor
        return self._factor

    def _times(self, v: Tensor) -> Tensor:
        v = v.double()
        return torch.cat([some @ v for _, some in self._blocks()])

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Some rows at a time in float64, in one buffer."""
        size = self.rows.shape[1]
        step = max(1, CHUNK // size)
        buffer = torch.empty(min(step, self.count), size, dtype=torch.float64)
        for start in range(0, self.count, step):
            some = self.rows[start : min(start + step, self.count)]
            yield start, buffer[: len(some)].copy_(some)
