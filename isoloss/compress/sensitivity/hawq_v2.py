"""The mean curvature of each layer times how far its weights move: HAWQ-V2."""

from __future__ import annotations

import math

from isoloss.compress.candidates import Candidates
from isoloss.compress.sensitivity.hawq import whole_parameters
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.subject import Subject
from isoloss.measure.traces import layer_traces

ACCURACY = 0.1
MOST = 32  # products with the Hessian


def score(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    r""":math:`\Omega = \frac12 \frac{\mathrm{tr} H}{n} \|\Delta W\|^2`, exact where the error points nowhere in particular.

    Raises:
        ValueError: a layer takes no gradient, or is an expert of a tensor of several.

    Source:
        Z. Dong et al., HAWQ-V2, NeurIPS 2020, arXiv 1911.03852, with the 1/2 of the expansion kept.
    """
    whole_parameters(candidates, "hawq-v2")
    traces = layer_traces(subject, ACCURACY, MOST, seed)
    table, errors = {}, {}
    for layer in candidates.layers:
        n = math.prod(layer.shape)
        mean, se = traces.values[layer.path] / n, traces.errors[layer.path] / n
        own = candidates.of[layer.name]
        table[layer.name] = {format: 0.5 * mean * one.distance for format, one in own.items()}
        errors[layer.name] = {format: 0.5 * se * one.distance for format, one in own.items()}
    reached = "" if traces.reached else f"; not to {ACCURACY:.0%}"
    return Scores("hawq-v2", table, "nats", f"{traces.how}{reached}", errors=errors)
