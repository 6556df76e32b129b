r"""Exact products with the inverse of a Fisher matrix of m gradients, at the cost of m × m numbers.

.. math:: F = \lambda I + \frac1m G^T G, \qquad
    F^{-1} x = \frac1\lambda\Big(x - G^T (m\lambda I + G G^T)^{-1} G x\Big)

(Woodbury's identity.) It needs the Gram matrix G Gᵀ and products with G, and G is never formed where the model's layers
allow it (:mod:`isoloss.measure.per_example`). M-FAC's static algorithm gives the same numbers one gradient at a
time: its coefficients are the Cholesky factor of :math:`m\lambda I + GG^T`.

In the span of the gradients the two terms of the product cancel to :math:`\lambda/\sigma` of their size, so that with
the usual :math:`\lambda = 10^{-5}` float32 keeps no digit. All of this is in float64; the gradients themselves may be
float32.

Sources: Woodbury 1950; Frantar, Kurtic, Alistarh 2021, M-FAC, arXiv:2107.03356.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.errors import NoAnswer
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.per_example import Gradients, loss_gradients
from isoloss.measure.products import Vector, flatten, unflatten
from isoloss.measure.subject import Subject

SLAB = 1 << 20  # numbers in a temporary of the diagonal


@dataclass(frozen=True, eq=False)
class InverseFisher:
    r""":math:`F^{-1}` of gradients and a damping.

    Attributes:
        gradients: G, m rows.
        damping: lambda.
        factor: Cholesky factor of :math:`m\lambda I + GG^T`, (m, m) in float64.

    Example:
        >>> g = Gradients.of_rows(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), {"w": torch.zeros(2)})
        >>> inverse = inverse_fisher(g, damping=1.0)  # F = [[2, 1], [1, 3]]
        >>> [round(5 * float(entry), 6) for entry in inverse.flat(torch.tensor([1.0, 0.0]))]
        [3.0, -1.0]
        >>> (5 * inverse.diagonal()).round(decimals=6).tolist()
        [3.0, 2.0]
    """

    gradients: Gradients
    damping: float
    factor: Tensor

    def __call__(self, v: Vector) -> dict[str, Tensor]:
        """The product with a vector over the parameters, in its own precision."""
        like = self.gradients.like
        product = unflatten(self.flat(flatten({name: v[name] for name in like})), like)
        return {name: part.to(v[name].dtype) for name, part in product.items()}

    def flat(self, v: Tensor) -> Tensor:
        """The product with a flat vector (d,), in float64."""
        u = self._solve(self.gradients.times(v))
        return (v.double() - self.gradients.combine(u)) / self.damping

    def residual(self, v: Tensor, product: Tensor) -> float:
        """:math:`|F y - v| / |v|` of a product y of v: what it costs to be sure is one more product."""
        g = self.gradients
        back = self.damping * product.double() + g.combine(g.times(product)) / g.count
        return float((back - v).norm() / v.norm())

    def of_rows(self, u: Tensor) -> Tensor:
        r""":math:`F^{-1} G^T u`, (d,), of u (m,): without the cancellation of a general product.

        It is :math:`m\,G^T (m\lambda I + GG^T)^{-1} u`.
        """
        return self.gradients.combine(self.gradients.count * self._solve(u.double()))

    def between(self, left: Gradients, right: Gradients | None = None) -> Tensor:
        r""":math:`L F^{-1} R^T` of two sets of gradients; of ``left`` and the rows of F where no right is given.

        With the rows of F it is :math:`m\,L G^T (m\lambda I + GG^T)^{-1}`, again without cancellation.
        """
        across = left.gram(self.gradients)
        if right is None:
            return self._solve(across.mT).transpose(0, 1) * self.gradients.count
        other = across if right is left else right.gram(self.gradients)
        plain = left.gram(None if right is left else right)
        return (plain - across @ self._solve(other.mT)) / self.damping

    def diagonal(self) -> Tensor:
        r"""The diagonal of :math:`F^{-1}`, (d,) in float64: :math:`(1 - |L^{-1} G_{:k}|^2)/\lambda`; :math:`dm^2` operations."""
        size, count = self.gradients.size, self.gradients.count
        width = max(1, SLAB // count)
        out = torch.empty(size, dtype=torch.float64)
        for start in range(0, size, width):
            index = torch.arange(start, min(start + width, size))
            half = torch.linalg.solve_triangular(self.factor, self.gradients.columns(index), upper=False)
            out[index] = (1 - half.square_().sum(0)) / self.damping
        return out

    def block(self, index: Tensor) -> Tensor:
        """The rows and columns of the inverse at flat indices, (k, k) in float64."""
        half = torch.linalg.solve_triangular(self.factor, self.gradients.columns(index), upper=False)
        inside: Tensor = torch.eye(len(index), dtype=torch.float64) - half.mT @ half
        return inside / self.damping

    def effective_dimension(self) -> float:
        r""":math:`\operatorname{tr} \hat F (\hat F + \lambda)^{-1}`, with :math:`\hat F = G^T G/m`: directions above the damping."""
        count = self.gradients.count
        inverse = torch.linalg.solve_triangular(
            self.factor, torch.eye(count, dtype=torch.float64), upper=False
        )
        return count - count * self.damping * float(inverse.square_().sum())

    def _solve(self, u: Tensor) -> Tensor:
        solved: Tensor = torch.cholesky_solve(u.reshape(len(u), -1), self.factor)
        return solved.view(u.shape)


def inverse_fisher(gradients: Gradients, damping: float = 1e-5) -> InverseFisher:
    """The inverse Fisher matrix of some gradients; the Gram matrix is made and factored here.

    Args:
        gradients: of :func:`isoloss.measure.per_example.loss_gradients`, ``fisher_gradients``, or rows given.
        damping: lambda, above 0.

    Raises:
        ValueError: the damping is not above 0.
        NoAnswer: the damping is lost in the rounding of the Gram matrix, or gradients are not finite.
    """
    if not damping > 0:
        raise ValueError(f"needed a damping above 0, got {damping}")
    gram = gradients.gram()
    largest = float(gram.diagonal().max())
    if not math.isfinite(float(gram.diagonal().sum())):
        raise NoAnswer("some gradients are not finite", "weights and data on which the loss is finite")
    gram.diagonal().add_(gradients.count * damping)
    factor, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        raise NoAnswer(
            f"a damping of {damping:g} is lost in rounding: the largest squared gradient is {largest:.3g}",
            f"a damping above {1e-14 * largest / gradients.count:.1g}",
        )
    return InverseFisher(gradients, damping, factor)


def probe(subject: Subject, damping: float = 1e-5) -> list[Measurement]:
    """Effective dimension of the empirical Fisher matrix at a damping: exact for the subject's examples."""
    with timed() as watch:
        gradients = loss_gradients(subject)
        value = inverse_fisher(gradients, damping).effective_dimension()
    how = f"damping {damping:g}, {gradients.count} {gradients.how}"
    return [Measurement("effective_dimension", value, 0.0, "count", how=how, spent=watch.spent())]
