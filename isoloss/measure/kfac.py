r"""Kronecker-factored Fisher matrices: layer by layer, the inverse at the cost of two small eigenproblems.

The block of a layer is the mean of :math:`(\delta\delta^T) \otimes (xx^T)` over examples. K-FAC takes the mean of each
side, :math:`B \otimes A`; EK-FAC keeps the eigenvectors of A and B, and takes what the block has on its diagonal in that
basis, :math:`s_{kl} = \frac1m\sum_i (u_k^T g_i v_l)^2`, which is the nearest such matrix to the block. Damping is added
to the eigenvalues, so that :math:`(B\otimes A + \lambda)^{-1}` is exact for what is approximated.

A weight and the bias of its layer are one block (x ends in a 1). Over positions (sequences, convolutions) A and B are
means over all of them ("expand"); EK-FAC's eigenvalues are of the sums over positions. Parameters of few numbers that
have no such form, as scales of norms, get their whole block, exactly. Embeddings and parameters that layers share are
refused.

Sources: Martens, Grosse 2015, arXiv:1503.05671; Grosse, Martens 2016, arXiv:1602.01407 (convolutions); George et al. 2018,
arXiv:1806.03884 (EK-FAC); Eschenhagen et al. 2023, arXiv:2311.00636 (expand).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isoloss.measure import ghost
from isoloss.measure.products import Vector, flatten, known_criterion, unflatten, weights
from isoloss.measure.subject import Subject, examples_of

WHOLE = 2048  # numbers in a parameter of no Kronecker form, at most
BLOCK = 1 << 20  # numbers in a temporary, about


@dataclass(frozen=True, eq=False)
class Kronecker:
    """One block, by its eigenvectors.

    Attributes:
        names: of the parameters: a weight, a weight and its bias, or one of no Kronecker form.
        out, into: eigenvectors of B (M, M) and of A (K, K), in columns.
        eigenvalues: (M, K).
    """

    names: tuple[str, ...]
    out: Tensor
    into: Tensor
    eigenvalues: Tensor

    def scaled(self, matrix: Tensor, scale: Tensor) -> Tensor:
        """A matrix (M, K), in the basis of the eigenvectors times ``scale``, and back."""
        inside = self.out.mT @ matrix @ self.into
        return self.out @ (inside * scale) @ self.into.mT


@dataclass(frozen=True, eq=False)
class Kfac:
    """A Kronecker-factored Fisher matrix and its inverse.

    Attributes:
        like: the parameters.
        damping: lambda; of the inverse only.
        blocks: one per layer.
    """

    like: Mapping[str, Tensor]
    damping: float
    blocks: Sequence[Kronecker]

    def __call__(self, v: Vector) -> dict[str, Tensor]:
        r""":math:`(\hat F + \lambda I)^{-1} v`, v a vector over the parameters, in its own precision."""
        return self._each(v, [1 / (block.eigenvalues + self.damping) for block in self.blocks])

    def times(self, v: Vector) -> dict[str, Tensor]:
        r""":math:`\hat F v`: what is approximated, without damping."""
        return self._each(v, [block.eigenvalues for block in self.blocks])

    def flat(self, v: Tensor) -> Tensor:
        """The inverse's product with a flat vector (d,), in float64."""
        return flatten(self(unflatten(v.double(), self.like)))

    def _each(self, v: Vector, scales: Sequence[Tensor]) -> dict[str, Tensor]:
        found = {}
        for block, scale in zip(self.blocks, scales, strict=True):
            parts = [v[name].double().reshape(len(block.out), -1) for name in block.names]
            product = block.scaled(torch.cat(parts, dim=1), scale)
            widths = [part.shape[1] for part in parts]
            for name, part in zip(block.names, torch.split(product, widths, dim=1), strict=True):
                found[name] = part.reshape(v[name].shape).to(v[name].dtype)
        return {name: found[name] for name in self.like}


def kfac(
    subject: Subject, damping: float = 1e-3, corrected: bool = True, draws: int | None = 1, seed: int = 0
) -> Kfac:
    r"""K-FAC or EK-FAC of the Gauss-Newton matrix (the Fisher matrix of these losses).

    Args:
        subject: with a criterion of known curvature.
        damping: lambda, above 0.
        corrected: EK-FAC, else K-FAC.
        draws: passes with one random sign per output of every row; None: a pass for every column of the root of
            every row (token) of an example by itself, exact.
        seed: of the signs.

    Raises:
        TypeError: a parameter is an embedding, is shared by layers, or has no Kronecker form and many numbers; or
            the criterion or a layer is of an unknown kind, or layers mix examples.
        ValueError: the damping is not above 0.

    Example:
        >>> from isoloss.measure.criteria import SquaredError
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> subject = Subject(torch.nn.Linear(2, 1, bias=False), [(x, torch.zeros(2, 1))], SquaredError())
        >>> kfac(subject, damping=0.5, draws=None)({"weight": torch.ones(1, 2)})["weight"].tolist()
        [[1.0, 1.0]]
    """
    if not damping > 0:
        raise ValueError(f"needed a damping above 0, got {damping}")
    sides: dict[str, tuple[Tensor, Tensor]] = {}  # A and B, summed
    rows: dict[str, int] = {}
    blocks: dict[str, tuple[str, ...]] = {}
    alike = ghost.verify(subject).shared
    with subject.measuring():
        for first, uses in _passes(subject, draws, seed, alike):
            for key, use in uses.items():
                x, delta = use.x.flatten(0, 1).double(), use.delta.flatten(0, 1).double()
                a, b = sides.get(key, (torch.zeros(()), torch.zeros(())))
                if first:  # the inputs are the same in every pass over a batch
                    a, rows[key] = a + x.mT @ x, rows.get(key, 0) + len(x)
                sides[key] = a, b + delta.mT @ delta
                blocks[key] = use.names
        found = {}
        for key, (a, b) in sides.items():
            on_a, into = torch.linalg.eigh(a / rows[key])
            on_b, out = torch.linalg.eigh(b / subject.examples)
            values = on_b.clamp_min(0)[:, None] * on_a.clamp_min(0)
            found[key] = Kronecker(blocks[key], out, into, values)
        if corrected:
            found = _corrected(subject, found, draws, seed, alike)
    missing = [
        name for name in subject.parameters() if not any(name in block.names for block in found.values())
    ]
    if missing:
        raise TypeError(
            f"needed every parameter in the outputs' graph, got none of {missing[0]}. Do: freeze it"
        )
    return Kfac(subject.parameters(), damping, list(found.values()))


@dataclass(frozen=True, eq=False)
class _Use:
    """x (examples, T, K) and delta (examples, T, M) of one block."""

    names: tuple[str, ...]
    x: Tensor
    delta: Tensor


def _passes(
    subject: Subject, draws: int | None, seed: int, alike: Collection[str]
) -> Iterator[tuple[bool, dict[str, _Use]]]:
    """Every backward pass: whether it is the first over its batch, and the blocks' factors.

    Scaled so that the mean over examples of the products of a pass's rows, summed over passes, is the matrix. A column
    at several rows of outputs (tokens) at once would add products across rows, that are no part of it; random signs
    have none on average.
    """
    criterion = known_criterion(subject)
    generator = torch.Generator().manual_seed(seed)
    for batch, share in weights(subject):
        count = examples_of(batch)
        with ghost.recording(subject.model, count, alike) as tape:
            z = subject.predict(batch[0])
        scale = math.sqrt(share * subject.examples / criterion.rows(batch[1]))
        with torch.no_grad():
            if draws is None:
                roots = list(ghost.by_row(criterion.columns(z.detach(), batch[1]), count))
            else:
                scale /= math.sqrt(draws)
                signs = [torch.randint(0, 2, z.shape, generator=generator) * 2 - 1 for _ in range(draws)]
                roots = [criterion.root(z.detach(), batch[1], each.to(z)) for each in signs]
        for i, root in enumerate(roots):
            found = ghost.pieces(tape, z, root * scale, keep=i < len(roots) - 1)
            with torch.no_grad():
                yield i == 0, _blocks(subject, found)


def _blocks(
    subject: Subject, found: Mapping[str, list[ghost.Plain | ghost.Outer | ghost.Rows]]
) -> dict[str, _Use]:
    uses: dict[str, _Use] = {}
    biases = set()
    owners: dict[str, list[str]] = {}
    for name, pieces in found.items():
        if all(isinstance(piece, ghost.Outer) for piece in pieces):
            calls = [piece.call.name for piece in pieces if isinstance(piece, ghost.Outer)]
            owners[name] = list(dict.fromkeys(calls))
    for name, pieces in found.items():
        if name in owners:
            if len(owners[name]) > 1:
                raise TypeError(
                    f"K-FAC needs parameters of one layer each, got {name} of {' and '.join(owners[name])}"
                )
            outers = [piece for piece in pieces if isinstance(piece, ghost.Outer)]
            x = torch.cat([piece.call.matrix() for piece in outers], dim=1)
            bias = f"{name.removesuffix('weight')}bias"
            names: tuple[str, ...] = (name,)
            if bias in found:
                if len(found[bias]) != len(outers):
                    raise TypeError(f"K-FAC needs parameters of one layer each, got {bias} of several")
                x, names = torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2), (name, bias)
                biases.add(bias)
            uses[name] = _Use(names, x, torch.cat([piece.delta for piece in outers], dim=1))
    for name, pieces in found.items():
        if name in uses or name in biases:
            continue
        plain = [piece.value.flatten(1) for piece in pieces if isinstance(piece, ghost.Plain)]
        if len(plain) < len(pieces):
            raise TypeError(
                f"K-FAC needs linear layers, convolutions and norms, got {name} of an embedding. Do: freeze it"
            )
        if plain[0].shape[1] > WHOLE:
            raise TypeError(
                f"K-FAC has no form for {name}, whose {plain[0].shape[1]} numbers are too many for a whole block "
                f"(at most {WHOLE}). Do: freeze it"
            )
        delta = torch.stack(plain).sum(0)[:, None]
        uses[name] = _Use((name,), delta.new_ones(len(delta), 1, 1), delta)
    return uses


def _corrected(
    subject: Subject,
    blocks: Mapping[str, Kronecker],
    draws: int | None,
    seed: int,
    alike: Collection[str],
) -> dict[str, Kronecker]:
    """The same eigenvectors, with what the blocks have on the diagonal in their basis."""
    values = {key: torch.zeros_like(block.eigenvalues) for key, block in blocks.items()}
    for _, uses in _passes(subject, draws, seed, alike):
        for key, use in uses.items():
            x, delta = use.x.double() @ blocks[key].into, use.delta.double() @ blocks[key].out
            if x.shape[1] == 1:
                values[key] += delta[:, 0].square().mT @ x[:, 0].square()
                continue
            size = max(1, BLOCK // values[key].numel())
            for some, other in zip(delta.split(size), x.split(size), strict=True):  # type: ignore[no-untyped-call]
                values[key] += (some.mT @ other).square().sum(0)
    return {
        key: Kronecker(block.names, block.out, block.into, values[key] / subject.examples)
        for key, block in blocks.items()
    }
