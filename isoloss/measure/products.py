r"""Products of a subject's curvature matrices with vectors, exact and without forming the matrices.

A vector over the parameters is a dict of tensors, name -> the parameter's shape, as :meth:`Subject.parameters`
names them. All products are of the mean loss over all examples of all batches. With outputs z, their loss
:math:`\ell`, and n counted rows of outputs:

- the Hessian :math:`H = G + R`,
- the Gauss-Newton matrix :math:`G = \frac1n \sum_i J_i^T H_{z_i} J_i`,
- the rest :math:`R = \frac1n \sum_i \langle \partial\ell_i/\partial z_i, \nabla^2 z_i\rangle`,
- Fisher matrices :math:`\frac1n \sum_i J_i^T u_i u_i^T J_i` with :math:`u_i` the slope of the loss at a label.

Sources: Pearlmutter 1994 (Hessian); Schraudolph 2002 (Gauss-Newton); Martens 2020, arXiv:1412.1193 (Fisher).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from isoloss.measure.criteria import Criterion
from isoloss.measure.linearity import fused, own_backward
from isoloss.measure.subject import Batch, Subject, examples_of, resized

Vector = Mapping[str, Tensor]
Curvature = Callable[
    [int, Tensor, Tensor], Tensor
]  # number of the batch, outputs, u -> (matrix of outputs) u


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention in its math form, transformer layers off their fused path: what has second derivatives.

    Fused scaled-dot-product attention has no double backward. The function is the same up to rounding.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def switched(subject: Subject) -> str:
    """What second derivatives of the subject change or take on trust, as the end of a sentence; empty if nothing.

    Example:
        >>> from isoloss.measure.criteria import SquaredError
        >>> switched(Subject(torch.nn.Linear(2, 1), [(torch.ones(1, 2), torch.ones(1, 1))], SquaredError()))
        ''
    """
    with subject.measuring(), torch.enable_grad():
        loss = subject.loss(resized(subject.batches[0], 2))
    own = own_backward(loss)
    return (", attention in its math form" if fused(loss) else "") + (
        f", the backward pass that the model brings for {own} taken as right" if own else ""
    )


def weights(subject: Subject) -> list[tuple[Batch, float]]:
    """Every batch with its share of the examples (of the counted rows, where the criterion counts them).

    Batches without a counted row are left out.

    Raises:
        ValueError: no batch has one.
    """
    counts = [count_of(subject, batch) for batch in subject.batches]
    total = sum(counts)
    if not total:
        raise ValueError(
            "needed at least one row of targets that counts, got none: all are the ignored index"
        )
    pairs = zip(subject.batches, counts, strict=True)
    return [(batch, count / total) for batch, count in pairs if count]


def count_of(subject: Subject, batch: Batch) -> float:
    """By what a batch is weighed: its counted rows where the criterion counts them, else its examples."""
    criterion = subject.criterion
    return float(criterion.rows(batch[1]) if isinstance(criterion, Criterion) else examples_of(batch))


@dataclass(frozen=True, eq=False)
class Product:
    """A symmetric matrix over the parameters, known by its products.

    Attributes:
        name: ``hessian``, ``gauss_newton``, ``rest``, ``fisher`` or ``empirical_fisher``.
        like: the parameters it is over.
        apply: dict -> dict.
    """

    name: str
    like: Mapping[str, Tensor]
    apply: Callable[[Vector], dict[str, Tensor]]

    def __call__(self, v: Vector) -> dict[str, Tensor]:
        """The product with v."""
        return self.apply(v)

    @property
    def size(self) -> int:
        """Rows of the matrix."""
        return sum(p.numel() for p in self.like.values())

    def flat(self, v: Tensor) -> Tensor:
        """The product with a flat vector (size,), parameters in order."""
        return flatten(self.apply(unflatten(v, self.like)))

    def dense(self) -> Tensor:
        """The matrix, (size, size), by its products with unit vectors: for small models."""
        first = next(iter(self.like.values()))
        eye = torch.eye(self.size, dtype=first.dtype, device=first.device)
        return torch.stack([self.flat(row) for row in eye], dim=1)


def flatten(v: Vector) -> Tensor:
    """One tensor (size,) from a vector over the parameters."""
    return torch.cat([part.reshape(-1) for part in v.values()])


def unflatten(v: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of :func:`flatten`."""
    parts = torch.split(v, [p.numel() for p in like.values()])
    return {name: part.view_as(p) for (name, p), part in zip(like.items(), parts, strict=True)}


@contextmanager
def hessian(subject: Subject, keep: bool = True, only: Sequence[str] | None = None) -> Iterator[Product]:
    r"""The Hessian of the loss, :math:`H v = \nabla(\nabla L \cdot v)`; of any criterion.

    Batch norm in eval mode is the fixed map it is then; without running statistics it mixes the examples of a
    batch, and the products are exact for that too.

    Args:
        subject: what is measured.
        keep: keep the graph of the gradient of every batch in memory within the block, so that a product
            costs one backward pass through it; else each product makes it anew (one batch at a time in memory).
        only: names of parameters: the block of the matrix that belongs to them.

    Raises:
        ValueError: a name that is no parameter with a gradient.

    Example:
        >>> import torch
        >>> from isoloss.measure.criteria import SquaredError
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> subject = Subject(torch.nn.Linear(2, 1, bias=False), [(x, torch.zeros(1, 1))], SquaredError())
        >>> with hessian(subject) as h:
        ...     h({"weight": torch.tensor([[1.0, 0.0]])})["weight"].tolist()
        [[1.0, 2.0]]
    """
    shares = weights(subject)

    def loss(i: int) -> Tensor:
        batch, share = shares[i]
        return subject.loss(batch) * share

    with subject.measuring():
        like = chosen(subject, only)
        yield Product("hessian", like, _second_derivatives(loss, len(shares), like, keep))


@contextmanager
def rest(subject: Subject, keep: bool = True, only: Sequence[str] | None = None) -> Iterator[Product]:
    r"""What the Gauss-Newton matrix leaves of the Hessian, :math:`R = H - G`; as :func:`hessian`.

    It is the Hessian of :math:`\sum_i \langle u_i, z_i \rangle / n` with the slopes :math:`u_i` held fixed.

    Raises:
        TypeError: the subject's criterion is no :class:`isoloss.measure.criteria.Criterion`.
    """
    shares = weights(subject)
    criterion = known_criterion(subject)
    slopes: dict[int, Tensor] = {}

    def linear(i: int) -> Tensor:
        (inputs, targets), share = shares[i]
        z = subject.predict(inputs)
        if i not in slopes:
            with torch.no_grad():
                slopes[i] = criterion.slope(z.detach(), targets) * (share / criterion.rows(targets))
        out: Tensor = (z * slopes[i]).sum()
        return out

    with subject.measuring():
        like = chosen(subject, only)
        yield Product("rest", like, _second_derivatives(linear, len(shares), like, keep))


@contextmanager
def gauss_newton(subject: Subject, keep: bool = True, only: Sequence[str] | None = None) -> Iterator[Product]:
    r"""The Gauss-Newton matrix, :math:`G = \frac1n \sum_i J_i^T H_{z_i} J_i`; as :func:`hessian`.

    For softmax cross-entropy and squared error it equals the (true) Fisher information of the model's
    distribution, scaled to the mean over rows.

    Raises:
        TypeError: the subject's criterion is no :class:`isoloss.measure.criteria.Criterion`.
    """
    criterion = known_criterion(subject)
    shares = weights(subject)

    def curvature(i: int, z: Tensor, u: Tensor) -> Tensor:
        (_, targets), share = shares[i]
        return criterion.curvature(z, targets, u) * share

    with subject.measuring():
        like = chosen(subject, only)
        yield Product("gauss_newton", like, _through_outputs(subject, shares, curvature, like, keep))


@contextmanager
def fisher(
    subject: Subject, draws: int = 1, seed: int = 0, keep: bool = True, only: Sequence[str] | None = None
) -> Iterator[Product]:
    r"""The Fisher matrix with sampled labels, :math:`\frac1n \sum_i J_i^T u_i u_i^T J_i`; as :func:`hessian`.

    Labels are drawn from the model's own distribution, ``draws`` for every row of outputs, once for the block:
    the matrix is fixed within it. Its expectation is the Gauss-Newton matrix.

    Raises:
        TypeError: the subject's criterion is no :class:`isoloss.measure.criteria.Criterion`.
        ValueError: fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"needed at least one draw of labels, got {draws}")
    criterion = known_criterion(subject)
    generator = torch.Generator().manual_seed(seed)

    def slopes(z: Tensor, targets: Tensor) -> list[Tensor]:
        drawn = [criterion.sampled(z, targets, generator) for _ in range(draws)]
        return [criterion.slope(z, labels) / draws**0.5 for labels in drawn]

    with subject.measuring():
        like = chosen(subject, only)
        yield Product("fisher", like, _outer_products(subject, slopes, like, keep, together=False))


@contextmanager
def empirical_fisher(
    subject: Subject, keep: bool = True, only: Sequence[str] | None = None, together: bool = False
) -> Iterator[Product]:
    r"""The mean outer product of gradients at the data's own labels; as :func:`hessian`.

    It is no approximation of the curvature in general: at a perfect fit it is zero (Kunstner, Hennig, Balles
    2019, arXiv:1905.12558).

    Args:
        subject: what is measured.
        keep: as of :func:`hessian`.
        only: as of :func:`hessian`.
        together: all rows of an example (tokens of a sequence) make one gradient,
            :math:`\frac1n \sum_b g_b g_b^T` with :math:`g_b = \sum_{i \in b} J_i^T u_i`; else each row its own.

    Raises:
        TypeError: the subject's criterion is no :class:`isoloss.measure.criteria.Criterion`.
    """
    criterion = known_criterion(subject)

    def slopes(z: Tensor, targets: Tensor) -> list[Tensor]:
        return [criterion.slope(z, targets)]

    with subject.measuring():
        like = chosen(subject, only)
        yield Product("empirical_fisher", like, _outer_products(subject, slopes, like, keep, together))


def _second_derivatives(
    scalar: Callable[[int], Tensor], count: int, like: Mapping[str, Tensor], keep: bool
) -> Callable[[Vector], dict[str, Tensor]]:
    """Products with the Hessian of the sum of ``scalar(0) ... scalar(count - 1)``."""
    names, held = list(like), list(like.values())

    def gradient(i: int) -> list[tuple[str, Tensor]]:
        with torch.enable_grad(), twice_differentiable():
            found = torch.autograd.grad(scalar(i), held, create_graph=True, allow_unused=True)
        # What has no graph is constant in all parameters: its row is 0.
        return [(name, g) for name, g in zip(names, found, strict=True) if g is not None and g.requires_grad]

    kept = [pair for i in range(count) for pair in gradient(i)] if keep else []

    def apply(v: Vector) -> dict[str, Tensor]:
        total: list[Tensor | None] = [None] * len(held)
        for pairs in [kept] if keep else (gradient(i) for i in range(count)):
            if pairs:  # all batches in one pass, where their graphs are there
                total = _added(total, _pulled(pairs, v, held, keep))
        return {
            name: torch.zeros_like(p) if part is None else part
            for (name, p), part in zip(like.items(), total, strict=True)
        }

    return apply


def _through_outputs(
    subject: Subject,
    shares: Sequence[tuple[Batch, float]],
    curvature: Curvature,
    like: Mapping[str, Tensor],
    keep: bool,
) -> Callable[[Vector], dict[str, Tensor]]:
    """Products with :math:`\\sum_b J_b^T C_b J_b`, ``curvature(b, z, u)`` = C_b u."""
    names, held = list(like), list(like.values())

    def linearise(i: int) -> tuple[Tensor, Tensor, list[tuple[str, Tensor]]]:
        with torch.enable_grad(), twice_differentiable():
            z = subject.predict(shares[i][0][0])
            probe = torch.zeros_like(z, requires_grad=True)
            # J^T probe is linear in probe; its derivative along v, taken backward, is J v.
            found = (
                torch.autograd.grad(z, held, probe, create_graph=True, allow_unused=True)
                if z.requires_grad
                else [None] * len(held)
            )
        return z, probe, [(name, g) for name, g in zip(names, found, strict=True) if g is not None]

    graphs = [linearise(i) for i in range(len(shares))] if keep else None

    def apply(v: Vector) -> dict[str, Tensor]:
        total: list[Tensor | None] = [None] * len(held)
        for i in range(len(shares)):
            z, probe, pairs = graphs[i] if graphs is not None else linearise(i)
            if not pairs:
                continue
            (jv,) = _pulled(pairs, v, [probe], keep=True)
            if jv is None:
                continue
            with torch.no_grad():
                cjv = curvature(i, z.detach(), jv)
            parts = torch.autograd.grad(z, held, cjv, retain_graph=keep, allow_unused=True)
            total = _added(total, parts)
        return {
            name: torch.zeros_like(p) if part is None else part
            for (name, p), part in zip(like.items(), total, strict=True)
        }

    return apply


def _outer_products(
    subject: Subject,
    slopes: Callable[[Tensor, Tensor], list[Tensor]],
    like: Mapping[str, Tensor],
    keep: bool,
    together: bool,
) -> Callable[[Vector], dict[str, Tensor]]:
    """Products with :math:`\\frac1n \\sum_i J_i^T u_i u_i^T J_i`, over rows i or whole examples."""
    shares = weights(subject)
    criterion = known_criterion(subject)
    held: dict[int, list[Tensor]] = {}

    def curvature(i: int, z: Tensor, u: Tensor) -> Tensor:
        (_, targets), share = shares[i]
        if i not in held:
            held[i] = slopes(z, targets)
        over = tuple(range(1, z.ndim)) if together else (-1,)
        outer = [slope * (slope * u).sum(over, keepdim=True) for slope in held[i]]
        return torch.stack(outer).sum(0) * (share / criterion.rows(targets))

    return _through_outputs(subject, shares, curvature, like, keep)


def _pulled(
    pairs: Sequence[tuple[str, Tensor]], v: Vector, held: Sequence[Tensor], keep: bool
) -> tuple[Tensor | None, ...]:
    """The derivative of the sum of <g, v[name]> over the pairs."""
    outputs, along = [g for _, g in pairs], [v[name] for name, _ in pairs]
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        outputs, held, along, retain_graph=keep, allow_unused=True
    )
    return found


def _added(total: Sequence[Tensor | None], parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [b if a is None else a if b is None else a + b for a, b in zip(total, parts, strict=True)]


def chosen(subject: Subject, only: Sequence[str] | None) -> dict[str, Tensor]:
    """The parameters of those names, in the model's order; all where none are named.

    Raises:
        ValueError: a name that is no parameter with a gradient, or none at all.
    """
    like = subject.parameters()
    for name in only or ():
        if name not in like:
            raise ValueError(f"no parameter with a gradient named {name!r}. There are: {', '.join(like)}")
    found = like if only is None else {name: p for name, p in like.items() if name in only}
    if not found:
        raise ValueError("needed at least one parameter that takes a gradient, got none")
    return found


def known_criterion(subject: Subject) -> Criterion:
    """The subject's criterion, if its curvature is known.

    Raises:
        TypeError: it is a function, of which nothing but its value is known.
    """
    criterion: Any = subject.criterion
    if not isinstance(criterion, Criterion):
        raise TypeError(
            "Gauss-Newton needs a criterion whose curvature is known: CrossEntropy() or SquaredError() of "
            f"isoloss.measure.criteria, got {criterion!r}"
        )
    return criterion


def gradient_seconds(subject: Subject, times: int = 3) -> float:
    """CPU time of one gradient of the subject's loss over all its batches [s]: the least of a few.

    The unit in which costs are given, of the model as it is, its fused parts on.
    """
    held = list(subject.parameters().values())
    found = []
    with subject.measuring(), torch.enable_grad():
        for _ in range(times):
            began = time.process_time()
            for batch, _ in weights(subject):
                torch.autograd.grad(subject.loss(batch), held, allow_unused=True)
            found.append(time.process_time() - began)
    return min(found)


def asymmetry(product: Product, pairs: int = 3, seed: int = 0) -> float:
    r"""The largest :math:`|u^T A v - v^T A u| / (\|Au\| \|v\|)` over random pairs.

    Rounding gives about 1e-7 in float32 and 1e-16 in float64; much more means that the product is of no symmetric
    matrix: a backward pass of the model's own that is wrong or leaves second derivatives out.

    Example:
        >>> shift = Product("shift", {"w": torch.zeros(5)}, lambda v: {"w": v["w"].roll(1)})
        >>> asymmetry(shift) > 0.01
        True
    """
    generator = torch.Generator().manual_seed(seed)
    worst = 0.0
    for _ in range(pairs):
        u, v = (
            {
                name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
                for name, p in product.like.items()
            }
            for _ in range(2)
        )
        au, av = flatten(product(u)).double(), flatten(product(v)).double()
        fu, fv = flatten(u).double(), flatten(v).double()
        size = float(au.norm() * fv.norm())
        worst = max(worst, abs(float(fv @ au - fu @ av)) / size if size else 0.0)
    return worst


def disagreement(subject: Subject, product: Product, seed: int = 0) -> float:
    r"""How far a Hessian's product is from differences of the gradient, along one random direction, relative.

    :math:`\|(\nabla L(\theta + \varepsilon v) - \nabla L(\theta - \varepsilon v)) / 2\varepsilon - Hv\| / \|Hv\|`
    with the step that balances rounding and truncation. About 1e-2 in float32 and 1e-7 in float64 is agreement; a
    model with kinks has less of it, because differences see the kinks they cross.

    Raises:
        ValueError: the product is not the whole Hessian.
    """
    if product.name != "hessian" or set(product.like) != set(subject.parameters()):
        raise ValueError(
            f"needed the product of hessian(subject), got {product.name} over {len(product.like)} tensors"
        )
    like = product.like
    generator = torch.Generator().manual_seed(seed)
    v = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for name, p in like.items()
    }
    theta = flatten(like).detach().double()
    precision = torch.finfo(next(iter(like.values())).dtype).eps
    step = precision ** (1 / 3) * float(theta.norm() / theta.numel() ** 0.5 or 1.0)

    def gradient(sign: int) -> Tensor:
        moved = {name: (p + sign * step * v[name]).detach().requires_grad_() for name, p in like.items()}
        total = torch.zeros_like(theta)
        with subject.measuring(), torch.enable_grad():
            for (inputs, targets), share in weights(subject):
                loss = subject.criterion(subject.predict_at(moved, inputs), targets) * share
                found = torch.autograd.grad(
                    loss, list(moved.values()), materialize_grads=True, allow_unused=True
                )
                total += torch.cat([g.reshape(-1).double() for g in found])
        return total

    hv = flatten(product(v)).double()
    return float(((gradient(1) - gradient(-1)) / (2 * step) - hv).norm() / hv.norm())
