r"""The spectrum of a curvature matrix as a density, by Lanczos from random starts, and traces of its functions.

k steps from a random unit vector give nodes :math:`\theta_j` and weights :math:`w_j` with
:math:`\sum_j w_j f(\theta_j) = v^T f(A) v` exactly for polynomials up to degree 2k - 1; the mean over starts
estimates :math:`\operatorname{tr} f(A)/n`, and their scatter says how well. Every vector is made orthogonal to all
before it, twice: without that, converged eigenvalues come again as ghosts and their weight is wrong.

Sources: Golub, Welsch 1969; Ubaru, Chen, Saad 2017 (stochastic Lanczos quadrature); Ghorbani, Krishnan, Xiao 2019,
arXiv:1901.10159; Giraud, Langou, Rozloznik 2005 (orthogonal twice is enough).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from isoloss.measure.eigen import finite, fits
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.products import Product, gradient_seconds, hessian, switched
from isoloss.measure.subject import Subject

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Density:
    """Nodes and weights of every start.

    Attributes:
        nodes: for each start (k,), rising.
        weights: for each start (k,), they add up to 1.
        size: n, rows of the matrix.
        products: that were made.
    """

    nodes: tuple[Array, ...]
    weights: tuple[Array, ...]
    size: int
    products: int

    def trace(self, f: Callable[[Array], Array]) -> tuple[float, float]:
        """tr f(A) and its standard error over the starts; NaN for one start."""
        each = [self.size * float(w @ f(t)) for t, w in zip(self.nodes, self.weights, strict=True)]
        return _mean(each)

    def moment(self, power: int) -> tuple[float, float]:
        """tr A^power / n and its standard error."""
        value, se = self.trace(lambda t: t**power)
        return value / self.size, se / self.size

    def below(self, at: float) -> tuple[float, float]:
        """Share of the eigenvalues below a value, and its error.

        Of what a start sees, a quadrature gives the share below a value up to the weights of the nodes on both
        sides of it (the inequalities of Chebyshev, Markov and Stieltjes). The error is the scatter over the starts
        together with the mean of the larger of these two: where a single node holds the many eigenvalues near 0,
        the share below 0 is not resolved, and its error says so.
        """
        share, scatter = self.trace(lambda t: (t < at).astype(np.float64))
        beside = []
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            k = int(np.searchsorted(nodes, at))
            beside.append(float(weights[max(k - 1, 0) : k + 1].max()))
        return share / self.size, math.hypot(scatter / self.size, float(np.mean(beside)))

    def smoothed(self, grid: Array, width: float) -> tuple[Array, Array]:
        """The density on a grid, every node a Gaussian of that standard deviation, and its standard error.

        Both add up to 1 and to the error of that over the whole line.
        """
        each = np.stack(
            [
                np.exp(-0.5 * ((grid[:, None] - t) / width) ** 2) @ w / (width * math.sqrt(2 * math.pi))
                for t, w in zip(self.nodes, self.weights, strict=True)
            ]
        )
        count = len(each)
        se = each.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(grid), math.nan)
        return each.mean(0), se

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest node: the ends of the spectrum from within."""
        return min(float(t[0]) for t in self.nodes), max(float(t[-1]) for t in self.nodes)


def spectral_density(product: Product, steps: int = 60, starts: int = 4, seed: int = 0) -> Density:
    """Lanczos from ``starts`` random sign vectors, ``steps`` products each.

    It keeps ``steps`` vectors in memory. A start that has exhausted its space ends before.

    Raises:
        ValueError: fewer than one step or start.
        NoAnswer: the vectors would take more than :data:`isoloss.measure.eigen.ROOM` bytes, or a product is not finite.

    Example:
        >>> diagonal = torch.tensor([1.0, 1.0, 2.0, 5.0]).double()
        >>> product = Product("diagonal", {"w": diagonal}, lambda v: {"w": diagonal * v["w"]})
        >>> density = spectral_density(product, steps=10, starts=3)
        >>> density.nodes[0].round(6).tolist(), density.weights[0].round(6).tolist()
        ([1.0, 2.0, 5.0], [0.5, 0.25, 0.25])
        >>> [round(x, 6) for x in density.trace(np.exp)]
        [161.238779, 0.0]
    """
    if steps < 1 or starts < 1:
        raise ValueError(f"needed at least one step and one start, got {steps} and {starts}")
    double = next(iter(product.like.values())).dtype == torch.float64
    fits(min(steps, product.size), product.size, 8 if double else 4)
    generator = torch.Generator().manual_seed(seed)
    nodes, weights, made = [], [], 0
    for _ in range(starts):
        alphas, betas = _lanczos(product, min(steps, product.size), generator)
        made += len(alphas)
        tridiagonal = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
        values, vectors = np.linalg.eigh(tridiagonal)
        nodes.append(values)
        weights.append(vectors[0] ** 2)
    return Density(tuple(nodes), tuple(weights), product.size, made)


def _lanczos(product: Product, steps: int, generator: torch.Generator) -> tuple[list[float], list[float]]:
    """The tridiagonal matrix: its diagonal, and what is beside it."""
    first = next(iter(product.like.values()))
    precision = first.dtype if first.dtype == torch.float64 else torch.float32
    basis = torch.empty(steps, product.size, dtype=precision, device=first.device)
    v = torch.randint(0, 2, (product.size,), generator=generator, dtype=torch.int8).to(basis) * 2 - 1
    basis[0] = v / torch.linalg.vector_norm(v)
    alphas: list[float] = []
    betas: list[float] = []
    for j in range(steps):
        w = product.flat(basis[j].to(first.dtype)).to(precision)
        size = float(torch.linalg.vector_norm(w))
        finite(size)
        alphas.append(float(basis[j] @ w))
        if j == steps - 1:
            break
        before = basis[: j + 1]
        for _ in range(2):
            w = w - (before @ w) @ before
        beta = float(torch.linalg.vector_norm(w))
        # What is left is rounding: the vectors so far span all that the start reaches.
        if beta <= 100 * torch.finfo(precision).eps * max(size, max(map(abs, alphas), default=0.0)):
            break
        betas.append(beta)
        basis[j + 1] = w / beta
    return alphas, betas


def _mean(values: list[float]) -> tuple[float, float]:
    count = len(values)
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan


def probe(subject: Subject, steps: int = 60, starts: int = 4, seed: int = 0) -> list[Measurement]:
    """:func:`spectral_density` of the Hessian in five numbers.

    Its ends, from within; its Frobenius norm; the sum of its negative eigenvalues; their share.
    """
    with timed() as watch, hessian(subject) as product:
        found = spectral_density(product, steps, starts, seed)
    spent = watch.spent(gradient_seconds(subject))
    how = f"Lanczos with all vectors kept orthogonal, {starts} starts, {found.products} products{switched(subject)}"
    low, high = found.ends
    square, square_se = found.trace(np.square)
    norm = math.sqrt(square)
    negative, negative_se = found.trace(lambda t: np.minimum(t, 0.0))
    rows = (
        ("spectrum_low", low, math.nan, "nats"),
        ("spectrum_high", high, math.nan, "nats"),
        ("hessian_norm", norm, square_se / (2 * norm) if norm else 0.0, "nats"),
        ("negative_trace", negative, negative_se, "nats"),
        ("negative_share", *found.below(0.0), "share"),
    )
    return [Measurement(name, value, se, unit, how=how, spent=spent) for name, value, se, unit in rows]
