r"""What a model predicts, and how far two predictions are apart: the measure of errors that no single block shows.

Of class scores z and z' it is, a mean over the rows that count,

.. math:: \mathrm{KL}\big(\mathrm{softmax}(z / T)\,\|\,\mathrm{softmax}(z' / T)\big)

and of other outputs half the squared distance. It needs no labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from isoloss.compress.statistics import counted
from isoloss.measure.criteria import Criterion, CrossEntropy
from isoloss.measure.subject import Subject, call, examples_of


@dataclass(frozen=True, eq=False)
class Predictions:
    """How the outputs of a model are read and compared, batch by batch.

    Args:
        batches: calibration inputs.
        subject: the model's loss, with these batches and their targets. None: the first tensor of floats that the model
            gives holds class scores, and padding does not count.

    Raises:
        ValueError: the subject has other batches.

    Example:
        >>> Predictions([torch.zeros(2, 3)]).difference(torch.zeros(2, 2), torch.tensor([[0.0, 2.0], [0.0, 0.0]]), 0)
        tensor(0.2169)
    """

    batches: Sequence[Any]
    subject: Subject | None = None

    def __post_init__(self) -> None:
        if self.subject is None:
            return
        sizes = [[examples_of(batch) for batch in self.subject.batches]]
        sizes.append([examples_of((inputs, None)) for inputs in self.batches])
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"needed a subject with the calibration batches, of {sizes[1]} examples, got batches of {sizes[0]}"
            )

    @property
    def classes(self) -> bool:
        """Whether the outputs are class scores."""
        return self.subject is None or isinstance(self.subject.criterion, CrossEntropy)

    def read(self, out: Any) -> Tensor:
        """The tensor to compare, of what the model gives."""
        if self.subject is not None and self.subject.outputs is not None:
            out = self.subject.outputs(out)
        return first(out)

    def rows(self, z: Tensor, batch: int) -> Tensor | None:
        """Which rows of the outputs count, bool (all dimensions but the last); None: all."""
        if self.subject is None:
            own = counted(self.batches[batch])
        else:
            own, criterion = None, self.subject.criterion
            if isinstance(criterion, CrossEntropy):
                own = self.subject.batches[batch][1] != criterion.ignored
        return own if own is not None and own.shape == z.shape[:-1] else None

    def difference(self, own: Tensor, other: Tensor, batch: int, temperature: float = 1.0) -> Tensor:
        """How far the predictions of a batch are from the model's own, mean over rows; gradients go through.

        Args:
            own: z.
            other: z'.
            batch: its number.
            temperature: T; of class scores alone.
        """
        rows = self.rows(own, batch)
        own, other = own.float(), other.float()
        if self.classes:
            before, after = (own / temperature).log_softmax(-1), (other / temperature).log_softmax(-1)
            each = (before.exp() * (before - after)).sum(-1)
        else:
            each = 0.5 * (other - own).square().sum(-1)
        return (each if rows is None else each[rows]).mean()

    def apart(self, model: nn.Module, own: Sequence[Tensor], batches: Sequence[int] | None = None) -> float:
        """How far a model's predictions are from what they were, mean over all rows that count; no gradients.

        Args:
            model: in the state in which it is to be run.
            own: z of every batch.
            batches: numbers of those to look at; None: all.
        """
        total, count = 0.0, 0
        with torch.no_grad():
            for i in range(len(own)) if batches is None else batches:
                rows = self.rows(own[i], i)
                number = own[i][..., 0].numel() if rows is None else int(rows.sum())
                if number:
                    now = self.read(call(model, self.batches[i]))
                    total += number * float(self.difference(own[i], now, i))
                    count += number
        return total / max(count, 1)

    def slope(self, z: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """What to send back from the outputs, for squared gradients: summed over the rows, not their mean.

        With a subject the gradient of its loss at the data's own labels; else :math:`S r` with random signs r and
        :math:`S S^T` the curvature of the KL divergence, so that squares of what comes back are the diagonal of the
        Gauss-Newton matrix in expectation.
        """
        if self.subject is not None:
            targets = self.subject.batches[batch][1]
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                [along] = torch.autograd.grad(self.subject.criterion(leaf, targets), [leaf])
            criterion = self.subject.criterion
            number = criterion.rows(targets) if isinstance(criterion, Criterion) else z.shape[0]
            return along * number
        signs = torch.randint(0, 2, z.shape, generator=generator).to(z) * 2 - 1
        nothing = torch.zeros(z.shape[:-1], dtype=torch.long, device=z.device)
        along = CrossEntropy().root(z.detach().float(), nothing, signs.float())
        rows = self.rows(z, batch)
        return (along if rows is None else along * rows[..., None]).to(z.dtype)


def first(out: Any) -> Tensor:
    """The first tensor of floats in what a module gives.

    Raises:
        ValueError: there is none.

    Example:
        >>> first((torch.tensor([1]), [torch.tensor([2.0])]))
        tensor([2.])
    """
    for leaf in tree_flatten(out)[0]:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise ValueError(
        "there is no tensor of floats in what the module gives, so its output cannot be compared"
    )


def features(out: Tensor) -> int:
    """How many numbers of a block's output belong to one position: channels of pictures, else the last dimension.

    Example:
        >>> features(torch.zeros(2, 16, 8, 8)), features(torch.zeros(2, 5, 64))
        (16, 64)
    """
    return out.shape[1] if out.ndim >= 4 else out.shape[-1]


def positions(out: Tensor) -> int:
    """How many there are of those in all."""
    return math.prod(out.shape) // features(out)
