"""Losses of a model and its variants, example by example: all on the same ones, so that their differences are paired.

Examples differ far more among themselves than a variant differs from its model. The standard error of a difference is
therefore taken over the differences of single examples, not over the losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isoloss.compress.replay import calibrating
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.products import count_of
from isoloss.measure.subject import Subject

Applied = Callable[[], AbstractContextManager[object]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Mean:
    """A mean over examples and its standard error; NaN where there is one example alone."""

    value: float
    se: float


@dataclass(frozen=True, eq=False)
class Paired:
    """What was measured of every example.

    Attributes:
        share: of each example in a mean, float64 (n,), 1 in sum.
        before: its loss with the model as it is, (n,).
        loss: variant -> its loss, (n,).
        difference: variant -> how far its predictions moved, (n,): the Kullback-Leibler divergence from the model's own
            [nats] under cross-entropy, half the squared distance of the outputs elsewhere.
    """

    share: Tensor
    before: Tensor
    loss: Mapping[str, Tensor]
    difference: Mapping[str, Tensor]

    def mean(self, values: Tensor) -> Mean:
        """Mean over the examples, each with its share.

        Example:
            >>> share = torch.full((4,), 0.25, dtype=torch.float64)
            >>> found = Paired(share, share, {}, {}).mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
            >>> found.value, round(found.se, 4)  # the standard deviation 1.291 over the root of 4
            (2.5, 0.6455)
        """
        values = values.double()
        mean, n = float((self.share * values).sum()), len(values)
        if n < 2:
            return Mean(mean, math.nan)
        spread = float((self.share * (values - mean)).square().sum())
        return Mean(mean, math.sqrt(spread * n / (n - 1)))

    def rise(self, variant: str) -> Mean:
        """Of the loss above the model's own."""
        return self.mean(self.loss[variant] - self.before)

    def gap(self, one: str, other: str) -> tuple[Mean, Mean]:
        """Loss and difference of the predictions of one variant, less those of the other."""
        return (
            self.mean(self.loss[one] - self.loss[other]),
            self.mean(self.difference[one] - self.difference[other]),
        )


def paired(subject: Subject, variants: Mapping[str, Applied], progress: Progress | None = None) -> Paired:
    """Losses of a model and of its variants on the subject's data; a forward pass for each.

    Args:
        subject: model, data and loss.
        variants: name -> what puts the variant in place for the time of a block.
        progress: (what, passes done, passes in all).

    Example:
        >>> from contextlib import nullcontext
        >>> net = torch.nn.Linear(2, 2)
        >>> subject = Subject(net, [(torch.ones(3, 2), torch.tensor([0, 1, 1]))], CrossEntropy())
        >>> paired(subject, {"the same": nullcontext}).rise("the same")
        Mean(value=0.0, se=0.0)
    """
    before: list[Tensor] = []
    shares: list[Tensor] = []
    losses: dict[str, list[Tensor]] = {name: [] for name in variants}
    moved: dict[str, list[Tensor]] = {name: [] for name in variants}
    counts = [count_of(subject, batch) for batch in subject.batches]
    done, passes = 0, len(subject.batches) * len(variants)
    with torch.no_grad(), calibrating(subject.model):
        for batch, count in zip(subject.batches, counts, strict=True):
            if not count:
                continue
            own = subject.predict(batch[0])
            values, parts = _losses(subject, own, batch[1])
            before.append(values)
            shares.append(parts * (count / sum(counts)))
            for name, applied in variants.items():
                if progress is not None:
                    progress("measuring", done, passes)
                done += 1
                with applied():
                    z = subject.predict(batch[0])
                losses[name].append(_losses(subject, z, batch[1])[0])
                moved[name].append(_differences(subject, own, z, batch[1]))
    return Paired(
        torch.cat(shares),
        torch.cat(before),
        {name: torch.cat(parts) for name, parts in losses.items()},
        {name: torch.cat(parts) for name, parts in moved.items()},
    )


def _single(subject: Subject, targets: object) -> bool:
    """Whether the loss of a single example is known, not only that of a batch."""
    return isinstance(subject.criterion, CrossEntropy) and isinstance(targets, Tensor) and targets.ndim > 0


def _counted(subject: Subject, targets: Tensor) -> Tensor:
    """Which rows of each example count, (examples, rows)."""
    assert isinstance(subject.criterion, CrossEntropy)
    return (targets != subject.criterion.ignored).reshape(targets.shape[0], -1)


def _losses(subject: Subject, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the examples of a batch and their shares in it; of the whole batch where single ones are not known."""
    if not _single(subject, targets):
        one = torch.as_tensor(float(subject.criterion(z, targets)), dtype=torch.float64)
        return one[None], torch.ones(1, dtype=torch.float64)
    assert isinstance(subject.criterion, CrossEntropy)
    rows = F.cross_entropy(
        z.flatten(0, -2).float(), targets.flatten(), ignore_index=subject.criterion.ignored, reduction="none"
    )
    counted = _counted(subject, targets)
    number, kept = counted.sum(1), counted.any(1)
    sums = rows.reshape(counted.shape).double().sum(1)
    share = number[kept].double() / float(number.sum())
    return (sums[kept] / number[kept]).cpu(), share.cpu()


def _differences(subject: Subject, own: Tensor, z: Tensor, targets: Tensor) -> Tensor:
    """How far the predictions of each example moved; of the whole batch where single losses are not known."""
    if not _single(subject, targets):
        rows = max(1, math.prod(own.shape[:-1]))
        return (0.5 * (z - own).double().square().sum() / rows).reshape(1).cpu()
    before, after = own.float().log_softmax(-1), z.float().log_softmax(-1)
    rows_of = (before.exp() * (before - after)).sum(-1).double()
    counted = _counted(subject, targets)
    kept, rows_of = counted.any(1), rows_of.reshape(counted.shape) * counted
    return (rows_of.sum(1)[kept] / counted.sum(1)[kept]).cpu()
