r"""The squared error of every output of a layer, weighted by what an error there does to the loss."""

from __future__ import annotations

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.gradients import how, squares
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\frac12 \sum_o \Gamma_o (\Delta W H \Delta W^T)_{oo}`, with :math:`\Gamma_o` the curvature of output o.

    If inputs and the gradient at the outputs are independent of each other, the curvature of a layer is a Kronecker
    product of H and the outputs' curvature; here of that the diagonal. Then the Fisher diagonal's sum over a row is
    :math:`\Gamma_o \mathrm{tr} H`, which is where :math:`\Gamma_o` is taken from: no output need be caught.

    Source:
        J. Martens, R. Grosse, K-FAC, ICML 2015, arXiv 1503.05671; the weighting of outputs as in Y. Li et al., BRECQ,
        ICLR 2021, arXiv 2102.05426.
    """
    diagonal = squares(subject, candidates.layers, seed)
    table = {
        name: {format: 0.5 * float(diagonal[name].sum(1).cpu() @ one.rows) for format, one in own.items()}
        for name, own in candidates.of.items()
    }
    return Scores("kronecker", table, "nats", f"outputs weighted by their curvature; {how(subject)}")
