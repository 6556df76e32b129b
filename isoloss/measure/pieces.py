r"""A subject's data in pieces, each with a curvature matrix and random vectors of its own.

The matrix of a mean loss is the mean of those of pieces of the data, :math:`A = \sum_k s_k A_k`. One random vector
for all gives :math:`v^T A v`, of variance :math:`2\|A\|^2` off the diagonal; one for each piece gives
:math:`\sum_k s_k v_k^T A_k v_k` at the same cost, of variance :math:`2\sum_k s_k^2 \|A_k\|^2`: never more (the norm
is convex) than K times less than with one, and as much as that where the pieces agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from isoloss.measure.products import Product, count_of, weights
from isoloss.measure.subject import Batch, Subject, chunks, examples_of

ROWS = 512  # counted rows of a piece, at the least: with fewer the random vectors cost more than the products


@dataclass(frozen=True, eq=False)
class Piece:
    """Some of the data.

    Attributes:
        subject: with this data alone.
        share: of all the data.
        product: of this data's matrix.
    """

    subject: Subject
    share: float
    product: Product


@contextmanager
def in_pieces(
    subject: Subject, kind: Callable[[Subject], AbstractContextManager[Product]], cut: bool
) -> Iterator[list[Piece]]:
    """The pieces, with their products' graphs kept within the block.

    Args:
        subject: whose data.
        kind: :func:`isoloss.measure.products.hessian` or another.
        cut: cut batches too; not to be done where the loss of a batch is more than a mean over its examples.
    """
    with ExitStack() as stack:
        yield [Piece(part, share, stack.enter_context(kind(part))) for part, share in split(subject, cut)]


def split(subject: Subject, cut: bool) -> list[tuple[Subject, float]]:
    """Pieces of at least :data:`ROWS` counted rows, in order, and their shares of the data.

    Example:
        >>> import torch
        >>> from isoloss.measure.criteria import SquaredError
        >>> batch = (torch.zeros(1300, 2), torch.zeros(1300, 1))
        >>> subject = Subject(torch.nn.Linear(2, 1), [batch], SquaredError())
        >>> [(part.examples, round(share, 2)) for part, share in split(subject, cut=True)]
        [(650, 0.5), (650, 0.5)]
    """
    found: list[list[Batch]] = []
    counts: list[float] = []
    for whole, _ in weights(subject):
        rows, examples = count_of(subject, whole), examples_of(whole)
        parts = max(1, int(rows // ROWS)) if cut else 1
        for batch in chunks(whole, -(-examples // parts)):
            count = count_of(subject, batch)
            if not count:
                continue
            if not found or counts[-1] >= ROWS:
                found.append([])
                counts.append(0.0)
            found[-1].append(batch)
            counts[-1] += count
    if len(found) > 1 and counts[-1] < ROWS:
        found[-2] += found.pop()
        counts[-2] += counts.pop()
    total = sum(counts)
    return [
        (replace(subject, batches=batches), count / total)
        for batches, count in zip(found, counts, strict=True)
    ]
