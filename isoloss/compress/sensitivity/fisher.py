"""The diagonal of the Fisher matrix times the squared error of every weight."""

from __future__ import annotations

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.gradients import how, squares
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\frac12 \sum_{ij} F_{ij} \Delta W_{ij}^2`: every weight counts by its own curvature, and for itself.

    Source:
        The objective of S. Kim et al., SqueezeLLM, ICML 2024, arXiv 2306.07629.
    """
    diagonal = squares(subject, candidates.layers, seed)
    table: dict[str, dict[str, float]] = {}
    for layer in candidates.layers:
        weight, own = layer.matrix(), diagonal[layer.name]
        table[layer.name] = {
            format: 0.5 * float((own * (one.encoded.decode().to(weight) - weight).square()).sum())
            for format, one in candidates.of[layer.name].items()
        }
    return Scores("fisher", table, "nats", f"diagonal; {how(subject)}")
