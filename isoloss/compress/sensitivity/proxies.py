r"""Training-free proxies as EMQ compares them: of each layer one number, times the bits that it has, added up.

A plan that gives many bits to layers with a large number is thought to be good. As scores the number is multiplied with the
bits that are taken off 32, so that, as for every method of sensitivity, the larger is the worse; the order of plans is the
same. None of them sees what a format really does to a weight. The sound form of ``bhawq-v2`` is ``hawq-v2`` of
:data:`isoloss.compress.sensitivity.SENSITIVITIES`: the trace times the squared error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from isoloss.compress.candidates import Candidates
from isoloss.compress.costs import multiplications
from isoloss.compress.layers import Layer, find
from isoloss.compress.replay import calibrating
from isoloss.compress.sensitivity.hawq import MOST, TOLERANCE, whole_parameters
from isoloss.compress.sensitivity.hawq_v2 import ACCURACY
from isoloss.compress.sensitivity.hawq_v2 import MOST as PRODUCTS
from isoloss.compress.sensitivity.scores import Scores
from isoloss.measure.eigen import block_eigenvalues
from isoloss.measure.measurement import timed
from isoloss.measure.products import weights
from isoloss.measure.subject import Subject, call, examples_of, resized
from isoloss.measure.traces import layer_traces

WHOLE = 32.0  # bits of a weight that is not compressed
INPUTS = 8.0  # bits of the inputs in BOPs, the same for all layers
Quantity = Callable[[Subject, Candidates, int], Mapping[str, float]]


def bparams(subject: Subject, candidates: Candidates, seed: int = 0) -> dict[str, float]:
    r""":math:`n_l / 8`: the score of a plan is its bytes, the one to be better than."""
    return {layer.name: math.prod(layer.shape) / 8 for layer in candidates.layers}


def bops(subject: Subject, candidates: Candidates, seed: int = 0) -> dict[str, float]:
    r""":math:`M_l b_a` with :math:`M_l` multiplications for an example and inputs of 8 bits: bit operations."""
    batch = subject.batches[0]
    counts = multiplications(subject.model, candidates.layers, batch[0])
    return {name: count / max(1, examples_of(batch)) * INPUTS for name, count in counts.items()}


def bsnip(subject: Subject, candidates: Candidates, seed: int = 0) -> dict[str, float]:
    r""":math:`\sum |w \odot \partial L/\partial w|`, the gradient towards a mask of ones, of the mean loss.

    Source:
        N. Lee et al., SNIP, ICLR 2019, arXiv 1810.02340.
    """
    found = gradients(subject, candidates)
    return {
        layer.name: float((layer.matrix() * found[layer.name]).abs().double().sum())
        for layer in candidates.layers
    }


def bsynflow(subject: Subject, candidates: Candidates, seed: int = 0) -> dict[str, float]:
    r""":math:`\sum |w \odot \partial R/\partial w|` of the network with :math:`|w|` for all parameters, the last layer left out.

    R is the sum of its outputs on an input of ones; of ids of tokens, on the first example as it is. Batch normalisation
    passes its input on. Computed in float64.

    Source:
        H. Tanaka et al., SynFlow, NeurIPS 2020, arXiv 2006.05467.
    """
    found = virtual_gradients(subject, candidates)
    last = candidates.layers[-1].name if len(candidates.layers) > 1 else ""
    return {
        layer.name: 0.0
        if layer.name == last
        else float((layer.matrix().abs() * found[layer.name]).abs().double().sum())
        for layer in candidates.layers
    }


def bhawq(subject: Subject, candidates: Candidates, seed: int = 0) -> dict[str, float]:
    r""":math:`|\lambda_l|`, the largest eigenvalue of the layer's block of the Hessian.

    Source:
        Z. Dong et al., HAWQ, ICCV 2019, arXiv 1905.03696, as EMQ adds it up.
    """
    whole_parameters(candidates, "bhawq")
    of = {layer.name: [layer.path] for layer in candidates.layers}
    found = block_eigenvalues(subject, of=of, tolerance=TOLERANCE, most=MOST, seed=seed)
    return {name: abs(float(own.values[0])) if len(own.values) else 0.0 for name, own in found.items()}


def bhawq_v2(subject: Subject, candidates: Candidates, seed: int = 0) -> dict[str, float]:
    r""":math:`\mathrm{tr}\, H_l`, the trace of the layer's block of the Hessian.

    Source:
        Z. Dong et al., HAWQ-V2, NeurIPS 2020, arXiv 1911.03852, as EMQ adds it up.
    """
    whole_parameters(candidates, "bhawq-v2")
    found = layer_traces(subject, ACCURACY, PRODUCTS, seed)
    return {layer.name: found.values[layer.path] for layer in candidates.layers}


PROXIES: dict[str, Quantity] = {
    "bparams": bparams,
    "bops": bops,
    "bsnip": bsnip,
    "bsynflow": bsynflow,
    "bhawq": bhawq,
    "bhawq-v2": bhawq_v2,
}
"""Name -> what gives each layer its number."""


def score(name: str, subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    """A proxy as scores of layers and formats: its number times the bits taken off 32.

    Args:
        name: in ``PROXIES``.
        subject: model, data and loss.
        candidates: of the same model.
        seed: of what is drawn at random.

    Raises:
        ValueError: no such proxy.

    Source:
        P. Dong et al., EMQ, ICCV 2023, arXiv 2307.10554, its baselines as coded there.

    Example:
        >>> from isoloss.compress import Choice
        >>> from isoloss.compress.candidates import candidates
        >>> from isoloss.measure.criteria import SquaredError
        >>> net, x = torch.nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> subject = Subject(net, [(x, torch.zeros(3, 2))], SquaredError())
        >>> tried = candidates(net, find(net).layers, [Choice("int4/tensor")])
        >>> score("bparams", subject, tried).table  # 4 bits each and a scale of 16 for 8 weights
        {'model': {'int4/tensor': 26.0}}
        >>> score("bops", subject, tried).table  # 8 products of 26 by 8 bits
        {'model': {'int4/tensor': 1664.0}}
    """
    if name not in PROXIES:
        raise ValueError(f"no proxy named {name!r}. There are: {', '.join(PROXIES)}")
    with timed() as watch:
        found = PROXIES[name](subject, candidates, seed)
    return scores_of(name, found, candidates, watch.spent())


def snip(subject: Subject, candidates: Candidates, seed: int = 0) -> Scores:
    """``bsnip`` among the methods of :data:`isoloss.compress.sensitivity.SENSITIVITIES`."""
    return score("bsnip", subject, candidates, seed)


def scores_of(
    name: str, quantities: Mapping[str, float], candidates: Candidates, spent: Any = None
) -> Scores:
    """Numbers of layers as scores: times the bits that a format takes off 32."""
    table = {
        layer.name: {
            format: (WHOLE - one.encoded.bits / math.prod(layer.shape)) * quantities[layer.name]
            for format, one in candidates.of[layer.name].items()
        }
        for layer in candidates.layers
    }
    made = Scores(name, table, "", "a number of each layer times the bits taken off; an order alone")
    return made if spent is None else Scores(made.method, made.table, made.unit, made.how, spent)


def gradients(subject: Subject, candidates: Candidates) -> dict[str, Tensor]:
    """Layer -> gradient of the mean loss over all batches, float32 (out, in); zeros where none comes."""
    parameters = {layer.path: getattr(layer.module, layer.parameter) for layer in candidates.layers}
    sums = {path: torch.zeros_like(own, dtype=torch.float32) for path, own in parameters.items()}
    with calibrating(subject.model), torch.enable_grad(), _needing(parameters.values()):
        for batch, share in weights(subject):
            loss = subject.loss(batch)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for path, own in zip(parameters, found, strict=True):
                if own is not None:
                    sums[path] += share * own.float()
    return {layer.name: _matrix(layer, sums[layer.path]) for layer in candidates.layers}


def virtual_gradients(subject: Subject, candidates: Candidates) -> dict[str, Tensor]:
    """Layer -> SynFlow's gradient, that of the sum of outputs with absolute weights, over its largest number, (out, in)."""
    model = copy.deepcopy(subject.model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
            parameter.requires_grad_(True)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda own, args, out: args[0])
    layers = {layer.name: layer for layer in find(model).layers}
    inputs = _ones(resized(subject.batches[0], 1)[0])
    own = {layer.path: getattr(layers[layer.name].module, layer.parameter) for layer in candidates.layers}
    with torch.enable_grad():
        out = call(model, inputs)
        total = (out if subject.outputs is None else subject.outputs(out)).sum()
        found = dict(zip(own, torch.autograd.grad(total, list(own.values()), allow_unused=True), strict=True))
    largest = max((float(one.abs().max()) for one in found.values() if one is not None), default=1.0) or 1.0
    made = {}
    for layer in candidates.layers:
        one = found[layer.path]
        made[layer.name] = (
            torch.zeros(layer.shape) if one is None else _matrix(layer, (one / largest).float())
        )
    return made


def _matrix(layer: Layer, whole: Tensor) -> Tensor:
    own = whole if layer.index is None else whole[layer.index]
    return (own.T if layer.transposed else own.reshape(own.shape[0], -1)).contiguous()


def _ones(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _ones(one) for name, one in value.items()}
    return type(value)(map(_ones, value)) if isinstance(value, tuple | list) else value


class _needing:
    """Parameters that take a gradient for the time of a block."""

    def __init__(self, parameters: Any) -> None:
        self.before = [(one, one.requires_grad) for one in parameters]

    def __enter__(self) -> None:
        for one, _ in self.before:
            one.requires_grad_(True)

    def __exit__(self, *_: Any) -> None:
        for one, needed in self.before:
            one.requires_grad_(needed)
