"""LR2VQ: vectors of neighbouring weights as a map of few dimensions times a code, clustered there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isoloss.compress.formats import Encoded, Format, Vectors
from isoloss.compress.formats.encoded import as_matrix
from isoloss.compress.formats.vectors import nearest
from isoloss.compress.solvers.moments import importance_of, needed, seconds
from isoloss.compress.solvers.solver import Solver, output_error
from isoloss.compress.statistics import Statistics

Weights = Literal["inputs", "fisher", "equal"]

SAMPLE = 1 << 15  # vectors on which a rank is chosen, at most
RIDGE = 1e-6  # of the mean diagonal, in least squares of few points


@dataclass(frozen=True)
class Rank:
    r"""What a number of dimensions comes to.

    Attributes:
        rank: d.
        low: what is lost outside of the best d dimensions, :math:`\sum_{r > d} \sigma_r^2`.
        total: what is lost in all, measured after clustering.
        foretold: ``low`` plus the estimate for many centres and a Gaussian,
            :math:`c_d\,d\,k^{-2/d} (\prod_{r \le d} \sigma_r^2)^{1/d}`, where
            :math:`c_d = \frac{2}{d + 2} \Gamma(\frac d2 + 1)^{2/d} (\frac{d + 2}{d})^{d/2 + 1}`, from 2.72 at d = 1 down to 1.
    """

    rank: int
    low: float
    total: float
    foretold: float


@dataclass(frozen=True)
class Lr2vq(Solver):
    r"""Product quantisation in few dimensions: :math:`w_j \approx P c_{k(j)}`, P (length, d) and k centres of d numbers.

    P starts as the best d dimensions of the vectors (singular value decomposition), each in the scale that the mean
    weight of its place gives it, and centres from vectors drawn at random. Then in turn: codes to the nearest, centres and P by least squares
    of :math:`\sum_j (w_j - P c)^\top D_j (w_j - P c)`, :math:`D_j` the weights. No step raises the error; a
    centre without a vector moves to where most is lost. What is stored is the codebook :math:`P\,C` (format ``vqL-K``), so
    that the size does not depend on d; with d = length it is plain product quantisation.

    With ``refit``, the stored codebook is then fitted to the output error :math:`\mathrm{tr}\,(W - Q) H (W - Q)^\top`
    with codes as they are: it is quadratic in the codebook, and conjugate gradients make it small.

    Args:
        rank: d; 0: of 1 to the length, the one that loses least on at most 32,768 of the vectors, by a clustering of each.
        weights: D: ``inputs``, the mean square of each weight's input; ``fisher``, its mean squared gradient; ``equal``.
        rounds: of codes, centres and P, at most.
        refit: steps of conjugate gradients; with ``inputs`` alone.
        seed: of the vectors drawn.

    Raises:
        ValueError: settings out of range; on solving, a rank above the length.

    Source:
        Z. Zhu et al., Learning Low-Rank Representations for Model Compression, 2022, arXiv 2211.11397. There P is trained
        with the network; here it is fitted to trained weights.

    Example:
        >>> from isoloss.compress import formats
        >>> _ = torch.manual_seed(0)
        >>> weight = torch.randn(64, 1) @ torch.tensor([[1.0, -2.0, 0.5, 1.0]])  # vectors of 4 on one line
        >>> found = Lr2vq(1, "equal").solve(weight, formats.get("vq4-16"), None)
        >>> bool((found.decode() - weight).square().sum() < 0.02 * weight.square().sum())
        True
    """

    rank: int = 0
    weights: Weights = "inputs"
    rounds: int = 20
    refit: int = 20
    seed: int = 0

    name: ClassVar[str] = "lr2vq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 0 or self.rounds < 1 or self.refit < 0:
            raise ValueError(
                "needed a rank of at least 0, rounds of at least 1 and refit of at least 0, got "
                f"{self.rank}, {self.rounds} and {self.refit}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Second moments or squared gradients."""
        return frozenset({"inputs": ("second",), "fisher": ("fisher",), "equal": ()}[self.weights])

    def solve(self, weight: Tensor, format: Format, statistics: Statistics | None) -> Encoded:
        """See :class:`Solver`."""
        kind, matrix = _vectors(format), as_matrix(weight).float()
        points, counts = self._points(matrix, kind, statistics)
        rank = self.rank or min(self.ranks(weight, format, statistics), key=lambda one: one.total).rank
        book = _clustered(points, counts, kind.count, rank, self.rounds, self.seed).codebook
        stored = book.to(torch.float16).float()
        codes = nearest(points, counts, stored).reshape(matrix.shape[0], -1)
        found = kind.encoded(codes, stored, tuple(weight.shape))
        second = None if statistics is None else statistics.second
        if self.weights != "inputs" or second is None or not self.refit:
            return found
        fitted = _refitted(matrix, codes, stored, list(seconds(weight, second)), self.refit)
        better = kind.encoded(codes, fitted, tuple(weight.shape))
        errors = [output_error(weight, one.decode().to(weight), second) for one in (better, found)]
        return better if errors[0] <= errors[1] else found

    def ranks(self, weight: Tensor, format: Format, statistics: Statistics | None) -> list[Rank]:
        """What every number of dimensions comes to, before any ``refit``.

        Args:
            weight, format, statistics: as of :meth:`solve`.
        """
        kind, matrix = _vectors(format), as_matrix(weight).float()
        points, counts = self._points(matrix, kind, statistics)
        if len(points) > SAMPLE:
            order = torch.randperm(len(points), generator=torch.Generator().manual_seed(self.seed))[:SAMPLE]
            points, counts = points[order], counts[order]
        _, sigma = _start(points, counts)
        squares = sigma.double().square()
        out = []
        for rank in range(1, kind.length + 1):
            low = float(squares[rank:].sum())
            total = _clustered(points, counts, kind.count, rank, self.rounds, self.seed).cost
            out.append(Rank(rank, low, total, low + _gaussian(squares[:rank], kind.count)))
        return out

    def _points(self, matrix: Tensor, kind: Vectors, statistics: Statistics | None) -> tuple[Tensor, Tensor]:
        """Vectors, and what an error at each of their numbers counts; nothing past the end of a row."""
        if self.rank > kind.length:
            raise ValueError(f"vectors of {kind.length} have ranks up to that, got rank {self.rank}")
        importance: Tensor | None = torch.ones_like(matrix)
        if self.weights == "fisher":
            importance = needed(statistics, self.name, "fisher").reshape(matrix.shape)
        elif self.weights == "inputs":
            importance = importance_of(matrix, statistics)
            if importance is None:
                importance = needed(statistics, self.name, "second")
        assert importance is not None
        return kind.vectors(matrix), kind.vectors(importance.float())


@dataclass(frozen=True, eq=False)
class _Clustered:
    """A codebook (count, length) and what it loses."""

    codebook: Tensor
    cost: float


def _vectors(format: Format) -> Vectors:
    if not isinstance(format, Vectors):
        raise TypeError(f"lr2vq fills vector codes (vq4-256), not {format.spec}")
    return format


def _start(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Directions (length, length), best first, and the singular values that belong to them."""
    scale = weights.mean(0).sqrt()
    scale = torch.where(scale > 0, scale, scale.max().clamp(min=torch.finfo(torch.float32).tiny))
    _, sigma, v = torch.linalg.svd((points * scale).double(), full_matrices=False)
    if len(v) < points.shape[1]:  # fewer vectors than their length
        v = torch.linalg.qr(torch.cat([v.T, torch.eye(points.shape[1]).to(v)], dim=1))[0].T
        sigma = torch.nn.functional.pad(sigma, (0, points.shape[1] - len(sigma)))
    return (v.T / scale[:, None].double()).float(), sigma


def _gaussian(squares: Tensor, count: int) -> float:
    """Least error of k centres for a Gaussian with these sums of squares along its axes, for many centres."""
    d = len(squares)
    logarithm = float(squares.clamp(min=torch.finfo(torch.float64).tiny).log().mean())
    log_c = math.log(2 / (d + 2)) + 2 / d * math.lgamma(d / 2 + 1) + (d / 2 + 1) * math.log((d + 2) / d)
    return math.exp(log_c + math.log(d) - 2 / d * math.log(count) + logarithm)


def _clustered(points: Tensor, weights: Tensor, count: int, rank: int, rounds: int, seed: int) -> _Clustered:
    """Codes, centres and P in turn."""
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed)).to(points.device)
    directions = _start(points, weights)[0][:, :rank]
    drawn = points.new_zeros(count, points.shape[1])
    drawn[: min(count, len(points))] = points[order[:count]]
    codes = _filled(points, weights, drawn, nearest(points, weights, drawn))
    last, best = math.inf, drawn
    for _ in range(rounds):
        centres = _fitted_centres(points, weights, directions, codes, count)
        if rank < points.shape[1]:
            directions = _fitted_directions(points, weights, centres, codes)
        codebook = centres @ directions.T
        codes = nearest(points, weights, codebook)
        cost = _cost(points, weights, codebook, codes)
        if cost < last:
            best = codebook
        if not cost < last * (1 - 1e-6):
            break
        last = cost
        codes = _filled(points, weights, codebook, codes)
    return _Clustered(best, min(cost, last))


def _cost(points: Tensor, weights: Tensor, codebook: Tensor, codes: Tensor) -> float:
    return float((weights * (points - codebook[codes]).square()).sum(dtype=torch.float64))


def _sums(points: Tensor, weights: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of each centre the weights and the weighted numbers of its vectors, float64 (count, length)."""
    total = points.new_zeros(count, points.shape[1], dtype=torch.float64)
    return (
        total.index_add(0, codes, weights.double()),
        total.index_add(0, codes, (weights * points).double()),
    )


def _solved(a: Tensor, b: Tensor) -> Tensor:
    """Least squares a x = b of a batch (n, d, d), (n, d); 0 where nothing is known."""
    mean = a.diagonal(dim1=1, dim2=2).mean(1)
    ridge = torch.where(mean > 0, RIDGE * mean, 1.0)
    found: Tensor = torch.linalg.solve(a + ridge[:, None, None] * torch.eye(a.shape[1]).to(a), b)
    return found


def _fitted_centres(points: Tensor, weights: Tensor, directions: Tensor, codes: Tensor, count: int) -> Tensor:
    """Centres (count, d) for codes and P as they are."""
    total, moment = _sums(points, weights, codes, count)
    p = directions.double()
    found: Tensor = _solved(torch.einsum("ri,kr,rj->kij", p, total, p), moment @ p)
    return found.float()


def _fitted_directions(points: Tensor, weights: Tensor, centres: Tensor, codes: Tensor) -> Tensor:
    """P (length, d) for codes and centres as they are: a least-squares problem for each of its rows."""
    total, moment = _sums(points, weights, codes, len(centres))
    c = centres.double()
    return _solved(torch.einsum("ki,kr,kj->rij", c, total, c), moment.T @ c).float()


def _filled(points: Tensor, weights: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Centres without a vector take the vectors that lose most."""
    empty = (torch.bincount(codes, minlength=len(codebook)) == 0).nonzero()[:, 0]
    if not len(empty):
        return codes
    lost = (weights * (points - codebook[codes]).square()).sum(1)
    far = lost.argsort(descending=True, stable=True)[: len(empty)]
    moved: Tensor = codes.index_copy(0, far, empty[: len(far)])
    return moved


def _refitted(
    matrix: Tensor, codes: Tensor, codebook: Tensor, moments: list[tuple[slice, Tensor]], steps: int
) -> Tensor:
    """The codebook of least output error for codes as they are: preconditioned conjugate gradients."""
    rows, columns = matrix.shape
    places, length = codes.long(), codebook.shape[1]
    wide = places.shape[1] * length

    def gathered(along: Tensor) -> Tensor:
        """Of the slope at each weight, that of the codebook."""
        padded = along.new_zeros(rows, wide)
        padded[:, :columns] = along
        return torch.zeros_like(codebook).index_add(0, places.reshape(-1), padded.reshape(-1, length))

    def times(gap: Tensor) -> Tensor:
        out = torch.empty_like(gap)
        for part, h in moments:
            out[part] = gap[part] @ h.to(gap)
        return out

    def product(book: Tensor) -> Tensor:
        return gathered(times(book[places].reshape(rows, wide)[:, :columns].contiguous()))

    scale = torch.empty_like(matrix)
    for part, h in moments:
        scale[part] = h.diagonal().clamp(min=0).to(matrix)
    diagonal = gathered(scale)
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    book = codebook.clone()
    rest = gathered(times(matrix - book[places].reshape(rows, wide)[:, :columns]))
    along = inverse * rest
    size = float((rest * along).sum())
    for _ in range(steps):
        if size <= 0:
            break
        bent = product(along)
        curved = float((along * bent).sum())
        if curved <= 0:
            break
        book = book + size / curved * along
        rest = rest - size / curved * bent
        ahead = inverse * rest
        before, size = size, float((rest * ahead).sum())
        along = ahead + size / before * along
    limit = torch.finfo(torch.float16).max
    return book.clamp(-limit, limit)
