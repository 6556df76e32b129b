"""What choices of formats do to the loss and to the outputs, measured on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from isoloss.compress.candidates import Candidates
from isoloss.compress.replay import calibrating
from isoloss.measure.criteria import CrossEntropy
from isoloss.measure.products import count_of
from isoloss.measure.subject import Subject


@dataclass(frozen=True)
class Change:
    """What a choice of formats does.

    Attributes:
        loss: of the changed model.
        rise: by how much it is above the model's own.
        se: standard error of the rise over the data, the same examples before and after; NaN for a single one.
        difference: of the predictions: the Kullback-Leibler divergence from the model's own [nats] under
            cross-entropy, half the squared distance of the outputs elsewhere; a mean over rows.
    """

    loss: float
    rise: float
    se: float
    difference: float


def changes(
    subject: Subject,
    candidates: Candidates,
    plans: Sequence[Mapping[str, str]],
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Change]:
    """What each of several choices of formats, layer -> format, does; layers that it does not name stay as they are.

    One forward pass for each choice and one for the model itself, over all batches.

    Args:
        subject: model, data and loss.
        candidates: of the same model.
        plans: the choices.
        progress: (what, passes done, passes in all).

    Raises:
        ValueError: the candidates are of another model.
    """
    own_modules = set(subject.model.modules())
    if any(layer.module not in own_modules for layer in candidates.layers):
        raise ValueError("the candidates are of another model. Make them of the subject's own")
    base: list[Tensor] = []
    found: list[list[Tensor]] = [[] for _ in plans]
    differences = [0.0 for _ in plans]
    shares: list[Tensor] = []
    counts = [count_of(subject, batch) for batch in subject.batches]
    done, passes = 0, len(subject.batches) * len(plans)
    with torch.no_grad(), calibrating(subject.model):
        for batch, count in zip(subject.batches, counts, strict=True):
            if not count:
                continue
            own = subject.predict(batch[0])
            losses, parts = _losses(subject, own, batch[1])
            base.append(losses)
            shares.append(parts * (count / sum(counts)))
            for i, plan in enumerate(plans):
                if progress is not None:
                    progress("measuring", done, passes)
                done += 1
                with candidates.applied(plan):
                    z = subject.predict(batch[0])
                found[i].append(_losses(subject, z, batch[1])[0])
                differences[i] += _difference(subject, own, z, batch[1]) * count / sum(counts)
    share, before = torch.cat(shares), torch.cat(base)
    out = []
    for losses_of, difference in zip(found, differences, strict=True):
        rise = torch.cat(losses_of) - before
        mean = float((share * rise).sum())
        n = len(rise)
        se = math.sqrt(float((share * (rise - mean)).square().sum()) * n / (n - 1)) if n > 1 else math.nan
        out.append(Change(float((share * before).sum()) + mean, mean, se, difference))
    return out


def _losses(subject: Subject, z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the examples of a batch and their shares in it; of the whole batch where single ones are not known."""
    criterion = subject.criterion
    if isinstance(criterion, CrossEntropy) and isinstance(targets, Tensor) and targets.ndim:
        rows = F.cross_entropy(
            z.flatten(0, -2).float(), targets.flatten(), ignore_index=criterion.ignored, reduction="none"
        )
        rows = rows.reshape(targets.shape[0], -1).double()
        counted = (targets != criterion.ignored).reshape(targets.shape[0], -1)
        number = counted.sum(1)
        kept = number > 0
        return rows.sum(1)[kept] / number[kept], number[kept].double() / float(number.sum())
    one = torch.as_tensor(float(criterion(z, targets)), dtype=torch.float64)
    return one[None], torch.ones(1, dtype=torch.float64)


def _difference(subject: Subject, own: Tensor, z: Tensor, targets: Tensor) -> float:
    criterion = subject.criterion
    if isinstance(criterion, CrossEntropy):
        before, after = own.float().log_softmax(-1), z.float().log_softmax(-1)
        rows = (before.exp() * (before - after)).sum(-1)
        return float(rows[targets != criterion.ignored].double().mean())
    return 0.5 * float((z - own).double().square().sum()) / max(1, math.prod(own.shape[:-1]))


def one_by_one(subject: Subject, candidates: Candidates) -> dict[str, dict[str, Change]]:
    """What each layer alone in each format does: a forward pass for each."""
    plans = [{name: format} for name, own in candidates.of.items() for format in own]
    out: dict[str, dict[str, Change]] = {}
    for plan, change in zip(plans, changes(subject, candidates, plans), strict=True):
        for name, format in plan.items():
            out.setdefault(name, {})[format] = change
    return out
