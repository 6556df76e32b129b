r"""Traces of a matrix that is known by its products, each with what it costs and how sure it is.

With m products in all and random signs v (E v v^T = I):

- Hutchinson: the mean of :math:`v^T A v`; unbiased, variance :math:`2(\|A\|_F^2 - \sum_i a_{ii}^2)/m`.
- Hutch++: :math:`\operatorname{tr} Q^TAQ` exactly, with Q a basis of A S, and Hutchinson for the rest; S and the
  signs of the rest take m/3 products each.
- XTrace: the same with every test vector left out of the basis in turn, m/2 of them.

The last two keep m/3 and m/2 vectors in memory; they are better where few eigenvalues hold most of the trace.

Sources: Hutchinson 1990; Meyer, Musco, Musco, Woodruff 2021, arXiv:2010.09649; Epperly, Tropp, Webber 2024,
arXiv:2301.07825.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from isoloss.measure.products import Product

PILOT = 16  # random vectors before anything is concluded from their scatter
SURE = 0.9  # how surely the true scatter is no larger than what a stop counts on


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace.

    Attributes:
        value: of the trace.
        se: standard error, over the random vectors.
        products: that were made.
        reached: whether the accuracy asked for was reached within the products allowed; true where none was asked.
    """

    value: float
    se: float
    products: float
    reached: bool = True


def signs(like: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Random signs of the parameters' shapes, eight from a byte: numbers drawn one by one would take their time."""
    count = sum(p.numel() for p in like.values())
    packed = torch.randint(0, 256, (-(-count // 8), 1), generator=generator, dtype=torch.uint8)
    bits = ((packed >> torch.arange(8, dtype=torch.uint8)) & 1).view(-1)[:count]
    parts = torch.split(bits, [p.numel() for p in like.values()])
    return {
        name: part.view(p.shape).to(p).mul_(2).sub_(1)
        for (name, p), part in zip(like.items(), parts, strict=True)
    }


def drawn(count: int) -> str:
    """How many random signs, in words.

    Example:
        >>> drawn(1), drawn(4)
        ('1 random sign', '4 random signs')
    """
    return f"{count} random sign{'s' if count > 1 else ''}"


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product of two vectors over the parameters, in float64."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


def mean_and_se(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; NaN for one value."""
    data = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return float(data.mean()), math.nan
    return float(data.mean()), float(data.std(unbiased=True)) / math.sqrt(len(values))


def scatter_at_most(sd: float, count: int) -> float:
    """A bound on the true standard deviation, given that of ``count`` values: upper end of its chi-squared interval.

    A small sample shows too small a scatter by luck; who stops on the scatter alone stops on that luck. The
    quantile is Wilson and Hilferty's.

    Example:
        >>> round(scatter_at_most(1.0, 12), 2)  # the square is 11 over the quantile 5.58
        1.4
    """
    free = count - 1
    z = NormalDist().inv_cdf(1 - SURE)
    quantile = free * max(1 - 2 / (9 * free) + z * math.sqrt(2 / (9 * free)), 1e-3) ** 3
    return sd * math.sqrt(free / quantile)


def needed(values: Sequence[float], wanted: float) -> int:
    """How many such values give a standard error of ``wanted``, by the bound of :func:`scatter_at_most`."""
    data = torch.tensor(values, dtype=torch.float64)
    bound = scatter_at_most(float(data.std(unbiased=True)), len(values))
    return math.ceil((bound / wanted) ** 2) if wanted > 0 else len(values) * (2 if bound > 0 else 1)


def hutchinson(product: Product, accuracy: float = 0.05, most: int = 1000, seed: int = 0) -> Trace:
    """Hutchinson's estimate, stopped at ``accuracy`` relative standard error.

    It looks at the scatter after :data:`PILOT` vectors and whenever their number has grown to what that scatter,
    taken at its upper bound, called for (at most twice as many): seldom, so that it does not stop by luck.

    Example:
        >>> diagonal = torch.arange(1.0, 5.0)
        >>> product = Product("diagonal", {"w": diagonal}, lambda v: {"w": diagonal * v["w"]})
        >>> hutchinson(product).value  # exact for a diagonal matrix
        10.0
    """
    generator = torch.Generator().manual_seed(seed)
    seen: list[float] = []
    goal = min(PILOT, most)
    while True:
        while len(seen) < goal:
            v = signs(product.like, generator)
            seen.append(dot(v, product(v)))
        mean, se = mean_and_se(seen)
        want = needed(seen, accuracy * abs(mean)) if len(seen) > 1 else 2
        if want <= len(seen) or len(seen) >= most:
            return Trace(mean, se, len(seen), want <= len(seen))
        goal = min(want, 2 * len(seen), most)


def hutch_plus_plus(product: Product, products: int, seed: int = 0) -> Trace:
    """Hutch++ with that many products (a multiple of 3); the standard error is that of its random part.

    Raises:
        ValueError: fewer than 6 products, or no multiple of 3.

    Example:
        >>> root = torch.arange(16.0).double().view(8, 2).cos()
        >>> product = Product("a", {"w": root[:, 0]}, lambda v: {"w": root @ (root.T @ v["w"])})
        >>> trace = hutch_plus_plus(product, 12)  # exact for a rank below 12 / 3
        >>> abs(trace.value - float(root.square().sum())) < 1e-12
        True
    """
    if products < 6 or products % 3:
        raise ValueError(f"needed a multiple of 3 of at least 6 products, got {products}")
    generator = torch.Generator().manual_seed(seed)
    k = min(products // 3, product.size)
    basis = _basis(_times(product, _signs(product, k, generator)))
    exact = float((basis * _times(product, basis)).sum())
    rest = _signs(product, products // 3, generator)
    rest = rest - basis @ (basis.T @ rest)
    mean, se = mean_and_se((rest * _times(product, rest)).sum(0).tolist())
    return Trace(exact + mean, se, products)


def xtrace(product: Product, products: int, seed: int = 0) -> Trace:
    r"""XTrace with that many products (an even number).

    The standard error, :math:`\operatorname{std}(t_i)/\sqrt k` over the k leave-one-out estimates, is the authors';
    the t_i share most of their basis, so it tends to be small.

    Raises:
        ValueError: fewer than 4 products, or an odd number.

    Example:
        >>> root = torch.arange(16.0).double().view(8, 2).cos()
        >>> product = Product("a", {"w": root[:, 0]}, lambda v: {"w": root @ (root.T @ v["w"])})
        >>> trace = xtrace(product, 8)  # exact for a rank below 8 / 2
        >>> abs(trace.value - float(root.square().sum())) < 1e-12
        True
    """
    if products < 4 or products % 2:
        raise ValueError(f"needed an even number of at least 4 products, got {products}")
    k = products // 2
    if k >= product.size:
        raise ValueError(
            f"needed fewer than {2 * product.size} products for {product.size} rows, got {products}"
        )
    omega = _signs(product, k, torch.Generator().manual_seed(seed))
    y = _times(product, omega)
    if not torch.linalg.vector_norm(y):
        return Trace(0.0, 0.0, products)
    q, r = torch.linalg.qr(y)
    # Where A has a lower rank than k, R is singular: what is below rounding is lifted to it.
    floor = torch.finfo(torch.float64).eps * float(r.diagonal().abs().max())
    r = r + torch.diag(torch.where(r.diagonal().abs() < floor, floor, 0.0))
    z = _times(product, q)
    h, w = q.T @ z, q.T @ omega
    # Columns of R^-T, normalised: s_i is orthogonal to the basis without vector i.
    s = torch.linalg.solve_triangular(r, torch.eye(k, dtype=r.dtype), upper=True).T
    s = s / torch.linalg.vector_norm(s, dim=0)
    w = w - s * (s * w).sum(0)
    each = (
        h.trace()
        - (s * (h @ s)).sum(0)
        + (omega * y).sum(0)
        - 2 * (omega * (z @ w)).sum(0)
        + (w * (h @ w)).sum(0)
    )
    mean, se = mean_and_se(each.tolist())
    return Trace(mean, se, products)


def _signs(product: Product, count: int, generator: torch.Generator) -> Tensor:
    """(size, count) in float64."""
    return torch.randint(0, 2, (product.size, count), generator=generator, dtype=torch.int8).double() * 2 - 1


def _times(product: Product, columns: Tensor) -> Tensor:
    """A times columns, in float64."""
    first = next(iter(product.like.values()))
    if not columns.shape[1]:
        return columns
    return torch.stack([product.flat(column.to(first)).double().cpu() for column in columns.T], dim=1)


def _basis(y: Tensor) -> Tensor:
    """An orthonormal basis of the columns; of those below rounding, none."""
    u: Tensor
    u, size, _ = torch.linalg.svd(y, full_matrices=False)
    return u[:, size > torch.finfo(y.dtype).eps * max(y.shape) * size[:1].clamp_min(1e-300)]
