"""The change of what the model predicts with one layer compressed."""

from __future__ import annotations

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.changes import one_by_one
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\mathrm{KL}(p \| p')` with this layer alone in this format; half the squared distance of outputs for other losses.

    A forward pass for each layer in each format. It needs no labels, is never below 0, and near a good fit it is what
    the loss rises by.

    Source:
        J. Liu et al., PD-Quant, CVPR 2023, arXiv 2212.07048, as a score of layers, at temperature 1.
    """
    found = one_by_one(subject, candidates)
    table = {name: {format: one.difference for format, one in own.items()} for name, own in found.items()}
    return Scores("pd", table, "nats", "a forward pass for each layer in each format")
