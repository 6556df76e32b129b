r"""The whole curvature along what each format does to a layer, from single examples' gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.gradients import how, of_examples
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject

NUMBERS = 1 << 28  # of gradients that are held at a time


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\frac12 \sum_e c_e \langle g_e, \Delta W\rangle^2`, half of :math:`\Delta W^T G \Delta W` without bias.

    No part of the layer's block is left out, neither between its weights nor between outputs. One gradient of each
    example serves all layers and formats, and as its products with the errors of several layers add up, the terms
    between layers are known too: :meth:`Scores.together`.

    Source:
        The project's own; the Gauss-Newton matrix as in N. Schraudolph, Neural Computation 14 (7), 2002.
    """
    each = max(1, NUMBERS // max(1, candidates.weights))
    along: dict[str, dict[str, list[Tensor]]] = {
        name: {format: [] for format in own} for name, own in candidates.of.items()
    }
    held: list[tuple[float, dict[str, Tensor]]] = []

    def project() -> None:
        for layer in candidates.layers:
            weight = layer.matrix()
            found = [math.sqrt(c) * g[layer.name].flatten() for c, g in held if layer.name in g]
            rows = torch.stack(found) if len(found) == len(held) else None
            for format, one in candidates.of[layer.name].items():
                gap = (one.encoded.decode().to(weight) - weight).flatten()
                own = torch.zeros(len(held)) if rows is None else (rows @ gap).cpu()
                along[layer.name][format].append(own.double())
        held.clear()

    for pair in of_examples(subject, candidates.layers, seed):
        held.append(pair)
        if len(held) == each:
            project()
    if held:
        project()
    joined = {
        name: {format: torch.cat(parts) for format, parts in own.items()} for name, own in along.items()
    }
    table = {
        name: {format: 0.5 * float(v.square().sum()) for format, v in own.items()}
        for name, own in joined.items()
    }
    errors = {
        name: {
            format: 0.5 * math.sqrt(len(v)) * float(v.square().std()) if len(v) > 1 else math.nan
            for format, v in own.items()
        }
        for name, own in joined.items()
    }
    return Scores(
        "block-fisher",
        table,
        "nats",
        f"each layer's whole block; {how(subject)}",
        errors=errors,
        along=joined,
    )
