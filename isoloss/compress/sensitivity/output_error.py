"""The squared error of what each layer puts out."""

from __future__ import annotations

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\mathrm{tr}\, \Delta W H \Delta W^T`, what layer-wise solvers make small. It costs nothing and needs no loss.

    Outputs of different layers have different scales and matter differently to the loss, of which it knows nothing.

    Source:
        The objective of E. Frantar et al., Optimal Brain Compression, NeurIPS 2022, arXiv 2208.11580.
    """
    table = {
        name: {format: candidates.energy[name] * float(one.rows.sum()) for format, one in own.items()}
        for name, own in candidates.of.items()
    }
    return Scores("output-error", table, "", "squared error of the layer's outputs on the calibration data")
