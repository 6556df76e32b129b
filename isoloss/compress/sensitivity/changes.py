"""What choices of formats do to the loss and to the outputs, measured on the same examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from isoloss.compress.candidates import Candidates
from isoloss.compress.paired import paired
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
        loss_se: standard error of the loss itself over the data.
    """

    loss: float
    rise: float
    se: float
    difference: float
    loss_se: float = math.nan


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
    found = paired(
        subject, {str(i): partial(candidates.applied, plan) for i, plan in enumerate(plans)}, progress
    )
    out = []
    for name, losses in found.loss.items():
        loss, rise, moved = found.mean(losses), found.rise(name), found.mean(found.difference[name])
        out.append(Change(loss.value, rise.value, rise.se, moved.value, loss.se))
    return out


def one_by_one(subject: Subject, candidates: Candidates) -> dict[str, dict[str, Change]]:
    """What each layer alone in each format does: a forward pass for each."""
    plans = [{name: format} for name, own in candidates.of.items() for format in own]
    out: dict[str, dict[str, Change]] = {}
    for plan, change in zip(plans, changes(subject, candidates, plans), strict=True):
        for name, format in plan.items():
            out.setdefault(name, {})[format] = change
    return out
