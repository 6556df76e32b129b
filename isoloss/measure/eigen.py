r"""Largest eigenvalues of a curvature matrix, whole or block by block, each with its residual.

Implicitly restarted Lanczos (ARPACK through SciPy) on products alone. For a unit vector v with residual
:math:`r = \|Av - \lambda v\|` an eigenvalue lies within r of :math:`\lambda`, whatever the method did: so the
residual, computed anew by one more product, is the proof.

Sources: Lehoucq, Sorensen, Yang 1998 (ARPACK); Dong et al. 2019, arXiv:1905.03696 (per-block eigenvalues as
sensitivity, HAWQ).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from isoloss.errors import NoAnswer
from isoloss.measure.measurement import Measurement, Spent, timed
from isoloss.measure.products import Product, gauss_newton, gradient_seconds, hessian, switched
from isoloss.measure.subject import Subject

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

KINDS = {"hessian": hessian, "gauss_newton": gauss_newton}
ENDS = {"largest": "LA", "smallest": "SA", "magnitude": "LM"}
ROOM = 4 << 30  # bytes of the vectors that Lanczos keeps
FEW, SPARE = 8, 6  # vectors kept at the least, and besides two for every eigenvalue


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Some eigenvalues and their vectors.

    Attributes:
        values: (k,), in the order asked for.
        vectors: (size, k), unit columns over the flat parameters.
        residuals: (k,), norms of A v - value v.
        products: that were made.
        converged: whether each residual is within the tolerance (and rounding) times the largest absolute value found.
    """

    values: Array
    vectors: Array
    residuals: Array
    products: int
    converged: bool


def top_eigenpairs(
    product: Product,
    count: int = 5,
    end: str = "magnitude",
    tolerance: float = 1e-3,
    most: int = 2000,
    seed: int = 0,
) -> Eigenpairs:
    """The eigenvalues at one end of the spectrum, with their vectors.

    Args:
        product: the matrix.
        count: of eigenvalues.
        end: ``magnitude`` (largest absolute values), ``largest`` or ``smallest`` (algebraic).
        tolerance: relative accuracy to stop at.
        most: products, about, at which to give up; what was found by then is returned, ``converged`` false.
        seed: of the first vector.

    Raises:
        ValueError: an end of another name; fewer than one or more eigenvalues than rows.
        NoAnswer: the vectors that Lanczos keeps, 8 to 2 ``count`` + 6, would take more than :data:`ROOM`; or a product
            is not finite.

    Example:
        >>> diagonal = torch.tensor([1.0, -7.0, 2.0, 5.0, 0.0, 0.5])
        >>> product = Product("diagonal", {"w": diagonal}, lambda v: {"w": diagonal * v["w"]})
        >>> pairs = top_eigenpairs(product, 2)
        >>> pairs.values.round(5).tolist(), bool(pairs.residuals.max() < 1e-5)
        ([-7.0, 5.0], True)
    """
    if end not in ENDS:
        raise ValueError(f"no end of a spectrum named {end!r}. There are: {', '.join(ENDS)}")
    if not 1 <= count <= product.size:
        raise ValueError(f"needed from 1 to {product.size} eigenvalues, got {count}")
    kept = _kept(product.size, count)
    fits(kept, product.size, 8)
    made = 0

    def times(v: Array) -> Array:
        nonlocal made
        made += 1
        first = next(iter(product.like.values()))
        av = product.flat(torch.from_numpy(np.ascontiguousarray(v).reshape(-1)).to(first))
        out: Array = av.detach().double().cpu().numpy()
        finite(out.sum())
        return out

    values, vectors = _solve(times, product.size, count, end, tolerance, most, seed)
    order = _order(values, end)
    values, vectors = values[order], vectors[:, order]
    residuals = np.array([np.linalg.norm(times(v) - x * v) for x, v in zip(values, vectors.T, strict=True)])
    scale = float(np.abs(values).max()) if len(values) else 0.0
    rounding = 100 * torch.finfo(next(iter(product.like.values())).dtype).eps
    good = len(values) == count and bool((residuals <= max(tolerance, rounding) * scale).all())
    return Eigenpairs(values, vectors, residuals, made, good)


def _solve(
    times: Callable[[Array], Array], size: int, count: int, end: str, tolerance: float, most: int, seed: int
) -> tuple[Array, Array]:
    """ARPACK; the dense matrix where so many eigenvalues are wanted that it would have no room."""
    room = _kept(size, count)
    if room <= count + 1:
        dense = np.stack([times(row) for row in np.eye(size)], axis=1)
        values, vectors = np.linalg.eigh((dense + dense.T) / 2)
        keep = _order(values, end)[:count]
        return values[keep], vectors[:, keep]
    scipy: Any = importlib.import_module("scipy.sparse.linalg")
    operator = scipy.LinearOperator((size, size), matvec=times, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(size)
    restarts = max(1, (most - room) // max(room - count, 1))
    try:
        found: tuple[Array, Array] = scipy.eigsh(
            operator, count, which=ENDS[end], v0=start, ncv=room, maxiter=restarts, tol=tolerance
        )
    except scipy.ArpackNoConvergence as error:
        found = error.eigenvalues, error.eigenvectors
    except scipy.ArpackError:
        if np.any(times(start)):
            raise
        found = np.zeros(count), np.eye(size, count)  # the zero matrix leaves ARPACK without a vector
    return found


def _kept(size: int, count: int) -> int:
    return min(size, max(2 * count + SPARE, FEW))


def fits(vectors: int, size: int, width: int, room: int = ROOM) -> None:
    """Refuse to keep so many vectors of so many numbers of ``width`` bytes.

    Raises:
        NoAnswer: they take more than ``room`` bytes.
    """
    if vectors * size * width > room:
        raise NoAnswer(
            f"Lanczos keeps {vectors} vectors of {size:,} numbers, {vectors * size * width / 1e9:.3g} GB",
            f"at most {room / 1e9:.3g} GB. Do: block_eigenvalues, which goes layer by layer, or hessian(subject, only=)",
        )


def finite(value: float) -> None:
    """Refuse to go on from what is not a number.

    Raises:
        NoAnswer: the value is infinite or NaN.
    """
    if not math.isfinite(value):
        raise NoAnswer(
            "products with the matrix are not finite", "weights and data on which the loss is finite"
        )


def _order(values: Array, end: str) -> Array:
    by = {"magnitude": -np.abs(values), "largest": -values, "smallest": values}[end]
    return np.argsort(by, kind="stable")


def blocks(subject: Subject) -> dict[str, list[str]]:
    """Layers -> the names of their parameters: those of one module are one block.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> subject = Subject(net, [(torch.ones(1, 2), torch.ones(1, 1))], torch.nn.functional.mse_loss)
        >>> blocks(subject)
        {'0': ['0.weight', '0.bias'], '1': ['1.weight', '1.bias']}
    """
    found: dict[str, list[str]] = {}
    for name in subject.parameters():
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def block_eigenvalues(
    subject: Subject,
    kind: str = "hessian",
    of: Mapping[str, Sequence[str]] | None = None,
    tolerance: float = 1e-2,
    most: int = 200,
    seed: int = 0,
) -> dict[str, Eigenpairs]:
    """The eigenvalue of largest magnitude of every block on the diagonal.

    Args:
        subject: what is measured.
        kind: ``hessian`` or ``gauss_newton``.
        of: name of a block -> names of its parameters; default: :func:`blocks`.
        tolerance: as of :func:`top_eigenpairs`.
        most: as of :func:`top_eigenpairs`.
        seed: as of :func:`top_eigenpairs`.

    Raises:
        ValueError: a kind of another name.
    """
    if kind not in KINDS:
        raise ValueError(f"no curvature named {kind!r}. There are: {', '.join(KINDS)}")
    found = {}
    for name, parameters in (of or blocks(subject)).items():
        with KINDS[kind](subject, only=parameters) as product:
            found[name] = top_eigenpairs(product, 1, "magnitude", tolerance, most, seed)
    return found


def probe(subject: Subject, count: int = 5, seed: int = 0) -> list[Measurement]:
    """The Hessian's eigenvalues of largest magnitude, by rank: ``hessian_eigenvalue_1``, ``_2`` and so on."""
    with timed() as watch, hessian(subject) as product:
        found = top_eigenpairs(product, min(count, product.size), seed=seed)
    spent, how = watch.spent(gradient_seconds(subject)), switched(subject)
    return [
        _measured(f"hessian_eigenvalue_{i + 1}", "", found, i, how, spent) for i in range(len(found.values))
    ]


def blocks_probe(subject: Subject, seed: int = 0) -> list[Measurement]:
    """:func:`block_eigenvalues` of the Hessian as measurements, one for every layer."""
    with timed() as watch:
        found = block_eigenvalues(subject, seed=seed)
    spent, how = watch.spent(gradient_seconds(subject)), switched(subject)
    return [
        _measured("block_eigenvalue", name, pairs, 0, how, spent)
        for name, pairs in found.items()
        if len(pairs.values)
    ]


def _measured(name: str, of: str, pairs: Eigenpairs, i: int, changed: str, spent: Spent) -> Measurement:
    """Its standard error is the residual, within which an eigenvalue lies for certain."""
    how = f"Lanczos, {pairs.products} products, within the residual for certain{changed}"
    if not pairs.converged:
        how += "; not converged"
    return Measurement(name, float(pairs.values[i]), float(pairs.residuals[i]), "nats", of, how, spent)
