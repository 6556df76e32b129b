"""Losses whose curvature in the outputs is known in closed form: what Gauss-Newton products are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Criterion(ABC):
    """A mean over rows of outputs; a row is an example, or a token of one.

    With outputs z of n counted rows, :math:`L = \\frac1n \\sum_i \\ell(z_i, y_i)`.
    """

    @abstractmethod
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss, a scalar."""

    @abstractmethod
    def rows(self, targets: Tensor) -> int:
        """n, how many rows count."""

    @abstractmethod
    def curvature(self, outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        """:math:`H_z u / n` for u of the outputs' shape, H_z the Hessian of each row's loss."""

    @abstractmethod
    def root(self, outputs: Tensor, targets: Tensor, signs: Tensor) -> Tensor:
        """:math:`S_i r_i` for every row, with :math:`S_i S_i^T = H_i` and r_i = ``signs`` of the outputs' shape.

        Not divided by n; 0 in rows that do not count.
        """

    @abstractmethod
    def columns(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        """The columns of a root S_i of every row, each of the outputs' shape; as few as there can be."""

    @abstractmethod
    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """:math:`\\partial\\ell_i/\\partial z_i` of every row, of the outputs' shape; 0 in rows that do not count."""

    @abstractmethod
    def sampled(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from the model's own distribution; rows that do not count are as they were."""


@dataclass(frozen=True)
class CrossEntropy(Criterion):
    r"""Softmax cross-entropy [nats]: :math:`H = \mathrm{diag}(p) - pp^T`.

    Classes lie along the last dimension of the outputs; targets are class indices of the shape before it.
    Rows whose target is ``ignored`` do not count.

    Example:
        >>> loss = CrossEntropy()
        >>> z, y = torch.zeros(2, 4), torch.tensor([0, -100])
        >>> round(float(loss(z, y)), 4), loss.rows(y)
        (1.3863, 1)
    """

    ignored: int = -100

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=self.ignored)

    def rows(self, targets: Tensor) -> int:
        return int((targets != self.ignored).sum())

    def curvature(self, outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        p = torch.softmax(outputs, dim=-1)
        weighted = p * direction
        out = weighted - p * weighted.sum(-1, keepdim=True)
        return out * self._counted(targets).to(out.dtype) / self.rows(targets)

    def root(self, outputs: Tensor, targets: Tensor, signs: Tensor) -> Tensor:
        # diag(p) - p p^T = D (I - q q^T) D with q = sqrt(p), D = diag(q). The reflection that takes q to the most
        # likely class's axis takes the other axes to a basis of what is orthogonal to q: no column is spare, and
        # those left are nearly orthogonal, so that squared norms of S r scatter little.
        q = torch.softmax(outputs, dim=-1).sqrt()
        top, at = q.max(dim=-1, keepdim=True)
        kept = signs.scatter(-1, at, 0.0)
        shift = (q * kept).sum(-1, keepdim=True) / (1 + top)
        out = q * torch.addcmul(kept, q, shift, value=-1).scatter_add_(-1, at, -shift)
        return out * self._counted(targets).to(out.dtype)

    def columns(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        # Cholesky factor of diag(p) - p p^T: of C columns the last is 0. Column c leaves classes before c alone;
        # with t_c the probability of class c and all after it, its entry c is sqrt(p_c t_{c+1} / t_c), the
        # entries after it are -p_j sqrt(p_c / (t_c t_{c+1})).
        p = torch.softmax(outputs.double(), dim=-1)
        tail = p.flip(-1).cumsum(-1).flip(-1)
        counted = self._counted(targets)
        for c in range(outputs.shape[-1] - 1):
            here, rest = tail[..., c], tail[..., c + 1]
            scale = (p[..., c] / (here * rest).clamp_min(torch.finfo(p.dtype).tiny)).sqrt()
            column = torch.zeros_like(p)
            column[..., c] = rest * scale
            column[..., c + 1 :] = -p[..., c + 1 :] * scale.unsqueeze(-1)
            yield (column * counted).to(outputs.dtype)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        counted = self._counted(targets)
        labels = targets.unsqueeze(-1).where(counted, 0)
        out = torch.softmax(outputs, dim=-1)
        out = out.scatter_add(-1, labels, -torch.ones_like(labels, dtype=out.dtype))
        return out * counted.to(out.dtype)

    def sampled(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        # Inverse distribution function in float64: one uniform number a row, the same on every device.
        u = torch.rand(targets.shape, generator=generator, dtype=torch.float64).to(outputs.device)
        reached = torch.softmax(outputs.double(), dim=-1).cumsum(-1)
        labels = torch.searchsorted(reached, (u * reached[..., -1]).unsqueeze(-1)).squeeze(-1)
        return torch.where(targets == self.ignored, targets, labels.clamp_max(outputs.shape[-1] - 1))

    def _counted(self, targets: Tensor) -> Tensor:
        return (targets != self.ignored).unsqueeze(-1)


@dataclass(frozen=True)
class SquaredError(Criterion):
    r"""Half the squared distance, mean over rows: :math:`\ell = \tfrac12\|z - y\|^2`, H = I.

    Example:
        >>> float(SquaredError()(torch.ones(5, 3), torch.zeros(5, 3)))
        1.5
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (outputs - targets).square().sum() / self.rows(targets)

    def rows(self, targets: Tensor) -> int:
        return targets.numel() // int(targets.shape[-1])

    def curvature(self, outputs: Tensor, targets: Tensor, direction: Tensor) -> Tensor:
        return direction / self.rows(targets)

    def root(self, outputs: Tensor, targets: Tensor, signs: Tensor) -> Tensor:
        return signs

    def columns(self, outputs: Tensor, targets: Tensor) -> Iterator[Tensor]:
        for c in range(outputs.shape[-1]):
            column = torch.zeros_like(outputs)
            column[..., c] = 1
            yield column

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets

    def sampled(self, outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
        return outputs + noise.to(outputs)
