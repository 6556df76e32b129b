"""The steepest curvature of each layer: HAWQ."""

from __future__ import annotations

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.eigen import block_eigenvalues
from isoloss.measure.subject import Subject

TOLERANCE = 0.05
MOST = 40  # products with each block


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\Omega = \frac12 |\lambda| \|\Delta W\|^2` with the Hessian block's eigenvalue of largest magnitude.

    At second order no more can be lost. The paper orders layers by :math:`\lambda / n`, with n their weights, and picks
    bits by hand; its order of fine-tuning is that of :math:`\lambda \|\Delta W\|^2`.

    Raises:
        ValueError: a layer takes no gradient, or is an expert of a tensor of several.

    Source:
        Z. Dong et al., HAWQ, ICCV 2019, arXiv 1905.03696.
    """
    whole_parameters(candidates, "hawq")
    of = {layer.name: [layer.path] for layer in candidates.layers}
    found = block_eigenvalues(subject, of=of, tolerance=TOLERANCE, most=MOST, seed=seed)
    top = {name: abs(float(pairs.values[0])) if len(pairs.values) else 0.0 for name, pairs in found.items()}
    products = sum(pairs.products for pairs in found.values())
    slow = [name for name, pairs in found.items() if not pairs.converged]
    table = {
        name: {format: 0.5 * top[name] * one.distance for format, one in own.items()}
        for name, own in candidates.of.items()
    }
    note = f"; not converged: {', '.join(slow)}" if slow else ""
    return Scores("hawq", table, "nats", f"Lanczos, {products} products with blocks of the Hessian{note}")


def whole_parameters(candidates: Candidates, name: str) -> None:
    """Refuse layers that are a part of a parameter.

    Raises:
        ValueError: there is one.
    """
    part = next((layer.name for layer in candidates.layers if layer.index is not None), None)
    if part is not None:
        raise ValueError(f"{name} knows whole parameters, and {part} is a part of one. Use block-fisher")
