r"""The diagonal of the Fisher matrix: a parameter's mean squared gradient.

- exact: :math:`\frac1n \sum_i \sum_c (J_i^T s_{ic})^2` with :math:`S_i S_i^T = H_{z_i}`, the diagonal of the
  Gauss-Newton matrix, which is the Fisher matrix of these losses; one backward pass per column of the outputs;
- sampled: one backward pass per draw, a random sign per column and row in place of all columns; unbiased;
- empirical: gradients at the data's own labels, one backward pass; all rows of an example make one gradient. It is
  no estimate of the others (Kunstner, Hennig, Balles 2019, arXiv:1905.12558).

Squares are of every example's own gradient, not of the batch's.

Sources: Amari 1998 (Fisher); Kirkpatrick et al. 2017, arXiv:1612.00796 (its diagonal as a parameter's importance).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isoloss.measure import ghost
from isoloss.measure.estimates import drawn
from isoloss.measure.measurement import Measurement, timed
from isoloss.measure.products import gradient_seconds, known_criterion, weights
from isoloss.measure.subject import Subject, chunks

NUMBERS = 1 << 24  # of per-example gradients at a time, about
KINDS = ("exact", "sampled", "empirical")


@dataclass(frozen=True, eq=False)
class DiagonalFisher:
    """The diagonal, in the parameters' shapes.

    Attributes:
        values: name -> diagonal.
        errors: name -> standard error of every entry over the draws; 0 where exact, NaN for one draw.
        means: name -> mean over the tensor's entries, and its standard error.
        how: the kind in a few words.
    """

    values: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]
    means: Mapping[str, tuple[float, float]]
    how: str


def diagonal_fisher(subject: Subject, kind: str = "sampled", draws: int = 4, seed: int = 0) -> DiagonalFisher:
    """The diagonal of the Fisher matrix of the mean loss.

    Args:
        subject: with a criterion of known curvature and layers of known kinds.
        kind: ``exact``, ``sampled`` or ``empirical``.
        draws: of ``sampled``.
        seed: of ``sampled``.

    Raises:
        TypeError: a criterion or a layer of an unknown kind; layers that mix examples.
        ValueError: a kind of another name; fewer than one draw.

    Example:
        >>> from isoloss.measure.criteria import SquaredError
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> subject = Subject(torch.nn.Linear(2, 1), [(x, torch.zeros(2, 1))], SquaredError())
        >>> diagonal_fisher(subject, "exact").values["weight"].tolist()  # means of the squares of x
        [[5.0, 2.0]]
    """
    if kind not in KINDS:
        raise ValueError(f"no diagonal named {kind!r}. There are: {', '.join(KINDS)}")
    if draws < 1:
        raise ValueError(f"needed at least one draw, got {draws}")
    like = subject.parameters()
    sums = {name: _Sums(torch.zeros_like(p, dtype=torch.float64)) for name, p in like.items()}
    criterion = known_criterion(subject)
    seen = ghost.verify(subject)
    each = max(sum(p.numel() for p in like.values()), seen.numbers // ghost.TRIED)
    generator = torch.Generator().manual_seed(seed)
    with subject.measuring(), torch.enable_grad():
        for whole, share in weights(subject):
            scale = share / criterion.rows(whole[1])
            for batch in chunks(whole, max(1, NUMBERS // each)):
                count = len(batch[1])
                with ghost.recording(subject.model, count, seen.shared) as tape:
                    z = subject.predict(batch[0])
                with torch.no_grad():
                    pulled = list(_pulled(subject, z.detach(), batch[1], count, kind, draws, generator))
                for i, cotangent in enumerate(pulled):
                    found = ghost.pieces(tape, z, cotangent, keep=i < len(pulled) - 1)
                    with torch.no_grad():
                        for name, parts in found.items():
                            sums[name].add(scale * _squares(parts, like[name].shape).double())
                for one in sums.values():
                    one.close(draws if kind == "sampled" else 0)
    how = {
        "exact": "exact, one pass per column",
        "sampled": f"{drawn(draws)} a column",
        "empirical": "at the data's labels",
    }
    return DiagonalFisher(
        {name: one.value for name, one in sums.items()},
        {name: one.variance.sqrt() for name, one in sums.items()},
        {name: (float(one.value.mean()), math.sqrt(one.of_mean)) for name, one in sums.items()},
        how[kind],
    )


@dataclass
class _Sums:
    """A tensor's diagonal. The draws of every piece of the data are of their own, so that their variances add."""

    value: Tensor
    variance: Tensor = field(init=False)
    of_mean: float = 0.0
    first: Tensor | None = None  # of the piece in hand: sum over draws, and of squares
    second: Tensor | None = None
    means: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.variance = torch.zeros_like(self.value)

    def add(self, squares: Tensor) -> None:
        """One pass over a piece."""
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(self.value), torch.zeros_like(self.value)
        self.first += squares
        self.second += squares.square()
        self.means.append(float(squares.mean()))

    def close(self, draws: int) -> None:
        """A piece is done; ``draws`` = 0: its passes add up and are exact."""
        if self.first is not None and self.second is not None:
            self.value += self.first / max(draws, 1)
            if draws == 1:
                self.variance += torch.nan
                self.of_mean = math.nan
            elif draws:
                spread = (self.second - self.first.square() / draws).clamp_min(0)
                self.variance += spread / (draws - 1) / draws
                self.of_mean += statistics.variance(self.means) / draws
        self.first, self.second, self.means = None, None, []


def _pulled(
    subject: Subject,
    z: Tensor,
    targets: Tensor,
    examples: int,
    kind: str,
    draws: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    criterion = known_criterion(subject)
    if kind == "empirical":
        yield criterion.slope(z, targets)
    elif kind == "sampled":
        for _ in range(draws):
            v = torch.randint(0, 2, z.shape, generator=generator, dtype=torch.int8)
            yield criterion.root(z, targets, v.to(z) * 2 - 1)
    else:
        yield from ghost.by_row(criterion.columns(z, targets), examples)


def _squares(parts: Sequence[ghost.Plain | ghost.Outer | ghost.Rows], shape: torch.Size) -> Tensor:
    """Sum over examples of the squares of every entry of their gradients."""
    if len(parts) == 1:
        part = parts[0]
        if isinstance(part, ghost.Outer) and part.delta.shape[1] == 1:
            return (part.delta[:, 0].square().mT @ part.call.matrix()[:, 0].square()).view(shape)
        if isinstance(part, ghost.Rows):
            return _looked_up(part, shape)
    total = None
    for part in parts:
        formed = _formed(part, shape)
        total = formed if total is None else total + formed
    assert total is not None
    return total.square().sum(0).view(shape)


def _formed(part: ghost.Plain | ghost.Outer | ghost.Rows, shape: torch.Size) -> Tensor:
    """Every example's gradient, (examples, numbers)."""
    if isinstance(part, ghost.Plain):
        return part.value.flatten(1)
    if isinstance(part, ghost.Outer):
        return (part.delta.mT @ part.call.matrix()).flatten(1)
    out = torch.zeros(len(part.index), *shape, dtype=part.delta.dtype, device=part.delta.device)
    return out.scatter_add_(1, part.index.unsqueeze(-1).expand_as(part.delta), part.delta).flatten(1)


def _looked_up(part: ghost.Rows, shape: torch.Size) -> Tensor:
    """Of an embedding, without the rows that an example does not look up."""
    same = (part.index[:, :, None] == part.index[:, None, :]).to(part.delta)
    summed = same @ part.delta  # at every position, the sum over all positions of the same index
    each = summed.square() / same.sum(2, keepdim=True)  # which all have it: a share for each
    out = torch.zeros(shape, dtype=each.dtype, device=each.device)
    return out.index_add_(0, part.index.reshape(-1), each.reshape(-1, shape[1]))


def probe(subject: Subject, draws: int = 4, seed: int = 0) -> list[Measurement]:
    """Mean of the sampled diagonal over every tensor, as measurements."""
    with timed() as watch:
        found = diagonal_fisher(subject, "sampled", max(draws, 2), seed)
    spent = watch.spent(gradient_seconds(subject))
    return [
        Measurement("diagonal_fisher", mean, se, "nats", name, found.how, spent)
        for name, (mean, se) in found.means.items()
    ]
