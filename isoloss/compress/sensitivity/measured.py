"""The rise of the loss with one layer compressed, measured."""

from __future__ import annotations

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.changes import one_by_one
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    """The loss with this layer alone in this format, less the loss of the model as it is.

    A forward pass for each layer in each format. May be below 0 on the data at hand.
    """
    found = one_by_one(subject, candidates)
    table = {name: {format: one.rise for format, one in own.items()} for name, own in found.items()}
    errors = {name: {format: one.se for format, one in own.items()} for name, own in found.items()}
    return Scores("measured", table, "nats", "a forward pass for each layer in each format", errors=errors)
